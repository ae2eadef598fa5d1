# Two equal layers become one function that is called twice; its regions become kernels, each once; weights move to `prepare` in the
# layout that the chosen kernels read; buffers are numbered, so that a call writes into its caller's.
# RUN: ringc-opt %s -p 'outline' | filecheck %s
# RUN: ringc-opt %s -p 'outline,versions,fuse,library,select,layout,kernels,memory' | filecheck %s --check-prefix=KERNEL
module @lowering level fused
symbol N >= 1

func @decode(%x: f32[N, 64]) with {entry = "decode"} {
  %w0 = param() {source = "model.layers.0.up.weight", dtype = f32, shape = [64, 64]} : f32[64, 64] in layers.0
  %a = matmul(%x, %w0) {transpose_b = true} : f32[N, 64] in layers.0
  %y = add(%x, %a) : f32[N, 64] in layers.0
  %w1 = param() {source = "model.layers.1.up.weight", dtype = f32, shape = [64, 64]} : f32[64, 64] in layers.1
  %b = matmul(%y, %w1) {transpose_b = true} : f32[N, 64] in layers.1
  %z = add(%y, %b) : f32[N, 64] in layers.1
  return %z
}
# CHECK:      func @decode(
# CHECK-COUNT-2: call({{.*}}callee = "[[LAYER:[^"]+]]"
# CHECK-NOT:  matmul
# CHECK:      func @[[LAYER]](
# CHECK:        matmul
# CHECK-NEXT:   add
# KERNEL:     func @decode.one(%x: f32[N, 64])
# KERNEL:       weight() {key = "layers.0.up.weight", type = f32[64, 64]@0x32}
# KERNEL:       call(
# KERNEL-SAME:  buffers = [0]
# KERNEL:       call(
# KERNEL-SAME:  buffers = [-1]
# KERNEL:     func @prepare() with {entry = "prepare", keys = ["layers.0.up.weight", "layers.1.up.weight"]}
# KERNEL:       param() {source = "model.layers.0.up.weight"
# KERNEL:       pack(
# KERNEL:     func @matmul_1({{.*}}implementation = "tvm.matmul{rows=
# KERNEL-NOT: func @matmul_4
