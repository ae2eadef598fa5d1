"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ringc.ir.core import Env, Op, Value, attr, operand, operation
from ringc.ir.ops.shape import drop_axis
from ringc.ir.symbols import Dim, product
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


class Reduction(Op):
    """Base: one number from all elements along `axes`; `keep` leaves the axes in place with size 1."""

    x: Value
    axes: tuple[int, ...]
    keep: bool
    combine: ClassVar[str]
    """The scalar function that combines two elements: `add`, `maximum`."""

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        ordered = tuple(sorted(set(self.axes)))
        self.require(bool(self.axes) and ordered == self.axes, f"axes {list(self.axes)} are not ascending and distinct")
        self.require(self.axes[0] >= 0 and self.axes[-1] < x.rank, f"axes {list(self.axes)} of a rank-{x.rank} operand")
        self.require(x.dtype is not DType.BOOL, "needs numbers, not bools")
        left = drop_axis(x, self.axes, self.keep)
        return [TensorType(x.dtype, left, x.segments if self.axes[0] != 0 else None)]

    @property
    def extent(self) -> Dim:
        """How many elements make one result."""
        return product(self.x.shape[a] for a in self.axes)

    def flops(self) -> Dim:
        return self.x.tensor.elements


@operation("sum")
class Sum(Reduction):
    """The sum of the elements."""

    x: Value = operand()
    axes: tuple[int, ...] = attr()
    keep: bool = attr(default=False)
    combine = "add"

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].sum(self.axes, keepdim=self.keep, dtype=inputs[0].dtype)


@operation("max")
class Max(Reduction):
    """The largest element."""

    x: Value = operand()
    axes: tuple[int, ...] = attr()
    keep: bool = attr(default=False)
    combine = "maximum"

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].amax(self.axes, keepdim=self.keep)


@operation("mean")
class Mean(Reduction):
    """The sum of the elements over their number."""

    x: Value = operand()
    axes: tuple[int, ...] = attr()
    keep: bool = attr(default=False)
    combine = "add"

    def infer(self) -> Sequence[Type]:
        self.require(self.x.type.dtype.is_float, "needs a floating-point operand")
        return super().infer()

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].mean(self.axes, keepdim=self.keep)
