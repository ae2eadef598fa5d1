"""Which row work may stand in front of linear attention in one kernel."""

from __future__ import annotations

import pytest

from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.text_parse import parse_module
from ringc.passes.front import front_of, why_not_in_front

TEXT = """module @test level fused
symbol N >= 0
symbol B >= 0
symbol P >= 0
func @f(%x: f32[N / B, 4, 8], %k: f32[N / B, 4, 8], %v: f32[N / B, 4, 6], %w: f32[N / B, 8], %ids: i32[N / B], %slopes: f32[4],
        %state: state<f32[P; 4, 8, 6]>, %slots: i32[B], %offsets: i32[B + 1]) {
FRONT
  %o, %s = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {scale = 1.0} : f32[N / B, 4, 6], state<f32[P; 4, 8, 6]>
  return %o, %s
}
"""

ROWS = "f32[N / B, 4, 8]"
PAIRS = "f32[N / B, 2, 2, 8]"

FITS = {
    "rows by number": f"  %q = gather(%x, %ids) : {ROWS}",
    "nothing": "  %q = reshape(%x) {shape = [N, 4, 8]} : f32[N / B, 4, 8]",
    "norm": f"  %q = rms_norm(%x, _) : {ROWS}",
    "of another row of the head": f"""
  %m = mean(%v) {{axes = [2], keep = true}} : f32[N / B, 4, 1]
  %q = mul(%x, %m) : {ROWS}""",
    "of keys for queries": f"""
  %m = max(%k) {{axes = [2], keep = true}} : f32[N / B, 4, 1]
  %q = mul(%x, %m) : {ROWS}""",
    "of parts of the head": f"""
  %a = reshape(%x) {{shape = [N, 4, 2, 4]}} : f32[N / B, 4, 2, 4]
  %b = softmax(%a) : f32[N / B, 4, 2, 4]
  %q = reshape(%b) {{shape = [N, 4, 8]}} : {ROWS}""",
    "one row for all": f"""
  %a = reshape(%w) {{shape = [N, 1, 8]}} : f32[N / B, 1, 8]
  %b = mul(%x, %a) : {ROWS}
  %q = rms_norm(%b, _) : {ROWS}""",
    "another head's": f"""
  %a = slice(%x) {{axis = 1, start = 0, stop = 1}} : f32[N / B, 1, 8]
  %b = slice(%x) {{axis = 1, start = 1, stop = 4}} : f32[N / B, 3, 8]
  %c = concat([%b, %a]) {{axis = 1}} : {ROWS}
  %q = rms_norm(%c, _) : {ROWS}""",
}

REFUSED = {
    "all heads": (
        f"""
  %m = mean(%x) {{axes = [1, 2], keep = true}} : f32[N / B, 1, 1]
  %q = mul(%x, %m) : {ROWS}""",
        "'mean' takes more",
    ),
    "one channel of all heads": (
        f"""
  %m = sum(%x) {{axes = [1], keep = true}} : f32[N / B, 1, 8]
  %q = mul(%x, %m) : {ROWS}""",
        "'sum' takes more",
    ),
    "pairs of heads": (
        f"""
  %a = reshape(%x) {{shape = [N, 2, 2, 8]}} : {PAIRS}
  %m = mean(%a) {{axes = [2, 3], keep = true}} : f32[N / B, 2, 1, 1]
  %b = mul(%a, %m) : {PAIRS}
  %q = reshape(%b) {{shape = [N, 4, 8]}} : {ROWS}""",
        "'mean' takes more",
    ),
    "a number for all": (
        f"""
  %m = sum(%w) {{axes = [1], keep = true}} : f32[N / B, 1]
  %a = reshape(%m) {{shape = [N, 1, 1]}} : f32[N / B, 1, 1]
  %q = mul(%x, %a) : {ROWS}""",
        "'sum' takes more",
    ),
    "another head's norm": (
        f"""
  %n = rms_norm(%x, _) : {ROWS}
  %a = slice(%n) {{axis = 1, start = 0, stop = 1}} : f32[N / B, 1, 8]
  %b = slice(%n) {{axis = 1, start = 1, stop = 4}} : f32[N / B, 3, 8]
  %q = concat([%b, %a]) {{axis = 1}} : {ROWS}""",
        "'slice' moves elements from head to head",
    ),
    "another token's norm": (
        f"""
  %n = rms_norm(%x, _) : {ROWS}
  %q = gather(%n, %ids) : {ROWS}""",
        "'gather' moves elements",
    ),
    "all tokens": (
        f"""
  %m = mean(%x) {{axes = [0], keep = true}} : f32[1, 4, 8]
  %q = mul(%x, %m) : {ROWS}""",
        "'mean' takes more",
    ),
    "no row work": (
        f"""
  %a = matmul(%x, %x) {{transpose_b = true}} : f32[N / B, 4, 4]
  %b = concat([%a, %a]) {{axis = 2}} : {ROWS}
  %q = add(%x, %b) : {ROWS}""",
        "'matmul' is no work on rows",
    ),
}


def why(front: str) -> str:
    (function,) = parse_module(TEXT.replace("FRONT", front)).functions.values()
    *ops, op = function.body.ops
    assert isinstance(op, LinearAttention)
    return why_not_in_front(op, ops)


@pytest.mark.parametrize("name", FITS)
def test_what_fits(name: str) -> None:
    assert why(FITS[name]) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit(name: str) -> None:
    front, reason = REFUSED[name]
    assert reason in why(front)


def test_a_part_of_the_front() -> None:
    """What isn't taken is an argument: the norm of all heads fits where only what is behind it is asked for."""
    whole = f"""
  %m = mean(%x) {{axes = [1, 2], keep = true}} : f32[N / B, 1, 1]
  %q = mul(%x, %m) : {ROWS}"""
    (function,) = parse_module(TEXT.replace("FRONT", whole)).functions.values()
    mean, mul, op = function.body.ops
    assert isinstance(op, LinearAttention)
    assert why_not_in_front(op, [mean, mul]) and not why_not_in_front(op, [mul])
    body, taken = front_of(op, [mul])
    assert taken == [*mul.inputs(), op.k, op.v] and [o.name for o in body.ops] == ["mul"]
