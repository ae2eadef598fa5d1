"""Operations without operands: parameters, constants, counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringc.ir.core import Env, Level, Op, Value, attr, operand, operation
from ringc.ir.elements import E, Elements, Elementwise, Read
from ringc.ir.symbols import Dim, Shape
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


@operation("param")
class Param(Op):
    """A trained tensor, by its published name.

    A `*` in the name stands for a number: the result stacks the tensors `0 .. shape[0]-1` of that name along a new first axis, as the
    experts of a layer are published one by one.
    """

    source: str = attr()
    dtype: DType = attr()
    shape: Shape = attr()

    def infer(self) -> Sequence[Type]:
        stacks = self.source.count("*")
        self.require(stacks <= 1, f"'{self.source}' has more than one *")
        self.require(not stacks or bool(self.shape), f"'{self.source}' is stacked along an axis that it hasn't")
        self.require(
            all(isinstance(d, int) and d > 0 for d in self.shape), "a parameter's sizes are known positive integers"
        )
        return [TensorType(self.dtype, self.shape)]

    def names(self) -> list[str]:
        """The published names that make up the tensor."""
        return (
            [self.source.replace("*", str(i)) for i in range(int(self.shape[0]))]
            if "*" in self.source
            else [self.source]
        )

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        assert env.parameters is not None, "the graph has parameters, but none were given"
        parts = [env.parameters(name) for name in self.names()]
        whole = torch.stack(parts) if "*" in self.source else parts[0]
        return whole.to(env.dtype(self.result.type)).reshape(env.shape(self.shape))

    def bytes(self) -> Dim:
        return 0  # read by its users, who count it


@operation("weight")
class Weight(Op):
    """A tensor that `prepare` made before the program runs, by its key there."""

    key: str = attr()
    type: TensorType = attr()
    levels = frozenset({Level.FUSED, Level.KERNEL})

    def infer(self) -> Sequence[Type]:
        return [self.type]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        assert env.parameters is not None, "the graph has weights, but none were given"
        return env.parameters(self.key).to(env.dtype(self.result.type))

    def bytes(self) -> Dim:
        return 0  # read by its users, who count it


@operation("constant")
class Constant(Elementwise):
    """Numbers known at compile time: a scalar, or a short table given flat in row-major order."""

    value: tuple[float | int | bool, ...] = attr()
    dtype: DType = attr()
    shape: Shape = attr(default=())
    pointwise = True

    def infer(self) -> Sequence[Type]:
        count = 1
        for d in self.shape:
            self.require(isinstance(d, int), "a constant has a known shape")
            count *= int(d)
        self.require(len(self.value) == count, f"{len(self.value)} numbers for the shape {list(self.shape)}")
        whole = self.dtype.is_float or not any(isinstance(v, float) for v in self.value)
        self.require(whole, f"{self.dtype} holds whole numbers only")
        return [TensorType(self.dtype, self.shape)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        if self.shape:
            raise NotImplementedError("a table is an input of the kernel that reads it")
        return math.literal(self.value[0], self.dtype)

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        shape, dtype = env.shape(self.shape), env.dtype(self.result.type)
        if len(self.value) == 1:
            # Filled where it is wanted: a copy from the host would wait for all that its device has to do before.
            return torch.full(shape, self.value[0], dtype=dtype)
        return torch.tensor(self.value, dtype=dtype).reshape(shape)

    def bytes(self) -> Dim:
        return 0


def scalar(value: float | int | bool, dtype: DType) -> Constant:
    """A constant of rank 0."""
    return Constant((value,), dtype)


@operation("iota")
class Iota(Elementwise):
    """`0, 1, 2, ...` as i32[length]."""

    length: Dim = attr()

    def infer(self) -> Sequence[Type]:
        return [TensorType(DType.I32, (self.length,))]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return at[0]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.arange(env.size(self.length), dtype=torch.int32)

    def bytes(self) -> Dim:
        return 0


@operation("segment_ids")
class SegmentIds(Op):
    """The segment of each row: `offsets[i] <= row < offsets[i + 1]` gives i. i32[B + 1] -> i32[length / B]."""

    offsets: Value = operand()
    length: Dim = attr()

    def infer(self) -> Sequence[Type]:
        offsets = self.offsets.tensor
        self.require(offsets.rank == 1 and offsets.dtype is DType.I32, "offsets are i32[segments + 1]")
        return [TensorType(DType.I32, (self.length,), segments=offsets.shape[0] - 1)]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        (offsets,) = inputs
        rows = torch.arange(env.size(self.length), dtype=offsets.dtype)
        return torch.searchsorted(offsets[1:].contiguous(), rows, right=True).to(torch.int32)


def scalar_value(value: Value | None) -> Any:
    """The number that a value is known to be (a rank-0 constant, maybe cast or broadcast), or None."""
    from ringc.ir.ops.pointwise import Cast
    from ringc.ir.ops.shape import Broadcast, Reshape

    while value is not None and isinstance(value.op, Cast | Broadcast | Reshape):
        value = value.op.x
    if value is None or not isinstance(value.op, Constant):
        return None
    numbers = set(value.op.value)
    return numbers.pop() if len(numbers) == 1 else None
