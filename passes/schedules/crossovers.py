"""From how many rows on an entry point is better served by other implementations: where its versions for few rows end.

Each regime has its own crossover. Where two implementations compete, the costs of all products of the entry point are summed up for either
of them, as expressions of `N`, and the place where the second overtakes is solved for. Where one implementation changes its ways inside, or
a cost has no expression, its stated limit stands in that place, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sympy

from ringc.ir.core import Block, Function, Op
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.routing import Route
from ringc.passes.schedules import products
from ringc.passes.schedules.library import SLOW_ROWS
from ringc.passes.schedules.model import Candidate, N, crossover
from ringc.passes.target import Target

ROWS_ALONE = 16
"""Rows that one thread of a CPU does by itself in a row kernel: waking a second one takes 1.5 us, in which it moves 16 rows of a few KB."""

CLOSE = 3
"""Crossovers within this factor are served by one cut: between them either choice costs little, and each version adds kernels.

Of ring-tiny's experts, whose crossover is at 7 tokens where row kernels' is at 17, the wrong choice costs 2 us of a step of 1.5 ms."""


@dataclass(frozen=True)
class Crossover:
    """Where a regime changes.

    `rows` is the least number of rows from which the second way costs less; None where it never does. `first` and `second` are their costs
    as text, empty where the limit is stated instead of solved.
    """

    regime: str
    rows: int | None
    why: str
    first: str = ""
    second: str = ""

    @property
    def few(self) -> int:
        """Rows up to which the first way is taken; 0 where it never is, or always."""
        return (self.rows or 1) - 1


def crossovers(functions: Iterable[Function], target: Target) -> list[Crossover]:
    """The crossovers of an entry point, given with every function that it calls for all of its rows, as often as it calls it."""
    dense: list[list[Candidate]] = []
    experts: list[list[Candidate]] = []
    known: dict[tuple[object, ...], list[Candidate]] = {}  # many layers have the same products
    for op in (op for function in functions for op in function.body.ops if isinstance(op, MatMul | SegmentMatMul)):
        # What has other rows than the entry point's, as the head has in prefill, is not cut by them.
        if not isinstance(rows := op.result.shape[0], sympy.Expr) or N not in rows.free_symbols:
            continue
        price, regime = (products.grouped, experts) if isinstance(op, SegmentMatMul) else (products.alone, dense)
        weight = op.w if isinstance(op, SegmentMatMul) else op.b
        users = op.result.users()
        routes = bool(users) and all(isinstance(user, Route) for user in users)  # one kernel does both
        if isinstance(op, MatMul) and (len(weight.shape) != 2 or routes):
            continue
        key = (op.name, op.inputs()[0].type, weight.type, op.result.type)
        if key not in known:
            known[key] = price(_alone(op), (1, 0), target)
        regime.append(known[key])
    # In the order of what depends on them, most first.
    found = _of_products("dense products", dense)
    if target.backend == "tvm":
        found.append(Crossover("row kernels", ROWS_ALONE + 1, "a second thread is woken: a stated limit"))
    elif target.backend == "torch":
        found.append(Crossover("library calls", SLOW_ROWS + 1, "MKL runs slowly for few rows: a stated limit"))
    found += _of_products("experts' products", experts)
    return found


def cuts(found: Sequence[Crossover]) -> list[int]:
    """Rows up to which versions reach, ascending: one for each crossover that is not close to one named before it."""
    kept: list[int] = []
    for few in (one.few for one in found):
        if few and all(max(few, other) > CLOSE * min(few, other) for other in kept):
            kept.append(few)
    return sorted(kept)


def _of_products(regime: str, ranked: Sequence[Sequence[Candidate]]) -> list[Crossover]:
    """The crossover of all products of a kind: few rows against tiles, or the limit that the one implementation states."""
    if not ranked:
        return []
    if all(len(candidates) == 2 for candidates in ranked):
        few, tiled = (sympy.Add(*(candidates[i].seconds for candidates in ranked)) for i in (0, 1))
        rows = crossover(few, tiled, "N", {})
        names = " and ".join(c.implementation for c in ranked[0])
        return [Crossover(regime, rows, f"solved: {names}", str(few), str(tiled))]
    limit = max(candidate.limit for candidates in ranked for candidate in candidates)
    if not limit:
        return []
    name = ranked[0][0].implementation
    return [Crossover(regime, limit + 1, f"{name} takes tiles of rows: its stated limit")]


def _alone(op: Op) -> Block:
    """A region of one operation."""
    block = Block()
    mapping = {value: block.add_arg(value.type, value.name) for value in op.inputs()}
    made = block.insert(op.clone(mapping))
    block.set_outputs(made.results)
    return block
