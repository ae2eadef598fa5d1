"""The memory plan: what a library's call adds to is overwritten where nobody reads it any more, and nowhere else."""

# ruff: noqa: E501 - the text form of the IR has one operation a line
from __future__ import annotations

import pytest

from ringc.ir.core import Module
from ringc.ir.ops.call import Call, Launch
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.memory import CALLER, argument_of, in_argument
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target

MODULE = """module @m level kernel
symbol N >= 1

func @layer(%x: f32[N, 8], %w: f32[8, 8]) with {rows = [1, 0]} {
  %1 = launch([%x]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]
  %2 = launch([%1, %w, %x]) {kernel = "sum", out = [f32[N, 8]]} : f32[N, 8]
  %3 = launch([%2]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]
  return %3
}

func @go(%ids: f32[N, 8], %w: f32[8, 8]) with {entry = "go", guard = "", rows = [1, 0]} {
  %1 = launch([%ids]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]
  %2 = call([%1, %w]) {callee = "layer", out = [f32[N, 8]]} : f32[N, 8]
  %3 = call([%2, %w]) {callee = "layer", out = [f32[N, 8]]} : f32[N, 8]
  %4 = launch([%3]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]
  return %4
}

func @row(%x: f32[N, 8]) with {family = "row", implementation = "torch.eager"} {
  %1 = exp(%x) : f32[N, 8]
  return %1
}

func @both(%x: f32[N, 8], %y: f32[N, 8]) with {family = "row", implementation = "torch.eager"} {
  %1 = mul(%x, %y) : f32[N, 8]
  return %1
}

func @sum(%x: f32[N, 8], %w: f32[8, 8], %r: f32[N, 8]) with {family = "library", implementation = "torch.library"} {
  %1 = matmul(%x, %w) {transpose_b = true} : f32[N, 8]
  %2 = add(%r, %1) : f32[N, 8]
  return %2
}
"""
SUM = '%2 = launch([%1, %w, %x]) {kernel = "sum", out = [f32[N, 8]]} : f32[N, 8]'


def planned(text: str) -> Module:
    module = parse_module(text)
    PassManager(parse_pipeline("memory"), [verify_each]).run(module, target("torch"))
    return module


def places(text: str, name: str = "layer") -> list[int]:
    """Where the results of a function's launches and calls are."""
    ops = [op for op in planned(text).functions[name].body.ops if isinstance(op, Launch | Call)]
    return [place for op in ops for place in op.buffers]


def test_an_argument_that_no_caller_needs_is_overwritten() -> None:
    assert places(MODULE) == [0, in_argument(0), CALLER]
    assert places(MODULE, "go") == [0, 1, 0, CALLER]
    assert argument_of(in_argument(3)) == 3 and argument_of(CALLER) is None and argument_of(0) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('%3 = launch([%2]) {kernel = "row"', '%3 = launch([%2, %x]) {kernel = "both"', id="its function reads it behind"),
        pytest.param('%4 = launch([%3]) {kernel = "row"', '%4 = launch([%3, %1]) {kernel = "both"', id="a caller reads it behind"),
        pytest.param('%1 = launch([%ids]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]\n  %2 = call([%1', '%2 = call([%ids', id="it comes from outside"),
        pytest.param("return %4", "return %4, %1", id="a caller gives it back"),
        pytest.param("{kernel = \"sum\"", '{beside = true, kernel = "sum"', id="the call runs beside others"),
        pytest.param('family = "library", implementation = "torch.library"', 'family = "matmul", implementation = "torch.eager"', id="another kernel"),
    ],
)  # fmt: skip
def test_otherwise_it_has_a_buffer_of_its_own(old: str, new: str) -> None:
    assert old in MODULE
    assert places(MODULE.replace(old, new))[1] == 1


def test_of_an_argument_that_is_given_twice_both_are_kept() -> None:
    text = MODULE.replace("func @layer(%x: f32[N, 8],", "func @layer(%x: f32[N, 8], %y: f32[N, 8],")
    text = text.replace('%3 = launch([%2]) {kernel = "row"', '%3 = launch([%2, %y]) {kernel = "both"')
    apart = text.replace("call([%1,", "call([%1, %ids,").replace("call([%2,", "call([%2, %ids,")
    assert places(apart)[1] == in_argument(0)
    assert places(text.replace("call([%1,", "call([%1, %1,").replace("call([%2,", "call([%2, %ids,"))[1] == 1


