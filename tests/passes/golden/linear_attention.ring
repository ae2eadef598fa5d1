# A scan whose decay is data stays a scan; one with constants becomes linear attention, the slopes being the constants' logarithms.
# RUN: ringc-opt %s -p 'raise' | filecheck %s
module @linear_attention level graph
func @constants(%q: f32[N / B, 1, 2], %k: f32[N / B, 1, 2], %v: f32[N / B, 1, 2], %pool: state<f32[P; 1, 2, 2]>, %slots: i32[B], %offsets: i32[B + 1]) {
  %s = state_read(%pool, %slots)
  %f, %o = scan(%s, [%q, %k, %v], [], %offsets) ^(%S: f32[1, 2, 2], %q: f32[1, 2], %k: f32[1, 2], %v: f32[1, 2]) {
    %lam = constant() {value = [0.5], dtype = f32}
    %old = mul(%S, %lam)
    %kc = reshape(%k) {shape = [1, 2, 1]}
    %vr = reshape(%v) {shape = [1, 1, 2]}
    %kv = matmul(%kc, %vr)
    %new = add(%kv, %old)
    %qc = reshape(%q) {shape = [1, 2, 1]}
    %t = mul(%qc, %new)
    %y = sum(%t) {axes = [1]}
    return %new, %y
  }
  %p = state_write(%pool, %slots, %f)
  return %o, %p
}
# CHECK:      func @constants
# CHECK-NEXT:   [[S:%[0-9]+]] = constant() {value = [0.6931471805599453], dtype = f32, shape = [1]}
# CHECK-NEXT:   %o, %p = linear_attention(%q, %k, %v, [[S]], %pool, %slots, %offsets) {scale = 1.0}
# CHECK-NEXT:   return %o, %p

func @gated(%q: f32[N / B, 1, 2], %k: f32[N / B, 1, 2], %v: f32[N / B, 1, 2], %g: f32[N / B, 1, 1, 1], %pool: state<f32[P; 1, 2, 2]>, %slots: i32[B], %offsets: i32[B + 1]) {
  %s = state_read(%pool, %slots)
  %f, %o = scan(%s, [%q, %k, %v, %g], [], %offsets) ^(%S: f32[1, 2, 2], %q: f32[1, 2], %k: f32[1, 2], %v: f32[1, 2], %lam: f32[1, 1, 1]) {
    %old = mul(%S, %lam)
    %kc = reshape(%k) {shape = [1, 2, 1]}
    %vr = reshape(%v) {shape = [1, 1, 2]}
    %kv = matmul(%kc, %vr)
    %new = add(%kv, %old)
    %qc = reshape(%q) {shape = [1, 2, 1]}
    %t = mul(%qc, %new)
    %y = sum(%t) {axes = [1]}
    return %new, %y
  }
  %p = state_write(%pool, %slots, %f)
  return %o, %p
}
# CHECK:      func @gated
# CHECK-NOT:  linear_attention(
# CHECK:      scan(
