"""FLOPs and bytes of operations against counts made by hand."""

from __future__ import annotations

import pytest

from ringc.ir.core import OPS, Op
from ringc.ir.symbols import Dim, add, ceildiv, least, mul, symbol
from ringc.ir.text_parse import parse_module

N, B, P, S = (symbol(n) for n in "NBPS")

ARGUMENTS = """%x: f32[N, 8], %y: f32[N, 8], %r: f32[8], %u: f32[], %h: bf16[N, 8], %i: i32[N], %b: bool[N, 8], %j: i32[N, 2],
  %w: bf16[16, 8], %t: bf16[1000, 8], %e: bf16[N / 4, 8], %we: bf16[4, 16, 8], %o5: i32[5], %src: f32[N, 2], %lg: f32[N, 16],
  %bias: f32[16], %q: bf16[N / B, 4, 16], %v: bf16[N / B, 4, 32], %sl: f32[4], %st: state<f32[P; 4, 16, 32]>, %s: i32[B],
  %o: i32[B + 1], %k: state<bf16[P; S, 2, 16]>, %c: f32[B, 4, 16, 32], %rows: bf16[N, 2, 16], %q2: f32[N, 2, 8], %a: f32[N, 3],
  %f8: f8e4m3<1x128, f32>[N, 256], %f: f32[B, 8], %xs: f32[N / B, 8]"""


def operation(text: str) -> Op:
    results = {"topk": 2, "route": 2, "linear_attention": 2, "sort_by_key": 3}.get(text.split("(", maxsplit=1)[0], 1)
    if "return" in text:
        results = text.rpartition("return")[2].count("%")
    left = ", ".join(f"%r{i}" for i in range(results))
    return parse_module(f"func @f({ARGUMENTS}) {{ {left} = {text} return }}").functions["f"].body.ops[0]


def n(count: int, plus: Dim = 0) -> Dim:
    return add(mul(count, N), plus)


STATE = 4 * 16 * 32  # elements of one sequence's linear-attention state

