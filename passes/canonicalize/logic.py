"""Rules of comparisons, choices and casts."""

from __future__ import annotations

import math

from ringc.ir.core import Op
from ringc.ir.ops.pointwise import Add, Binary, Cast, Ge, Gt, Le, Lt, Not, Where
from ringc.ir.ops.shape import Broadcast, Reshape
from ringc.ir.ops.source import Constant
from ringc.ir.types import DType
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.rewrite import Rewriter, need, no_match, pattern


@pattern(Gt, Ge)
def comparison_upward(op: Binary, r: Rewriter) -> None:
    """`a > b` -> `b < a`, `a >= b` -> `b <= a`."""
    r.replace(op, r((Lt if isinstance(op, Gt) else Le)(op.b, op.a)))


@pattern(Not)
def negated_comparison(op: Not, r: Rewriter) -> None:
    """`not (a < b)` -> `b <= a`, `not (a <= b)` -> `b < a` of integers (a NaN would make both false), `not not x` -> `x`."""
    inner = op.x.op
    if isinstance(inner, Not):
        r.replace(op, inner.x)
        return
    if isinstance(inner, Lt | Le) and not inner.a.type.dtype.is_float:
        r.replace(op, r((Le if isinstance(inner, Lt) else Lt)(inner.b, inner.a)))
        return
    no_match("no comparison of integers")


@pattern(Lt)
def strict_to_weak(op: Lt, r: Rewriter) -> None:
    """`a < b + 1` -> `a <= b` of integers; `b + 1` may be reshaped."""
    need(not op.a.type.dtype.is_float, "no integers")
    moved = op.b.op
    more = moved.x.op if isinstance(moved, Reshape) else moved
    need(isinstance(more, Add), "no integer one more than another")
    assert isinstance(more, Add)
    need(number(more.b) == 1, "the difference is not one")
    r.replace(op, r(Le(op.a, r(Reshape(more.a, moved.shape)) if isinstance(moved, Reshape) else more.a)))


@pattern(Where)
def choice_of_not(op: Where, r: Rewriter) -> None:
    """`where(not c, a, b)` -> `where(c, b, a)`; the negated condition may be reshaped and repeated."""
    moves: list[Op] = []
    condition = op.condition
    while isinstance(condition.op, Reshape | Broadcast):
        moves.append(condition.op)
        condition = condition.op.x
    need(isinstance(condition.op, Not), "the condition is not negated")
    assert isinstance(condition.op, Not)
    plain = condition.op.x
    for move in reversed(moves):
        plain = r(move.clone({move.inputs()[0]: plain}))
    r.replace(op, r(Where(plain, op.b, op.a)))


@pattern(Where)
def choice_known(op: Where, r: Rewriter) -> None:
    """`where(true, a, b)` -> `a`, `where(c, a, a)` -> `a`."""
    if is_number(op.condition):
        r.replace(op, op.a if number(op.condition) else op.b)
        return
    need(op.a is op.b, "two branches")
    r.replace(op, op.a)


@pattern(Add)
def added_mask(op: Add, r: Rewriter) -> None:
    """`x + where(c, 0, -inf)` -> `where(c, x, -inf)`, and with the branches exchanged. Adding -inf leaves nothing of x."""
    for x, mask in ((op.a, op.b), (op.b, op.a)):
        where = mask.op
        if isinstance(where, Where) and is_number(where.a) and is_number(where.b):
            a, b = number(where.a), number(where.b)
            if a == 0 and b == -math.inf:
                r.replace(op, r(Where(where.condition, x, where.b)))
                return
            if b == 0 and a == -math.inf:
                r.replace(op, r(Where(where.condition, where.a, x)))
                return
    no_match("no mask of 0 and -inf")


_HELD_BY: dict[DType, frozenset[DType]] = {
    DType.BOOL: frozenset(DType),
    DType.I8: frozenset({DType.I32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.I32: frozenset({DType.I64, DType.F64}),
    DType.F8E4M3: frozenset({DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.F8E5M2: frozenset({DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.BF16: frozenset({DType.F32, DType.F64}),
    DType.F16: frozenset({DType.F32, DType.F64}),
    DType.F32: frozenset({DType.F64}),
}
"""The types that hold every value of a type."""


@pattern(Cast)
def cast_away(op: Cast, r: Rewriter) -> None:
    """A cast to a value's own type is the value; a cast of a widening cast starts from the narrow value."""
    if op.dtype == op.x.type.dtype:
        r.replace(op, op.x)
        return
    inner = op.x.op
    need(isinstance(inner, Cast), "no cast below")
    assert isinstance(inner, Cast)
    need(inner.dtype in _HELD_BY.get(inner.x.type.dtype, ()), "the cast below loses digits")
    r.replace(op, inner.x if op.dtype == inner.x.type.dtype else r(Cast(inner.x, op.dtype)))


@pattern(Cast)
def cast_of_constant(op: Cast, r: Rewriter) -> None:
    """A cast of a constant scalar is a constant, where the new type holds all the old one's values."""
    value = number(op.x)
    old = op.x.type.dtype
    need(op.dtype in _HELD_BY.get(old, ()), "the cast may round")
    made: float | int | bool = float(value) if op.dtype.is_float else int(value)
    r.replace(op, r(Constant((made,), op.dtype)))


RULES = (
    comparison_upward,
    negated_comparison,
    strict_to_weak,
    choice_of_not,
    choice_known,
    added_mask,
    cast_away,
    cast_of_constant,
)
