"""The element rule that row kernels are generated from says the same as the reference, for every element-wise operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.ir.core import OPS, Env
from ringc.ir.elements import FUNCTIONS, Elementwise, Read, regroup, reshaped_index
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import Dim, Shape, evaluate, mul, product
from ringc.ir.types import DType
from tests.ir.graphs import Graph, M, N, sizes
from tests.ir.strategies import STRATEGIES

POISON = -(2**40)


class TorchElements:
    """`Elements` on torch tensors: an expression holds its values at all indices at once."""

    functions: ClassVar[dict[str, Callable[..., Any]]] = {
        "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
        "sigmoid": torch.sigmoid, "cos": torch.cos, "sin": torch.sin, "not": torch.logical_not, "add": torch.add,
        "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum, "minimum": torch.minimum,
        "floordiv": torch.floor_divide, "mod": torch.remainder, "lt": torch.lt, "le": torch.le, "eq": torch.eq, "ge": torch.ge,
        "gt": torch.gt, "and": torch.logical_and, "or": torch.logical_or, "where": torch.where,
    }  # fmt: skip

    def __init__(self, values: dict[str, int]) -> None:
        self.values = values

    def literal(self, value: float, dtype: DType) -> torch.Tensor:
        wide = torch.float64 if dtype.is_float else torch.bool if dtype is DType.BOOL else torch.int64
        return torch.tensor(value, dtype=wide)

    def size(self, dim: Dim) -> torch.Tensor:
        return torch.tensor(evaluate(dim, self.values))

    def apply(self, function: str, *arguments: torch.Tensor) -> torch.Tensor:
        made = self.functions[function](*arguments)
        assert isinstance(made, torch.Tensor)
        return made

    def cast(self, value: torch.Tensor, dtype: DType) -> torch.Tensor:
        return value.to(torch.float64 if dtype.is_float else dtype.torch)


def test_the_arithmetic_is_complete() -> None:
    assert set(TorchElements.functions) == FUNCTIONS


def reader(inputs: Sequence[torch.Tensor]) -> Read:
    """Elements of the operands; outside of them is poison, which a rule may read but must not let through."""

    def read(k: int, index: Sequence[torch.Tensor]) -> torch.Tensor:
        x = inputs[k]
        assert len(index) == x.ndim
        inside = torch.tensor(True)
        for i, size in zip(index, x.shape, strict=True):
            inside = inside & (i >= 0) & (i < size)
        if x.numel() == 0:
            return torch.zeros_like(inside, dtype=x.dtype)
        found = x[tuple(i.long().clamp(0, n - 1) for i, n in zip(index, x.shape, strict=True))]
        poison = torch.tensor(float("nan") if x.is_floating_point() else POISON).to(x.dtype)
        return torch.where(inside, found, poison)

    return read


def everywhere(shape: Sequence[int]) -> list[torch.Tensor]:
    """All indices of a shape at once."""
    return list(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")) if shape else []


ELEMENTWISE = sorted(name for name, cls in OPS.items() if issubclass(cls, Elementwise))


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data(), values=sizes())
@settings(max_examples=60)
def test_element_rule(name: str, data: st.DataObject, values: dict[str, int]) -> None:
    graph = Graph(data.draw)
    op = STRATEGIES[name](graph)
    assert isinstance(op, Elementwise)
    if isinstance(op, Constant) and op.shape:
        with pytest.raises(NotImplementedError, match="a table is an input"):
            op.element([], reader([]), TorchElements(values))
        return
    drawn = dict(zip(graph.block.args, graph.inputs(values), strict=True))
    inputs = [drawn[v].double() if drawn[v].is_floating_point() else drawn[v] for v in op.inputs()]
    expected = op.reference(Env(values, torch.float64), *inputs)
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]

    shape = tuple(evaluate(d, values) for d in op.result.shape)
    at = everywhere(shape)
    got = torch.as_tensor(op.element(at, reader(inputs), TorchElements(values))).expand(shape)
    torch.testing.assert_close(got, expected.expand(shape), rtol=1e-12, atol=1e-12, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data(), values=sizes())
@settings(max_examples=20)
def test_pointwise_operations_read_their_own_place_only(name: str, data: st.DataObject, values: dict[str, int]) -> None:
    graph = Graph(data.draw)
    op = STRATEGIES[name](graph)
    assert isinstance(op, Elementwise)
    if not op.pointwise or isinstance(op, Constant):
        return
    at = [torch.tensor(1000 + i) for i in range(op.result.tensor.rank)]

    def read(k: int, index: Sequence[torch.Tensor]) -> torch.Tensor:
        taken = op.inputs()[k]
        own = at[len(at) - len(index) :]
        for i, mine, size in zip(index, own, taken.shape, strict=True):
            assert i is mine or (size == 1 and int(i) == 0)
        dtype = taken.type.dtype
        return torch.ones((), dtype=torch.float64 if dtype.is_float else dtype.torch)

    op.element(at, read, TorchElements(values))


@pytest.mark.parametrize(
    ("source", "target", "groups"),
    [
        ((N, 512), (N, 8, 64), [((0,), (0,)), ((1,), (1, 2))]),
        ((N, 8, 64), (N, 512), [((0,), (0,)), ((1, 2), (1,))]),
        ((N, 4), (mul(4, N),), [((0, 1), (0,))]),
        ((mul(4, N),), (4, N), [((0,), (0, 1))]),
        ((4, N), (N, 4), [((0, 1), (0, 1))]),
        ((N, M), (M, N), [((0, 1), (0, 1))]),
        ((2, 3, 5), (6, 5), [((0, 1), (0,)), ((2,), (1,))]),
        ((N, 1), (N,), [((0,), (0,)), ((1,), ())]),
        ((), (1,), [((), (0,))]),
    ],
)
def test_reshapes_are_cut_into_short_runs(
    source: Shape, target: Shape, groups: list[tuple[tuple[int, ...], ...]]
) -> None:
    assert [(tuple(a), tuple(b)) for a, b in regroup(source, target)] == groups


def test_regroup_of_other_sizes() -> None:
    with pytest.raises(ValueError, match="different size"):
        regroup((2, 3), (7,))


@given(st.lists(st.integers(1, 4), min_size=0, max_size=4), st.data())
def test_reshaped_index_is_row_major(source: list[int], data: st.DataObject) -> None:
    total = int(product(source))
    target: list[int] = []
    left = total
    while left > 1:
        factor = data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
        target.append(factor)
        left //= factor
        if len(target) > 5:
            target[-1] *= left
            break
    at = everywhere(target)
    index = reshaped_index(at, tuple(source), tuple(target), TorchElements({}))
    flat = torch.zeros(target, dtype=torch.long)
    for i, n in zip(index, source, strict=True):
        flat = flat * n + i
    assert torch.equal(flat, torch.arange(total).reshape(target))
