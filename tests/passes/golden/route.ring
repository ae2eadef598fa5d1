# Routing limited to groups, the mask by scatter; and the same where the scores are wanted too.
# RUN: ringc-opt %s -p 'raise' | filecheck %s
module @route level graph
func @grouped(%logits: f32[N, 8], %bias: f32[8]) {
  %p = sigmoid(%logits)
  %b = add(%p, %bias)
  %g = reshape(%b) {shape = [N, 4, 2]}
  %gv, %gi = topk(%g) {k = 2}
  %gs = sum(%gv) {axes = [2]}
  %bv, %bi = topk(%gs) {k = 2}
  %f_ = constant() {value = [0.0], dtype = f32}
  %f = broadcast(%f_) {shape = [N, 4]}
  %t_ = constant() {value = [1.0], dtype = f32}
  %t = broadcast(%t_) {shape = [N, 2]}
  %m = scatter(%f, %bi, %t)
  %m3 = reshape(%m) {shape = [N, 4, 1]}
  %mw = broadcast(%m3) {shape = [N, 4, 2]}
  %me = reshape(%mw) {shape = [N, 8]}
  %keep = cast(%me) {dtype = bool}
  %drop = not(%keep)
  %inf = constant() {value = [-inf], dtype = f32}
  %masked = where(%drop, %inf, %b)
  %v, %ids = topk(%masked) {k = 3}
  %w = take_along(%p, %ids)
  %s = sum(%w) {axes = [1], keep = true}
  %y = div(%w, %s)
  return %ids, %y
}
# CHECK:      func @grouped
# CHECK-NEXT:   %ids, %y = route(%logits, %bias) {top_k = 3, groups = 4, keep = 2, eps = 0.0}
# CHECK-NEXT:   return %ids, %y

func @scores_wanted(%logits: f32[N, 8]) {
  %p = sigmoid(%logits)
  %v, %ids = topk(%p) {k = 3}
  %w = take_along(%p, %ids)
  return %ids, %w, %p
}
# CHECK:      func @scores_wanted
# CHECK-NOT:  route(
# CHECK:      take_along
