"""Rules of arithmetic: constants, signs, division. Exact in real arithmetic; a constant is folded in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ringc.ir.core import Op, Value
from ringc.ir.ops.pointwise import (
    Add,
    Binary,
    Div,
    Exp,
    FloorDiv,
    Log,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Neg,
    Pointwise,
    Rsqrt,
    Sqrt,
    Sub,
)
from ringc.ir.ops.source import Constant, scalar
from ringc.passes.rewrite import Rewriter, need, no_match, pattern


def number(value: Value) -> Any:
    """The number that a rank-0 constant holds.

    Raises:
        NoMatch: the value is no such constant.
    """
    op = value.op
    if isinstance(op, Constant) and not op.shape:
        return op.value[0]
    return no_match("not a constant scalar")


def is_number(value: Value) -> bool:
    """Whether a value is a rank-0 constant."""
    return isinstance(value.op, Constant) and not value.op.shape


@pattern(Binary)
def constant_right(op: Binary, r: Rewriter) -> None:
    """`c + x` -> `x + c`, for every commutative operation."""
    need(op.commutative and is_number(op.a) and not is_number(op.b), "no constant to move")
    r.replace(op, r(op.clone({op.a: op.b, op.b: op.a})))


FOLD: dict[type[Op], Callable[..., float]] = {
    Add: lambda a, b: a + b,
    Sub: lambda a, b: a - b,
    Mul: lambda a, b: a * b,
    Div: lambda a, b: a / b,
    FloorDiv: lambda a, b: a // b,
    Mod: lambda a, b: a % b,
    Maximum: max,
    Minimum: min,
    Neg: lambda x: -x,
    Exp: math.exp,
    Log: math.log,
    Sqrt: math.sqrt,
    Rsqrt: lambda x: 1 / math.sqrt(x),
}
"""Arithmetic on numbers."""


@pattern(*FOLD)
def fold_scalars(op: Pointwise, r: Rewriter) -> None:
    """An operation on constant scalars is a constant. Tables are left alone: they are data, such as slopes."""
    numbers = [number(v) for v in op.inputs()]
    need(op.result.type.dtype.is_float or not isinstance(op, Div), "division of integers gives a fraction")
    try:
        made = FOLD[type(op)](*numbers)
    except (ArithmeticError, ValueError):
        no_match("undefined, or beyond the range of numbers")
    dtype = op.result.tensor.dtype
    r.replace(op, r(scalar(float(made) if dtype.is_float else int(made), dtype)))


@pattern(Add, Sub, Mul, Div, FloorDiv)
def neutral(op: Binary, r: Rewriter) -> None:
    """`x + 0`, `x - 0`, `x * 1`, `x / 1`, `x // 1` -> `x`."""
    need(number(op.b) == (0 if isinstance(op, Add | Sub) else 1), "not the neutral element")
    r.replace(op, op.a)


@pattern(Neg)
def double_negation(op: Neg, r: Rewriter) -> None:
    """`-(-x)` -> `x`."""
    need(isinstance(op.x.op, Neg), "not negated twice")
    assert isinstance(op.x.op, Neg)
    r.replace(op, op.x.op.x)


@pattern(Mul)
def negation_outward(op: Mul, r: Rewriter) -> None:
    """`(-x) * y` -> `-(x * y)`, and `x * -c` -> `-(x * c)`."""
    if is_number(op.b):
        c = number(op.b)
        need(c < 0 and op.result.type.dtype.is_float, "no negative factor")
        r.replace(op, r(Neg(op.a if c == -1 else r(Mul(op.a, r(scalar(-c, op.result.type.dtype)))))))
        return
    for x, y in ((op.a, op.b), (op.b, op.a)):
        if isinstance(x.op, Neg):
            r.replace(op, r(Neg(r(Mul(x.op.x, y)))))
            return
    no_match("no negated factor")


@pattern(Add, Sub)
def negated_term(op: Binary, r: Rewriter) -> None:
    """`x + (-y)` -> `x - y`, `(-x) + y` -> `y - x`, `x - (-y)` -> `x + y`."""
    if isinstance(op.b.op, Neg):
        r.replace(op, r((Sub if isinstance(op, Add) else Add)(op.a, op.b.op.x)))
    elif isinstance(op.a.op, Neg) and isinstance(op, Add):
        r.replace(op, r(Sub(op.b, op.a.op.x)))
    else:
        no_match("no negated term")


@pattern(Sub)
def subtract_constant(op: Sub, r: Rewriter) -> None:
    """`x - c` -> `x + (-c)`."""
    r.replace(op, r(Add(op.a, r(scalar(-number(op.b), op.result.type.dtype)))))


@pattern(Add, Mul)
def gather_constants(op: Binary, r: Rewriter) -> None:
    """`(x * c) * d` -> `x * (c d)`, and the like for `+`, where nobody else takes `x * c`."""
    inner = op.a.op
    d = number(op.b)
    need(isinstance(inner, type(op)) and len(op.a.uses) == 1, "no constant below")
    assert isinstance(inner, Binary)
    c = number(inner.b)
    both = r(scalar(c + d if isinstance(op, Add) else c * d, op.result.type.dtype))
    r.replace(op, r(op.clone({op.a: inner.a, op.b: both})))


@pattern(Div)
def divide_by_constant(op: Div, r: Rewriter) -> None:
    """`x / c` -> `x * (1/c)`."""
    c = number(op.b)
    need(
        op.result.type.dtype.is_float and c != 0 and math.isfinite(c) and math.isfinite(1 / c),
        "the inverse is no finite number",
    )
    r.replace(op, r(Mul(op.a, r(scalar(1 / c, op.result.type.dtype)))))


@pattern(Div)
def divide_by_root(op: Div, r: Rewriter) -> None:
    """`x / sqrt(y)` -> `x * rsqrt(y)`."""
    need(isinstance(op.b.op, Sqrt), "no root below")
    assert isinstance(op.b.op, Sqrt)
    root = r(Rsqrt(op.b.op.x))
    r.replace(op, root if is_number(op.a) and number(op.a) == 1 else r(Mul(op.a, root)))


@pattern(Mul)
def multiply_by_inverse(op: Mul, r: Rewriter) -> None:
    """`x * (1 / y)` -> `x / y`, where nobody else takes the inverse."""
    for x, inverse in ((op.a, op.b), (op.b, op.a)):
        if (
            isinstance(inverse.op, Div)
            and len(inverse.uses) == 1
            and is_number(inverse.op.a)
            and number(inverse.op.a) == 1
        ):
            r.replace(op, r(Div(x, inverse.op.b)))
            return
    no_match("no inverse")


RULES = (
    constant_right,
    fold_scalars,
    neutral,
    double_negation,
    negation_outward,
    negated_term,
    subtract_constant,
    gather_constants,
    divide_by_constant,
    divide_by_root,
    multiply_by_inverse,
)

__all__ = ["FOLD", "RULES", "is_number", "number"]
