"""Linear attention is found in scans whose body is the recurrence, however it is written, and in no other scan."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import math

import pytest

from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.source import Constant
from tests.passes.support import counts, graph, transformed

ARGS = (
    "%q: f32[N / B, 2, 4], %k: f32[N / B, 2, 4], %v: f32[N / B, 2, 3], %slopes: f32[2], %pool: state<f32[P; 2, 4, 3]>, "
    "%slots: i32[B], %offsets: i32[B + 1]"
)
DECAY = "%n = neg(%slopes)\n%e = exp(%n)\n%decay = reshape(%e) {shape = [2, 1, 1]}"
READ = "%S0 = state_read(%pool, %slots)"
HEAD = "%final, %o = scan(%S0, [%q, %k, %v], [%decay], %offsets) ^(%S: f32[2, 4, 3], %q: f32[2, 4], %k: f32[2, 4], %v: f32[2, 3], %lam: f32[2, 1, 1]) {"
BARE = "%final, %o = scan(%S0, [%q, %k, %v], [], %offsets) ^(%S: f32[2, 4, 3], %q: f32[2, 4], %k: f32[2, 4], %v: f32[2, 3]) {"
WRITE = "%new_pool = state_write(%pool, %slots, %final)\nreturn %o, %new_pool"

OUTER = {
    "pointwise": "%kc = reshape(%k) {shape = [2, 4, 1]}\n%vr = reshape(%v) {shape = [2, 1, 3]}\n%kv = mul(%kc, %vr)",
    "pointwise, commuted": "%kc = reshape(%k) {shape = [2, 4, 1]}\n%vr = reshape(%v) {shape = [2, 1, 3]}\n%kv = mul(%vr, %kc)",
    "product": "%kc = reshape(%k) {shape = [2, 4, 1]}\n%vr = reshape(%v) {shape = [2, 1, 3]}\n%kv = matmul(%kc, %vr)",
    "transposed product": "%kc = reshape(%k) {shape = [2, 4, 1]}\n%vr = reshape(%v) {shape = [2, 3, 1]}\n%kv = matmul(%kc, %vr) {transpose_b = true}",
    "broadcast": "%kc = reshape(%k) {shape = [2, 4, 1]}\n%vr = reshape(%v) {shape = [2, 1, 3]}\n%kw = broadcast(%kc) {shape = [2, 4, 3]}\n"
    "%vw = broadcast(%vr) {shape = [2, 4, 3]}\n%kv = mul(%kw, %vw)",
    "transposed row": "%kr = reshape(%k) {shape = [2, 1, 4]}\n%kc = transpose(%kr) {axes = [0, 2, 1]}\n%vr = reshape(%v) {shape = [2, 1, 3]}\n"
    "%kv = matmul(%kc, %vr)",
}
UPDATE = {
    "S first": "%d = mul(%lam, %S)\n%new = add(%d, %kv)",
    "kv first": "%d = mul(%S, %lam)\n%new = add(%kv, %d)",
}
C = "%c = constant() {value = [0.5], dtype = f32}"
READ_OUT = {
    "product, scaled q": f"{C}\n%qs = mul(%q, %c)\n%qr = reshape(%qs) {{shape = [2, 1, 4]}}\n%oo = matmul(%qr, %new)\n%out = reshape(%oo) {{shape = [2, 3]}}",
    "product, scaled o": f"{C}\n%qr = reshape(%q) {{shape = [2, 1, 4]}}\n%oo = matmul(%qr, %new)\n%os = mul(%c, %oo)\n%out = reshape(%os) {{shape = [2, 3]}}",
    "sum": f"{C}\n%qr = reshape(%q) {{shape = [2, 4, 1]}}\n%t = mul(%qr, %new)\n%oo = sum(%t) {{axes = [1]}}\n%out = mul(%oo, %c)",
    "sum, axis kept": f"{C}\n%qs = mul(%q, %c)\n%qr = reshape(%qs) {{shape = [2, 4, 1]}}\n%t = mul(%new, %qr)\n%oo = sum(%t) {{axes = [1], keep = true}}\n"
    "%out = reshape(%oo) {shape = [2, 3]}",
    "transposed state": f"{C}\n%nt = transpose(%new) {{axes = [0, 2, 1]}}\n%qr = reshape(%q) {{shape = [2, 4, 1]}}\n%oo = matmul(%nt, %qr)\n"
    "%os = reshape(%oo) {shape = [2, 3]}\n%out = mul(%os, %c)",
}


def layer(
    outer="pointwise", update="S first", read_out="product, scaled q", decay=DECAY, head=HEAD, write=WRITE
) -> str:
    body = "\n".join([OUTER[outer], UPDATE[update], READ_OUT[read_out], "return %new, %out", "}"])
    return graph(ARGS, f"{READ}\n{decay}\n{head}\n{body}\n{write}")


def found(text: str) -> LinearAttention:
    module = transformed(text)
    (op,) = [op for op in module.functions["main"].body.ops if isinstance(op, LinearAttention)]
    assert not {"scan", "state_read", "state_write"} & {o.name for o in module.functions["main"].body.ops}
    assert [v.name for v in (op.q, op.k, op.v, op.state, op.slots, op.offsets)] == [
        "q",
        "k",
        "v",
        "pool",
        "slots",
        "offsets",
    ]
    return op


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("update", UPDATE)
@pytest.mark.parametrize("read_out", READ_OUT)
def test_bodies(outer, update, read_out):
    op = found(layer(outer, update, read_out))
    assert op.scale == 0.5
    assert op.slopes.name == "slopes"


INSIDE = {
    "exponential inside": ("%n = neg(%slopes)\n%decay = reshape(%n) {shape = [2, 1, 1]}", "%lam = exp(%arg)"),
    "sign and exponential inside": ("%decay = reshape(%slopes) {shape = [2, 1, 1]}", "%m = neg(%arg)\n%lam = exp(%m)"),
}


def decay_inside(outside: str, inside: str) -> str:
    return layer(decay=outside, head=f"{HEAD.replace('%lam:', '%arg:')}\n{inside}")


@pytest.mark.parametrize("case", INSIDE)
def test_the_decay_is_computed_in_the_body(case):
    assert found(decay_inside(*INSIDE[case])).slopes.name == "slopes"


def test_slopes_that_only_the_body_knows():
    outside, inside = INSIDE["sign and exponential inside"]
    text = decay_inside(outside, inside.replace("neg(%arg)", "neg(%twice)")).replace(
        "%m = neg", "%twice = add(%arg, %arg)\n%m = neg"
    )
    assert "scan" in counts(text)


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("read_out", READ_OUT)
def test_one_head_whose_axis_was_left_out(outer, read_out):
    """Arithmetic gives a single head's axis back, so canonicalize drops the reshape that adds it."""
    text = layer(outer, read_out=read_out)
    for two, one in (("[2, ", "[1, "), (" / B, 2, ", " / B, 1, "), ("; 2, ", "; 1, "), ("f32[2]", "f32[1]")):
        text = text.replace(two, one)
    names = counts(text, "canonicalize,cse,raise,dce")
    assert names["linear_attention"] == 1 and not names["scan"]


