# A whole layer with linear attention and experts, in primitives: norm, q/k/v, q/k norm, rope, linear attention, group norm, gate, output
# product, residual, norm, routing, experts, shared expert, residual.
# RUN: ringc-opt %s -p 'raise' | filecheck %s
module @layer level graph
func @main(%x: f32[N / B, 12], %positions: i32[N / B], %slots: i32[B], %offsets: i32[B + 1], %pool: state<f32[P; 2, 8, 8]>) {
  %n = constant() {value = [12.0], dtype = f32}
  %eps = constant() {value = [1e-06], dtype = f32}
  %one = constant() {value = [1.0], dtype = f32}

  # angles
  %f = constant() {value = [1.0, 0.01], dtype = f32, shape = [1, 2]}
  %pf = cast(%positions) {dtype = f32}
  %pc = reshape(%pf) {shape = [N, 1]}
  %angle = mul(%pc, %f)
  %cos = cos(%angle)
  %sin = sin(%angle)
  %cosr = reshape(%cos) {shape = [N, 1, 2]}
  %sinr = reshape(%sin) {shape = [N, 1, 2]}

  # input norm
  %w1 = param() {source = "input_layernorm.weight", dtype = f32, shape = [12]}
  %sq1 = mul(%x, %x)
  %ss1 = sum(%sq1) {axes = [1], keep = true}
  %ms1 = div(%ss1, %n)
  %me1 = add(%ms1, %eps)
  %rt1 = sqrt(%me1)
  %nx1 = div(%x, %rt1)
  %h1 = mul(%nx1, %w1)

  # gate first, then q, k, v of one product
  %wg = param() {source = "attention.g_proj.weight", dtype = f32, shape = [16, 12]}
  %gate_ = matmul(%h1, %wg) {transpose_b = true}
  %gate = sigmoid(%gate_)
  %wqkv = param() {source = "attention.query_key_value.weight", dtype = f32, shape = [48, 12]}
  %qkv_ = matmul(%h1, %wqkv) {transpose_b = true}
  %qkv = reshape(%qkv_) {shape = [N, 6, 8]}
  %q0 = slice(%qkv) {axis = 1, start = 0, stop = 2}
  %k0 = slice(%qkv) {axis = 1, start = 2, stop = 4}
  %v = slice(%qkv) {axis = 1, start = 4, stop = 6}

  # q norm and rope, by halves
  %wq = param() {source = "attention.query_layernorm.weight", dtype = f32, shape = [8]}
  %sqq = mul(%q0, %q0)
  %msq = mean(%sqq) {axes = [2], keep = true}
  %meq = add(%msq, %eps)
  %rtq = rsqrt(%meq)
  %nq = mul(%q0, %rtq)
  %q1 = mul(%nq, %wq)
  %qa = slice(%q1) {axis = 2, start = 0, stop = 2}
  %qb = slice(%q1) {axis = 2, start = 2, stop = 4}
  %qr = slice(%q1) {axis = 2, start = 4, stop = 8}
  %qac = mul(%qa, %cosr)
  %qbs = mul(%qb, %sinr)
  %qbc = mul(%qb, %cosr)
  %qas = mul(%qa, %sinr)
  %qo1 = sub(%qac, %qbs)
  %qo2 = add(%qbc, %qas)
  %q2 = concat([%qo1, %qo2, %qr]) {axis = 2}

  # k norm and rope, by a rotated copy
  %wk = param() {source = "attention.key_layernorm.weight", dtype = f32, shape = [8]}
  %sqk = mul(%k0, %k0)
  %msk = mean(%sqk) {axes = [2], keep = true}
  %mek = add(%msk, %eps)
  %rtk = rsqrt(%mek)
  %nk = mul(%k0, %rtk)
  %k1 = mul(%nk, %wk)
  %kt = slice(%k1) {axis = 2, start = 0, stop = 4}
  %kr = slice(%k1) {axis = 2, start = 4, stop = 8}
  %ka = slice(%kt) {axis = 2, start = 0, stop = 2}
  %kb = slice(%kt) {axis = 2, start = 2, stop = 4}
  %kbn = neg(%kb)
  %krot = concat([%kbn, %ka]) {axis = 2}
  %cos2 = concat([%cosr, %cosr]) {axis = 2}
  %sin2 = concat([%sinr, %sinr]) {axis = 2}
  %kc = mul(%kt, %cos2)
  %ks = mul(%krot, %sin2)
  %ko = add(%kc, %ks)
  %k2 = concat([%ko, %kr]) {axis = 2}

  # linear attention
  %S0 = state_read(%pool, %slots)
  %slopes = constant() {value = [0.7, 0.1], dtype = f32, shape = [2]}
  %minus = neg(%slopes)
  %lam = exp(%minus)
  %decay = reshape(%lam) {shape = [2, 1, 1]}
  %final, %o = scan(%S0, [%q2, %k2, %v], [%decay], %offsets) ^(%S: f32[2, 8, 8], %q: f32[2, 8], %k: f32[2, 8], %v: f32[2, 8], %d: f32[2, 1, 1]) {
    %kc = reshape(%k) {shape = [2, 8, 1]}
    %vr = reshape(%v) {shape = [2, 1, 8]}
    %kv = mul(%kc, %vr)
    %old = mul(%d, %S)
    %new = add(%old, %kv)
    %c = constant() {value = [0.3535533905932738], dtype = f32}
    %qs = mul(%q, %c)
    %qr = reshape(%qs) {shape = [2, 1, 8]}
    %oo = matmul(%qr, %new)
    %out = reshape(%oo) {shape = [2, 8]}
    return %new, %out
  }
  %pool1 = state_write(%pool, %slots, %final)

  # group norm, gate, output product, residual
  %wgn = param() {source = "attention.g_norm.weight", dtype = f32, shape = [16]}
  %og = reshape(%o) {shape = [N, 2, 8]}
  %sqg = mul(%og, %og)
  %msg = mean(%sqg) {axes = [2], keep = true}
  %meg = add(%msg, %eps)
  %rtg = rsqrt(%meg)
  %ng = mul(%og, %rtg)
  %of = reshape(%ng) {shape = [N, 16]}
  %ow = mul(%of, %wgn)
  %gated = mul(%ow, %gate)
  %wdense = param() {source = "attention.dense.weight", dtype = f32, shape = [12, 16]}
  %mixed = matmul(%gated, %wdense) {transpose_b = true}
  %x1 = add(%x, %mixed)

  # second norm
  %w2 = param() {source = "post_attention_layernorm.weight", dtype = f32, shape = [12]}
  %sq2 = mul(%x1, %x1)
  %ms2 = mean(%sq2) {axes = [1], keep = true}
  %me2 = add(%ms2, %eps)
  %rt2 = rsqrt(%me2)
  %nx2 = mul(%x1, %rt2)
  %h2 = mul(%nx2, %w2)

  # routing: 2 of 6 experts, in 2 of 3 groups
  %wr = param() {source = "mlp.gate.weight", dtype = f32, shape = [6, 12]}
  %bias = param() {source = "mlp.gate.expert_bias", dtype = f32, shape = [6]}
  %logits = matmul(%h2, %wr) {transpose_b = true}
  %p = sigmoid(%logits)
  %pb = add(%p, %bias)
  %pg = reshape(%pb) {shape = [N, 3, 2]}
  %gt, %gti = topk(%pg) {k = 2}
  %gs = sum(%gt) {axes = [2]}
  %best, %besti = topk(%gs) {k = 2}
  %last = slice(%best) {axis = 1, start = 1, stop = 2}
  %kept = ge(%gs, %last)
  %keptg = reshape(%kept) {shape = [N, 3, 1]}
  %inf = constant() {value = [-inf], dtype = f32}
  %pm_ = where(%keptg, %pg, %inf)
  %pm = reshape(%pm_) {shape = [N, 6]}
  %val, %ids = topk(%pm) {k = 2}
  %pw = take_along(%p, %ids)
  %pws = sum(%pw) {axes = [1], keep = true}
  %tiny = constant() {value = [1e-20], dtype = f32}
  %pwt = add(%pws, %tiny)
  %pwn = div(%pw, %pwt)
  %factor = constant() {value = [2.5], dtype = f32}
  %weights = mul(%pwn, %factor)

  # experts
  %flat = reshape(%ids) {shape = [2*N]}
  %order, %offs, %places = sort_by_key(%flat) {num_keys = 6}
  %two = constant() {value = [2], dtype = i32}
  %token = floordiv(%order, %two)
  %rows = gather(%h2, %token)
  %weg = param() {source = "mlp.experts.*.gate_proj.weight", dtype = f32, shape = [6, 5, 12]}
  %weu = param() {source = "mlp.experts.*.up_proj.weight", dtype = f32, shape = [6, 5, 12]}
  %wed = param() {source = "mlp.experts.*.down_proj.weight", dtype = f32, shape = [6, 12, 5]}
  %eg = segment_matmul(%rows, %weg, %offs)
  %eu = segment_matmul(%rows, %weu, %offs)
  %egs = sigmoid(%eg)
  %ega = mul(%egs, %eg)
  %eh = mul(%eu, %ega)
  %ey = segment_matmul(%eh, %wed, %offs)
  %wflat = reshape(%weights) {shape = [2*N]}
  %wsort = gather(%wflat, %order)
  %wcol = reshape(%wsort) {shape = [2*N, 1]}
  %eyw = mul(%ey, %wcol)
  %routed = scatter_add(%eyw, %token) {length = N}

  # shared expert, gate and up of one product
  %wsgu = param() {source = "mlp.shared_experts.gate_up.weight", dtype = f32, shape = [10, 12]}
  %wsd = param() {source = "mlp.shared_experts.down_proj.weight", dtype = f32, shape = [12, 5]}
  %sgu = matmul(%h2, %wsgu) {transpose_b = true}
  %sg = slice(%sgu) {axis = 1, start = 0, stop = 5}
  %su = slice(%sgu) {axis = 1, start = 5, stop = 10}
  %sgn = neg(%sg)
  %sge = exp(%sgn)
  %sgd = add(%one, %sge)
  %sga = div(%sg, %sgd)
  %sh = mul(%sga, %su)
  %sy = matmul(%sh, %wsd) {transpose_b = true}
  %y = add(%routed, %sy)
  %x2 = add(%x1, %y)
  return %x2, %pool1
}

