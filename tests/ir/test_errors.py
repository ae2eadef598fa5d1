"""What is wrong with a graph is said in one message: bad operands, unreadable text, graphs that break a rule."""

from __future__ import annotations

import re

import pytest

from ringc.errors import IRError
from ringc.ir.builder import Builder
from ringc.ir.core import OPS, Block, Function, Level, Module, operand_fields
from ringc.ir.levels import legal, verify
from ringc.ir.ops.call import Call
from ringc.ir.ops.pointwise import Add, Exp
from ringc.ir.symbols import Bound, symbol
from ringc.ir.text_parse import parse_module
from ringc.ir.types import DType, Quant, TensorType, tensor

ARGUMENTS = """%x: f32[N, 8], %y: f32[N, 6], %h: bf16[N, 8], %v: f32[8], %u: f32[], %i: i32[N], %j: i32[N, 8], %b: bool[N, 8],
  %w: f32[4, 6, 8], %e: f32[N / 4, 8], %q: f32[N / B, 4, 8], %k: f32[N / B, 4, 6], %q2: f32[N, 4, 8], %o: i32[B + 1], %s: i32[B],
  %o5: i32[5], %sl: f32[4], %c: state<f32[P; S, 2, 8]>, %c3: state<f32[P; S, 3, 8]>, %ch: state<bf16[P; S, 2, 8]>,
  %st: state<f32[P; 4, 8, 8]>, %sh: state<f32[P; 4, 8, 6]>, %z: state<f32[P; ]>, %g: f32[N, 3], %f8: f8e4m3<1x8, f32>[N, 8],
  %f: f32[B, 4, 8, 8], %sq: f32[4 / 2, 4], %m: f32[4, N]"""

