# Kernel functions of ring-mini-linear-2.0 in bf16, for the tests on a GPU; @linear_front_rope has other heads. Implementations are chosen when the tests run.
module @ring-mini level kernel
symbol B >= 1
symbol N >= 1
symbol P >= 1
symbol R >= 1
symbol S >= 1

func @project(%0: bf16[N / B, 2048], %1: bf16[8192, 2048]) with {family = "matmul"} {
  %2 = matmul(%0, %1) {transpose_b = true} : bf16[N / B, 8192]
  return %2
}

func @split_norm_rope(%0: bf16[N / B, 8192], %query_layernorm: bf16[128], %cos: f32[N / B, 32], %sin: f32[N / B, 32], %key_layernorm: bf16[128]) with {family = "row"} {
  %1 = slice(%0) {axis = 1, start = 0, stop = 2048} : bf16[N / B, 2048]
  %2 = reshape(%1) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %3 = slice(%0) {axis = 1, start = 2048, stop = 4096} : bf16[N / B, 2048]
  %4 = reshape(%3) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %5 = slice(%0) {axis = 1, start = 4096, stop = 6144} : bf16[N / B, 2048]
  %6 = rms_norm(%2, %query_layernorm) : bf16[N / B, 16, 128]
  %7 = cast(%6) {dtype = f32} : f32[N / B, 16, 128]
  %8 = rope(%7, %cos, %sin) : f32[N / B, 16, 128]
  %q = cast(%8) {dtype = bf16} : bf16[N / B, 16, 128]
  %9 = rms_norm(%4, %key_layernorm) : bf16[N / B, 16, 128]
  %10 = cast(%9) {dtype = f32} : f32[N / B, 16, 128]
  %11 = rope(%10, %cos, %sin) : f32[N / B, 16, 128]
  %k = cast(%11) {dtype = bf16} : bf16[N / B, 16, 128]
  return %5, %q, %k
}

func @linear_recurrent(%q: bf16[N / B, 16, 128], %k: bf16[N / B, 16, 128], %v: bf16[N / B, 16, 128], %0: f32[16], %state: state<f32[P; 16, 128, 128]>, %slots: i32[B], %offsets: i32[B + 1]) with {family = "linear_attention"} {
  %1, %2 = linear_attention(%q, %k, %v, %0, %state, %slots, %offsets) {scale = 0.08838834764831845, form = "recurrent", steepest = 0.7071138522543595} : bf16[N / B, 16, 128], state<f32[P; 16, 128, 128]>
  return %1, %2
}

func @linear_front(%0: bf16[N / B, 8192], %query_layernorm: bf16[128], %cos: f32[N / B, 32], %sin: f32[N / B, 32], %key_layernorm: bf16[128], %slopes: f32[16], %state: state<f32[P; 16, 128, 128]>, %slots: i32[B], %offsets: i32[B + 1]) with {family = "linear_attention"} {
  %1 = slice(%0) {axis = 1, start = 0, stop = 2048} : bf16[N / B, 2048]
  %2 = reshape(%1) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %3 = slice(%0) {axis = 1, start = 2048, stop = 4096} : bf16[N / B, 2048]
  %4 = reshape(%3) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %5 = slice(%0) {axis = 1, start = 4096, stop = 6144} : bf16[N / B, 2048]
  %v = reshape(%5) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %6 = rms_norm(%2, %query_layernorm) : bf16[N / B, 16, 128]
  %7 = cast(%6) {dtype = f32} : f32[N / B, 16, 128]
  %8 = rope(%7, %cos, %sin) : f32[N / B, 16, 128]
  %q = cast(%8) {dtype = bf16} : bf16[N / B, 16, 128]
  %9 = rms_norm(%4, %key_layernorm) : bf16[N / B, 16, 128]
  %10 = cast(%9) {dtype = f32} : f32[N / B, 16, 128]
  %11 = rope(%10, %cos, %sin) : f32[N / B, 16, 128]
  %k = cast(%11) {dtype = bf16} : bf16[N / B, 16, 128]
  %12, %13 = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {scale = 0.08838834764831845, form = "recurrent", steepest = 0.7071138522543595} : bf16[N / B, 16, 128], state<f32[P; 16, 128, 128]>
  return %12, %13
}

