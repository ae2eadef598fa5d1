"""Matrix products: the operations that most of the time goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringc.ir.core import Env, Op, Value, attr, operand, operation
from ringc.ir.symbols import Dim, add, floordiv, least, mul, product
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


def _widened(x: torch.Tensor) -> torch.Tensor:
    """In f32 at least, so that what is accumulated is not rounded on the way to a wider result."""
    return x.float() if x.dtype.itemsize < 4 else x


@operation("matmul")
class MatMul(Op):
    """`a @ b`, or `a @ b^T` with `transpose_b`: [..., M, K] x [..., K, N] -> [..., M, N], accumulated in f32 at least.

    Leading axes agree, or `b` is a plain matrix. A weight is published as [N, K], so products with weights are transposed ones.
    `out` is the result's type; by default the operands'.
    """

    a: Value = operand()
    b: Value = operand()
    transpose_b: bool = attr(default=False)
    out: DType | None = attr(default=None)

    def infer(self) -> Sequence[Type]:
        a, b = self.a.tensor, self.b.tensor
        self.require(a.rank >= 2 and b.rank >= 2, "needs matrices")
        self.require(a.dtype == b.dtype, f"operands of types {a.dtype} and {b.dtype}")
        self.require(a.dtype.is_float, "needs floating-point operands")
        k, n = (b.shape[-1], b.shape[-2]) if self.transpose_b else (b.shape[-2], b.shape[-1])
        self.require(a.shape[-1] == k, f"inner sizes {a.shape[-1]} and {k} differ")
        self.require(b.rank == 2 or a.shape[:-2] == b.shape[:-2], "leading axes differ")
        return [a.with_shape((*a.shape[:-1], n)).with_dtype(self.out or a.dtype)]

    def flops(self) -> Dim:
        return mul(mul(2, self.result.tensor.elements), self.a.shape[-1])

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        a, b = (_widened(x) for x in inputs)
        made = a @ (b.mT if self.transpose_b else b)
        return made.to(env.dtype(self.result.type))


class ExpertProduct(Op):
    """Base: products of rows with weights of which each row has its own, w [E, N, K]."""

    w: Value

    @property
    def rows(self) -> Dim:
        """How many rows have weights of their own."""
        raise NotImplementedError

    def bytes(self) -> Dim:
        """Rows in and out once, and the weights of as many experts as the rows can have."""
        return add(add(super().bytes(), mul(-1, self.w.type.bytes)), self.weight_bytes())

    def weight_bytes(self) -> Dim:
        """Bytes of the weights that so many rows can have, an upper bound: how many they do is data."""
        count = self.w.shape[0]
        return mul(least(self.rows, count), floordiv(self.w.type.bytes, count))


@operation("segment_matmul")
class SegmentMatMul(ExpertProduct):
    """A product with another weight for each segment of rows: rows `offsets[e] .. offsets[e+1]` of x with `w[e]^T`.

    x [R / E, K], w [E, N, K], offsets i32[E + 1] -> [R / E, N].
    """

    x: Value = operand()
    w: Value = operand()
    offsets: Value = operand()
    out: DType | None = attr(default=None)

    def infer(self) -> Sequence[Type]:
        x, w, offsets = self.x.tensor, self.w.tensor, self.offsets.tensor
        self.require(x.rank == 2 and w.rank == 3, "needs rows [R, K] and weights [E, N, K]")
        self.require(x.segments == w.shape[0], f"rows are cut into {x.segments} segments for {w.shape[0]} weights")
        self.require(offsets.dtype is DType.I32 and offsets.shape == (w.shape[0] + 1,), "offsets are i32[E + 1]")
        self.require(x.dtype.is_float, "needs floating-point operands")
        self.require(x.dtype == w.dtype and x.shape[1] == w.shape[2], "rows don't fit the weights")
        return [TensorType(self.out or x.dtype, (x.shape[0], w.shape[1]), x.segments)]

    def flops(self) -> Dim:
        return mul(2, product((self.rows, *self.w.shape[1:])))

    @property
    def rows(self) -> Dim:
        return self.x.shape[0]

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        x, w, offsets = _widened(inputs[0]), _widened(inputs[1]), inputs[2]
        made = x.new_empty((x.shape[0], w.shape[1]))
        for e, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            made[start:stop] = x[start:stop] @ w[e].mT
        return made.to(env.dtype(self.result.type))


@operation("gather_matmul")
class GatherMatMul(ExpertProduct):
    """A product of each row with the weights that it names: `result[n, j] = w[ids[n, j]] @ x[n, j]`, or `@ x[n]` for an x without choices.

    x [N, J, K] or [N, K], w [E, C, K], ids i32[N, J] -> [N, J, C]. Rows stay where they are, and each reads weights of its own: for few.
    """

    x: Value = operand()
    w: Value = operand()
    ids: Value = operand()
    out: DType | None = attr(default=None)

    def infer(self) -> Sequence[Type]:
        x, w, ids = self.x.tensor, self.w.tensor, self.ids.tensor
        self.require(w.rank == 3 and ids.rank == 2, "needs weights [E, C, K] and choices [N, J]")
        self.require(ids.dtype is DType.I32, "choices are i32")
        self.require(
            x.shape[:-1] in (ids.shape, ids.shape[:1]), "needs one row for each choice, or for each row of choices"
        )
        self.require(x.dtype.is_float, "needs floating-point operands")
        self.require(x.dtype == w.dtype and x.shape[-1] == w.shape[2], "rows don't fit the weights")
        return [ids.with_shape((*ids.shape, w.shape[1])).with_dtype(self.out or x.dtype)]

    def flops(self) -> Dim:
        return mul(2, product((self.rows, *self.w.shape[1:])))

    @property
    def rows(self) -> Dim:
        return self.ids.tensor.elements

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        x, w, ids = _widened(inputs[0]), _widened(inputs[1]), inputs[2]
        rows = x if x.dim() == 3 else x[:, None].expand(*ids.shape, x.shape[1])
        made = x.new_empty((*ids.shape, w.shape[1]))
        for e in sorted(set(ids.flatten().tolist())):  # rather than a copy of the weights for each row
            made[ids == e] = rows[ids == e] @ w[e].mT
        return made.to(env.dtype(self.result.type))
