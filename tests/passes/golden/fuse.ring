# Regions: the norm is row work, gate and up with SwiGLU are one product, the residual joins the down product.
# RUN: ringc-opt %s -p 'fuse' | filecheck %s
# RUN: ringc-opt %s -p 'fuse{epilogues=false}' | filecheck %s --check-prefix=APART
module @fuse level fused
symbol N >= 1

func @main(%x: f32[N, 64], %norm: f32[64], %g: f32[48, 64], %u: f32[48, 64], %down: f32[64, 48]) {
  %n = rms_norm(%x, %norm)
  %a = matmul(%n, %g) {transpose_b = true}
  %b = matmul(%n, %u) {transpose_b = true}
  %s = silu(%a)
  %h = mul(%s, %b)
  %y = matmul(%h, %down) {transpose_b = true}
  %z = add(%x, %y)
  return %z
}
# CHECK:      %n = fused([%x, %norm]) {family = "row"}
# CHECK-NEXT:   rms_norm(%x, %norm)
# CHECK:      %h = fused([%n, %g, %u]) {family = "matmul"}
# CHECK-NEXT:   %a = matmul(%n, %g) {transpose_b = true}
# CHECK-NEXT:   %b = matmul(%n, %u) {transpose_b = true}
# CHECK-NEXT:   %s = silu(%a)
# CHECK-NEXT:   %h = mul(%s, %b)
# CHECK-NEXT:   return %h
# CHECK:      %z = fused([%h, %down, %x]) {family = "matmul"}
# CHECK-NEXT:   %y = matmul(%h, %down) {transpose_b = true}
# CHECK-NEXT:   %z = add(%x, %y)
# CHECK-NOT:  fused
# APART-COUNT-2: family = "row"
# APART-NOT: silu(%a) : f32[N, 48]{{.*}}matmul
