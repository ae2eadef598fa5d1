# The same thing said twice is said once; what nobody uses goes.
# RUN: ringc-opt %s -p 'cse,dce' | filecheck %s
module @tidy level graph
symbol N >= 1

func @main(%x: f32[N, 8], %y: f32[N, 8]) {
  %a = add(%x, %y)
  %b = add(%y, %x)
  %c = exp(%a)
  %d = exp(%b)
  %e = mul(%c, %d)
  %lost = sqrt(%e)
  return %e
}
# CHECK:      %a = add(%x, %y)
# CHECK-NEXT: %c = exp(%a)
# CHECK-NEXT: %e = mul(%c, %c)
# CHECK-NEXT: return %e
