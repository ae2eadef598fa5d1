"""Sigmoid, silu and SwiGLU."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from tests.passes.support import counts, graph, transformed

X = "%x: f32[N, 8]"
ONE = "%one = constant() {value = [1.0], dtype = f32}"

SILU = {
    "x sigmoid(x)": "%s = sigmoid(%x)\n%y = mul(%x, %s)",
    "sigmoid(x) x": "%s = sigmoid(%x)\n%y = mul(%s, %x)",
    "quotient": f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%one, %e)\n%y = div(%x, %d)",
    "quotient, other order": f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%e, %one)\n%y = div(%x, %d)",
    "times -1": f"{ONE}\n%m = constant() {{value = [-1.0], dtype = f32}}\n%n = mul(%x, %m)\n%e = exp(%n)\n"
    "%d = add(%e, %one)\n%y = div(%x, %d)",
    "times the inverse": f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%e, %one)\n%s = div(%one, %d)\n%y = mul(%x, %s)",
}


@pytest.mark.parametrize("case", SILU)
def test_silu(case):
    assert counts(graph(X, f"{SILU[case]}\nreturn %y")) == {"silu": 1}


def test_sigmoid_of_the_exponential():
    text = graph(X, f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%e, %one)\n%y = div(%one, %d)\nreturn %y")
    assert counts(text) == {"sigmoid": 1}


def test_sigmoid_gates_another_value():
    text = graph(
        X + ", %o: f32[N, 8]",
        f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%e, %one)\n%s = div(%one, %d)\n%y = mul(%o, %s)\nreturn %y",
    )
    assert counts(text) == {"sigmoid": 1, "mul": 1}


NEAR_SILU = {
    "of another value": "%z = abs(%x)\n%s = sigmoid(%z)\n%y = mul(%x, %s)\nreturn %y",
    "another user": "%s = sigmoid(%x)\n%y = mul(%x, %s)\nreturn %y, %s",
    "positive exponent": f"{ONE}\n%e = exp(%x)\n%d = add(%one, %e)\n%y = div(%x, %d)\nreturn %y",
    "two instead of one": "%two = constant() {value = [2.0], dtype = f32}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%e, %two)\n"
    "%y = div(%x, %d)\nreturn %y",
    "the exponential has another user": f"{ONE}\n%n = neg(%x)\n%e = exp(%n)\n%d = add(%one, %e)\n%y = div(%x, %d)\nreturn %y, %e",
}


@pytest.mark.parametrize("case", NEAR_SILU)
def test_no_silu(case):
    assert "silu" not in counts(graph(X, NEAR_SILU[case]))


PARTS = {
    "columns": "%g = slice(%p) {axis = 1, start = 0, stop = 6}\n%u = slice(%p) {axis = 1, start = 6, stop = 12}",
    "up first": "%u = slice(%p) {axis = 1, start = 0, stop = 6}\n%g = slice(%p) {axis = 1, start = 6, stop = 12}",
    "reshaped": "%r = reshape(%p) {shape = [N, 2, 6]}\n%g0 = slice(%r) {axis = 1, start = 0, stop = 1}\n"
    "%u0 = slice(%r) {axis = 1, start = 1, stop = 2}\n%g = reshape(%g0) {shape = [N, 6]}\n%u = reshape(%u0) {shape = [N, 6]}",
    "interleaved": "%g = slice(%p) {axis = 1, start = 0, stop = 12, step = 2}\n%u = slice(%p) {axis = 1, start = 1, stop = 12, step = 2}",
}
SWIGLU = "%s = sigmoid(%g)\n%a = mul(%g, %s)\n%y = mul(%u, %a)\nreturn %y"


@pytest.mark.parametrize("parts", PARTS)
def test_swiglu_of_one_product_is_split(parts):
    text = graph(
        X,
        f'%w = param() {{source = "gu", dtype = f32, shape = [12, 8]}}\n%p = matmul(%x, %w) {{transpose_b = true}}\n{PARTS[parts]}\n{SWIGLU}',
    )
    module = transformed(text)
    (gated,) = [op for op in module.functions["main"].body.ops if op.name == "mul"]
    silu, up = (v.op for v in gated.inputs())
    assert silu is not None
    assert up is not None
    assert (silu.name, up.name) == ("silu", "matmul")
    gate = silu.inputs()[0].op
    assert gate is not None
    assert gate.name == "matmul"
    assert gate.inputs()[0] is up.inputs()[0]


def test_swiglu_of_laid_together_weights_gets_them_back():
    text = graph(
        X,
        '%wg = param() {source = "g", dtype = f32, shape = [6, 8]}\n%wu = param() {source = "u", dtype = f32, shape = [6, 8]}\n'
        f"%w = concat([%wg, %wu]) {{axis = 0}}\n%p = matmul(%x, %w) {{transpose_b = true}}\n{PARTS['columns']}\n{SWIGLU}",
    )
    assert counts(text) == {"param": 2, "matmul": 2, "silu": 1, "mul": 1}


def test_swiglu_of_two_products_stays():
    text = graph(
        X,
        '%wg = param() {source = "g", dtype = f32, shape = [6, 8]}\n%wu = param() {source = "u", dtype = f32, shape = [6, 8]}\n'
        f"%u = matmul(%x, %wu) {{transpose_b = true}}\n%g = matmul(%x, %wg) {{transpose_b = true}}\n{SWIGLU}",
    )
    assert counts(text) == {"param": 2, "matmul": 2, "silu": 1, "mul": 1}


def test_swiglu_of_experts_is_split():
    text = graph(
        "%x: f32[N / 3, 8], %offsets: i32[4]",
        '%w = param() {source = "e.*.gu", dtype = f32, shape = [3, 12, 8]}\n%p = segment_matmul(%x, %w, %offsets)\n'
        f"{PARTS['columns']}\n{SWIGLU}",
    )
    assert counts(text) == {"param": 1, "slice": 2, "segment_matmul": 2, "silu": 1, "mul": 1}


def test_a_product_with_a_third_user_stays_whole():
    text = graph(
        X,
        '%w = param() {source = "gu", dtype = f32, shape = [12, 8]}\n%p = matmul(%x, %w) {transpose_b = true}\n'
        f"{PARTS['columns']}\n{SWIGLU}, %p",
    )
    assert counts(text)["matmul"] == 1