COSTS: list[tuple[str, Dim, Dim]] = [
    # operation, FLOPs, bytes
    *((f"{name}(%x, %y)", n(8), n(3 * 32)) for name in ("add", "sub", "mul", "div", "maximum", "minimum")),
    ("add(%x, %r)", n(8), n(2 * 32, 32)),
    ("mul(%h, %h)", n(8), n(3 * 16)),
    *((f"{name}(%i, %i)", 0, n(12)) for name in ("add", "floordiv", "mod")),
    *((f"{name}(%x)", n(8), n(64)) for name in ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "cos", "sin")),
    ("silu(%x)", n(16), n(64)),
    *((f"{name}(%x, %y)", 0, n(32 + 32 + 8)) for name in ("lt", "le", "gt", "ge", "eq")),
    ("and(%b, %b)", 0, n(24)),
    ("or(%b, %b)", 0, n(24)),
    ("not(%b)", 0, n(16)),
    ("where(%b, %x, %y)", n(8), n(8 + 3 * 32)),
    ("cast(%x) {dtype = bf16}", 0, n(32 + 16)),
    ("reshape(%x) {shape = [N, 2, 4]}", 0, 0),
    ("broadcast(%r) {shape = [N, 8]}", 0, n(32, 32)),
    ("transpose(%x) {axes = [1, 0]}", 0, n(64)),
    ("slice(%x) {axis = 1, start = 0, stop = 4}", 0, n(32 + 16)),
    ("concat([%x, %y]) {axis = 1}", 0, n(4 * 32)),
    ("pack(%w) {blocks = [[0, 16]]}", 0, 2 * 16 * 8 * 2),
    ('param() {source = "p", dtype = f32, shape = [4]}', 0, 0),
    ('weight() {key = "p", type = f32[4]}', 0, 0),
    ("constant() {value = [1.0], dtype = f32}", 0, 0),
    ("iota() {length = N}", 0, 0),
    ("segment_ids(%o) {length = N}", 0, n(4, mul(4, add(B, 1)))),
    ("sum(%x) {axes = [1]}", n(8), n(32 + 4)),
    ("max(%x) {axes = [1], keep = true}", n(8), n(32 + 4)),
    ("mean(%x) {axes = [0, 1]}", n(8), n(32, 4)),
    ("gather(%t, %i)", 0, n(16 + 16 + 4)),  # the rows taken, not the table
    ("take_along(%x, %j)", 0, n(32 + 8 + 8)),
    ("scatter(%x, %j, %src)", 0, n(32 + 8 + 8 + 32)),
    ("scatter_add(%x, %i) {length = 5}", n(8), n(32 + 4, 5 * 32)),
    ("topk(%x) {k = 2}", 0, n(32 + 8 + 8)),
    ("sort_by_key(%i) {num_keys = 4}", 0, n(12, 20)),
    ("matmul(%h, %w) {transpose_b = true}", n(2 * 8 * 16), n(16 + 32, 16 * 8 * 2)),
    ("matmul(%h, %w) {transpose_b = true, out = f32}", n(2 * 8 * 16), n(16 + 64, 16 * 8 * 2)),
    # the weights of segments that can have rows
    ("segment_matmul(%e, %we, %o5)", n(2 * 8 * 16), n(16 + 32, add(mul(16 * 8 * 2, least(N, 4)), 20))),
    # the weights that rows can name
    ("gather_matmul(%h, %we, %j)", n(2 * 2 * 8 * 16), n(16 + 8 + 64, mul(16 * 8 * 2, least(mul(2, N), 4)))),
    ("state_read(%st, %s)", 0, mul(2 * STATE * 4 + 4, B)),
    ("state_write(%st, %s, %c)", 0, mul(2 * STATE * 4 + 4, B)),
    ("state_append(%k, %i, %i, %rows)", 0, n(2 * 2 * 16 * 2 + 2 * 4)),
    # x^2, its mean, + eps, rsqrt, and two products a row of 8
    ("rms_norm(%x, %r)", n(8 + 8 + 1 + 1 + 8 + 8), n(64, 32)),
    ("rms_norm(%x, _)", n(8 + 8 + 1 + 1 + 8), n(64)),
    ("softmax(%x)", n(5 * 8), n(64)),  # max, difference, exp, sum, quotient
    ("rope(%q2, %a, %a)", n(2 * 3 * 6), n(2 * 64 + 24)),  # four products and two sums a pair
    ("route(%lg, %bias) {top_k = 2}", n(16 * 4), n(64 + 16, 64)),
    # scores and weighted sum: 2 * 2 * D for each head and cache row
    ("attention(%q, %k, %k, %s, %o, %i) {scale = 1.0}", mul(mul(4 * 4 * 16, S), N),
     add(add(mul(mul(2 * 2 * 16 * 2, S), B), n(2 * 4 * 16 * 2 + 4)), add(mul(4, B), mul(4, add(B, 1))))),
    ("linear_attention(%q, %q, %v, %sl, %st, %s, %o) {scale = 1.0}", n(5 * STATE),
     add(add(mul(2 * STATE * 4, B), n(2 * 4 * 16 * 2 + 2 * 4 * 32 * 2)), add(16, add(mul(4, B), mul(4, add(B, 1)))))),
    ("scan(%f, [%xs], [], %o) ^(%p: f32[8], %q: f32[8]) { %r = add(%p, %q) %z = mul(%r, %q) return %r, %z }", n(16),
     add(mul(2 * 32 + 4, B), n(64, 4))),
    ('call([%x]) {callee = "g", out = [f32[N]]}', 0, n(36)),
    ('launch([%x]) {kernel = "g", out = [f32[N]]}', 0, n(36)),
    # what lies between the operations of a region stays on chip
    ('fused([%x]) {family = "row"} ^(%p: f32[N, 8]) { %a = exp(%p) %c = mul(%a, %p) return %c }', n(16), n(64)),
    (('alternatives([%x]) {labels = ["one", "two"]} ^(%p: f32[N, 8]) { %a = exp(%p) return %a } '
     "^(%p: f32[N, 8]) { %a = exp(%p) return %a }"), n(8), n(64)),
    # a scaled value: one scale for each 128 elements
    ('fused([%f8]) {family = "row"} ^(%p: f8e4m3<1x128, f32>[N, 256]) { return %p }', 0, n(2 * (256 + 2 * 4))),
    # of a table and of a pool only the rows that are touched
    ('fused([%t, %i]) {family = "row"} ^(%t: bf16[1000, 8], %i: i32[N]) { %a = gather(%t, %i) %c = exp(%a) return %c }',
     n(8), n(16 + 4 + 16)),
    ('fused([%t, %i]) {family = "row"} ^(%t: bf16[1000, 8], %i: i32[N]) { %a = gather(%t, %i) %c = exp(%t) return %a, %c }',
     8000, n(16 + 4, 2 * 16000)),
    (('fused([%e, %we, %we, %o5]) {family = "grouped"} ^(%e: bf16[N / 4, 8], %w: bf16[4, 16, 8], %u: bf16[4, 16, 8], %o: i32[5]) {\n'
     "%a = segment_matmul(%e, %w, %o) %c = segment_matmul(%e, %u, %o) %d = mul(%a, %c) return %d }"), n(4 * 8 * 16 + 16),
     n(16 + 32, add(mul(2 * 16 * 8 * 2, least(N, 4)), 20))),
    (('fused([%st, %s]) {family = "row"} ^(%t: state<f32[P; 4, 16, 32]>, %s: i32[B]) {\n'
     "%a = state_read(%t, %s) %c = exp(%a) %d = state_write(%t, %s, %c) return %d }"), mul(STATE, B), mul(2 * STATE * 4 + 4, B)),
    (('fused([%q, %q, %v, %sl, %st, %s, %o]) {family = "linear_attention"} ^(%q: bf16[N / B, 4, 16], %k: bf16[N / B, 4, 16], '
     "%v: bf16[N / B, 4, 32], %sl: f32[4], %st: state<f32[P; 4, 16, 32]>, %s: i32[B], %o: i32[B + 1]) {\n"
     "%y, %t = linear_attention(%q, %k, %v, %sl, %st, %s, %o) {scale = 1.0} return %y, %t }"), n(5 * STATE),
     add(add(mul(2 * STATE * 4, B), n(2 * 4 * 16 * 2 + 2 * 4 * 32 * 2)), add(16, add(mul(4, B), mul(4, add(B, 1)))))),
    (('fused([%k, %i, %i, %rows]) {family = "row"} ^(%k: state<bf16[P; S, 2, 16]>, %i: i32[N], %j: i32[N], %r: bf16[N, 2, 16]) {\n'
     "%d = state_append(%k, %i, %j, %r) return %d }"), 0, n(2 * 64 + 8)),
]  # fmt: skip