def test_what_others_may_still_be_reading_is_kept() -> None:
    """Launches beside the rest end where what they made is read."""
    first = '%1 = launch([%ids]) {kernel = "row", out = [f32[N, 8]]} : f32[N, 8]\n'
    beside = first + '  %b = launch([%1]) {beside = true, kernel = "row", out = [f32[N, 8]]} : f32[N, 8]\n'
    text = MODULE.replace(first + "  %2 = call", beside + "  %2 = call")
    late = text.replace('%4 = launch([%3]) {kernel = "row"', '%4 = launch([%3, %b]) {kernel = "both"')
    assert places(late)[1] == 1
    layer = f'%b = launch([%x]) {{beside = true, kernel = "row", out = [f32[N, 8]]}} : f32[N, 8]\n  {SUM}'
    late = MODULE.replace(SUM, layer).replace('launch([%2]) {kernel = "row"', 'launch([%2, %b]) {kernel = "both"')
    assert places(late)[2] >= 0


def test_a_buffer_is_kept_for_the_sum() -> None:
    """Of what the function made itself, and needs no longer."""
    text = MODULE.replace(SUM, SUM.replace("[%1, %w, %x]", "[%x, %w, %1]"))
    assert places(text) == [0, 0, CALLER]
    assert places(text.replace('launch([%2]) {kernel = "row"', 'launch([%2, %1]) {kernel = "both"')) == [0, 1, CALLER]


def test_what_the_product_reads_is_kept() -> None:
    """PyTorch would overwrite the product's operand while it is being read."""
    assert places(MODULE.replace(SUM, SUM.replace("[%1, %w, %x]", "[%x, %w, %x]")))[1] >= 0
    view = "%v = reshape(%x) {shape = [N, 8]} : f32[N, 8]\n  "
    assert places(MODULE.replace(SUM, view + SUM.replace("[%1, %w, %x]", "[%v, %w, %x]")))[1] >= 0
    text = MODULE.replace(
        "func @sum(%x: f32[N, 8], %w: f32[8, 8], %r: f32[N, 8])", "func @sum(%r: f32[N, 8], %w: f32[8, 8])"
    )
    text = text.replace("matmul(%x, %w)", "matmul(%r, %w)").replace("[%1, %w, %x]", "[%x, %w]")
    assert places(text)[1] >= 0


OVER = MODULE.replace("return %3\n", "return %2, %3\n", 1).replace(
    "out = [f32[N, 8]]} : f32[N, 8]\n  %3 = call([%2",
    "out = [f32[N, 8], f32[N, 8]]} : f32[N, 8], f32[N, 8]\n  %3, %b = call([%2",
)
OVER = OVER.replace("%2 = call", "%2, %a = call").replace(
    "out = [f32[N, 8]]} : f32[N, 8]\n  %4", "out = [f32[N, 8], f32[N, 8]]} : f32[N, 8], f32[N, 8]\n  %4"
)
"""The layer gives the sum back, too."""


def test_a_sum_that_is_given_back_lies_where_its_residual_did() -> None:
    """The caller provides the same memory for both, layer after layer."""
    assert places(OVER) == [0, CALLER, CALLER]
    assert places(OVER, "go") == [0, 0, 1, 0, 1, CALLER]
    kept = OVER.replace('%4 = launch([%3]) {kernel = "row"', '%4 = launch([%3, %1]) {kernel = "both"')
    assert places(kept, "go") == [0, 1, 2, 1, 2, CALLER]
    assert places(OVER.replace("call([%1, %w]", "call([%ids, %w]"), "go") == [0, 0, 1, 0, 1, CALLER]


def test_a_second_sum_goes_where_the_first_one_is() -> None:
    """In an argument, and from there to the caller."""
    second = SUM + '\n  %s = launch([%1, %w, %2]) {kernel = "sum", out = [f32[N, 8]]} : f32[N, 8]'
    assert places(MODULE.replace(SUM, second).replace("launch([%2])", "launch([%s])")) == [
        0,
        in_argument(0),
        in_argument(0),
        CALLER,
    ]
    text = OVER.replace(SUM, second).replace("launch([%2])", "launch([%s])").replace("return %2, %3", "return %s, %3")
    assert places(text) == [0, in_argument(0), CALLER, CALLER]
    assert places(text, "go") == [0, 0, 1, 0, 1, CALLER]


def test_another_view_is_not_written_through() -> None:
    view = "%v = reshape(%x) {shape = [N, 2, 4]} : f32[N, 2, 4]\n  %r = reshape(%v) {shape = [N, 8]} : f32[N, 8]\n  "
    assert places(MODULE.replace(SUM, view + SUM.replace("%w, %x", "%w, %r")))[1] == 1