# CHECK:      module @layer level fused
# CHECK-NOT:  {{ (scan|state_read|state_write|scatter_add|topk|where|exp|sqrt|rsqrt|mean)\(}}
# CHECK:      [[H1:%h1]] = rms_norm(%x, %w1) : f32[N / B, 12]
# CHECK:      [[W:%[0-9]+]] = concat([%wqkv, %wg]) {axis = 0} : f32[64, 12]
# CHECK-NEXT: [[P:%[0-9]+]] = matmul([[H1]], [[W]]) {transpose_b = true} : f32[N / B, 64]
# CHECK:      %q1 = rms_norm({{.*}}, %wq)
# CHECK:      %q2 = rope(%q1, %cos, %sin) : f32[N / B, 2, 8]
# CHECK:      %k1 = rms_norm({{.*}}, %wk)
# CHECK:      %k2 = rope(%k1, %cos, %sin) : f32[N / B, 2, 8]
# CHECK:      %o, %pool1 = linear_attention(%q2, %k2, %v, {{%.*}}, %pool, %slots, %offsets) {scale = 0.3535533905932738}
# CHECK:      rms_norm({{%.*}}, _) : f32[N / B, 2, 8]
# CHECK:      %h2 = rms_norm(%x1, %w2)
# CHECK:      %logits = matmul(%h2, %wr) {transpose_b = true}
# CHECK:      %ids, %weights = route(%logits, %bias) {top_k = 2, groups = 3, keep = 2, factor = 2.5}
# CHECK:      %rows = gather(%h2, %token)
# CHECK:      [[EG:%eg]] = segment_matmul(%rows, %weg, %offs)
# CHECK:      [[A:%ega]] = silu([[EG]])
# CHECK-NEXT: [[EH:%eh]] = mul([[A]], %eu)
# CHECK:      [[EY:%ey]] = segment_matmul([[EH]], %wed, %offs)
# CHECK:      gather([[EY]], %places) : f32[2*N, 12]
# CHECK:      sum({{.*}}) {axes = [1]} : f32[N, 12]