func @linear_front_rope(%0: bf16[N / B, 16, 80], %1: bf16[N / B, 16, 80], %v: bf16[N / B, 16, 48], %cos: f32[N / B, 40], %sin: f32[N / B, 40], %slopes: f32[16], %state: state<f32[P; 16, 80, 48]>, %slots: i32[B], %offsets: i32[B + 1]) with {family = "linear_attention"} {
  %2 = cast(%0) {dtype = f32} : f32[N / B, 16, 80]
  %3 = rope(%2, %cos, %sin) : f32[N / B, 16, 80]
  %q = cast(%3) {dtype = bf16} : bf16[N / B, 16, 80]
  %4 = cast(%1) {dtype = f32} : f32[N / B, 16, 80]
  %5 = rope(%4, %cos, %sin) : f32[N / B, 16, 80]
  %k = cast(%5) {dtype = bf16} : bf16[N / B, 16, 80]
  %6, %7 = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {scale = 0.1118033988749895, form = "recurrent", steepest = 0.7071138522543595} : bf16[N / B, 16, 48], state<f32[P; 16, 80, 48]>
  return %6, %7
}

func @linear_chunked(%q: bf16[N / B, 16, 128], %k: bf16[N / B, 16, 128], %v: bf16[N / B, 16, 128], %0: f32[16], %state: state<f32[P; 16, 128, 128]>, %slots: i32[B], %offsets: i32[B + 1]) with {family = "linear_attention"} {
  %1, %2 = linear_attention(%q, %k, %v, %0, %state, %slots, %offsets) {scale = 0.08838834764831845, form = "chunked", steepest = 0.7071138522543595} : bf16[N / B, 16, 128], state<f32[P; 16, 128, 128]>
  return %1, %2
}

func @linear_chunked_cut(%0: bf16[N / B, 8192], %q: bf16[N / B, 16, 128], %k: bf16[N / B, 16, 128], %1: f32[16], %state: state<f32[P; 16, 128, 128]>, %slots: i32[B], %offsets: i32[B + 1]) with {family = "linear_attention"} {
  %2 = slice(%0) {axis = 1, start = 4096, stop = 6144} : bf16[N / B, 2048]
  %v = reshape(%2) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %3, %4 = linear_attention(%q, %k, %v, %1, %state, %slots, %offsets) {scale = 0.08838834764831845, form = "chunked", steepest = 0.7071138522543595} : bf16[N / B, 16, 128], state<f32[P; 16, 128, 128]>
  return %3, %4
}

func @gate(%0: bf16[N / B, 8192], %1: bf16[N / B, 16, 128], %g_norm: bf16[2048]) with {family = "row"} {
  %2 = slice(%0) {axis = 1, start = 6144, stop = 8192} : bf16[N / B, 2048]
  %3 = reshape(%1) {shape = [N, 4, 512]} : bf16[N / B, 4, 512]
  %4 = rms_norm(%3, _) : bf16[N / B, 4, 512]
  %5 = reshape(%4) {shape = [N, 2048]} : bf16[N / B, 2048]
  %6 = mul(%5, %g_norm) : bf16[N / B, 2048]
  %7 = sigmoid(%2) : bf16[N / B, 2048]
  %8 = mul(%6, %7) : bf16[N / B, 2048]
  return %8
}

func @add_project(%0: bf16[N / B, 2048], %dense: bf16[2048, 2048], %x: bf16[N / B, 2048]) with {family = "matmul"} {
  %1 = matmul(%0, %dense) {transpose_b = true} : bf16[N / B, 2048]
  %2 = add(%x, %1) : bf16[N / B, 2048]
  return %2
}

func @norm(%0: bf16[N / B, 2048], %post_attention_layernorm: bf16[2048]) with {family = "row"} {
  %1 = rms_norm(%0, %post_attention_layernorm) : bf16[N / B, 2048]
  return %1
}

