# Products of one left operand become one; gate and up of a SwiGLU stay two, and the router's product is alone.
# RUN: ringc-opt %s -p 'raise' | filecheck %s
module @projections level graph
func @attention_inputs(%x: f32[N, 8]) {
  %wa = param() {source = "a.weight", dtype = f32, shape = [4, 8]}
  %a = matmul(%x, %wa) {transpose_b = true}
  %wb = param() {source = "b.weight", dtype = f32, shape = [6, 8]}
  %b = matmul(%x, %wb) {transpose_b = true}
  return %a, %b
}
# CHECK:      func @attention_inputs
# CHECK-NEXT:   %wa = param()
# CHECK-NEXT:   %wb = param()
# CHECK-NEXT:   [[W:%[0-9]+]] = concat([%wa, %wb]) {axis = 0} : f32[10, 8]
# CHECK-NEXT:   [[P:%[0-9]+]] = matmul(%x, [[W]]) {transpose_b = true} : f32[N, 10]
# CHECK-NEXT:   %a = slice([[P]]) {axis = 1, start = 0, stop = 4}
# CHECK-NEXT:   %b = slice([[P]]) {axis = 1, start = 4, stop = 10}

func @mlp(%x: f32[N, 8]) {
  %w = param() {source = "gate_up.weight", dtype = f32, shape = [12, 8]}
  %p = matmul(%x, %w) {transpose_b = true}
  %g = slice(%p) {axis = 1, start = 0, stop = 6}
  %u = slice(%p) {axis = 1, start = 6, stop = 12}
  %s = sigmoid(%g)
  %a = mul(%s, %g)
  %y = mul(%u, %a)
  return %y
}
# CHECK:      func @mlp
# CHECK:        [[WG:%[0-9]+]] = slice(%w) {axis = 0, start = 0, stop = 6}
# CHECK-NEXT:   [[G:%[0-9]+]] = matmul(%x, [[WG]]) {transpose_b = true}
# CHECK-NEXT:   [[WU:%[0-9]+]] = slice(%w) {axis = 0, start = 6, stop = 12}
# CHECK-NEXT:   [[U:%[0-9]+]] = matmul(%x, [[WU]]) {transpose_b = true}
# CHECK-NEXT:   [[S:%[0-9]+]] = silu([[G]])
# CHECK-NEXT:   %y = mul([[S]], [[U]])

func @two_routers(%x: f32[N, 8]) {
  %wr = param() {source = "router.weight", dtype = f32, shape = [6, 8]}
  %logits = matmul(%x, %wr) {transpose_b = true}
  %p = sigmoid(%logits)
  %v, %ids = topk(%p) {k = 2}
  %w = take_along(%p, %ids)
  %wa = param() {source = "a.weight", dtype = f32, shape = [4, 8]}
  %a = matmul(%x, %wa) {transpose_b = true}
  return %ids, %w, %a
}
# CHECK:      func @two_routers
# CHECK:        %logits = matmul(%x, %wr)
# CHECK-NEXT:   %ids, %w = route(%logits, _) {top_k = 2
# CHECK:        %a = matmul(%x, %wa)