BAD = [
    ("add", "add(%x, %y)", r"axis -1 has sizes \[8, 6\], which don't broadcast"),
    ("add", "add(%x, %h)", r"operands of different types: \['f32', 'bf16'\]"),
    ("add", "add(%b, %b)", "needs numbers, not bools"),
    ("add", "add(%q, %q2r) ", None),
    ("sub", "sub(%b, %b)", "needs numbers"),
    ("mul", "mul(%x, %c)", "where a tensor is needed"),
    ("mul", "mul(%f8, %f8)", "takes scaled elements, for which it has no rule"),
    ("maximum", "maximum(%x, %i)", "different types"),
    ("minimum", "minimum(%x, %y)", "don't broadcast"),
    ("div", "div(%i, %i)", "needs floating-point operands"),
    ("floordiv", "floordiv(%x, %x)", "needs integers"),
    ("mod", "mod(%x, %x)", "needs integers"),
    ("lt", "lt(%x, %y)", "don't broadcast"),
    ("le", "le(%x, %i)", "different types"),
    ("gt", "gt(%x, %i)", "different types"),
    ("ge", "ge(%x, %y)", "don't broadcast"),
    ("eq", "eq(%x, %b)", "different types"),
    ("and", "and(%x, %b)", "needs bool operands"),
    ("or", "or(%b, %x)", "needs bool operands"),
    ("not", "not(%x)", "needs bool operands"),
    ("where", "where(%x, %x, %x)", "the condition is no bool"),
    ("where", "where(%b, %x, %h)", "branches of different types: f32 and bf16"),
    *((name, f"{name}(%i)", "needs a floating-point operand") for name in
      ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "cos", "sin", "silu")),
    ("cast", "cast(%c) {dtype = f32}", "where a tensor is needed"),
    ("reshape", "reshape(%x) {shape = [N, 9]}", "differ in size"),
    ("broadcast", "broadcast(%x) {shape = [N, 9]}", "doesn't broadcast to"),
    ("broadcast", "broadcast(%x) {shape = [8]}", "doesn't broadcast to"),
    ("transpose", "transpose(%x) {axes = [0, 0]}", "doesn't name each of 2 axes once"),
    ("slice", "slice(%x) {axis = 2, start = 0, stop = 1}", "there is no axis 2"),
    ("slice", "slice(%x) {axis = 1, start = 4, stop = 4}", "needs 0 <= start < stop"),
    ("slice", "slice(%x) {axis = 1, start = 4, stop = 9}", "stops at 9, past the axis' 8"),
    ("concat", "concat([]) {axis = 0}", "nothing to concatenate"),
    ("concat", "concat([%x, %x]) {axis = 2}", "there is no axis 2"),
    ("concat", "concat([%x, %y]) {axis = 0}", "parts differ beside the axis"),
    ("concat", "concat([%x, %i]) {axis = 1}", "parts of different rank"),
    ("concat", "concat([%x, %h]) {axis = 1}", "parts of different types"),
    ("pack", "pack(%x) {blocks = [[2, 16]]}", "blocks"),
    ("sum", "sum(%x) {axes = []}", "are not ascending and distinct"),
    ("sum", "sum(%x) {axes = [1, 0]}", "are not ascending and distinct"),
    ("max", "max(%x) {axes = [2]}", "of a rank-2 operand"),
    ("max", "max(%b) {axes = [1]}", "needs numbers, not bools"),
    ("mean", "mean(%i) {axes = [0]}", "needs a floating-point operand"),
    ("gather", "gather(%x, %x)", "row numbers are integers"),
    ("gather", "gather(%u, %i)", "no rows in a scalar"),
    ("take_along", "take_along(%x, %x)", "positions are integers"),
    ("take_along", "take_along(%m, %j)", "differ beside the last axis"),
    ("take_along", "take_along(%u, %u)", "scalars"),
    ("scatter", "scatter(%x, %j, %y)", "differ beside the last axis"),
    ("scatter", "scatter(%x, %x, %x)", "positions are integers"),
    ("scatter", "scatter(%x, %j, %h)", "base and src of different types"),
    ("scatter_add", "scatter_add(%v, %i) {length = 4}", "needs one place for each row"),
    ("scatter_add", "scatter_add(%v, %v) {length = 4}", "places are integers"),
    ("topk", "topk(%x) {k = 9}", "can't take 9 of 8"),
    ("topk", "topk(%x) {k = 0}", "can't take 0 of 8"),
    ("topk", "topk(%u) {k = 1}", "nothing to rank in a scalar"),
    ("sort_by_key", "sort_by_key(%v) {num_keys = 4}", r"keys are i32\[R\]"),
    ("sort_by_key", "sort_by_key(%i) {num_keys = 0}", "at least one key"),
    ("param", 'param() {source = "a.*.*", dtype = f32, shape = [2, 2]}', r"more than one \*"),
    ("param", 'param() {source = "a.*", dtype = f32, shape = []}', "stacked along an axis that it hasn't"),
    ("param", 'param() {source = "a", dtype = f32, shape = [N]}', "known positive integers"),
    ("constant", "constant() {value = [1.0, 2.0], dtype = f32, shape = [3]}", "2 numbers for the shape"),
    ("constant", "constant() {value = [1.0], dtype = f32, shape = [N]}", "known shape"),
    ("constant", "constant() {value = [1.5], dtype = i32}", "i32 holds whole numbers only"),
    ("segment_ids", "segment_ids(%x) {length = N}", r"offsets are i32\[segments \+ 1\]"),
    ("matmul", "matmul(%x, %y)", "inner sizes 8 and N differ"),
    ("matmul", "matmul(%v, %x)", "needs matrices"),
    ("matmul", "matmul(%x, %h) {transpose_b = true}", "operands of types f32 and bf16"),
    ("matmul", "matmul(%j, %j) {transpose_b = true}", "needs floating-point operands"),
    ("matmul", "matmul(%w, %q2) {transpose_b = true}", "leading axes differ"),
    ("segment_matmul", "segment_matmul(%x, %w, %o5)", "rows are cut into None segments for 4 weights"),
    ("segment_matmul", "segment_matmul(%e, %w, %o)", r"offsets are i32\[E \+ 1\]"),
    ("segment_matmul", "segment_matmul(%e, %x, %o5)", r"needs rows \[R, K\] and weights \[E, N, K\]"),
    ("gather_matmul", "gather_matmul(%x, %x, %j)", r"needs weights \[E, C, K\] and choices \[N, J\]"),
    ("gather_matmul", "gather_matmul(%x, %w, %x)", "choices are i32"),
    ("gather_matmul", "gather_matmul(%q2, %w, %j)", "needs one row for each choice"),
    ("gather_matmul", "gather_matmul(%y, %w, %j)", "rows don't fit the weights"),
    ("state_read", "state_read(%x, %s)", "the first operand is no state"),
    ("state_read", "state_read(%c, %v)", r"slots are i32\[count\]"),
    ("state_write", "state_write(%c, %s, %x)", "the content doesn't fit the slots"),
    ("state_write", "state_write(%st, %s, %f2)", None),
    ("state_append", "state_append(%c, %i, %s, %q)", "one position for each slot"),
    ("state_append", "state_append(%c, %i, %i, %q2)", "don't fit the pool"),
    ("state_append", "state_append(%z, %i, %i, %v)", "have no rows"),
    ("rms_norm", "rms_norm(%x, %sl)", "the weight doesn't fit the last axis"),
    ("rms_norm", "rms_norm(%h, %v)", "the weight's type differs"),
    ("rms_norm", "rms_norm(%u, _)", "needs rows"),
    ("softmax", "softmax(%i)", "needs rows of floating-point numbers"),
    ("rope", "rope(%x, %g, %g)", r"needs x \[N, H, D\]"),
    ("rope", "rope(%q2, %x, %x)", "8 pairs don't fit into 8 channels"),
    ("rope", "rope(%q2, %m, %m)", "differ in rows"),
    ("route", "route(%q, _)", r"logits are \[N, experts\]"),
    ("route", "route(%x, %sl)", "one bias for each expert"),
    ("route", 'route(%x, _) {score = "relu"}', "there is no score 'relu'"),
    ("route", "route(%x, _) {groups = 3}", "the groups don't fit the experts"),
    ("route", "route(%x, _) {groups = 4, keep = 1, top_k = 3}", "fewer experts are kept than chosen"),
    ("route", "route(%x, _) {groups = 4, keep = 1, group_top = 3}", "a group has 2 experts, not 3"),
    ("route", "route(%x, _) {groups = 0}", "chooses nothing"),
    ("attention", "attention(%x, %c, %c, %s, %o, %i) {scale = 1.0}", r"queries are \[N, H, D\]"),
    ("attention", "attention(%q, %x, %c, %s, %o, %i) {scale = 1.0}", r"caches are state<"),
    ("attention", "attention(%q, %c3, %c3, %s, %o, %i) {scale = 1.0}", "4 heads can't share 3"),
    ("attention", "attention(%k, %c, %c, %s, %o, %i) {scale = 1.0}", "heads of different size"),
    ("attention", "attention(%q, %ch, %ch, %s, %o, %i) {scale = 1.0}", "queries of type f32, a cache of bf16"),
    ("attention", "attention(%q, %c, %c, %s, %o5, %i) {scale = 1.0}", "one slot for each segment"),
    ("attention", "attention(%q, %c, %c, %s, %o, %s) {scale = 1.0}", "one position i32 for each token"),
    ("linear_attention", "linear_attention(%q, %q, %q, %sl, %x, %s, %o) {scale = 1.0}", "the state is a f32"),
    ("linear_attention", "linear_attention(%q, %k, %q, %sl, %st, %s, %o) {scale = 1.0}", r"q, k, v are \[N, H, D\]"),
    ("linear_attention", "linear_attention(%q, %q, %q, %sl, %sh, %s, %o) {scale = 1.0}", "doesn't fit the heads"),
    ("linear_attention", "linear_attention(%q, %q, %q, %v, %st, %s, %o) {scale = 1.0}", "one slope f32 for each head"),
    ("linear_attention", "linear_attention(%q, %q, %q, %sl, %st, %s, %o5) {scale = 1.0}", "one slot for each segment"),
    ("linear_attention", "linear_attention(%q2, %q2, %q2, %sl, %st, %s, %o) {scale = 1.0}", "one segment for each slot"),
    ("linear_attention", 'linear_attention(%q, %q, %q, %sl, %st, %s, %o) {scale = 1.0, form = "x"}', "there is no form 'x'"),
    ("scan", "scan(%f, [], [], %o) ^(%a: f32[4, 8, 8]) { return %a }", "nothing to run over"),
    ("scan", "scan(%f, [%x], [], %o) ^(%a: f32[4, 8, 8], %b: f32[8]) { return %a }", r"is not \[rows / segments"),
    ("scan", "scan(%f, [%q], [], %o) ^(%a: f32[4, 8, 8]) { return %a }", "the body takes"),
    ("scan", "scan(%f, [%q], [], %o) ^(%a: f32[4, 8, 8], %b: f32[4, 8]) { return %b }", "the body must give back"),
    ("scan", "scan(%f, [%q], [], %o5) ^(%a: f32[4, 8, 8], %b: f32[4, 8]) { return %a }", r"offsets are i32\[B \+ 1\]"),
    ("fused", 'fused([%x]) {family = "row"} ^(%a: f32[N, 7]) { return %a }', r"the body takes \['f32\[N, 7\]'\], but gets"),
    ("alternatives", 'alternatives([%x]) {labels = ["a", "b"]} ^(%a: f32[N, 8]) { return %a }', "one label for each way"),
    ("alternatives", ('alternatives([%x, %y]) {labels = ["a", "b"]} ^(%a: f32[N, 8], %b: f32[N, 6]) { return %a } '
     "^(%a: f32[N, 8], %b: f32[N, 6]) { return %b }"), "give back different types"),
]  # fmt: skip
BAD = [case for case in BAD if case[2] is not None]