func @swiglu(%0: bf16[N / B, 2048], %gate_proj: bf16[5120, 2048], %up_proj: bf16[5120, 2048]) with {family = "matmul"} {
  %1 = matmul(%0, %gate_proj) {transpose_b = true} : bf16[N / B, 5120]
  %2 = matmul(%0, %up_proj) {transpose_b = true} : bf16[N / B, 5120]
  %3 = silu(%1) : bf16[N / B, 5120]
  %4 = mul(%3, %2) : bf16[N / B, 5120]
  return %4
}

func @route(%0: bf16[N / B, 2048], %gate: bf16[256, 2048], %gate_expert_bias: f32[256]) with {family = "route"} {
  %2 = matmul(%0, %gate) {transpose_b = true, out = f32} : f32[N / B, 256]
  %experts, %weights = route(%2, %gate_expert_bias) {top_k = 8, groups = 8, keep = 4, factor = 2.5} : i32[N / B, 8], f32[N / B, 8]
  return %experts, %weights
}

func @choose(%0: f32[N / B, 256], %gate_expert_bias: f32[256]) with {family = "route"} {
  %experts, %weights = route(%0, %gate_expert_bias) {top_k = 8, groups = 8, keep = 4, factor = 2.5} : i32[N / B, 8], f32[N / B, 8]
  return %experts, %weights
}

func @sort(%0: i32[8*N]) with {family = "sort"} {
  %1, %2, %3 = sort_by_key(%0) {num_keys = 256} : i32[8*N / 256], i32[257], i32[8*N]
  return %1, %2, %3
}

func @experts_up(%0: i32[8*N / 256], %1: bf16[N / B, 2048], %experts_all_gate_proj: bf16[256, 512, 2048], %2: i32[257], %experts_all_up_proj: bf16[256, 512, 2048]) with {family = "grouped"} {
  %3 = constant() {value = [8], dtype = i32} : i32[]
  %token = floordiv(%0, %3) : i32[8*N / 256]
  %4 = gather(%1, %token) : bf16[8*N / 256, 2048]
  %5 = segment_matmul(%4, %experts_all_gate_proj, %2) : bf16[8*N / 256, 512]
  %6 = segment_matmul(%4, %experts_all_up_proj, %2) : bf16[8*N / 256, 512]
  %7 = silu(%5) : bf16[8*N / 256, 512]
  %8 = mul(%7, %6) : bf16[8*N / 256, 512]
  return %8
}

func @experts_down(%0: bf16[8*N / 256, 512], %experts_all_down_proj: bf16[256, 2048, 512], %1: i32[257]) with {family = "grouped"} {
  %2 = segment_matmul(%0, %experts_all_down_proj, %1) : bf16[8*N / 256, 2048]
  return %2
}

func @few_up(%x: bf16[N / B, 2048], %norm: bf16[2048], %experts_all_gate_proj: bf16[256, 512, 2048], %ids: i32[N, 8], %experts_all_up_proj: bf16[256, 512, 2048]) with {family = "grouped"} {
  %0 = rms_norm(%x, %norm) : bf16[N / B, 2048]
  %1 = gather_matmul(%0, %experts_all_gate_proj, %ids) : bf16[N, 8, 512]
  %2 = gather_matmul(%0, %experts_all_up_proj, %ids) : bf16[N, 8, 512]
  %3 = silu(%1) : bf16[N, 8, 512]
  %4 = mul(%3, %2) : bf16[N, 8, 512]
  return %4
}

func @few_down(%h: bf16[N, 8, 512], %experts_all_down_proj: bf16[256, 2048, 512], %ids: i32[N, 8], %weights: f32[N / B, 8, 1], %shared: bf16[N / B, 2048], %residual: bf16[N / B, 2048]) with {family = "grouped"} {
  %0 = gather_matmul(%h, %experts_all_down_proj, %ids) : bf16[N, 8, 2048]
  %1 = cast(%0) {dtype = f32} : f32[N, 8, 2048]
  %2 = mul(%1, %weights) : f32[N / B, 8, 2048]
  %3 = sum(%2) {axes = [1]} : f32[N / B, 2048]
  %4 = cast(%3) {dtype = bf16} : bf16[N / B, 2048]
  %5 = add(%4, %shared) : bf16[N / B, 2048]
  %6 = add(%residual, %5) : bf16[N / B, 2048]
  return %6
}

