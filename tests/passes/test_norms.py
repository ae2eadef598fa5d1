"""RMS norm and softmax are found in every spelling, and in nothing else."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from tests.passes.support import counts, graph

X = "%x: f32[N, 8]"
XW = "%x: f32[N, 8], %w: f32[8]"
EPS = "%eps = constant() {value = [1e-06], dtype = f32}"

MEANS = {
    "mean": "%s = mul(%x, %x)\n%m = mean(%s) {axes = [1], keep = true}",
    "mean, axis put back": "%s = mul(%x, %x)\n%m0 = mean(%s) {axes = [1]}\n%m = reshape(%m0) {shape = [N, 1]}",
    "sum times 1/n": "%s = mul(%x, %x)\n%t = sum(%s) {axes = [1], keep = true}\n"
    "%c = constant() {value = [0.125], dtype = f32}\n%m = mul(%c, %t)",
    "sum over n": "%s = mul(%x, %x)\n%t = sum(%s) {axes = [1], keep = true}\n"
    "%c = constant() {value = [8.0], dtype = f32}\n%m = div(%t, %c)",
    "broadcast": "%s = mul(%x, %x)\n%m0 = mean(%s) {axes = [1], keep = true}\n%m = broadcast(%m0) {shape = [N, 8]}",
}
ROOTS = {
    "x * rsqrt": "%v = add(%m, %eps)\n%r = rsqrt(%v)\n%y = mul(%x, %r)",
    "rsqrt * x": "%v = add(%eps, %m)\n%r = rsqrt(%v)\n%y = mul(%r, %x)",
    "x / sqrt": "%v = add(%m, %eps)\n%r = sqrt(%v)\n%y = div(%x, %r)",
    "x * (1 / sqrt)": "%v = add(%m, %eps)\n%r = sqrt(%v)\n%one = constant() {value = [1.0], dtype = f32}\n"
    "%i = div(%one, %r)\n%y = mul(%x, %i)",
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("root", ROOTS)
def test_rms_norm(mean, root):
    found = counts(graph(X, f"{EPS}\n{MEANS[mean]}\n{ROOTS[root]}\nreturn %y"))
    assert found == {"rms_norm": 1}


WEIGHTED = {
    "after": "%r = rsqrt(%v)\n%u = mul(%x, %r)\n%y = mul(%u, %w)",
    "before": "%r = rsqrt(%v)\n%u = mul(%x, %r)\n%y = mul(%w, %u)",
    "on the root": "%r = rsqrt(%v)\n%u = mul(%r, %w)\n%y = mul(%x, %u)",
    "on x": "%r = rsqrt(%v)\n%u = mul(%x, %w)\n%y = mul(%u, %r)",
    "broadcast": "%r = rsqrt(%v)\n%u = mul(%x, %r)\n%b = broadcast(%w) {shape = [N, 8]}\n%y = mul(%u, %b)",
    "one row": "%r = rsqrt(%v)\n%u = mul(%x, %r)\n%b = reshape(%w) {shape = [1, 8]}\n%y = mul(%u, %b)",
}


@pytest.mark.parametrize("order", WEIGHTED)
def test_weight_is_taken_in(order):
    found = counts(graph(XW, f"{EPS}\n{MEANS['mean']}\n%v = add(%m, %eps)\n{WEIGHTED[order]}\nreturn %y"))
    assert found == {"rms_norm": 1}


def test_casts_around_stay():
    text = graph(
        "%h: bf16[N, 8], %w: bf16[8]",
        f"%x = cast(%h) {{dtype = f32}}\n{EPS}\n{MEANS['mean']}\n{ROOTS['x * rsqrt']}\n"
        "%wf = cast(%w) {dtype = f32}\n%z = mul(%y, %wf)\n%o = cast(%z) {dtype = bf16}\nreturn %o",
    )
    assert counts(text) == {"rms_norm": 1, "cast": 3}


def test_heads_share_a_weight():
    text = graph(
        "%x: f32[N, 4, 8], %w: f32[8]",
        f"{EPS}\n%s = mul(%x, %x)\n%m = mean(%s) {{axes = [2], keep = true}}\n{ROOTS['x * rsqrt']}\n%z = mul(%y, %w)\nreturn %z",
    )
    assert counts(text) == {"rms_norm": 1}


def test_group_norm_keeps_its_weight_outside():
    text = graph(
        "%a: f32[N, 8], %w: f32[8]",
        f"{EPS}\n%x = reshape(%a) {{shape = [N, 2, 4]}}\n%s = mul(%x, %x)\n%m = mean(%s) {{axes = [2], keep = true}}\n"
        f"{ROOTS['x * rsqrt']}\n%f = reshape(%y) {{shape = [N, 8]}}\n%z = mul(%f, %w)\nreturn %z",
    )
    assert counts(text) == {"rms_norm": 1, "reshape": 2, "mul": 1}


NEAR_NORMS = {
    "another axis": f"{EPS}\n%s = mul(%x, %x)\n%m = mean(%s) {{axes = [0], keep = true}}\n{ROOTS['x * rsqrt']}\nreturn %y",
    "both axes": f"{EPS}\n%s = mul(%x, %x)\n%m = mean(%s) {{axes = [0, 1], keep = true}}\n{ROOTS['x * rsqrt']}\nreturn %y",
    "no square": f"{EPS}\n%a = abs(%x)\n%m = mean(%a) {{axes = [1], keep = true}}\n{ROOTS['x * rsqrt']}\nreturn %y",
    "mean of another value": f"{EPS}\n%z = abs(%x)\n%s = mul(%z, %z)\n%m = mean(%s) {{axes = [1], keep = true}}\n"
    "%v = add(%m, %eps)\n%r = rsqrt(%v)\n%e = exp(%x)\n%y = mul(%e, %r)\nreturn %y",
    "wrong count": "%eps = constant() {value = [1e-06], dtype = f32}\n%s = mul(%x, %x)\n%t = sum(%s) {axes = [1], keep = true}\n"
    "%c = constant() {value = [4.0], dtype = f32}\n%m = div(%t, %c)\n%v = add(%m, %eps)\n%r = rsqrt(%v)\n%y = mul(%x, %r)\nreturn %y",
    "the root has another user": f"{EPS}\n{MEANS['mean']}\n{ROOTS['x * rsqrt']}\nreturn %y, %r",
    "the mean has another user": f"{EPS}\n{MEANS['mean']}\n{ROOTS['x * rsqrt']}\nreturn %y, %m",
}


@pytest.mark.parametrize("case", NEAR_NORMS)
def test_no_rms_norm(case):
    assert "rms_norm" not in counts(graph(X, NEAR_NORMS[case]))


@pytest.mark.parametrize(
    ("signature", "tail"),
    [
        (XW, "%z = mul(%y, %w)\nreturn %y, %z"),  # the norm without its weight has another user
        ("%x: f32[N, 8], %w: f32[N, 1]", "%z = mul(%y, %w)\nreturn %z"),  # a weight for each row
    ],
)
def test_weight_stays_outside(signature, tail):
    assert counts(graph(signature, f"{EPS}\n{MEANS['mean']}\n{ROOTS['x * rsqrt']}\n{tail}")) == {
        "rms_norm": 1,
        "mul": 1,
    }


SOFTMAX = {
    "with maximum": "%m = max(%x) {axes = [1], keep = true}\n%d = sub(%x, %m)\n%e = exp(%d)",
    "with maximum, axis put back": "%m0 = max(%x) {axes = [1]}\n%m = reshape(%m0) {shape = [N, 1]}\n%d = sub(%x, %m)\n%e = exp(%d)",
    "less a negated maximum": "%m = max(%x) {axes = [1], keep = true}\n%n = neg(%m)\n%d = add(%n, %x)\n%e = exp(%d)",
    "plain": "%e = exp(%x)",
}
QUOTIENTS = {
    "quotient": "%t = sum(%e) {axes = [1], keep = true}\n%y = div(%e, %t)",
    "inverse": "%t = sum(%e) {axes = [1], keep = true}\n%one = constant() {value = [1.0], dtype = f32}\n%i = div(%one, %t)\n%y = mul(%e, %i)",
    "axis put back": "%t0 = sum(%e) {axes = [1]}\n%t = reshape(%t0) {shape = [N, 1]}\n%y = div(%e, %t)",
}


@pytest.mark.parametrize("exponential", SOFTMAX)
@pytest.mark.parametrize("quotient", QUOTIENTS)
def test_softmax(exponential, quotient):
    assert counts(graph(X, f"{SOFTMAX[exponential]}\n{QUOTIENTS[quotient]}\nreturn %y")) == {"softmax": 1}


NEAR_SOFTMAX = {
    "another axis": "%e = exp(%x)\n%t = sum(%e) {axes = [0], keep = true}\n%y = div(%e, %t)\nreturn %y",
    "another sum": "%e = exp(%x)\n%t = sum(%x) {axes = [1], keep = true}\n%y = div(%e, %t)\nreturn %y",
    "the exponential has another user": "%e = exp(%x)\n%t = sum(%e) {axes = [1], keep = true}\n%y = div(%e, %t)\nreturn %y, %e",
    "the sum has another user": "%e = exp(%x)\n%t = sum(%e) {axes = [1], keep = true}\n%y = div(%e, %t)\nreturn %y, %t",
}


@pytest.mark.parametrize("case", NEAR_SOFTMAX)
def test_no_softmax(case):
    assert "softmax" not in counts(graph(X, NEAR_SOFTMAX[case]))


def test_maximum_of_another_axis_is_kept():
    """A softmax all the same: what is subtracted cancels, but it is not the softmax's own maximum."""
    text = "%m = max(%x) {axes = [0], keep = true}\n%d = sub(%x, %m)\n%e = exp(%d)\n"
    assert counts(graph(X, f"{text}{QUOTIENTS['quotient']}\nreturn %y")) == {"softmax": 1, "sub": 1, "max": 1}