def test_every_operation_is_counted() -> None:
    assert {text.split("(")[0] for text, _, _ in COSTS} == set(OPS)


@pytest.mark.parametrize(
    ("text", "flops", "size"), COSTS, ids=[f"{i}-{c[0].split('(')[0]}" for i, c in enumerate(COSTS)]
)
def test_cost(text: str, flops: Dim, size: Dim) -> None:
    op = operation(text)
    assert op.flops() == flops
    assert op.bytes() == size


def test_a_recurrence_costs_what_its_scan_does() -> None:
    """The count of `linear_attention` against that of the operations which it stands for, but for the scaling of q."""
    op = operation("linear_attention(%q, %q, %v, %sl, %st, %s, %o) {scale = 1.0}")
    meant = sum((inner.flops() for inner in op.meaning().ops), start=0)  # type: ignore[attr-defined]
    assert meant == add(op.flops(), n(4 * 16, 4 + 4))


def test_costs_of_known_sizes_are_integers() -> None:
    (op,) = (
        parse_module("func @f(%x: f32[4, 8], %w: f32[16, 8]) { %y = matmul(%x, %w) {transpose_b = true} return %y }")
        .functions["f"]
        .body.ops
    )
    assert (op.flops(), op.bytes()) == (2 * 4 * 8 * 16, 4 * (4 * 8 + 16 * 8 + 4 * 16))
    assert type(op.flops()) is type(op.bytes()) is int
    assert type(ceildiv(7, 2)) is int