def test_scale_before_the_scan():
    text = layer(head=f"{C}\n%q0 = mul(%c, %q)\n{HEAD.replace('[%q, %k', '[%q0, %k')}", read_out="product, scaled o")
    assert found(text).scale == 0.25


def slopes_of(op: LinearAttention) -> list[float]:
    assert isinstance(op.slopes.op, Constant)
    return [float(x) for x in op.slopes.op.value]


LITERAL = {
    "table outside": ("%decay = constant() {value = [0.5, 0.9], dtype = f32, shape = [2, 1, 1]}", HEAD, "", [0.5, 0.9]),
    "table inside": ("", BARE, "%lam = constant() {value = [0.5, 0.9], dtype = f32, shape = [2, 1, 1]}\n", [0.5, 0.9]),
    "one number inside": ("", BARE, "%lam = constant() {value = [0.7], dtype = f32}\n", [0.7, 0.7]),
    "vector inside": (
        "",
        BARE,
        "%l = constant() {value = [0.5, 0.9], dtype = f32, shape = [2]}\n%lam = reshape(%l) {shape = [2, 1, 1]}\n",
        [0.5, 0.9],
    ),
    "table of slopes": (
        "%sl = constant() {value = [0.25, 1.5], dtype = f32, shape = [2]}\n%n = neg(%sl)\n%e = exp(%n)\n%decay = reshape(%e) {shape = [2, 1, 1]}",
        HEAD,
        "",
        [math.exp(-0.25), math.exp(-1.5)],
    ),
    "slopes times a factor": (
        (
            "%sl = constant() {value = [0.25, 1.5], dtype = f32, shape = [2]}\n%f = constant() {value = [-2.0], dtype = f32}\n"
            "%n = mul(%sl, %f)\n%e = exp(%n)\n%decay = reshape(%e) {shape = [2, 1, 1]}"
        ),
        HEAD,
        "",
        [math.exp(-0.5), math.exp(-3.0)],
    ),
    "repeated": (
        "%one = constant() {value = [0.7], dtype = f32}\n%decay = broadcast(%one) {shape = [2, 1, 1]}",
        HEAD,
        "",
        [0.7, 0.7],
    ),
}


@pytest.mark.parametrize("case", LITERAL)
def test_decays_known_at_compile_time(case):
    decay, head, inside, expected = LITERAL[case]
    op = found(layer(decay=decay, head=f"{head}\n{inside}"))
    assert slopes_of(op) == pytest.approx([-math.log(d) for d in expected], rel=1e-12)


