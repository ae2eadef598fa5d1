# One spelling for each idea.
# RUN: ringc-opt %s -p 'canonicalize,dce' | filecheck %s
module @canonicalize level graph
func @constants(%x: f32[N, 8]) {
  %two = constant() {value = [2.0], dtype = f32}
  %four = constant() {value = [4.0], dtype = f32}
  %a = mul(%two, %x)
  %b = div(%a, %four)
  return %b
}
# CHECK:      func @constants
# CHECK-NEXT:   [[C:%[0-9]+]] = constant() {value = [0.5], dtype = f32}
# CHECK-NEXT:   %b = mul(%x, [[C]])
# CHECK-NEXT:   return %b

func @parts_of_a_product(%p: f32[N / B, 24]) {
  %h = reshape(%p) {shape = [N, 3, 8]}
  %q = slice(%h) {axis = 1, start = 0, stop = 1}
  %k = slice(%h) {axis = 1, start = 1, stop = 3}
  return %q, %k
}
# CHECK:      func @parts_of_a_product
# CHECK-NEXT:   [[Q:%[0-9]+]] = slice(%p) {axis = 1, start = 0, stop = 8} : f32[N / B, 8]
# CHECK-NEXT:   %q = reshape([[Q]]) {shape = [N, 1, 8]}
# CHECK-NEXT:   [[K:%[0-9]+]] = slice(%p) {axis = 1, start = 8, stop = 24} : f32[N / B, 16]
# CHECK-NEXT:   %k = reshape([[K]]) {shape = [N, 2, 8]}

func @masks(%s: f32[N, S], %p: i32[N]) {
  %rows = iota() {length = S}
  %c = reshape(%p) {shape = [N, 1]}
  %later = gt(%rows, %c)
  %zero = constant() {value = [0.0], dtype = f32}
  %inf = constant() {value = [-inf], dtype = f32}
  %seen = not(%later)
  %bias = where(%seen, %zero, %inf)
  %y = add(%s, %bias)
  return %y
}
# CHECK:      func @masks
# CHECK:        %seen = le(%rows, %c)
# CHECK:        %y = where(%seen, %s, %inf)

func @transposed_operand(%x: f32[N, 8], %w: f32[5, 8]) {
  %t = transpose(%w) {axes = [1, 0]}
  %y = matmul(%x, %t)
  return %y
}
# CHECK:      func @transposed_operand
# CHECK-NEXT:   %y = matmul(%x, %w) {transpose_b = true}
