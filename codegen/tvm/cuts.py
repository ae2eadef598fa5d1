"""Where to cut a loop so that the expression inside of it needs no condition and no division.

What a loop variable's range doesn't decide becomes a question with an answer: the loop over the columns of a concatenation is cut where its
parts meet, the loop over the columns of a reshaped row into the groups that the row is made of.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ringc.codegen.tvm.elements import COMPARISONS, Arithmetic, Expr, walk


@dataclass(frozen=True)
class Question:
    """A loop to cut so that an expression simplifies: at a value ("cut"), or into blocks of a size ("split")."""

    variable: Expr
    kind: Literal["cut", "split"]
    at: int


def question(e: Expr, loops: Collection[Expr], math: Arithmetic) -> Question | None:
    """A cut of one of these loops that decides a comparison of indices, or makes a division exact; None if there is none."""
    for part in sorted(walk(e), key=_first_divisions):
        if part.op in COMPARISONS and part.args[0].is_index and not part.data:
            found = _about_comparison(part, loops, math)
        elif part.op in ("floordiv", "mod") and not part.data and isinstance(part.args[1].const, int):
            found = _about_division(part, loops, math)
        else:
            continue
        if found is not None:
            return found
    return None


def _first_divisions(e: Expr) -> tuple[bool, int]:
    """Blocks first, the largest before the smaller ones: cuts then fall into whole blocks."""
    size = e.args[1].const if e.op in ("floordiv", "mod") else None
    return size is None, -size if isinstance(size, int) else 0


def _about_comparison(e: Expr, loops: Collection[Expr], math: Arithmetic) -> Question | None:
    """`sum < 0` (or the like) changes where the variable with the largest factor passes a point."""
    parts, constant = math.minus(math.linear(e.args[0]), math.linear(e.args[1]))
    if not parts:
        return None
    variable = max(parts, key=lambda p: abs(parts[p]))
    factor = parts.pop(variable)
    low, high = math.range_of((parts, constant))
    first, last = variable.range
    if variable not in loops or low is None or high is None or first is None or last is None:
        return None
    # The least values of the variable for which the comparison may, and for which it must, come out the other way.
    shifts = {"lt": (0,), "ge": (0,), "le": (1,), "gt": (1,), "eq": (0, 1)}[e.op]
    edges = [
        -((rest - s) // factor) if factor > 0 else (rest - s) // -factor + 1 for rest in (low, high) for s in shifts
    ]
    for at in sorted(edges):
        if first < at <= last:
            return Question(variable, "cut", at)
    return None


def _about_division(e: Expr, loops: Collection[Expr], math: Arithmetic) -> Question | None:
    """`(factor * v + constant) // by` is exact in blocks of `by / factor` values of v that begin at a multiple."""
    parts, constant = math.linear(e.args[0])
    by = e.args[1].const
    if len(parts) != 1 or not isinstance(by, int):
        return None
    ((variable, factor),) = parts.items()
    first, last = variable.range
    if variable not in loops or first is None or last is None or factor <= 0 or by % factor or constant % factor:
        return None
    size = by // factor
    start = -(first + constant // factor) % size  # values up to the next multiple
    count = last - first + 1
    if start and start < count:
        return Question(variable, "cut", first + start)
    if start or count <= size:
        return None
    if count % size:
        return Question(variable, "cut", first + count // size * size)
    return Question(variable, "split", size)