func @norm_router(%x: bf16[N / B, 2048], %norm: bf16[2048], %gate: bf16[256, 2048]) with {family = "matmul"} {
  %0 = rms_norm(%x, %norm) : bf16[N / B, 2048]
  %1 = matmul(%0, %gate) {transpose_b = true, out = f32} : f32[N / B, 256]
  return %1
}

func @combine(%0: bf16[8*N / 256, 2048], %1: i32[8*N], %weights: f32[N / B, 8]) with {family = "row"} {
  %2 = gather(%0, %1) : bf16[8*N, 2048]
  %3 = reshape(%2) {shape = [N, 8, 2048]} : bf16[N, 8, 2048]
  %4 = cast(%3) {dtype = f32} : f32[N, 8, 2048]
  %5 = reshape(%weights) {shape = [N, 8, 1]} : f32[N / B, 8, 1]
  %6 = mul(%4, %5) : f32[N / B, 8, 2048]
  %7 = sum(%6) {axes = [1]} : f32[N / B, 2048]
  %8 = cast(%7) {dtype = bf16} : bf16[N / B, 2048]
  return %8
}

func @combine_norm(%0: bf16[8*N / 256, 2048], %1: i32[8*N], %weights: f32[N / B, 8], %2: bf16[N / B, 2048], %3: bf16[N / B, 2048], %norm: bf16[2048]) with {family = "row"} {
  %4 = gather(%0, %1) : bf16[8*N, 2048]
  %5 = reshape(%4) {shape = [N, 8, 2048]} : bf16[N, 8, 2048]
  %6 = cast(%5) {dtype = f32} : f32[N, 8, 2048]
  %7 = reshape(%weights) {shape = [N, 8, 1]} : f32[N / B, 8, 1]
  %8 = mul(%6, %7) : f32[N / B, 8, 2048]
  %9 = sum(%8) {axes = [1]} : f32[N / B, 2048]
  %10 = cast(%9) {dtype = bf16} : bf16[N / B, 2048]
  %11 = add(%10, %2) : bf16[N / B, 2048]
  %x = add(%3, %11) : bf16[N / B, 2048]
  %12 = rms_norm(%x, %norm) : bf16[N / B, 2048]
  return %x, %12
}

func @append_cache(%0: bf16[N / B, 3072], %query_layernorm: bf16[128], %cos: f32[N / B, 32], %sin: f32[N / B, 32], %key_layernorm: bf16[128], %keys: state<bf16[P; S, 4, 128]>, %slot_of_token: i32[N / B], %positions: i32[N / B], %values: state<bf16[P; S, 4, 128]>) with {family = "row"} {
  %1 = slice(%0) {axis = 1, start = 0, stop = 2048} : bf16[N / B, 2048]
  %2 = reshape(%1) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %3 = slice(%0) {axis = 1, start = 2048, stop = 2560} : bf16[N / B, 512]
  %4 = reshape(%3) {shape = [N, 4, 128]} : bf16[N / B, 4, 128]
  %5 = slice(%0) {axis = 1, start = 2560, stop = 3072} : bf16[N / B, 512]
  %v = reshape(%5) {shape = [N, 4, 128]} : bf16[N / B, 4, 128]
  %6 = rms_norm(%2, %query_layernorm) : bf16[N / B, 16, 128]
  %7 = cast(%6) {dtype = f32} : f32[N / B, 16, 128]
  %8 = rope(%7, %cos, %sin) : f32[N / B, 16, 128]
  %q = cast(%8) {dtype = bf16} : bf16[N / B, 16, 128]
  %9 = rms_norm(%4, %key_layernorm) : bf16[N / B, 4, 128]
  %10 = cast(%9) {dtype = f32} : f32[N / B, 4, 128]
  %11 = rope(%10, %cos, %sin) : f32[N / B, 4, 128]
  %k = cast(%11) {dtype = bf16} : bf16[N / B, 4, 128]
  %12 = state_append(%keys, %slot_of_token, %positions, %k) : state<bf16[P; S, 4, 128]>
  %13 = state_append(%values, %slot_of_token, %positions, %v) : state<bf16[P; S, 4, 128]>
  return %q, %12, %13
}

