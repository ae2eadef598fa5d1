# Softmax attention over a cache: query heads in groups of rows, the scale on q, the mask negated.
# RUN: ringc-opt %s -p 'raise' | filecheck %s
module @attention level graph
func @main(%q: f32[N / B, 4, 8], %keys: state<f32[P; S, 2, 8]>, %values: state<f32[P; S, 2, 8]>, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) {
  %ids = segment_ids(%offsets) {length = N}
  %slot = gather(%slots, %ids)
  %kr = state_read(%keys, %slot)
  %vr = state_read(%values, %slot)
  %k = transpose(%kr) {axes = [0, 2, 3, 1]}
  %v = transpose(%vr) {axes = [0, 2, 1, 3]}
  %qg = reshape(%q) {shape = [N, 2, 2, 8]}
  %d = constant() {value = [8.0], dtype = f32}
  %root = sqrt(%d)
  %qs = div(%qg, %root)
  %s = matmul(%qs, %k)
  %rows = iota() {length = S}
  %p = reshape(%positions) {shape = [N, 1, 1, 1]}
  %future = gt(%rows, %p)
  %seen = not(%future)
  %inf = constant() {value = [-inf], dtype = f32}
  %m = where(%seen, %s, %inf)
  %top = max(%m) {axes = [3], keep = true}
  %c = sub(%m, %top)
  %e = exp(%c)
  %t = sum(%e) {axes = [3], keep = true}
  %w = div(%e, %t)
  %o = matmul(%w, %v)
  %y = reshape(%o) {shape = [N, 4, 8]}
  return %y
}
# CHECK:      func @main
# CHECK-NEXT:   %y = attention(%q, %keys, %values, %slots, %offsets, %positions) {scale = 0.35355339059327373} : f32[N / B, 4, 8]
# CHECK-NEXT:   return %y

# The scores are wanted too: nothing is fused but the softmax.
func @scores(%q: f32[N / B, 4, 8], %keys: state<f32[P; S, 2, 8]>, %values: state<f32[P; S, 2, 8]>, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) {
  %ids = segment_ids(%offsets) {length = N}
  %slot = gather(%slots, %ids)
  %kr = state_read(%keys, %slot)
  %vr = state_read(%values, %slot)
  %k = transpose(%kr) {axes = [0, 2, 3, 1]}
  %v = transpose(%vr) {axes = [0, 2, 1, 3]}
  %qg = reshape(%q) {shape = [N, 2, 2, 8]}
  %s = matmul(%qg, %k)
  %rows = iota() {length = S}
  %p = reshape(%positions) {shape = [N, 1, 1, 1]}
  %seen = le(%rows, %p)
  %inf = constant() {value = [-inf], dtype = f32}
  %m = where(%seen, %s, %inf)
  %e = exp(%m)
  %t = sum(%e) {axes = [3], keep = true}
  %w = div(%e, %t)
  %o = matmul(%w, %v)
  return %o, %s
}
# CHECK:      func @scores
# CHECK-NOT:  attention
# CHECK:      %w = softmax(%m)
# CHECK-NEXT: %o = matmul(%w, %v)
