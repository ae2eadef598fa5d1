"""Softmax attention over a cache, with the scale, the mask and the shared heads written in every way; and what is not attention."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from ringc.ir.ops.mixers import Attention
from tests.passes.support import counts, graph, transformed

ARGS = (
    "%q: f32[N / B, 4, 5], %keys: state<f32[P; S, 2, 5]>, %values: state<f32[P; S, 2, 5]>, "
    "%slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]"
)
READ = """%ids = segment_ids(%offsets) {length = N}
%of_token = gather(%slots, %ids)
%kr = state_read(%keys, %of_token)
%vr = state_read(%values, %of_token)
%kt = transpose(%kr) {axes = [0, 2, 1, 3]}
%vt = transpose(%vr) {axes = [0, 2, 1, 3]}"""

_RANGES = "\n".join(f"%{x}{i} = slice(%{x}t) {{axis = 1, start = {i}, stop = {i + 1}}}" for x in "kv" for i in (0, 1))
HEADS = {
    "broadcast": """%k1 = reshape(%kt) {shape = [N, 2, 1, S, 5]}
%k2 = broadcast(%k1) {shape = [N, 2, 2, S, 5]}
%k = reshape(%k2) {shape = [N, 4, S, 5]}
%v1 = reshape(%vt) {shape = [N, 2, 1, S, 5]}
%v2 = broadcast(%v1) {shape = [N, 2, 2, S, 5]}
%v = reshape(%v2) {shape = [N, 4, S, 5]}
%qr = reshape(%q) {shape = [N, 4, 1, 5]}""",
    "broadcast before the transposition": """%k1 = reshape(%kr) {shape = [N, S, 2, 1, 5]}
%k2 = broadcast(%k1) {shape = [N, S, 2, 2, 5]}
%k3 = reshape(%k2) {shape = [N, S, 4, 5]}
%k = transpose(%k3) {axes = [0, 2, 1, 3]}
%v1 = reshape(%vr) {shape = [N, S, 2, 1, 5]}
%v2 = broadcast(%v1) {shape = [N, S, 2, 2, 5]}
%v3 = reshape(%v2) {shape = [N, S, 4, 5]}
%v = transpose(%v3) {axes = [0, 2, 1, 3]}
%qr = reshape(%q) {shape = [N, 4, 1, 5]}""",
    "concatenation of heads": f"""{_RANGES}
%k = concat([%k0, %k0, %k1, %k1]) {{axis = 1}}
%v = concat([%v0, %v0, %v1, %v1]) {{axis = 1}}
%qr = reshape(%q) {{shape = [N, 4, 1, 5]}}""",
    "gather of heads": """%hs = constant() {value = [0, 0, 1, 1], dtype = i32, shape = [4]}
%h = iota() {length = 4}
%two = constant() {value = [2], dtype = i32}
%hc = floordiv(%h, %two)
%k0 = transpose(%kr) {axes = [2, 0, 1, 3]}
%k1 = gather(%k0, %hs)
%k = transpose(%k1) {axes = [1, 0, 2, 3]}
%v0 = transpose(%vr) {axes = [2, 0, 1, 3]}
%v1 = gather(%v0, %hc)
%v = transpose(%v1) {axes = [1, 0, 2, 3]}
%qr = reshape(%q) {shape = [N, 4, 1, 5]}""",
    "groups of rows": """%k = transpose(%kr) {axes = [0, 2, 1, 3]}
%v = transpose(%vr) {axes = [0, 2, 1, 3]}
%qr = reshape(%q) {shape = [N, 2, 2, 5]}""",
    "an axis of groups": """%k1 = reshape(%kt) {shape = [N, 2, 1, S, 5]}
