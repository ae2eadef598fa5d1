"""Composite operations on rows: normalisation, softmax, rotary positions, silu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringc.ir.builder import Builder
from ringc.ir.core import Env, Level, Value, attr, operand, operation, optional_operand
from ringc.ir.elements import E, Elements, Elementwise, Read
from ringc.ir.ops.composite import Composite
from ringc.ir.ops.pointwise import Add, Div, Exp, Mul, Rsqrt, Sigmoid, Sub, Unary
from ringc.ir.ops.reduce import Max, Mean, Sum
from ringc.ir.ops.shape import Concat, Reshape, Slice
from ringc.ir.ops.source import scalar
from ringc.ir.types import DType, Type

if TYPE_CHECKING:
    import torch


@operation("silu")
class Silu(Unary):
    """`x * sigmoid(x)`."""

    x: Value = operand()
    cost = 2
    levels = frozenset({Level.FUSED})

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        x = read(0, at)
        return math.apply("mul", x, math.apply("sigmoid", x))

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0] * inputs[0].sigmoid()

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        return [b(Mul(inputs[0], b(Sigmoid(inputs[0]))))]


@operation("rms_norm")
class RmsNorm(Composite):
    """`x * rsqrt(mean(x^2) + eps)` over the last axis, times the weight if there is one (Zhang & Sennrich 2019). x [..., n], w [n]."""

    x: Value = operand()
    weight: Value | None = optional_operand(default=None)
    eps: float = attr(default=1e-6)

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(x.rank >= 1 and x.dtype.is_float, "needs rows of floating-point numbers")
        if self.weight is not None:
            self.require(self.weight.tensor.dtype == x.dtype, "the weight's type differs")
            self.require(self.weight.shape == x.shape[-1:], "the weight doesn't fit the last axis")
        return [x]

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        x = inputs[0]
        mean = b(Mean(b(Mul(x, x)), axes=(x.tensor.rank - 1,), keep=True))
        y = b(Mul(x, b(Rsqrt(b(Add(mean, b(scalar(self.eps, x.tensor.dtype))))))))
        return [y if self.weight is None else b(Mul(y, inputs[1]))]


@operation("softmax")
class Softmax(Composite):
    """`exp(x - max) / sum(exp(x - max))` over the last axis."""

    x: Value = operand()

    def infer(self) -> Sequence[Type]:
        x = self.x.tensor
        self.require(x.rank >= 1 and x.dtype.is_float, "needs rows of floating-point numbers")
        return [x]

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        x = inputs[0]
        last = (x.tensor.rank - 1,)
        e = b(Exp(b(Sub(x, b(Max(x, axes=last, keep=True))))))
        return [b(Div(e, b(Sum(e, axes=last, keep=True))))]


@operation("rope")
class Rope(Composite, Elementwise):
    """Rotary positions (Su et al. 2021, eq. 34) on the first r channels of each head; the others pass.

    x [N, H, D], cos and sin [N, r/2] -> [N, H, D]. Pair j is channels (j, j + r/2), or (2j, 2j + 1) when `interleaved`:
    `(a, b) -> (a cos - b sin, b cos + a sin)`.
    """

    x: Value = operand()
    cos: Value = operand()
    sin: Value = operand()
    interleaved: bool = attr(default=False)

    def infer(self) -> Sequence[Type]:
        x, cos, sin = (v.tensor for v in self.inputs())
        self.require(
            x.rank == 3 and cos.rank == 2 and cos.shape == sin.shape, "needs x [N, H, D], cos and sin [N, r/2]"
        )
        self.require(x.shape[0] == cos.shape[0], "x and the angles differ in rows")
        self.require(
            x.dtype == cos.dtype == sin.dtype and x.dtype.is_float, "operands of different types, or not floating-point"
        )
        half, channels = cos.shape[1], x.shape[2]
        self.require(isinstance(half, int) and isinstance(channels, int), "the channels are a known number")
        self.require(2 * half <= channels, f"{half} pairs don't fit into {channels} channels")
        return [x]

    @property
    def pairs(self) -> int:
        """r/2, the number of rotated pairs."""
        return int(self.cos.shape[1])

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        x, cos, sin = inputs
        rows, heads, channels = x.shape
        half, r = self.pairs, 2 * self.pairs
        cos, sin = (b(Reshape(t, (rows, 1, half))) for t in (cos, sin))
        step = 2 if self.interleaved else 1
        first = b(Slice(x, 2, 0, r if self.interleaved else half, step))
        second = b(Slice(x, 2, 1 if self.interleaved else half, r, step))
        out1 = b(Sub(b(Mul(first, cos)), b(Mul(second, sin))))
        out2 = b(Add(b(Mul(second, cos)), b(Mul(first, sin))))
        if self.interleaved:
            pair = [b(Reshape(t, (rows, heads, half, 1))) for t in (out1, out2)]
            parts = [b(Reshape(b(Concat(tuple(pair), axis=3)), (rows, heads, r)))]
        else:
            parts = [out1, out2]
        if channels != r:
            parts.append(b(Slice(x, 2, r, int(channels))))
        return [b(Concat(tuple(parts), axis=2)) if len(parts) > 1 else parts[0]]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        n, h, d = at
        half, r = self.pairs, 2 * self.pairs

        def i32(value: int) -> E:
            return math.literal(value, DType.I32)

        if self.interleaved:
            pair, second = math.apply("floordiv", d, i32(2)), math.apply("eq", math.apply("mod", d, i32(2)), i32(1))
            step = i32(1)
        else:
            second = math.apply("ge", d, i32(half))
            pair = math.apply("where", second, math.apply("sub", d, i32(half)), d)
            step = i32(half)
        rotated = math.apply("lt", d, i32(r))
        pair = math.apply("where", rotated, pair, i32(0))
        partner = math.apply("where", second, math.apply("sub", d, step), math.apply("add", d, step))
        partner = math.apply("where", rotated, partner, d)
        x, other = read(0, at), read(0, [n, h, partner])
        cos, sin = read(1, [n, pair]), read(2, [n, pair])
        turned = math.apply("mul", other, sin)
        made = math.apply("mul", x, cos)
        made = math.apply("where", second, math.apply("add", made, turned), math.apply("sub", made, turned))
        return math.apply("where", rotated, made, x)
