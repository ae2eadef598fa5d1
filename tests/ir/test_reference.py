"""The reference of each operation against a second formulation, on random inputs; composite operations against their formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.errors import IRError
from ringc.ir.core import OPS, Function, Module
from ringc.ir.interpret import bind_sizes, run
from ringc.ir.ops.composite import Composite, expand
from ringc.ir.ops.source import Param, Weight
from ringc.ir.text_parse import parse_module
from ringc.ir.types import TensorType
from tests.ir.graphs import Graph, insert, sizes
from tests.ir.semantics import MEANINGS, Given
from tests.ir.strategies import STRATEGIES

BINDING = "%n: f32[N], %b: f32[B], %p: f32[P], %s: f32[S], %m: f32[M]"
"""Arguments that say what the symbols are, where no operand does."""


def test_every_operation_has_a_second_meaning() -> None:
    assert set(MEANINGS) == set(OPS)


def parameters_of(op: object) -> Callable[[str], torch.Tensor]:
    """Random tensors of the names that an operation reads."""
    shape: tuple[int, ...] = ()
    if isinstance(op, Param):
        shape = tuple(map(int, op.shape[1:] if "*" in op.source else op.shape))
    elif isinstance(op, Weight):
        shape = tuple(map(int, op.type.shape))
    return lambda name: torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(name) + ord(name[-4]))
    )


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(data=st.data(), values=sizes())
@settings(max_examples=40)
def test_reference(name: str, data: st.DataObject, values: dict[str, int]) -> None:
    graph = Graph(data.draw)
    op = insert(graph, STRATEGIES[name])
    block, inputs = graph.block, graph.inputs(values)
    block.set_outputs(op.results)
    for symbol in parse_module(f"func @f({BINDING}) {{ return }}").functions["f"].body.args:
        block.add_arg(symbol.type)
        inputs.append(torch.zeros(values[str(symbol.shape[0])]))
    module = Module("m", {n: Function(n, b) for n, b in graph.bodies.items()})
    module.add(Function("main", block))
    parameters = parameters_of(op)
    got = run(module, "main", inputs, parameters, torch.float64)

    known = Given(values, lambda n: parameters(n).numpy(), graph.bodies)
    wide = [x.double().numpy() if x.is_floating_point() else x.numpy() for x in inputs[: len(op.inputs())]]
    by_value = dict(zip(block.args, wide, strict=False))
    expected = MEANINGS[name](op, known, *(by_value[v] for v in op.inputs()))
    expected = expected if isinstance(expected, list | tuple) else [expected]
    assert len(got) == len(op.results) == len(expected)
    for value, mine, other in zip(op.results, got, expected, strict=True):
        shape = known.shape(
            (*((value.type.slots,) if not isinstance(value.type, TensorType) else ()), *value.type.shape)
        )
        assert tuple(mine.shape) == shape == np.shape(other)
        assert mine.dtype == (torch.float64 if value.type.dtype.is_float else value.type.dtype.torch)
        np.testing.assert_allclose(mine.numpy(), other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(n for n, cls in OPS.items() if hasattr(cls, "decompose")))
@given(data=st.data(), values=sizes())
@settings(max_examples=15)
def test_what_stands_for_a_composite_operation_is_primitive(
    name: str, data: st.DataObject, values: dict[str, int]
) -> None:
    from ringc.ir.builder import Builder

    graph = Graph(data.draw)
    op = STRATEGIES[name](graph)
    block = graph.block
    block.set_outputs(expand(Builder(block), op))
    assert [v.type.dtype for v in block.outputs] == [r.type.dtype for r in op.results]
    assert [v.type.shape for v in block.outputs] == [r.type.shape for r in op.results]
    assert not [o for o in block.walk() if isinstance(o, Composite) or hasattr(o, "decompose")]
    block.verify_uses()


@pytest.mark.parametrize(("dtype", "rounded"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_products_accumulate_in_f32(dtype: torch.dtype, rounded: str, generator: torch.Generator) -> None:
    text = f"""
    func @f(%a: {rounded}[N, 64], %w: {rounded}[2, 8, 64], %o: i32[3], %s: {rounded}[N / 2, 64]) {{
      %w0 = slice(%w) {{axis = 0, start = 0, stop = 1}}
      %b = reshape(%w0) {{shape = [8, 64]}}
      %plain = matmul(%a, %b) {{transpose_b = true, out = f32}}
      %cut = segment_matmul(%s, %w, %o) {{out = f32}}
      return %plain, %cut
    }}"""
    a, w = (torch.randn(s, generator=generator).to(dtype) for s in ((5, 64), (2, 8, 64)))
    plain, cut = run(parse_module(text), "f", [a, w, torch.tensor([0, 5, 5], dtype=torch.int32), a])
    exact = a.double() @ w[0].double().T
    assert plain.dtype == cut.dtype == torch.float32
    # A product rounded to the operands' type on the way would be off by their precision, a thousand times more.
    assert (plain - exact).abs().max() < 1e-4
    assert (cut - exact).abs().max() < 1e-4


def test_topk_of_long_rows_of_equals() -> None:
    """Short rows are sorted in order whatever is asked for; long ones only if asked to."""
    module = parse_module("func @f(%x: f32[2, 5000]) { %v, %i = topk(%x) {k = 400} return %v, %i }")
    x = torch.zeros(2, 5000)
    x[1, 1::2] = 1
    _, found = run(module, "f", [x])
    assert found[0].tolist() == list(range(400))
    assert found[1].tolist() == list(range(1, 800, 2))


def test_sum_of_integers_keeps_its_type() -> None:
    module = parse_module("func @f(%x: i32[N]) { %y = sum(%x) {axes = [0]} : i32[] return %y }")
    (y,) = run(module, "f", [torch.tensor([3, -1, 5], dtype=torch.int32)])
    assert y.dtype == torch.int32
    assert int(y) == 7


def test_sizes_are_bound_whatever_the_order() -> None:
    args = parse_module("func @f(%a: f32[N * B, N + 1], %b: f32[B]) { return }").functions["f"].body.args
    assert bind_sizes(args, [torch.zeros(6, 4), torch.zeros(2)]) == {"N": 3, "B": 2}
    assert bind_sizes(args[:1], [torch.zeros(6, 4)]) == {"N": 3, "B": 2}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 3)], "2 arguments, but 1 inputs"),
        ([(4, 3), (5,)], r"%y is a f32\[N\], but its input has the shape \[5\]"),
        ([(4, 2), (4,)], r"%x is a f32\[N, 3\], but its input has the shape \[4, 2\]"),
        ([(4, 3, 1), (4,)], r"%x is a f32\[N, 3\]"),
    ],
)
def test_inputs_that_do_not_fit(shapes: list[tuple[int, ...]], message: str) -> None:
    module = parse_module("func @f(%x: f32[N, 3], %y: f32[N]) { return %x }")
    with pytest.raises(IRError, match=message):
        run(module, "f", [torch.zeros(s) for s in shapes])


def test_function_that_is_not_there() -> None:
    with pytest.raises(IRError, match="no function @decod") as error:
        run(parse_module("func @decode() { return }"), "decod", [])
    assert error.value.help == "did you mean 'decode'?"
