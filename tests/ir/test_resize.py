"""Blocks for other sizes, and calls of functions whose rows are others than the caller's."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.errors import IRError
from ringc.ir.core import Function, Module
from ringc.ir.interpret import run
from ringc.ir.levels import verify
from ringc.ir.resize import resized
from ringc.ir.symbols import mul, symbol
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.ir.types import DType, StateType, tensor, with_sizes
from tests.ir.graphs import Graph, insert
from tests.ir.strategies import STRATEGIES

CALLS = """module @m level graph
symbol B >= 1
symbol N >= 1
symbol R >= 1

func @double(%x: f32[N / B, 4]) {{
  %y = add(%x, %x) : f32[N / B, 4]
  %z = reshape(%y) {{shape = [4*N]}} : f32[4*N]
  return %z
}}

func @main(%x: f32[N / B, 4], %rows: i32[R / B]) {{
  %taken = gather(%x, %rows) : f32[R / B, 4]
  %z = call([%taken]) {{callee = "double", out = [f32[{made}]]{rows}}} : f32[{made}]
  return %z
}}
"""


def test_a_call_may_say_what_its_rows_are() -> None:
    module = parse_module(CALLS.format(made="4*R", rows=", rows = R"))
    verify(module)
    assert print_module(parse_module(print_module(module))) == print_module(module)
    x, rows = torch.randn(5, 4), torch.tensor([3, 1], dtype=torch.int32)
    (z,) = run(module, "main", [x, rows])
    assert torch.equal(z, 2 * x[[3, 1]].flatten())


@pytest.mark.parametrize(
    ("made", "rows", "what"),
    [("4*R", "", "takes"), ("4*R", ", rows = 2*R", "takes"), ("4*N", ", rows = R", "gives back")],
)
def test_rows_that_do_not_fit_are_refused(made: str, rows: str, what: str) -> None:
    with pytest.raises(IRError, match=f"@double {what}"):
        verify(parse_module(CALLS.format(made=made, rows=rows)))


def test_what_is_said_of_sizes_is_resized_too() -> None:
    module = parse_module(CALLS.format(made="4*R", rows=", rows = R"))
    module.functions["main"].body = resized(module.functions["main"].body, {"R": mul(3, symbol("M"))})
    call = '{callee = "double", out = [f32[12*M]], rows = 3*M} : f32[12*M]'
    assert call in print_module(module)
    state = StateType(DType.F32, symbol("P"), (symbol("S"), 4))
    assert str(with_sizes(state, {"P": 7, "S": symbol("T")})) == "state<f32[7; T, 4]>"
    rows = tensor("f32", symbol("N"), 4, segments=symbol("B"))
    assert str(with_sizes(rows, {"N": symbol("R"), "B": 2})) == "f32[R / 2, 4]"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(data=st.data())
@settings(max_examples=20)
def test_any_operation_can_be_written_for_other_sizes(name: str, data: st.DataObject) -> None:
    """And back again, which gives what there was: no type, attribute or region is left out."""
    graph = Graph(data.draw)
    insert(graph, STRATEGIES[name])
    there = resized(graph.block, {"N": symbol("Other")})
    module = Module("m", {"f": Function("f", there)})
    assert not re.search(r"\bN\b", print_module(module))
    assert resized(there, {"Other": symbol("N")}).structural_hash() == graph.block.structural_hash()
