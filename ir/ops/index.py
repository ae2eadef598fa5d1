"""Operations whose positions are data: gathering, scattering, ranking, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringc.ir.core import Env, Op, Value, attr, operand, operation
from ringc.ir.elements import E, Elements, Elementwise, Read
from ringc.ir.symbols import Dim
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


@operation("gather")
class Gather(Elementwise):
    """Rows by number: `result[i..., :] = x[ids[i...], :]`. x [R, ...], ids i32 [...] -> [*ids, ...]."""

    x: Value = operand()
    ids: Value = operand()

    def infer(self) -> Sequence[Type]:
        x, ids = self.x.tensor, self.ids.tensor
        self.require(ids.dtype in (DType.I32, DType.I64), "row numbers are integers")
        self.require(x.rank >= 1, "there are no rows in a scalar")
        return [TensorType(x.dtype, (*ids.shape, *x.shape[1:]), ids.segments)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        rank = self.ids.tensor.rank
        return read(0, [read(1, at[:rank]), *at[rank:]])

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0][inputs[1].long()]

    def bytes(self) -> Dim:
        from ringc.ir.symbols import add, mul

        return add(mul(2, self.result.type.bytes), self.ids.type.bytes)


@operation("take_along")
class TakeAlong(Elementwise):
    """`result[..., j] = x[..., ids[..., j]]` on the last axis; all other axes agree."""

    x: Value = operand()
    ids: Value = operand()

    def infer(self) -> Sequence[Type]:
        x, ids = self.x.tensor, self.ids.tensor
        self.require(x.rank >= 1 and x.rank == ids.rank, "operands of different rank, or scalars")
        self.require(x.shape[:-1] == ids.shape[:-1], "operands differ beside the last axis")
        self.require(ids.dtype in (DType.I32, DType.I64), "positions are integers")
        return [TensorType(x.dtype, ids.shape, x.segments)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return read(0, [*at[:-1], read(1, at)])

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].gather(-1, inputs[1].long())


@operation("scatter")
class Scatter(Op):
    """A copy of `base` with `base[..., ids[..., j]] = src[..., j]` on the last axis; ids of a row are distinct."""

    base: Value = operand()
    ids: Value = operand()
    src: Value = operand()

    def infer(self) -> Sequence[Type]:
        base, ids, src = (v.tensor for v in self.inputs())
        self.require(base.rank >= 1 and base.rank == ids.rank, "operands of different rank, or scalars")
        self.require(ids.dtype in (DType.I32, DType.I64), "positions are integers")
        self.require(
            base.shape[:-1] == ids.shape[:-1] and ids.shape == src.shape, "operands differ beside the last axis"
        )
        self.require(base.dtype == src.dtype, "base and src of different types")
        return [base]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        base, ids, src = inputs
        return base.scatter(-1, ids.long(), src)


@operation("scatter_add")
class ScatterAdd(Op):
    """Sums rows into numbered places, in the order of the rows: `result[ids[i]] += x[i]`. x [R, ...], ids i32[R] -> [length, ...]."""

    x: Value = operand()
    ids: Value = operand()
    length: Dim = attr()

    def infer(self) -> Sequence[Type]:
        x, ids = self.x.tensor, self.ids.tensor
        self.require(ids.rank == 1 and x.rank >= 1 and ids.shape[0] == x.shape[0], "needs one place for each row")
        self.require(ids.dtype in (DType.I32, DType.I64), "places are integers")
        return [TensorType(x.dtype, (self.length, *x.shape[1:]))]

    def flops(self) -> Dim:
        return self.x.tensor.elements

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        x, ids = inputs
        return x.new_zeros((env.size(self.length), *x.shape[1:])).index_add(0, ids.long(), x)


@operation("topk")
class TopK(Op):
    """The k largest of the last axis, largest first; of equals, the one with the lower position. [..., n] -> values, positions [..., k]."""

    x: Value = operand()
    k: int = attr()

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(x.rank >= 1, "there is nothing to rank in a scalar")
        size = x.shape[-1]
        self.require(self.k >= 1 and (not isinstance(size, int) or self.k <= size), f"can't take {self.k} of {size}")
        shape = (*x.shape[:-1], self.k)
        return [x.with_shape(shape), x.with_shape(shape).with_dtype(DType.I32)]

    def reference(self, env: Env, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        values, order = inputs[0].sort(dim=-1, descending=True, stable=True)
        return values[..., : self.k], order[..., : self.k].to(torch.int32)


@operation("sort_by_key")
class SortByKey(Op):
    """A stable order of rows by a small integer key: which rows have key 0, then key 1, ...

    keys i32[R], all in `0 .. num_keys-1` -> order i32[R / num_keys] (`order[i]` is the row at place i), offsets i32[num_keys + 1]
    (rows of key e stand at places `offsets[e] .. offsets[e+1]`), places i32[R] (the inverse of order).
    """

    keys: Value = operand()
    num_keys: int = attr()

    def infer(self) -> Sequence[Type]:
        keys = self.keys.tensor
        self.require(keys.rank == 1 and keys.dtype is DType.I32, "keys are i32[R]")
        self.require(self.num_keys >= 1, "needs at least one key")
        rows = keys.shape[0]
        return [
            TensorType(DType.I32, (rows,), segments=self.num_keys),
            TensorType(DType.I32, (self.num_keys + 1,)),
            TensorType(DType.I32, (rows,), segments=keys.segments),
        ]

    def reference(self, env: Env, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import torch

        (keys,) = inputs
        order = keys.long().argsort(stable=True)
        # `bincount` would wait for the device.
        counts = keys.new_zeros(self.num_keys, dtype=torch.int64).index_add_(0, keys, torch.ones_like(keys).long())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return order.to(torch.int32), offsets.to(torch.int32), order.argsort().to(torch.int32)
