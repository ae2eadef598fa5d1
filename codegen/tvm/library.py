"""Scalar functions that the generated TVM kernels call, as expressions that vectorise.

LLVM turns a vector `exp` into as many calls of libm's `expf` (3 ns each); the polynomials here cost 0.2 to 0.4 ns an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

Expr = Any
"""A TVM expression, scalar or vector."""


def f32(value: float) -> Expr:
    """A constant."""
    return tirx.const(value, "float32")


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a variable that holds `value`, of f32: an expression used twice is computed once."""
    variable = tirx.Var("t", "float32")
    return tirx.Let(variable, value, body(variable))


def exp(x: Expr) -> Expr:
    """e^x of f32, relative error 8e-8: `2^n p(r)` with |r| <= ln(2) / 2 and p of degree 6 (Cody & Waite 1980, ch. 6).

    Below -87.3 it gives 1.2e-38 and above 88.4 it gives 2.4e38, not 0 and infinity; of NaN it is NaN.
    """
    coefficients = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)

    def scaled(r: Expr, n: Expr) -> Expr:
        p = f32(1.9875691500e-4)
        for c in coefficients:
            p = p * r + f32(c)
        y = p * (r * r) + r + f32(1.0)
        return tirx.reinterpret("float32", tirx.reinterpret("int32", y) + (n.astype("int32") << 23))

    def reduced(x: Expr) -> Expr:
        n = tirx.nearbyint(x * f32(1.44269504088896341))
        return let(n, lambda n: let(x - n * f32(0.693359375) + n * f32(2.12194440e-4), lambda r: scaled(r, n)))

    return let(tirx.max(tirx.min(x, f32(88.3762626647949)), f32(-87.3365478515625)), reduced)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x) of f32."""
    return f32(1.0) / (f32(1.0) + exp(f32(0.0) - x))


def lanes_sum(lanes: Expr) -> Expr:
    """The sum over a buffer of 2^i elements, halving it: the order in which vector instructions add."""
    return _fold([lanes[i] for i in range(int(lanes.shape[0]))], lambda a, b: a + b)


def lanes_max(lanes: Expr) -> Expr:
    """The largest element of a buffer of 2^i elements."""
    return _fold([lanes[i] for i in range(int(lanes.shape[0]))], tirx.max)


def _fold(values: list[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    while len(values) > 1:
        half = len(values) // 2
        values = [combine(a, b) for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]
