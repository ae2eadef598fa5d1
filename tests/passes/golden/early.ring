# The down product may read its weights and the segments of its rows while the up product ends; what the up product makes, and all that
# stands behind another kernel, is waited for. A CPU's kernels don't overlap.
# RUN: ringc-opt %s -p 'early' --target sm_90 | filecheck %s
# RUN: ringc-opt %s -p 'early' --target cpu | filecheck %s --check-prefix=CPU
module @early level kernel
symbol N >= 1

func @layer(%x: bf16[N / 4, 64], %up: bf16[4, 32, 64], %down: bf16[4, 64, 32], %offsets: i32[5]) {
  %hidden = launch([%x, %up, %offsets]) {kernel = "up", out = [bf16[N / 4, 32]]}
  %y = launch([%hidden, %down, %offsets]) {kernel = "down", out = [bf16[N / 4, 64]]}
  return %y
}
# CHECK: func @up({{.*}}with {family = "grouped"}
func @up(%x: bf16[N / 4, 64], %w: bf16[4, 32, 64], %offsets: i32[5]) with {family = "grouped"} {
  %y = segment_matmul(%x, %w, %offsets)
  return %y
}
# CHECK: func @down({{.*}}with {family = "grouped", early = [1, 2]}
# CPU-NOT: early =
func @down(%x: bf16[N / 4, 32], %w: bf16[4, 64, 32], %offsets: i32[5]) with {family = "grouped"} {
  %y = segment_matmul(%x, %w, %offsets)
  return %y
}