def test_state_wider_than_the_rows():
    text = layer(read_out="product, scaled q")
    text = text.replace(
        "%q: f32[N / B, 2, 4], %k: f32[N / B, 2, 4], %v: f32[N / B, 2, 3]",
        "%q: bf16[N / B, 2, 4], %k: bf16[N / B, 2, 4], %v: bf16[N / B, 2, 3]",
    )
    text = text.replace("%q: f32[2, 4], %k: f32[2, 4], %v: f32[2, 3]", "%q: bf16[2, 4], %k: bf16[2, 4], %v: bf16[2, 3]")
    text = (
        text.replace("reshape(%k)", "reshape(%kf)")
        .replace("reshape(%v)", "reshape(%vf)")
        .replace("mul(%q, %c)", "mul(%qf, %c)")
    )
    text = text.replace(OUTER["pointwise"].split("\n")[0].replace("%k)", "%kf)"),
                        "%kf = cast(%k) {dtype = f32}\n%vf = cast(%v) {dtype = f32}\n%qf = cast(%q) {dtype = f32}\n%kc = reshape(%kf) {shape = [2, 4, 1]}")  # fmt: skip
    text = text.replace("return %new, %out", "%narrow = cast(%out) {dtype = bf16}\nreturn %new, %narrow")
    assert found(text).scale == 0.5


SUM = READ_OUT["sum"]
NEAR = {
    "decay by the row": layer(decay="%decay = sigmoid(%k)", head=HEAD.replace("[%decay]", "[]").replace("%k, %v]", "%k, %v, %g]")
                              .replace("%lam: f32[2, 1, 1]", "%lam: f32[2, 1, 1]"))
    .replace("%slopes: f32[2]", "%g: f32[N / B, 2, 1, 1]").replace("%decay = sigmoid(%k)\n", ""),
    "reads the old state": layer().replace("matmul(%qr, %new)", "matmul(%qr, %S)"),
    "reads the undecayed sum": layer().replace("%oo = matmul(%qr, %new)", "%nd = add(%S, %kv)\n%oo = matmul(%qr, %nd)"),
    "decays the update too": layer().replace("%new = add(%d, %kv)", "%a = add(%S, %kv)\n%new = mul(%lam, %a)").replace("%d = mul(%lam, %S)\n", ""),
    "a decay for each channel": layer(decay="%n = neg(%channel_slopes)\n%e = exp(%n)\n%decay = reshape(%e) {shape = [2, 4, 1]}")
    .replace("%slopes: f32[2]", "%channel_slopes: f32[2, 4]").replace("%lam: f32[2, 1, 1]", "%lam: f32[2, 4, 1]"),
    "a decay above one": layer(decay="%decay = constant() {value = [0.5, 1.5], dtype = f32, shape = [2, 1, 1]}"),
    "a growing exponential": layer(decay="%e = exp(%slopes)\n%decay = reshape(%e) {shape = [2, 1, 1]}"),
    "written to other slots": layer(write=WRITE.replace("%slots", "%other_slots")).replace("%slots: i32[B]", "%slots: i32[B], %other_slots: i32[B]"),
    "not written back": layer(write="return %o, %final"),
    "the final state has another user": layer(write=WRITE + ", %final"),
    "the old state is read later": layer(write="%again = state_read(%pool, %slots)\n" + WRITE + ", %again"),
    "keys are scaled": layer().replace("%kc = reshape(%k)", "%three = constant() {value = [3.0], dtype = f32}\n%k3 = mul(%k, %three)\n%kc = reshape(%k3)"),
    "a second output": layer(write=WRITE + ", %more").replace("%final, %o = scan", "%final, %o, %more = scan").replace("return %new, %out", "return %new, %out, %q"),
    "reads along the values": graph(ARGS.replace("%v: f32[N / B, 2, 3]", "%v: f32[N / B, 2, 4]").replace("P; 2, 4, 3", "P; 2, 4, 4"),
                                    "\n".join([READ, DECAY, HEAD, OUTER["pointwise"], UPDATE["S first"], READ_OUT["product, scaled q"]
                                               .replace("%oo = matmul(%qr, %new)", "%oo = matmul(%qr, %new) {transpose_b = true}"),
                                               "return %new, %out", "}", WRITE]).replace("3]", "4]")),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR)
def test_no_linear_attention(case):
    assert "linear_attention" not in counts(NEAR[case])


def test_an_earlier_reader_of_the_state_is_no_obstacle():
    text = (
        layer(write=WRITE + ", %before")
        .replace(READ, f"%before = state_read(%pool, %slots2)\n{READ}")
        .replace("%slots: i32[B]", "%slots: i32[B], %slots2: i32[B]")
    )
    assert counts(text)["linear_attention"] == 1