FREE = {"iota", "weight", "call", "launch"}
"""Operations that take anything that their attributes allow; a call is checked against its callee by the verifier."""


def test_bad_operands_of_every_operation() -> None:
    assert {name for name, _, _ in BAD} == set(OPS) - FREE


@pytest.mark.parametrize(
    ("name", "operation", "message"), BAD, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BAD)]
)
def test_bad_operands(name: str, operation: str, message: str) -> None:
    results = 2 if name in ("topk", "route", "linear_attention", "scan", "sort_by_key") else 1
    left = ", ".join(f"%r{i}" for i in range(results))
    with pytest.raises(IRError, match=message) as error:
        parse_module(f"func @f({ARGUMENTS}) {{\n  {left} = {operation}\n  return\n}}", "bad.ring")
    if OPS[name].name and operand_fields(OPS[name]):
        assert error.value.message.startswith(f"{name}(") or "where a tensor is needed" in error.value.message
    place = error.value.place
    assert place is not None
    assert (place.line, place.column) == (ARGUMENTS.count("\n") + 2, 3 + len(left) + 3)


# -- text

HEAD = "func @f(%x: f32[N, 8]) {\n"
MALFORMED = [
    ("modul @m", "expected 'func'", 1, 1),
    ("module m", "expected '@'", 1, 8),
    ("module @m level graf\n", "there is no level graf", 1, 17),
    ("symbol N >= x", "expected a number", 1, 13),
    ("symbol N\nsymbol N", "the symbol N is declared twice", 2, 8),
    ("symbol lambda", "can't name a size", 1, 8),
    ("func f() { return }", "expected '@', found 'f() { return", 1, 6),
    ("func @f(x: f32[]) { return }", "expected an argument, as in %x: f32[N]", 1, 9),
    ("func @f(%x f32[]) { return }", "expected ':', found 'f32[]) { ret'", 1, 12),
    ("func @f(%x: f33[N]) { return }", "there is no element type f33", 1, 13),
    ("func @f(%x: f32[N) { return }", "expected ']'", 1, 30),
    ("func @f(%x: f32[N +]) { return }", "'N +' is no size", 1, 17),
    ("func @f(%x: f32[N // 2]) { return }", "a division stands in parentheses", 1, 19),
    ("func @f(%x: f32[N, 4]@2x16) { return }", "there is no axis 2 to cut into blocks", 1, 22),
    ("func @f(%x: f8e4m3<1x128, f32>[N]) { return }", "blocks of rank 2 in a tensor of rank 1", 1, 34),
    ("func @f(%x: f8e4m3<0x1, f32>[N, N]) { return }", "expected a block such as 1x128", 1, 20),
    ("func @f(%x: state<f32[P, 4]>) { return }", "expected ';', found ', 4]>) { ret'", 1, 24),
    ("func @f(%x: f32[], %x: f32[]) { return }", "%x is defined twice", 1, 20),
    ("func @f() { return }\nfunc @f() { return }", "the module has two functions called f", 2, 5),
    ("func @f() with {a} { return }", "expected '=', found '} { return }'", 1, 18),
    (HEAD + "  %y = expp(%x)\n  return %y\n}", "there is no operation expp", 2, 8),
    (HEAD + "  %y = exp(%z)\n  return %y\n}", "%z is not defined here", 2, 12),
    (HEAD + "  %y = exp(%x, %x)\n  return %y\n}", "expected ')', found ', %x)'", 2, 14),
    (HEAD + "  %y = add(%x)\n  return %y\n}", "expected ',', found ')'", 2, 14),
    (HEAD + "  %y, %z = exp(%x)\n  return %y\n}", "exp has 1 results, but 2 names are given", 2, 12),
    (HEAD + "  %x = exp(%x)\n  return %x\n}", "%x is defined twice", 2, 8),
    (HEAD + "  %y = sum(%x)\n  return %y\n}", "sum lacks its attribute axes", 2, 8),
    (HEAD + "  %y = sum(%x) {axis = [0]}\n  return %y\n}", "sum has no attribute axis", 2, 8),
    (HEAD + "  %y = sum(%x) {axes = 0}\n  return %y\n}", "axes of sum can't be 0", 2, 8),
    (HEAD + "  %y = sum(%x) {axes = [0], keep = 1}\n  return %y\n}", "keep of sum can't be 1", 2, 8),
    (HEAD + "  %y = sum(%x) {axes = [0], axes = [1]}\n  return %y\n}", "axes is given twice", 2, 29),
    (HEAD + '  %y = cast(%x) {dtype = "f32"}\n  return %y\n}', 'dtype of cast can\'t be "f32"', 2, 8),
    (HEAD + "  %y = rms_norm(%x, _) {eps = 1e}\n  return %y\n}", "'1e' is no size", 2, 31),
    (HEAD + '  %y = param() {source = "a}\n  return %y\n}', "unreadable text: ", 2, 26),
    (HEAD + "  %y = exp(%x) : f32[N, 9]\n  return %y\n}", "%y is said to be a f32[N, 9], but exp makes a f32[N, 8]", 2, 18),
    (HEAD + "  %y = exp(%x) in %z\n  return %y\n}", "expected a scope", 2, 19),
    (HEAD + "  %y = fused([%x]) {family = \"row\"}\n  return %y\n}", "expected '^'", 3, 3),
    (HEAD + "  %y = fused([%x]) {family = \"row\"} ^(%a: f32[N, 8]) { return %x }\n  return %y\n}", "%x is not defined here", 2, 63),
    (HEAD + "  return %x %x\n}", "expected '}', found '%x'", 2, 13),
    (HEAD + "  return %x,\n}", "expected a value, as in %x", 3, 1),
    (HEAD + "  %y = exp(%x)", "expected an operation", 2, 15),
    (HEAD + "  return %x\n}\nreturn", "expected 'func'", 4, 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "line", "column"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_text(text: str, message: str, line: int, column: int) -> None:
    with pytest.raises(IRError, match=re.escape(message)) as error:
        parse_module(text, "dir/some.ring")
    place = error.value.place
    assert place is not None
    assert (str(place.file), place.line, place.column) == ("dir/some.ring", line, column)
    assert place.text == (text + "\n").split("\n")[line - 1]
    shown = str(error.value)
    assert f"dir/some.ring:{line}:{column}" in shown
    assert "^" in shown


@pytest.mark.parametrize(
    ("text", "help"),
    [
        (HEAD + "  %y = expp(%x)\n return\n}", "did you mean 'exp'?"),
        (HEAD + "  %y = exp(%xx)\n return\n}", "did you mean 'x'?"),
        (HEAD + "  %y = sum(%x) {axis = [0]}\n return\n}", "did you mean 'axes'?"),
        ("module @m level fusd", "did you mean 'fused'?"),
        (HEAD + "  %y = sum(%x) {axes = 0}\n return\n}", "it is of type tuple[int, ...]"),
        (HEAD + "  %y = sum(%x) {axes = [0], keep = 1}\n return\n}", "it is of type bool"),
    ],
)
def test_malformed_text_says_what_to_do(text: str, help: str) -> None:
    with pytest.raises(IRError) as error:
        parse_module(text)
    assert error.value.help == help


def test_what_the_parser_takes_beside_what_is_printed() -> None:
    module = parse_module("""# a comment
        func @f(%x: f32[N/B, (N // 2)], %y: f32[max(N, 2) / max(B, 1), 3]) { # types of results may be left out
          %0 = exp(%x)
          return %0
        }""")
    first, second = module.functions["f"].body.args
    assert first.type == TensorType(DType.F32, (symbol("N"), symbol("N") // 2), symbol("B"))
    assert second.tensor.rank == 2
    assert module.level is Level.GRAPH


# -- the verifier

BROKEN = [
    ("module @m level graph\nfunc @f(%x: f32[4, 8]) { %y = softmax(%x) return %y }", r"in @f: softmax\(%x\) may not stand at this level"),
    ("module @m level kernel\nfunc @f(%x: f32[4, 8]) { %y = exp(%x) return %y }", r"exp\(%x\) may not stand"),
    (
        ("module @m level graph\nfunc @f(%s: f32[B, 2], %x: f32[N / B, 2], %o: i32[B + 1]) {\n"
        "%a = scan(%s, [%x], [], %o) ^(%p: f32[2], %q: f32[2]) { %r = softmax(%q) return %r } return %a }"),
        r"softmax\(%q\) may not stand at this level",
    ),
    ("symbol N\nfunc @f(%x: f32[N, M]) { return %x }", r"the block takes a f32\[N, M\], but nothing is said of M"),
    ("symbol N\nfunc @f() { %x = iota() {length = K} return %x }", r"makes a i32\[K\], but nothing is said of K"),
    ('func @f(%x: f32[4]) { %y = call([%x]) {callee = "g", out = [f32[4]]} return %y }', "call of @g, which is not in the module"),
    (
        'func @g(%x: f32[4]) { return %x } func @f(%x: f32[5]) { %y = call([%x]) {callee = "g", out = [f32[4]]} return %y }',
        r"@g takes \['f32\[4\]'\], but gets \['f32\[5\]'\]",
    ),
    (
        'func @g(%x: f32[4]) { return %x } func @f(%x: f32[4]) { %y = call([%x]) {callee = "g", out = [f32[5]]} return %y }',
        r"@g gives back \['f32\[4\]'\], not \['f32\[5\]'\]",
    ),
    (
        ("func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) {\n"
        "%a = state_write(%s, %i, %x) %b = state_write(%s, %i, %x) return %a, %b }"),
        r"in @f: state_write\(%s, %i, %x\) takes %s, which state_write\(%s, %i, %x\) has written",
    ),
    (
        "func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) { %a = state_write(%s, %i, %x) %b = state_read(%s, %i) return %a, %b }",
        r"state_read\(%s, %i\) takes %s, which state_write",
    ),
    (
        "func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) { %a = state_write(%s, %i, %x) return %s }",
        "%s is given back, but state_write",
    ),
    (
        ("func @g(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) { %a = state_write(%s, %i, %x) return %a }\n"
        "func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) {\n"
        '%a = call([%s, %i, %x]) {callee = "g", out = [state<f32[P; 4]>]} %b = state_read(%s, %i) return %a, %b }'),
        r"state_read\(%s, %i\) takes %s, which call",
    ),
    ("module @m level fused\nfunc @f(%x: f32[4, 8]) { %y = launch([%x]) {kernel = \"k\", out = [f32[4]]} return %y }", "may not stand"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=range(len(BROKEN)))
def test_verifier(text: str, message: str) -> None:
    module = parse_module(text)
    with pytest.raises(IRError, match=message):
        verify(module)


FINE = [
    # A pool may be read before it is written, and read through a call that only reads it.
    "func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) { %b = state_read(%s, %i) %a = state_write(%s, %i, %x) return %a, %b }",
    ("func @g(%s: state<f32[P; 4]>, %i: i32[B]) { %a = state_read(%s, %i) return %a }\n"
    "func @f(%s: state<f32[P; 4]>, %i: i32[B], %x: f32[B, 4]) {\n"
    '%b = call([%s, %i]) {callee = "g", out = [f32[B, 4]]} %a = state_write(%s, %i, %x) return %a, %b }'),
    # A region that writes one pool and reads another leaves the other as it was.
    ("module @m level fused\n"
    "func @f(%s: state<f32[P; 4]>, %r: state<f32[P; 4]>, %i: i32[B]) {\n"
    '%a = fused([%s, %r, %i]) {family = "row"} ^(%s: state<f32[P; 4]>, %r: state<f32[P; 4]>, %i: i32[B]) {\n'
    "%x = state_read(%r, %i) %a = state_write(%s, %i, %x) return %a }\n"
    "%y = state_read(%r, %i) return %a, %r, %y }"),
]  # fmt: skip


@pytest.mark.parametrize("text", FINE, ids=range(len(FINE)))
def test_verifier_takes_what_is_right(text: str) -> None:
    verify(parse_module(text))


def graph() -> tuple[Module, Block]:
    block = Block([tensor("f32", 4)], ["x"])
    module = Module("m")
    module.add(Function("f", block))
    return module, block


def test_use_before_definition() -> None:
    module, block = graph()
    first = block.insert(Exp(block.args[0]))
    second = block.insert(Exp(first.result))
    block.set_outputs(second.results)
    block.ops.reverse()
    with pytest.raises(IRError, match=r"in @f: exp takes %\w*, which is not defined before it in the same block"):
        verify(module)


def test_value_of_another_block() -> None:
    module, block = graph()
    _, other = graph()
    block.set_outputs(other.args)
    with pytest.raises(IRError, match="the end of the block takes %x, which is not defined before it"):
        verify(module)


def test_result_type_that_the_operation_does_not_make() -> None:
    module, block = graph()
    op = block.insert(Exp(block.args[0]))
    op.result.type = tensor("bf16", 4)
    with pytest.raises(IRError, match=r"says its results are \['bf16\[4\]'\], but makes \['f32\[4\]'\]"):
        verify(module)


def test_forgotten_use() -> None:
    module, block = graph()
    op = block.insert(Exp(block.args[0]))
    block.args[0].uses.remove(op)
    with pytest.raises(AssertionError, match="uses"):
        verify(module)


@pytest.mark.parametrize("name", ["", "two words", "a(b"])
def test_names_that_can_not_be_written(name: str) -> None:
    module = Module("m")
    module.add(Function(name, Block()))
    with pytest.raises(IRError, match="no name that can be written and read back"):
        verify(module)
    module, block = graph()
    block.insert(Exp(block.args[0])).scope = name or "a b"
    with pytest.raises(IRError, match="which can't be written and read back"):
        verify(module)


def test_symbols_need_bounds_only_where_some_are_given() -> None:
    module, block = graph()
    block.add_arg(tensor("f32", symbol("Q")))
    verify(module)
    module.bounds["Q"] = Bound()
    verify(module)
    block.add_arg(tensor("f32", symbol("R")))
    with pytest.raises(IRError, match="nothing is said of R") as error:
        verify(module)
    assert error.value.help == "declare it at the top, as in `symbol N >= 1`"


def test_legality() -> None:
    assert "linear_attention" not in legal(Level.GRAPH)
    assert "linear_attention" in legal(Level.FUSED)
    assert "exp" not in legal(Level.KERNEL)
    assert {"launch", "call"} <= legal(Level.KERNEL)
    assert all(cls.levels for cls in OPS.values())


# -- the graph itself


def test_two_functions_of_one_name() -> None:
    module, _ = graph()
    with pytest.raises(IRError, match="two functions called f"):
        module.add(Function("f", Block()))


def test_replacing_and_erasing() -> None:
    module, block = graph()
    b = Builder(block)
    x = block.args[0]
    with b.within("layers.0"):
        y = b(Exp(x), "y")
    z = b(Add(y, y), "z")
    block.set_outputs([z, y])
    assert (y.op and y.op.scope, z.op and z.op.scope) == ("layers.0", "")
    with pytest.raises(AssertionError, match="still used"):
        block.erase(y.op)  # type: ignore[arg-type]
    block.replace_uses(y, x)
    verify(module)
    assert block.outputs == (z, x)
    assert y.uses == []
    block.erase(y.op)  # type: ignore[arg-type]
    verify(module)
    assert len(x.uses) == 3
    front = Builder(block, before=z.op)(Exp(x), "w")
    assert [op.result for op in block.ops] == [front, z]


def test_scaled_values_pass_through_calls_only() -> None:
    scaled = TensorType(DType.F8E4M3, (4, 128), quant=Quant((1, 128)))
    block = Block([scaled])
    assert Call((block.args[0],), "g", (scaled,)).result.type == scaled
    with pytest.raises(IRError, match="no rule"):
        Exp(block.args[0])
