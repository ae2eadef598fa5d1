"""Random graphs and inputs for them: what the strategies of `tests.ir.strategies` are written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from hypothesis import strategies as st

from ringc.ir.core import Block, Op, Value
from ringc.ir.symbols import Dim, Shape, evaluate, mul, symbol
from ringc.ir.types import DType, StateType, TensorType, Type

N, B, P, S, M = (symbol(n) for n in "NBPSM")
"""Rows, sequences, slots of a pool, rows of a slot, and one more."""

FLOATS = (DType.F32, DType.BF16, DType.F16, DType.F64)
INTS = (DType.I32, DType.I64)

T = TypeVar("T")


class Draw(Protocol):
    """hypothesis' `draw`, of a composite strategy or of `st.data()`."""

    def __call__(self, strategy: st.SearchStrategy[T], /) -> T: ...


Fill = Callable[[tuple[int, ...], dict[str, int], torch.Generator], torch.Tensor]
"""Makes an operand's content: (shape, sizes, generator) -> tensor."""


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, int]:
    """Values of the symbols, such that every strategy's operands can be filled: P >= B slots, S >= N rows a slot."""
    n, b = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    return {
        "N": n,
        "B": b,
        "P": draw(st.integers(b, 5)),
        "S": max(n, 1) + draw(st.integers(0, 2)),
        "M": draw(st.integers(1, 4)),
    }


@dataclass
class Graph:
    """A block in the making. Operands that a strategy asks for become arguments, or, if `reuse`, values of that type made before."""

    draw: Draw
    reuse: bool = False
    block: Block = field(default_factory=Block)
    fills: dict[Value, Fill] = field(default_factory=dict)
    bodies: dict[str, Block] = field(default_factory=dict)
    """Functions that calls and launches of the graph run."""

    def value(self, type: Type, fill: Fill | None = None) -> Value:
        """An operand of this type; `fill` says what its content must be, if not any numbers."""
        if self.reuse and fill is None:
            made = [v for v in (*self.block.args, *(r for op in self.block.ops for r in op.results)) if v.type == type]
            if made and self.flag():
                return self.draw(st.sampled_from(made))
        arg = self.block.add_arg(type, self.draw(names()))
        self.fills[arg] = fill or anything(type.dtype)
        return arg

    def state(self, type: StateType) -> Value:
        """A pool that nothing was done to yet."""
        arg = self.block.add_arg(type, self.draw(names()))
        self.fills[arg] = anything(type.dtype)
        return arg

    def pick(self, *choices: T) -> T:
        return self.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def dtype(self) -> DType:
        return self.pick(*FLOATS)

    def dim(self) -> Dim:
        return self.pick(1, 2, 3, 5, 8, N, B, mul(2, N), B + 1, mul(M, N))

    def shape(self, low: int = 0, high: int = 4) -> Shape:
        return tuple(self.dim() for _ in range(self.integer(low, high)))

    def tensor(self, dtype: DType | None = None, low: int = 0, high: int = 4) -> TensorType:
        """A type with any shape; now and then its leading axis is cut into segments."""
        shape = self.shape(low, high)
        segments = self.pick(None, None, B, 4) if shape else None
        return TensorType(dtype or self.dtype(), shape, segments)

    def broadcastable(self, type: TensorType, dtype: DType | None = None) -> TensorType:
        """A type that broadcasts to `type`."""
        shape = tuple(self.pick(d, d, 1) for d in type.shape)
        cut = self.integer(0, len(shape)) if self.flag() else 0
        return TensorType(dtype or type.dtype, shape[cut:])

    def inputs(self, values: dict[str, int]) -> list[torch.Tensor]:
        """Content for the arguments."""
        generator = torch.Generator().manual_seed(self.integer(0, 2**31))
        made = []
        for arg in self.block.args:
            shape = (arg.type.slots, *arg.type.shape) if isinstance(arg.type, StateType) else arg.type.shape
            made.append(self.fills[arg](tuple(evaluate(d, values) for d in shape), values, generator))
        return made


def names() -> st.SearchStrategy[str]:
    """Hints for values: none, common ones that collide, and odd ones."""
    return st.sampled_from(
        ["", "", "x", "x", "x_1", "h.0", "a-b", "in", "return", "_", "q k", "λ", "3", "0x", "true", "f32", "%y"]
    )


def anything(dtype: DType) -> Fill:
    """Numbers of both signs, with ties, or bools."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        if dtype is DType.BOOL:
            return torch.randint(0, 2, shape, generator=generator).bool()
        if not dtype.is_float:
            return torch.randint(-9, 10, shape, generator=generator).to(dtype.torch)
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        ties = torch.rand(shape, generator=generator) < 0.3
        return torch.where(ties, made.round(), made)

    return fill


def positive(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 3 + 0.1


def nonzero(dtype: DType) -> Fill:
    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return (torch.randint(1, 5, shape, generator=generator) * sign).to(
            dtype.torch if not dtype.is_float else torch.float64
        )

    return fill


def below(limit: Dim) -> Fill:
    """Integers in 0 .. limit - 1."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, evaluate(limit, values), shape, generator=generator, dtype=torch.int32)

    return fill


def distinct_below(limit: int) -> Fill:
    """Integers in 0 .. limit - 1, different within each row of the last axis."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        order = torch.rand((*shape[:-1], limit), generator=generator).argsort(-1)
        return order[..., : shape[-1]].to(torch.int32)

    return fill


def slots(pool: Dim) -> Fill:
    """Different slots of a pool, some of them nobody's (-1)."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        made = torch.randperm(evaluate(pool, values), generator=generator)[: shape[0]]
        return torch.where(torch.rand(shape, generator=generator) < 0.25, -1, made).to(torch.int32)

    return fill


def any_slots(pool: Dim) -> Fill:
    """Slots of a pool, repeated or nobody's (-1)."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        return torch.randint(-1, evaluate(pool, values), shape, generator=generator, dtype=torch.int32)

    return fill


def offsets(rows: Dim) -> Fill:
    """Where segments begin, from 0 to the number of rows; some segments are empty."""

    def fill(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        total = evaluate(rows, values)
        inner = torch.randint(0, total + 1, (shape[0] - 2,), generator=generator).sort().values
        return torch.cat([torch.tensor([0]), inner, torch.tensor([total])]).to(torch.int32)

    return fill


def counting(shape: tuple[int, ...], values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    """0, 1, 2, ... in random order: rows of a slot that no two tokens share."""
    return torch.randperm(shape[0], generator=generator).to(torch.int32)


def region(types: Sequence[Type], write: Callable[[Block], Sequence[Value]], arg_names: Sequence[str] = ()) -> Block:
    """A block that `write` fills, giving back its outputs."""
    block = Block(types, arg_names)
    block.set_outputs(write(block))
    return block


def floats() -> st.SearchStrategy[float]:
    """Numbers as attributes, those that are hard to write included."""
    special = [float("inf"), float("-inf"), float("nan"), -0.0, 0.0, 1e-20, 1e22, 5e-324, 1.0, 0.1, 123456789.0]
    return st.one_of(st.sampled_from(special), st.floats())


Strategy = Callable[[Graph], Op]


def insert(graph: Graph, make: Strategy) -> Any:
    """Draw an operation and put it at the end of the block, with odd names and scopes."""
    op = make(graph)
    op.scope = graph.pick("", "", "layers.3", "layers.0.attention", "in", "_x-1")
    for value in op.results:
        value.name = graph.draw(names())
    graph.block.insert(op)
    return op
