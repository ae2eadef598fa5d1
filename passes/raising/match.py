"""What the rules of this package look with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ringc.ir.core import Op, Value
from ringc.ir.ops.pointwise import Binary, Cast, Mul, Pointwise
from ringc.ir.ops.shape import Broadcast, Reshape
from ringc.ir.ops.source import Constant, Iota
from ringc.passes.canonicalize.arithmetic import FOLD, is_number, number
from ringc.passes.canonicalize.movement import squeezed
from ringc.passes.rewrite import NoMatch, need, no_match

AnyOp = TypeVar("AnyOp", bound=Op)
Found = TypeVar("Found")


def look(value: Value, cls: type[AnyOp]) -> AnyOp:
    """The operation of this class that makes a value. It may have other users: it stays where it is.

    Raises:
        NoMatch: another operation makes it, or none.
    """
    op = value.op
    return (
        op
        if isinstance(op, cls)
        else no_match(f"%{value.name} is made by {op.name if op else 'nobody'}, not {cls.name}")
    )


def either(op: Binary, attempt: Callable[[Value, Value], Found]) -> Found:
    """`attempt(a, b)`, or `attempt(b, a)` where that doesn't match."""
    try:
        return attempt(op.a, op.b)
    except NoMatch:
        return attempt(op.b, op.a)


def is_unit_reshape(op: Op | None) -> bool:
    """Whether an operation only adds or drops axes of size 1."""
    return isinstance(op, Reshape) and squeezed(op.shape) == squeezed(op.x.shape)


def without_units(value: Value) -> Value:
    """What a value is before reshapes that only add or drop axes of size 1."""
    while isinstance(value.op, Reshape) and is_unit_reshape(value.op):
        value = value.op.x
    return value


class Match:
    """The operations that a composite operation is to replace.

    `take` and the like note what they find; `closed` makes sure that nobody else needs it.
    """

    def __init__(self) -> None:
        self.found: dict[Op, None] = {}

    def take(self, value: Value, cls: type[AnyOp]) -> AnyOp:
        """The operation of this class that makes a value, to be replaced.

        Raises:
            NoMatch: another operation makes it, or none.
        """
        op = look(value, cls)
        self.found[op] = None
        return op

    def peel(self, value: Value) -> Value:
        """Through reshapes that only add or drop axes of size 1."""
        while is_unit_reshape(value.op):
            value = self.take(value, Reshape).x
        return value

    def scaled(self, value: Value, casts: bool = False) -> tuple[Value, float]:
        """Through factors that are constant scalars, reshapes by axes of size 1 and, if wanted, casts: (what is scaled, factor)."""
        factor = 1.0
        while True:
            op = value.op
            if isinstance(op, Mul) and is_number(op.b):
                factor *= number(op.b)
                value = self.take(value, Mul).a
            elif is_unit_reshape(op):
                value = self.peel(value)
            elif casts and isinstance(op, Cast) and op.dtype.is_float and op.x.type.dtype.is_float:
                value = self.take(value, Cast).x
            else:
                return value, factor

    def closed(self, *roots: Value) -> None:
        """Every result found, but for the roots, is used by what was found alone.

        Raises:
            NoMatch: an intermediate value has another user.
        """
        for op in self.found:
            for result in op.results:
                if result not in roots:
                    need(all(u in self.found for u in result.uses), f"%{result.name} of {op.name} has other users")


def last_axis(value: Value) -> tuple[int, ...]:
    """The `axes` of a reduction over the last axis."""
    return (value.tensor.rank - 1,)


def known_integers(value: Value) -> list[int]:
    """The elements of a vector of integers that constants, counts and arithmetic on them make.

    Raises:
        NoMatch: it depends on anything else.
    """
    need(value.tensor.rank == 1 and not value.type.dtype.is_float, "not a vector of integers")
    return [int(x) for x in known_numbers(value)]


def known_numbers(value: Value) -> list[float]:
    """The elements of a tensor, in row-major order, that constants and arithmetic on them make, in double precision.

    A single number may stand for as many as there are: it is the list's only element then.

    Raises:
        NoMatch: it depends on anything else.
    """
    op = value.op
    match op:
        case Constant():
            return list(op.value)
        case Iota(length=int()):
            return list(range(int(op.length)))
        case Reshape() | Cast():
            return known_numbers(op.x)
        case Broadcast() if op.x.tensor.elements == 1:
            return known_numbers(op.x)
        case Pointwise() if type(op) in FOLD:
            operands = [known_numbers(v) for v in op.inputs()]
            count = max(map(len, operands))
            # Lists of equal length are elements at equal positions unless an axis of size 1 was repeated.
            need(
                all(len(x) in (1, count) for x in operands) and count in (1, value.tensor.elements), "positions differ"
            )
            spread = [x * count if len(x) == 1 else x for x in operands]
            try:
                return [FOLD[type(op)](*elements) for elements in zip(*spread, strict=True)]
            except (ArithmeticError, ValueError):
                no_match("undefined, or beyond the range of numbers")
    return no_match("not known at compile time")
