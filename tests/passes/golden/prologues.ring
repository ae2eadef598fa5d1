# Few rows: the norm in front of a product, and the gate in front of the output projection, may be a part of the product's kernel. Where
# something else reads the normed rows too, or for any number of rows, it stays apart.
# RUN: ringc-opt %s -p 'fuse,prologues' | filecheck %s
# RUN: ringc-opt %s -p 'fuse,prologues,library,select' | filecheck %s --check-prefix=CPU
module @prologues level fused
symbol N >= 1

func @few(%x: f32[N, 64], %norm: f32[64], %w: f32[48, 64], %gate: f32[N, 64], %g: f32[16], %dense: f32[64, 64]) with {rows = [1, 16]} {
  %n = rms_norm(%x, %norm)
  %y = matmul(%n, %w) {transpose_b = true}
  %heads = reshape(%x) {shape = [N, 4, 16]}
  %o = rms_norm(%heads, %g)
  %flat = reshape(%o) {shape = [N, 64]}
  %s = sigmoid(%gate)
  %gated = mul(%flat, %s)
  %p = matmul(%gated, %dense) {transpose_b = true}
  %r = add(%x, %p)
  return %y, %r
}
# CHECK-LABEL: func @few
# CHECK:      %y = alternatives([%x, %norm, %w]) {labels = ["apart", "together"]}
# CHECK:        %n = fused([%x, %norm]) {family = "row"}
# CHECK:        fused([%n, %w]) {family = "matmul"}
# CHECK:        fused([%x, %norm, %w]) {family = "matmul"}
# CHECK-NEXT:     %n = rms_norm(%x, %norm)
# CHECK-NEXT:     %y = matmul(%n, %w)
# CHECK:      %r = alternatives([%x, %g, %gate, %dense]) {labels = ["apart", "together"]}
# CHECK:        fused([%x, %g, %gate, %dense]) {family = "matmul"}
# CHECK:          rms_norm
# CHECK:          sigmoid
# CHECK:          matmul
# CHECK-NEXT:     add
# CPU-LABEL: func @few
# CPU-NOT:    alternatives
# CPU:        %y = fused([%x, %norm, %w]) {family = "matmul"{{.*}}"apart: tvm.row{parallel=0} + tvm.matmul{{.*}}"library: tvm.row{parallel=0} + torch.library"

func @shared(%x: f32[N, 64], %norm: f32[64], %w: f32[48, 64]) with {rows = [1, 16]} {
  %n = rms_norm(%x, %norm)
  %y = matmul(%n, %w) {transpose_b = true}
  return %y, %n
}
# CHECK-LABEL: func @shared
# CHECK-NOT:  alternatives

func @many(%x: f32[N, 64], %norm: f32[64], %w: f32[48, 64]) with {rows = [17, 0]} {
  %n = rms_norm(%x, %norm)
  %y = matmul(%n, %w) {transpose_b = true}
  return %y
}
# CHECK-LABEL: func @many
# CHECK-NOT:  alternatives