%k = broadcast(%k1) {shape = [N, 2, 2, S, 5]}
%v1 = reshape(%vt) {shape = [N, 2, 1, S, 5]}
%v = broadcast(%v1) {shape = [N, 2, 2, S, 5]}
%qr = reshape(%q) {shape = [N, 2, 2, 1, 5]}""",
}
SHAPE = dict.fromkeys(HEADS, "N, 4, 1, {}") | {"groups of rows": "N, 2, 2, {}", "an axis of groups": "N, 2, 2, 1, {}"}

C = "%c = constant() {value = [0.3], dtype = f32}"
SCALE = {
    "on the scores": f"%s0 = matmul(%qr, %k) {{transpose_b = true}}\n{C}\n%s = mul(%s0, %c)",
    "on q": f"{C}\n%qs = mul(%c, %qr)\n%s = matmul(%qs, %k) {{transpose_b = true}}",
    "division": "%s0 = matmul(%qr, %k) {transpose_b = true}\n%d = constant() {value = [5.0], dtype = f32}\n%r = sqrt(%d)\n%s = div(%s0, %r)",
    "both": f"{C}\n%qs = mul(%qr, %c)\n%s0 = matmul(%qs, %k) {{transpose_b = true}}\n%s = mul(%s0, %c)",
    "none": "%s = matmul(%qr, %k) {transpose_b = true}",
}
FACTOR = {"on the scores": 0.3, "on q": 0.3, "division": 5**-0.5, "both": 0.09, "none": 1.0}

INF = "%inf = constant() {value = [-inf], dtype = f32}\n%rows = iota() {length = S}"
MASK = {
    "le": "%p = reshape(%positions) {shape = [UNITS]}\n%m = le(%rows, %p)\n%z = where(%m, %s, %inf)",
    "ge": "%p = reshape(%positions) {shape = [UNITS]}\n%m = ge(%p, %rows)\n%z = where(%m, %s, %inf)",
    "gt": "%p = reshape(%positions) {shape = [UNITS]}\n%m = gt(%rows, %p)\n%z = where(%m, %inf, %s)",
    "not gt": "%p = reshape(%positions) {shape = [UNITS]}\n%g = gt(%rows, %p)\n%m = not(%g)\n%z = where(%m, %s, %inf)",
    "lt one more": "%one = constant() {value = [1], dtype = i32}\n%p1 = add(%positions, %one)\n%p = reshape(%p1) {shape = [UNITS]}\n"
    "%m = lt(%rows, %p)\n%z = where(%m, %s, %inf)",
    "added": "%p = reshape(%positions) {shape = [UNITS]}\n%m = le(%rows, %p)\n%zero = constant() {value = [0.0], dtype = f32}\n"
    "%w = where(%m, %zero, %inf)\n%z = add(%s, %w)",
    "flat": "%r2 = reshape(%rows) {shape = [1, S]}\n%p = reshape(%positions) {shape = [N, 1]}\n%m0 = le(%r2, %p)\n"
    "%m = reshape(%m0) {shape = [ONES]}\n%z = where(%m, %s, %inf)",
    "finite": "%low = constant() {value = [-1e+38], dtype = f32}\n%p = reshape(%positions) {shape = [UNITS]}\n%m = le(%rows, %p)\n"
    "%z = where(%m, %s, %low)",
}
SOFT = "%top = max(%z) {axes = [AXIS], keep = true}\n%t = sub(%z, %top)\n%e = exp(%t)\n%sum = sum(%e) {axes = [AXIS], keep = true}\n%w_ = div(%e, %sum)"
OUT = "%o = matmul(%w_, %v)\n%y = reshape(%o) {shape = [N, 4, 5]}\nreturn %y"


def attention(heads: str = "broadcast", scale: str = "on the scores", mask: str = "le", tail: str = "") -> str:
    rank = SHAPE[heads].count(",") + 1
    body = "\n".join([READ, HEADS[heads], SCALE[scale], INF, MASK[mask], SOFT, OUT + tail])
    body = body.replace("UNITS", ", ".join(["N", *["1"] * (rank - 1)])).replace(
        "ONES", ", ".join(["N", *["1"] * (rank - 2), "S"])
    )
    return graph(ARGS, body.replace("AXIS", str(rank - 1)))


def check(text: str, scale: float) -> None:
    (op,) = transformed(text).functions["main"].body.ops
    assert isinstance(op, Attention)
    assert op.scale == pytest.approx(scale, rel=1e-12)
    assert [v.name for v in op.inputs()] == ["q", "keys", "values", "slots", "offsets", "positions"]


@pytest.mark.parametrize("heads", HEADS)
def test_shared_heads(heads):
    check(attention(heads), 0.3)


@pytest.mark.parametrize("scale", SCALE)
@pytest.mark.parametrize("heads", ["broadcast", "groups of rows"])
def test_scale(scale, heads):
    check(attention(heads, scale), FACTOR[scale])


@pytest.mark.parametrize("mask", MASK)
@pytest.mark.parametrize("heads", ["broadcast", "groups of rows", "an axis of groups"])
def test_mask(mask, heads):
    check(attention(heads, mask=mask), 0.3)


def test_scale_in_front_of_a_view_of_the_queries():
    scaled = f"{C}\n%qs = mul(%q, %c)\n%qr = reshape(%qs)"
    check(attention(scale="none").replace("%qr = reshape(%q)", scaled), 0.3)


def test_scale_after_the_mask():
    text = (
        attention(scale="none")
        .replace("%top = max(%z)", f"{C}\n%zz = mul(%z, %c)\n%top = max(%zz)")
        .replace("sub(%z, ", "sub(%zz, ")
    )
    check(text, 0.3)


def test_keys_transposed_beforehand():
    text = attention("groups of rows").replace(
        "%s0 = matmul(%qr, %k) {transpose_b = true}",
        "%kk = transpose(%k) {axes = [0, 1, 3, 2]}\n%s0 = matmul(%qr, %kk)",
    )
    check(text, 0.3)
    text = attention("broadcast").replace(
        "%s0 = matmul(%qr, %k) {transpose_b = true}",
        "%kk = transpose(%k) {axes = [0, 1, 3, 2]}\n%s0 = matmul(%qr, %kk)",
    )
    check(text, 0.3)


def test_softmax_without_the_maximum():
    check(attention().replace("%t = sub(%z, %top)\n%e = exp(%t)", "%e = exp(%z)"), 0.3)


def test_heads_that_are_not_shared():
    text = attention("groups of rows").replace(", 2, 5]>", ", 4, 5]>").replace("[N, 2, 2, 5]", "[N, 4, 1, 5]")
    text = text.replace("[N, 2, 2,", "[N, 4, 1,")
    check(text, 0.3)


def test_one_head_for_all():
    text = attention("groups of rows").replace(", 2, 5]>", ", 1, 5]>").replace("[N, 2, 2, 5]", "[N, 1, 4, 5]")
    check(text, 0.3)


def test_the_decomposition_is_found():
    from ringc.ir.builder import Builder
    from ringc.ir.core import Module
    from ringc.ir.text_parse import parse_module

    fused = parse_module(
        graph(ARGS, "%y = attention(%q, %keys, %values, %slots, %offsets, %positions) {scale = 0.3}\nreturn %y")
    )
    block = fused.functions["main"].body
    (op,) = block.ops
    assert isinstance(op, Attention)
    (y,) = op.decompose(Builder(block, before=op), *op.inputs())
    block.replace_uses(op.result, y)
    block.erase(op)
    # The plain softmax is a composite operation itself: the module is between the levels.
    plain = Module("test", fused.functions)
    from ringc.ir.core import Level

    plain.level = Level.FUSED
    assert counts(plain) == {"attention": 1}


K_SECOND = "%k2 = broadcast(%k1) {shape = [N, 2, 2, S, 5]}"
NEAR = {
    "no mask": attention().replace("%z = where(%m, %s, %inf)", "%z = reshape(%s) {shape = [N, 4, 1, S]}"),
    "heads are masked, not tokens": attention().replace("reshape(%positions) {shape = [N, 1, 1, 1]}", "reshape(%head_limits) {shape = [1, 4, 1, 1]}")
    .replace("%positions: i32[N / B]", "%positions: i32[N / B], %head_limits: i32[4]"),
    "the future is kept": attention().replace("le(%rows, %p)", "ge(%rows, %p)"),
    "a token doesn't see itself": attention().replace("le(%rows, %p)", "lt(%rows, %p)").replace("%positions)", "%later)")
    .replace("%p = reshape", "%more = constant() {value = [2], dtype = i32}\n%later = add(%positions, %more)\n%p = reshape"),
    "a mask that leaves something": attention().replace("[-inf]", "[-10.0]"),
    "softmax over heads": attention().replace("axes = [3]", "axes = [1]").replace("[-inf]", "[-1e+30]"),
    "scores have another user": attention(tail=", %s"),
    "raw scores have another user": attention(tail=", %s0"),
    "weights have another user": attention(tail=", %w_"),
    "heads exchanged": attention("concatenation of heads").replace("%k0, %k0, %k1, %k1", "%k0, %k1, %k0, %k1"),
    "keys and values exchange heads": attention("concatenation of heads").replace("%v0, %v0, %v1, %v1", "%v1, %v1, %v0, %v0"),
    "heads shared by turns": attention("an axis of groups").replace("%k1 = reshape(%kt) {shape = [N, 2, 1, S, 5]}", "%k1 = reshape(%kt) {shape = [N, 1, 2, S, 5]}")
    .replace("%v1 = reshape(%vt) {shape = [N, 2, 1, S, 5]}", "%v1 = reshape(%vt) {shape = [N, 1, 2, S, 5]}"),
    "values of another sequence": attention().replace("%vr = state_read(%values, %of_token)", "%one_more = constant() {value = [4], dtype = i32}\n"
    "%turned = sub(%one_more, %of_token)\n%vr = state_read(%values, %turned)"),
    "weights scaled": attention().replace("%o = matmul(%w_, %v)", f"{C.replace('%c', '%cw')}\n%w2 = mul(%w_, %cw)\n%o = matmul(%w2, %v)"),
    "negative scale after the mask": attention(scale="none").replace("%top = max(%z)", "%neg = constant() {value = [-0.1], dtype = f32}\n%zz = mul(%z, %neg)\n%top = max(%zz)")
    .replace("sub(%z, ", "sub(%zz, ").replace("[-inf]", "[-1e+30]"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR)
def test_no_attention(case):
    assert "attention" not in counts(NEAR[case], ranges={"head_limits": 5})


def test_the_cache_may_not_be_written_before_the_weights_are_used():
    """Reads and writes are in place, so attention, which reads where it stands, may not move behind a write."""
    append = (
        "%kn = slice(%q) {axis = 1, start = 0, stop = 2}\n%knew = state_append(%keys, %of_token, %positions, %kn)\n"
    )
    text = attention(tail=", %knew").replace("%o = matmul", append + "%o = matmul")
    assert "attention" not in counts(text)
    text = attention(tail=", %knew").replace("return", append + "return")
    assert counts(text)["attention"] == 1


def test_softmax_in_single_precision_between_narrow_products():
    """A cast of the scores up and of the weights down is rounding inside the operation, which its kernels leave out."""
    text = attention().replace("f32[N / B, 4, 5]", "bf16[N / B, 4, 5]").replace("state<f32", "state<bf16")
    text = text.replace(
        "%s0 = matmul(%qr, %k) {transpose_b = true}", "%s0 = matmul(%qr, %k) {transpose_b = true, out = f32}"
    )
    check(text.replace("%o = matmul(%w_, %v)", "%wn = cast(%w_) {dtype = bf16}\n%o = matmul(%wn, %v)"), 0.3)
    raw = text.replace(", out = f32}", "}").replace(
        "%s = mul(%s0, %c)", "%sf = cast(%s0) {dtype = f32}\n%s = mul(%sf, %c)"
    )
    check(raw.replace("%o = matmul(%w_, %v)", "%wn = cast(%w_) {dtype = bf16}\n%o = matmul(%wn, %v)"), 0.3)


def test_queries_of_another_type_than_the_cache_stay():
    text = (
        attention()
        .replace("f32[N / B, 4, 5]", "bf16[N / B, 4, 5]")
        .replace("%qr = reshape(%q)", "%qf = cast(%q) {dtype = f32}\n%qr = reshape(%qf)")
    )
    assert counts(text) == {"cast": 1, "attention": 1}
    text = attention().replace("state<f32", "state<bf16").replace("%kr = state_read(%keys", "%kr0 = state_read(%keys")
    text = text.replace("%vr = state_read(%values", "%vr0 = state_read(%values").replace(
        "%kt =", "%kr = cast(%kr0) {dtype = f32}\n%vr = cast(%vr0) {dtype = f32}\n%kt ="
    )
    assert "attention" not in counts(text)
