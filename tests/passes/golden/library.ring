# A product competes with PyTorch's: both ways stand side by side until `select` prices them. Generated code wins on the CPU; on a GPU
# it wins for as long as its epilogue saves more than cuBLAS is faster.
# RUN: ringc-opt %s -p 'fuse,library' | filecheck %s
# RUN: ringc-opt %s -p 'fuse,library,select' | filecheck %s --check-prefix=CPU
# RUN: ringc-opt %s -p 'fuse,library,select' --target sm_90 | filecheck %s --check-prefix=GPU
# RUN: ringc-opt %s -p 'fuse,library,select' --target torch | filecheck %s --check-prefix=TORCH
module @library level fused
symbol N >= 1

func @main(%x: bf16[N, 4096], %w: bf16[4096, 4096], %v: bf16[64, 4096], %r: bf16[N, 64]) {
  %y = matmul(%x, %w) {transpose_b = true}
  %a = matmul(%y, %v) {transpose_b = true}
  %z = add(%a, %r)
  return %z
}
# CHECK:      %y = alternatives([%x, %w]) {labels = ["fused", "library"]}
# CHECK-NEXT:   fused([%x, %w]) {family = "matmul"}
# CHECK:        fused([%x, %w]) {family = "library"}
# CHECK:      %z = alternatives([%y, %v, %r]) {labels = ["fused", "library"]}
# CHECK-NEXT:   fused([%y, %v, %r]) {family = "matmul"}
# CHECK-NEXT:     matmul
# CHECK-NEXT:     add
# CHECK:        fused([%y, %v]) {family = "library"}
# CHECK-NEXT:     matmul
# CHECK-NEXT:     return
# CHECK:        {family = "row"}
# CHECK-NEXT:     add
# CPU-NOT:    alternatives
# CPU:        fused([%x, %w]) {family = "matmul", implementation = "tvm.matmul{rows=8,block=32}"{{.*}}"library: torch.library"
# CPU:        fused([%y, %v, %r]) {family = "matmul", implementation = "tvm.matmul{rows=8,block=32}"{{.*}}"library: torch.library + tvm.row
# GPU-NOT:    alternatives
# GPU:        fused([%x, %w]) {family = "library", implementation = "torch.library"{{.*}}"fused: triton.matmul"
# GPU:        fused([%y, %v, %r]) {family = "matmul", implementation = "triton.matmul"{{.*}}"library: torch.library + triton.row"
# TORCH-COUNT-2: implementation = "torch.eager"
# TORCH-NOT:  library