func @attention(%q: bf16[N / B, 16, 128], %0: state<bf16[P; S, 4, 128]>, %1: state<bf16[P; S, 4, 128]>, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) with {family = "attention"} {
  %2 = attention(%q, %0, %1, %slots, %offsets, %positions) {scale = 0.08838834764831845} : bf16[N / B, 16, 128]
  return %2
}

func @slots(%offsets: i32[B + 1], %slots: i32[B]) with {family = "row"} {
  %0 = segment_ids(%offsets) {length = N} : i32[N / B]
  %slot_of_token = gather(%slots, %0) : i32[N / B]
  return %slot_of_token
}

func @rotation(%positions: i32[N / B], %frequencies: f32[1, 32]) with {family = "row"} {
  %0 = cast(%positions) {dtype = f32} : f32[N / B]
  %1 = reshape(%0) {shape = [N, 1]} : f32[N / B, 1]
  %2 = mul(%1, %frequencies) : f32[N / B, 32]
  %cos = cos(%2) : f32[N / B, 32]
  %sin = sin(%2) : f32[N / B, 32]
  return %cos, %sin
}

func @embed(%word_embeddings: bf16[157184, 2048], %ids: i32[N / B], %input_layernorm: bf16[2048]) with {family = "row"} {
  %x = gather(%word_embeddings, %ids) : bf16[N / B, 2048]
  %0 = rms_norm(%x, %input_layernorm) : bf16[N / B, 2048]
  return %x, %0
}

func @last_rows(%x: bf16[N / B, 2048], %rows: i32[R], %norm: bf16[2048]) with {family = "row"} {
  %0 = gather(%x, %rows) : bf16[R, 2048]
  %1 = rms_norm(%0, %norm) : bf16[R, 2048]
  return %1
}

func @head(%0: bf16[R, 2048], %lm_head: bf16[157184, 2048]) with {family = "matmul"} {
  %1 = matmul(%0, %lm_head) {transpose_b = true, out = f32} : f32[R, 157184]
  return %1
}

func @norm_project(%x: bf16[N / B, 2048], %w: bf16[2048], %weight: bf16[8192, 2048]) with {family = "matmul"} {
  %n = rms_norm(%x, %w) : bf16[N / B, 2048]
  %y = matmul(%n, %weight) {transpose_b = true} : bf16[N / B, 8192]
  return %y
}

func @gate_add_project(%0: bf16[N / B, 8192], %1: bf16[N / B, 16, 128], %g_norm: bf16[2048], %dense: bf16[2048, 2048], %residual: bf16[N / B, 2048]) with {family = "matmul"} {
  %2 = slice(%0) {axis = 1, start = 6144, stop = 8192} : bf16[N / B, 2048]
  %3 = reshape(%1) {shape = [N, 4, 512]} : bf16[N / B, 4, 512]
  %4 = rms_norm(%3, _) : bf16[N / B, 4, 512]
  %5 = reshape(%4) {shape = [N, 2048]} : bf16[N / B, 2048]
  %6 = mul(%5, %g_norm) : bf16[N / B, 2048]
  %7 = sigmoid(%2) : bf16[N / B, 2048]
  %8 = mul(%6, %7) : bf16[N / B, 2048]
  %9 = matmul(%8, %dense) {transpose_b = true} : bf16[N / B, 2048]
  %10 = add(%residual, %9) : bf16[N / B, 2048]
  return %10
}

func @norm_swiglu(%x: bf16[N / B, 2048], %w: bf16[2048], %gate_proj: bf16[5120, 2048], %up_proj: bf16[5120, 2048]) with {family = "matmul"} {
  %0 = rms_norm(%x, %w) : bf16[N / B, 2048]
  %1 = matmul(%0, %gate_proj) {transpose_b = true} : bf16[N / B, 5120]
  %2 = matmul(%0, %up_proj) {transpose_b = true} : bf16[N / B, 5120]
  %3 = silu(%1) : bf16[N / B, 5120]
  %4 = mul(%3, %2) : bf16[N / B, 5120]
  return %4
}
