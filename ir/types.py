"""Types of the IR: what a value is, as far as the compiler knows it.

Two kinds. A *tensor* has a symbolic shape, an element type, a memory layout and, when its elements are scaled in blocks, the block's
shape and the type of its scales: a value without the scales it needs is a type error. A *state* is a pool of per-sequence memory
(`P` slots of equal shape) that is threaded through a graph as a value and updated in place by the memory plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ringc.ir.symbols import Dim, Shape, add, ceildiv, dim_text, mul, product, shape_text, substitute

if TYPE_CHECKING:
    import torch


class DType(StrEnum):
    """Element types, by the names that IR text uses."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    F8E4M3 = "f8e4m3"
    F8E5M2 = "f8e5m2"
    I64 = "i64"
    I32 = "i32"
    I8 = "i8"
    BOOL = "bool"

    @property
    def bytes(self) -> int:
        return {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "bf16": 2, "f16": 2}.get(self.value, 1)

    @property
    def is_float(self) -> bool:
        return self.value[0] in "fb" and self is not DType.BOOL

    @property
    def torch(self) -> torch.dtype:
        import torch

        names = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "f8e4m3": "float8_e4m3fn",
                 "f8e5m2": "float8_e5m2", "i64": "int64", "i32": "int32", "i8": "int8", "bool": "bool"}  # fmt: skip
        dtype = getattr(torch, names[self.value])
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True)
class Quant:
    """Block scaling: one scale of type `scale` for each `block` of elements (arXiv 2510.19338, sec. 3.2; 1x128 or 128x128)."""

    block: tuple[int, ...]
    scale: DType = DType.F32

    def __str__(self) -> str:
        return f"<{'x'.join(map(str, self.block))}, {self.scale}>"


@dataclass(frozen=True)
class Layout:
    """How elements lie in memory, outermost first.

    `blocks` cuts axes into an outer and an inner part: each `(axis, size)` puts that axis' inner part, of `size` elements, behind all
    the others. `Layout()` is plain row-major order; `Layout(((0, 16),))` of a `[M, K]` matrix is stored as `[M/16, K, 16]`.
    """

    blocks: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return "".join(f"@{axis}x{size}" for axis, size in self.blocks)

    def memory_shape(self, shape: Shape) -> Shape:
        """The row-major shape of the storage."""
        sizes = dict(self.blocks)
        return tuple(ceildiv(d, sizes.get(i, 1)) for i, d in enumerate(shape)) + tuple(size for _, size in self.blocks)


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]`; `segments`, if set, says that the leading axis is that many runs of rows laid end to end.

    Where the runs begin is data: an offsets tensor `i32[segments + 1]` that an operation on segments takes beside the tensor. Ragged
    batches (tokens by sequence) and expert rows (tokens by expert) are both of this kind. Text: `f32[N / B, 4, 32]`.
    """

    dtype: DType
    shape: Shape = ()
    segments: Dim | None = None
    quant: Quant | None = None
    layout: Layout = Layout()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        """Size in memory, scales included."""
        size = mul(self.elements, self.dtype.bytes)
        if self.quant is None:
            return size
        # Blocks lie along the last axes; one that sticks out has a scale all the same.
        block = (1,) * (self.rank - len(self.quant.block)) + self.quant.block
        scales = product(ceildiv(d, b) for d, b in zip(self.shape, block, strict=True))
        return add(size, mul(scales, self.quant.scale.bytes))

    def with_shape(self, shape: Shape) -> TensorType:
        """The same element type with another shape; segments stay only while the leading axis stays."""
        keeps = bool(shape) and bool(self.shape) and shape[0] == self.shape[0]
        return TensorType(self.dtype, tuple(shape), self.segments if keeps else None)

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype, quant=None)

    def __str__(self) -> str:
        dims = shape_text(self.shape)
        if self.segments is not None:
            dims = ", ".join([f"{dim_text(self.shape[0])} / {dim_text(self.segments)}", *map(dim_text, self.shape[1:])])
        return f"{self.dtype}{self.quant or ''}[{dims}]{self.layout}"


@dataclass(frozen=True)
class StateType:
    """A pool: `slots` pieces of per-sequence memory of the given shape. Text: `state<f32[P; 8, 64, 64]>`.

    The linear-attention state is `[H, Dk, Dv]`; a key or value cache is `[S, Hk, D]`, appended to along its first axis.
    """

    dtype: DType
    slots: Dim
    shape: Shape

    @property
    def bytes(self) -> Dim:
        return mul(mul(self.slots, product(self.shape)), self.dtype.bytes)

    def __str__(self) -> str:
        return f"state<{self.dtype}[{dim_text(self.slots)}; {shape_text(self.shape)}]>"


Type = TensorType | StateType


def with_sizes(type: Type, values: Mapping[str, Dim]) -> Type:
    """The type with symbols replaced by other sizes."""
    shape = tuple(substitute(d, values) for d in type.shape)
    if isinstance(type, StateType):
        return replace(type, slots=substitute(type.slots, values), shape=shape)
    segments = None if type.segments is None else substitute(type.segments, values)
    return replace(type, shape=shape, segments=segments)


def tensor(dtype: DType | str, *shape: Dim, segments: Dim | None = None) -> TensorType:
    """Shorthand: `tensor("f32", N, 64)`."""
    return TensorType(DType(dtype), tuple(shape), segments)
