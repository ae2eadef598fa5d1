"""Each rule of canonicalize on a graph of its own, and all of them on random graphs."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.pointwise import Add, Div, Exp, Maximum, Mul, Neg, Sub
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.reduce import Max, Mean, Sum
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice, Transpose
from ringc.ir.ops.source import scalar
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_function
from ringc.ir.types import DType, tensor
from tests.passes.support import SIZES, assert_same, counts, graph, passed, transformed

X = "%x: f32[N, 8]"


def c(value: float | str, name: str = "c", dtype: str = "f32") -> str:
    return f"%{name} = constant() {{value = [{value}], dtype = {dtype}}}"


def lines(text: str, ranges: dict[str, int] | None = None) -> list[str]:
    """The operations of @main after canonicalize and dce, as text."""
    module = transformed(text, "canonicalize,dce", ranges=ranges)
    return [line.strip().split(" : ")[0] for line in print_function(module.functions["main"]).splitlines()[1:-2]]


ARITHMETIC = {
    "constants stand right": (f"{c(2.0)}\n%y = maximum(%c, %x)", ["constant", "maximum(%x, %c)"]),
    "x + 0": (f"{c(0.0)}\n%y = add(%c, %x)", []),
    "x - 0": (f"{c(0.0)}\n%y = sub(%x, %c)", []),
    "x * 1": (f"{c(1.0)}\n%y = mul(%x, %c)", []),
    "--x": ("%n = neg(%x)\n%y = neg(%n)", []),
    "x - (-z)": ("%n = neg(%z)\n%y = sub(%x, %n)", ["add(%x, %z)"]),
    "x + (-z)": ("%n = neg(%z)\n%y = add(%x, %n)", ["sub(%x, %z)"]),
    "-z + x": ("%n = neg(%z)\n%y = add(%n, %x)", ["sub(%x, %z)"]),
    "x * -1": (f"{c(-1.0)}\n%y = mul(%x, %c)", ["neg(%x)"]),
    "(-x) z": ("%n = neg(%x)\n%y = mul(%n, %z)", ["mul(%x, %z)", "neg"]),
    "x / 4": (f"{c(4.0)}\n%y = div(%x, %c)", ["constant() {value = [0.25]", "mul(%x"]),
    "x / sqrt(4)": (f"{c(4.0)}\n%r = sqrt(%c)\n%y = div(%x, %r)", ["constant() {value = [0.5]", "mul(%x"]),
    "(x * 2) * 3": (
        f"{c(2.0)}\n{c(3.0, 'd')}\n%t = mul(%x, %c)\n%y = mul(%t, %d)",
        ["constant() {value = [6.0]", "mul(%x"],
    ),
    "x - 2 + 3": (
        f"{c(2.0)}\n{c(3.0, 'd')}\n%t = sub(%x, %c)\n%y = add(%t, %d)",
        ["constant() {value = [1.0]", "add(%x"],
    ),
    "x / sqrt(|z|)": ("%a = abs(%z)\n%r = sqrt(%a)\n%y = div(%x, %r)", ["abs(%z)", "rsqrt", "mul(%x"]),
    "x * (1 / z)": (f"{c(1.0)}\n%r = div(%c, %z)\n%y = mul(%r, %x)", ["div(%x, %z)"]),
    "cast to its own type": ("%y = cast(%x) {dtype = f32}", []),
    "widening cast there and back": ("%w = cast(%x) {dtype = f64}\n%y = cast(%w) {dtype = f32}", []),
    "cast of a widening cast": (
        "%w = cast(%x) {dtype = f64}\n%y = cast(%w) {dtype = bf16}",
        ["cast(%x) {dtype = bf16}"],
    ),
    "a narrowing cast stays": ("%w = cast(%x) {dtype = bf16}\n%y = cast(%w) {dtype = f32}", ["cast(%x)", "cast(%w)"]),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_arithmetic(case):
    body, expected = ARITHMETIC[case]
    found = lines(graph(X + ", %z: f32[N, 8]", f"{body}\nreturn %y, %x, %z"))
    assert len(found) == len(expected)
    assert all(e in f for e, f in zip(expected, found, strict=True)), found


MOVEMENT = {
    "reshape of reshape": ("%r = reshape(%x) {shape = [N, 2, 4]}\n%y = reshape(%r) {shape = [N, 4, 2]}", ["reshape(%x) {shape = [N, 4, 2]}"]),
    "reshape there and back": ("%r = reshape(%x) {shape = [N, 2, 4]}\n%y = reshape(%r) {shape = [N, 8]}", []),
    "broadcast to its own shape": ("%y = broadcast(%x) {shape = [N, 8]}", []),
    "broadcast that adds an axis": ("%y = broadcast(%x) {shape = [1, N, 8]}", ["reshape(%x) {shape = [1, N, 8]}"]),
    "broadcast of broadcast": ("%b = broadcast(%x) {shape = [2, N, 8]}\n%y = broadcast(%b) {shape = [3, 2, N, 8]}", ["broadcast(%x) {shape = [3, 2, N, 8]}"]),
    "broadcast that the sum makes": ("%b = broadcast(%v) {shape = [N, 8]}\n%y = add(%x, %b)", ["add(%x, %v)"]),
    "row that the sum makes": ("%b = reshape(%v) {shape = [1, 8]}\n%y = add(%x, %b)", ["add(%x, %v)"]),
    "broadcast that the sum needs": ("%b = broadcast(%v) {shape = [N, 8]}\n%y = add(%b, %v)", ["broadcast(%v)", "add(%b, %v)"]),
    "function of a broadcast": ("%b = broadcast(%v) {shape = [N, 8]}\n%y = exp(%b)", ["exp(%v)", "broadcast"]),
    "transpose there and back": ("%t = transpose(%x) {axes = [1, 0]}\n%y = transpose(%t) {axes = [1, 0]}", []),
    "transpose of an axis of size 1": ("%r = reshape(%x) {shape = [N, 1, 8]}\n%y = transpose(%r) {axes = [1, 0, 2]}", ["reshape(%x) {shape = [1, N, 8]}"]),
    "transposed right operand": ("%t = transpose(%w) {axes = [1, 0]}\n%y = matmul(%x, %t)", ["matmul(%x, %w) {transpose_b = true}"]),
    "transposed twice": ("%t = transpose(%u) {axes = [1, 0]}\n%y = matmul(%x, %t) {transpose_b = true}", ["matmul(%x, %u)"]),
    "slice of all": ("%y = slice(%x) {axis = 1, start = 0, stop = 8}", []),
    "slice of slice": ("%s = slice(%x) {axis = 1, start = 2, stop = 8}\n%y = slice(%s) {axis = 1, start = 1, stop = 5, step = 2}",
                       ["slice(%x) {axis = 1, start = 3, stop = 6, step = 2}"]),
    "slice of concat": ("%k = concat([%x, %x]) {axis = 1}\n%y = slice(%k) {axis = 1, start = 10, stop = 12}", ["slice(%x) {axis = 1, start = 2, stop = 4}"]),
    "slice across parts": ("%k = concat([%x, %x]) {axis = 1}\n%y = slice(%k) {axis = 1, start = 6, stop = 12}", ["concat", "slice"]),
    "slice of outer parts": ("%r = reshape(%x) {shape = [N, 4, 2]}\n%y = slice(%r) {axis = 1, start = 1, stop = 3}",
                             ["slice(%x) {axis = 1, start = 2, stop = 6}", "reshape"]),
    "slice of inner parts": ("%r = reshape(%x) {shape = [N, 4, 2]}\n%y = slice(%r) {axis = 2, start = 1, stop = 2}",
                             ["slice(%x) {axis = 1, start = 1, stop = 8, step = 2}", "reshape"]),
    "concat of concat": ("%k = concat([%x, %x]) {axis = 1}\n%y = concat([%k, %x]) {axis = 1}", ["concat([%x, %x, %x])"]),
    "slices joined": ("%a = slice(%x) {axis = 1, start = 0, stop = 3}\n%b = slice(%x) {axis = 1, start = 3, stop = 8}\n%y = concat([%a, %b]) {axis = 1}", []),
    "slices in another order": (("%a = slice(%x) {axis = 1, start = 0, stop = 3}\n%b = slice(%x) {axis = 1, start = 3, stop = 8}\n"
                                "%y = concat([%b, %a]) {axis = 1}"), ["slice", "slice", "concat"]),
    "mean": (f"%s = sum(%x) {{axes = [1]}}\n{c(8.0)}\n%y = div(%s, %c)", ["mean(%x)"]),
    "no mean": (f"%s = sum(%x) {{axes = [1]}}\n{c(7.0)}\n%y = div(%s, %c)", ["sum(%x)", "constant", "mul"]),
    "axis put back": ("%s = max(%x) {axes = [1]}\n%y = reshape(%s) {shape = [N, 1]}", ["max(%x) {axes = [1], keep = true}"]),
    "axis dropped": ("%s = max(%x) {axes = [1], keep = true}\n%y = reshape(%s) {shape = [N]}", ["max(%x) {axes = [1]}"]),
    "element of a count": ("%i = iota() {length = 5}\n%y = gather(%i, %rows)", []),
    "element of repeated rows": (("%r = reshape(%x) {shape = [N, 1, 8]}\n%b = broadcast(%r) {shape = [N, 3, 8]}\n%f = reshape(%b) {shape = [3*N, 8]}\n"
                                 "%y = gather(%f, %rows)"), ["constant() {value = [3]", "floordiv(%rows", "gather(%x"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVEMENT)
def test_movement(case):
    body, expected = MOVEMENT[case]
    args = X + ", %v: f32[8], %w: f32[5, 8], %u: f32[8, 5], %rows: i32[4]"
    found = lines(graph(args, f"{body}\nreturn %y, %x, %rows"), {"rows": 5})
    assert len(found) == len(expected), found
    assert all(e in f for e, f in zip(expected, found, strict=True)), found


LOGIC = {
    "gt": ("%y = gt(%i, %j)", ["lt(%j, %i)"]),
    "ge": ("%y = ge(%i, %j)", ["le(%j, %i)"]),
    "not gt": ("%g = gt(%i, %j)\n%y = not(%g)", ["le(%i, %j)"]),
    "not of reals stays": ("%g = lt(%a, %b)\n%y = not(%g)", ["lt(%a, %b)", "not"]),
    "lt one more": (f"{c(1, dtype='i32')}\n%k = add(%c, %j)\n%y = lt(%i, %k)", ["le(%i, %j)"]),
    "not not": ("%g = lt(%a, %b)\n%n = not(%g)\n%y = not(%n)", ["lt(%a, %b)"]),
    "where not": ("%g = lt(%a, %b)\n%n = not(%g)\n%y = where(%n, %a, %b)", ["lt(%a, %b)", "where(%g, %b, %a)"]),
    "where of one value": ("%g = lt(%a, %b)\n%y = where(%g, %a, %a)", []),
    "where true": ("%t = constant() {value = [true], dtype = bool}\n%y = where(%t, %a, %b)", []),
}


@pytest.mark.parametrize("case", LOGIC)
def test_logic(case):
    body, expected = LOGIC[case]
    found = lines(
        graph("%i: i32[N], %j: i32[N], %a: f32[N], %b: f32[N]", f"{body}\nreturn %y, %a, %b, %i, %j"), {"i": 4, "j": 4}
    )
    assert len(found) == len(expected), found
    assert all(e in f for e, f in zip(expected, found, strict=True)), found


def test_an_added_mask_is_a_choice():
    text = graph(
        "%x: f32[N], %i: i32[N], %j: i32[N]",
        f"{c(0.0, 'z')}\n{c('-inf', 'inf')}\n%g = le(%i, %j)\n%m = where(%g, %z, %inf)\n%s = add(%m, %x)\n%y = exp(%s)\nreturn %y",
    )
    assert counts(text, "canonicalize,dce", ranges={"i": 4, "j": 4}) == {"constant": 1, "le": 1, "where": 1, "exp": 1}


def test_segments_are_not_lost():
    """[N / B] to [N*2] and back to [N] is no segmented tensor any more: the reshapes stay."""
    text = graph(
        "%x: f32[N / B, 2]",
        "%f = reshape(%x) {shape = [2*N]}\n%y = reshape(%f) {shape = [N, 2]}\n%z = exp(%y)\nreturn %z",
    )
    module = passed(parse_module(text), "canonicalize")
    assert [str(v.type) for v in module.functions["main"].body.outputs] == ["f32[N, 2]"]


def test_a_fold_beyond_the_range_of_numbers_is_left():
    assert (
        counts(
            graph(X, f"{c(1000.0)}\n%e = exp(%c)\n{c(0.0, 'z')}\n%m = mul(%e, %z)\n%y = maximum(%x, %z)\nreturn %y"),
            "canonicalize",
        )["exp"]
        == 1
    )


def test_tables_are_left_alone():
    body = "%s = constant() {value = [0.5, 0.25], dtype = f32, shape = [2]}\n%n = neg(%s)\n%y = exp(%n)\nreturn %y"
    assert counts(graph("%x: f32[2]", body), "canonicalize") == {"constant": 1, "neg": 1, "exp": 1}


def test_regions_are_canonicalized():
    text = graph(
        "%x: f32[N / B, 2], %s: f32[B, 2], %offsets: i32[B + 1]",
        "%f, %o = scan(%s, [%x], [], %offsets) ^(%S: f32[2], %x: f32[2]) {\n%one = constant() {value = [1.0], dtype = f32}\n%a = mul(%S, %one)\n"
        "%b = add(%a, %x)\nreturn %b, %b\n}\nreturn %f, %o",
    )
    (scan,) = transformed(text, "canonicalize,dce").functions["main"].body.ops
    assert [op.name for op in scan.regions()[0].ops] == ["add"]


# ---------------------------------------------------------------- random graphs


@st.composite
def random_graphs(draw: st.DrawFn) -> Module:
    """A graph of movements and arithmetic on f32[2, 3, 4] and f32[6, 4]."""
    block = Block([tensor("f32", 2, 3, 4), tensor("f32", 6, 4)], ["a", "b"])
    build = Builder(block)
    values: list[Value] = list(block.args)
    for _ in range(draw(st.integers(1, 9))):
        x = draw(st.sampled_from(values[-5:]))
        op = draw(st.sampled_from(_CHOICES))(draw, build, x, values)
        if op is not None and int(op.result.tensor.elements) <= 500:
            values.append(build(op))
    block.set_outputs(values[-3:])
    return Module("random", {"main": Function("main", block)})


def _reshape(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op:
    left = int(x.tensor.elements)
    shape: list[int] = []
    while left > 1 and len(shape) < 3:
        shape.append(draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= shape[-1]
    return Reshape(x, (*shape, left) if left > 1 or not shape else tuple(shape))


def _transpose(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op:
    return Transpose(x, tuple(draw(st.permutations(range(x.tensor.rank)))))


def _slice(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op | None:
    if x.tensor.rank == 0:
        return None
    axis = draw(st.integers(0, x.tensor.rank - 1))
    start = draw(st.integers(0, int(x.shape[axis]) - 1))
    return Slice(x, axis, start, draw(st.integers(start + 1, int(x.shape[axis]))), draw(st.integers(1, 2)))


def _concat(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op | None:
    if x.tensor.rank == 0:
        return None
    axis = draw(st.integers(0, x.tensor.rank - 1))

    def rest(v: Value) -> list[object]:
        return [d for i, d in enumerate(v.shape) if i != axis]

    fitting = [v for v in values if v.tensor.rank == x.tensor.rank and rest(v) == rest(x)]
    return Concat(tuple(draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))), axis)


def _broadcast(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op:
    shape = tuple(draw(st.integers(1, 3)) if d == 1 else d for d in x.shape)
    return Broadcast(x, (*draw(st.lists(st.integers(1, 2), max_size=1)), *shape))


def _reduce(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op | None:
    if x.tensor.rank == 0:
        return None
    axes = draw(st.lists(st.integers(0, x.tensor.rank - 1), min_size=1, max_size=2, unique=True))
    return draw(st.sampled_from([Sum, Max, Mean]))(x, tuple(sorted(axes)), draw(st.booleans()))


def _scalar(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op:
    number = build(scalar(draw(st.sampled_from([-2.0, -1.0, 0.5, 1.0, 4.0, 0.25])), DType.F32))
    op = draw(st.sampled_from([Add, Sub, Mul, Div, Maximum]))
    return op(x, number) if op is Div or draw(st.booleans()) else op(number, x)


def _binary(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op | None:
    def fits(v: Value) -> bool:
        return all(1 in (p, q) or p == q for p, q in zip(reversed(x.shape), reversed(v.shape), strict=False))

    return draw(st.sampled_from([Add, Sub, Mul]))(x, draw(st.sampled_from([v for v in values if fits(v)])))


def _unary(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op:
    return Neg(x) if draw(st.booleans()) else Exp(build(Neg(build(Mul(x, x)))))


def _product(draw: st.DrawFn, build: Builder, x: Value, values: list[Value]) -> Op | None:
    if x.tensor.rank < 2:
        return None
    if draw(st.booleans()):
        return MatMul(x, x, transpose_b=True)
    axes = (*range(x.tensor.rank - 2), x.tensor.rank - 1, x.tensor.rank - 2)
    return MatMul(x, build(Transpose(x, axes)))


_CHOICES = [
    _reshape,
    _reshape,
    _transpose,
    _slice,
    _slice,
    _concat,
    _concat,
    _broadcast,
    _reduce,
    _scalar,
    _binary,
    _unary,
    _product,
]


@given(random_graphs())
def test_random_graphs_mean_the_same(module):
    # `raise` canonicalizes too, and its own rules must not see what isn't there.
    for pipeline in ("canonicalize,cse,dce", "raise"):
        after = passed(module, pipeline)
        assert_same(module, after, SIZES, {})
