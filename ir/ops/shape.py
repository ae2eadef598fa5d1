"""Operations that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ringc.ir.core import Env, Level, Op, Value, attr, operand, operands, operation
from ringc.ir.elements import E, Elements, Elementwise, Read, broadcast_index, reshaped_index
from ringc.ir.symbols import Dim, Shape, add, product
from ringc.ir.types import DType, Layout, TensorType, Type

if TYPE_CHECKING:
    import torch


@operation("reshape")
class Reshape(Elementwise):
    """The same elements in row-major order under another shape of equal size: another view of the same memory."""

    x: Value = operand()
    shape: Shape = attr()
    levels = frozenset(Level)

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(product(x.shape) == product(self.shape), f"{list(x.shape)} and {list(self.shape)} differ in size")
        return [x.with_shape(self.shape)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return read(0, reshaped_index(at, self.x.shape, self.shape, math))

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].reshape(env.shape(self.shape))

    def bytes(self) -> Dim:
        return 0


def storage_of(value: Value) -> Value:
    """The value whose memory this one is a view of."""
    while isinstance(value.op, Reshape):
        value = value.op.x
    return value


@operation("broadcast")
class Broadcast(Elementwise):
    """numpy broadcasting to a shape."""

    x: Value = operand()
    shape: Shape = attr()

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        tail = self.shape[len(self.shape) - x.rank :] if x.rank else ()
        self.require(x.rank <= len(self.shape) and all(s in (1, t) for s, t in zip(x.shape, tail, strict=True)),
                     f"{list(x.shape)} doesn't broadcast to {list(self.shape)}")  # fmt: skip
        return [x.with_shape(self.shape)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return read(0, broadcast_index(at, self.x.shape, math))

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].expand(env.shape(self.shape))


@operation("transpose")
class Transpose(Elementwise):
    """Axes in another order: result axis i is operand axis `axes[i]`."""

    x: Value = operand()
    axes: tuple[int, ...] = attr()

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(
            sorted(self.axes) == list(range(x.rank)), f"{list(self.axes)} doesn't name each of {x.rank} axes once"
        )
        shape = tuple(x.shape[a] for a in self.axes)
        return [TensorType(x.dtype, shape, x.segments if self.axes[:1] == (0,) else None)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return read(0, [at[self.axes.index(a)] for a in range(len(self.axes))])

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].permute(self.axes)


@operation("slice")
class Slice(Elementwise):
    """`x[..., start:stop:step, ...]` on one axis."""

    x: Value = operand()
    axis: int = attr()
    start: int = attr()
    stop: int = attr()
    step: int = attr(default=1)

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(0 <= self.axis < x.rank, f"there is no axis {self.axis}")
        size = x.shape[self.axis]
        self.require(0 <= self.start < self.stop and self.step >= 1, "needs 0 <= start < stop and step >= 1")
        self.require(not isinstance(size, int) or self.stop <= size, f"stops at {self.stop}, past the axis' {size}")
        count = -(-(self.stop - self.start) // self.step)
        return [x.with_shape((*x.shape[: self.axis], count, *x.shape[self.axis + 1 :]))]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        index = list(at)
        if self.step != 1:
            index[self.axis] = math.apply("mul", index[self.axis], math.literal(self.step, DType.I32))
        if self.start:
            index[self.axis] = math.apply("add", index[self.axis], math.literal(self.start, DType.I32))
        return read(0, index)

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0][(slice(None),) * self.axis + (slice(self.start, self.stop, self.step),)]


@operation("concat")
class Concat(Elementwise):
    """Operands laid end to end along an axis."""

    parts: tuple[Value, ...] = operands()
    axis: int = attr()

    def infer(self) -> Sequence[Type]:
        self.require(bool(self.parts), "nothing to concatenate")
        types = [p.tensor for p in self.parts]
        first = types[0]
        self.require(0 <= self.axis < first.rank, f"there is no axis {self.axis}")
        total: Dim = 0
        for t in types:
            rest = [d for i, d in enumerate(t.shape) if i != self.axis]
            self.require(t.rank == first.rank, "parts of different rank")
            self.require(t.dtype == first.dtype, "parts of different types")
            self.require(
                rest == [d for i, d in enumerate(first.shape) if i != self.axis], "parts differ beside the axis"
            )
            total = add(total, t.shape[self.axis])
        return [first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        end: Dim = 0
        chosen: list[tuple[Dim, E]] = []
        for k, part in enumerate(self.parts):
            index = list(at)
            if end != 0:
                index[self.axis] = math.apply("sub", index[self.axis], math.size(end))
            end = add(end, part.shape[self.axis])
            chosen.append((end, read(k, index)))
        value = chosen[-1][1]
        for end, piece in reversed(chosen[:-1]):
            value = math.apply("where", math.apply("lt", at[self.axis], math.size(end)), piece, value)
        return value

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat(inputs, self.axis)


@operation("pack")
class Pack(Op):
    """The same tensor in another memory layout (see `Layout`); an axis that its blocks don't divide is filled up with zeros."""

    x: Value = operand()
    blocks: tuple[tuple[int, int], ...] = attr()

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(x.layout == Layout(), "the operand is packed already")
        self.require(
            all(0 <= a < x.rank and n > 1 for a, n in self.blocks), f"blocks {self.blocks} of a rank-{x.rank} tensor"
        )
        return [replace(x, layout=Layout(self.blocks))]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        """A layout changes where elements lie, not what they are: `packed` makes the storage."""
        return inputs[0]


def drop_axis(type: TensorType, axes: Sequence[int], keep: bool) -> Shape:
    """The shape that is left when axes are reduced: gone, or of size 1."""
    return tuple(1 if i in axes else d for i, d in enumerate(type.shape) if keep or i not in axes)
