# An entry point is cut where few rows and many take different ways, and where the forms of linear attention cross; a decode step is always recurrent. Slopes too steep for blocks leave
# the recurrent form alone on the CPU; on a GPU blocks hold differences only, which are always safe.
# RUN: ringc-opt %s -p 'versions' --target sm_90 | filecheck %s
# RUN: ringc-opt %s -p 'versions' --target cpu | filecheck %s --check-prefix=CPU
module @versions level fused
symbol B >= 1
symbol N >= 1
symbol P >= 1

func @prefill(%q: f32[N / B, 2, 128], %k: f32[N / B, 2, 128], %v: f32[N / B, 2, 128], %pool: state<f32[P; 2, 128, 128]>, %slots: i32[B], %offsets: i32[B + 1], %x: f32[N / B, 512], %w: f32[2048, 512]) with {entry = "prefill"} {
  %slopes = constant() {value = [0.7, 20.0], shape = [2], dtype = f32}
  %o, %after = linear_attention(%q, %k, %v, %slopes, %pool, %slots, %offsets) {scale = 0.25}
  %y = matmul(%x, %w) {transpose_b = true} : f32[N / B, 2048]
  return %o, %after, %y
}
# CHECK-NOT: func @prefill(
# CHECK:     func @prefill.short({{.*}}guard = "N <= 16"{{.*}}"dense products", 17, "triton.matmul takes tiles of rows: its stated limit"
# CHECK:       form = "chunked", steepest = 20.0
# CHECK:     func @prefill.brief({{.*}}guard = "N < {{[0-9]+}} * B"
# CHECK:       form = "recurrent", steepest = 20.0
# CHECK:     func @prefill.long({{.*}}guard = "", rows = [17, 0]
# CHECK:       form = "chunked", steepest = 20.0
# CPU:       func @prefill.short({{.*}}guard = "N <= 16"{{.*}}switch = none{{.*}}overflows fp32{{.*}}"dense products", 2, "solved: tvm.matmul
# CPU-NOT:   form = "chunked"
