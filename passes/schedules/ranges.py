"""Into which versions an entry point is cut: the crossovers of the schedulers, as guards on the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ringc.ir.core import Function, Module, Value
from ringc.ir.ops.call import Call
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.source import Constant
from ringc.passes.schedules.candidates import problem_of
from ringc.passes.schedules.crossovers import Crossover, crossovers, cuts
from ringc.passes.schedules.library import LONG_PROMPT
from ringc.passes.schedules.linear_attention import Problem, forms, switch_length
from ringc.passes.schedules.model import Rows, cost_text, tokens_of
from ringc.passes.target import Target


@dataclass(frozen=True)
class Version:
    """One version of an entry point: the rows that it serves, the condition that the host tests, the form of linear attention.

    `each` is the most tokens of a sequence; 0 for no limit.
    """

    name: str
    guard: str
    rows: Rows
    form: str
    each: int = 0


@dataclass(frozen=True)
class Schedule:
    """How an entry point is cut, and why: the forms' costs as text, the length from which the chunked one wins (None: never), and the
    crossovers between few rows and many.
    """

    versions: tuple[Version, ...]
    costs: tuple[tuple[str, str, str], ...]
    switch: int | None
    steepest: float
    crossovers: tuple[Crossover, ...]


def schedule_of(module: Module, entry: Function, target: Target) -> Schedule:
    """The versions of an entry point, the most special first; the last has no guard."""
    problem = _mixer(module, entry)
    costs = (
        ()
        if problem is None
        else tuple((n, cost_text(c.seconds), c.illegal) for n, c in forms(problem, target).items())
    )
    switch = None if problem is None else switch_length(problem, target)
    steepest = problem.steepest if problem else 0.0
    found = tuple(crossovers([f for f, _ in _functions(module, entry)], target))
    limits = cuts(found)
    if entry.notes["entry"] == "decode":
        versions = list(_decode(limits))
    else:
        attends = any(isinstance(op, Attention) for f, _ in _functions(module, entry) for op in f.body.ops)
        longest = LONG_PROMPT if attends and target.backend == "triton" else 0
        versions = list(_prefill(limits, problem, switch, longest))
    return Schedule(tuple(versions), costs, switch, steepest, found)


def _decode(limits: Sequence[int]) -> Iterator[Version]:
    """One token of each sequence makes no block: the forms measure alike, and the recurrent one reads no tables.

    One sequence alone is the usual case, and has a version on every target.
    """
    low, names = 1, iter(("one", "few", "some", "more"))  # a cut at most for each of three regimes
    for limit in (1, *(few for few in limits if few > 1)):
        yield Version(next(names), f"N <= {limit}", (low, limit), "recurrent")
        low = limit + 1
    yield Version("many", "", (low, 0), "recurrent")


def _prefill(limits: Sequence[int], problem: Problem | None, switch: int | None, longest: int) -> Iterator[Version]:
    """Short prompts up to the last crossover: one of a few tokens is not worth a version. Those of `longest` tokens have one, if not 0."""
    low = 1
    if limits and limits[-1] > 1:
        rows = (1, limits[-1])
        blocks = problem is not None and switch is not None and switch <= tokens_of(rows)
        yield Version("short", f"N <= {limits[-1]}", rows, "chunked" if blocks else "recurrent")
        low = limits[-1] + 1
    form = "recurrent" if problem is None or switch is None else "chunked"
    if switch is not None and problem is not None and switch > 1:
        # Many short sequences: as many rows as in a long prompt, but each too short for blocks.
        yield Version("brief", f"N < {switch} * B", (low, 0), "recurrent", switch - 1)
    if longest:
        yield Version("long", f"N < {longest} * B", (low, 0), form)
        low, name = longest, "longest"
    else:
        name = "long"
    yield Version(name, "", (low, 0), form)


def _mixer(module: Module, entry: Function) -> Problem | None:
    """The linear attention of an entry point (all layers have the same sizes), with the steepest slope of all layers."""
    found: Problem | None = None
    steepest = 0.0
    for function, arguments in _functions(module, entry):
        for op in function.body.ops:
            if isinstance(op, LinearAttention):
                table = arguments.get(op.slopes, op.slopes).op
                # Slopes that aren't known might be anything: only a form that is safe for all of them is.
                steepest = max(steepest, max(map(float, table.value)) if isinstance(table, Constant) else float("inf"))
                found = problem_of(op)
    if found is None:
        return None
    return Problem(found.heads, found.dk, found.dv, found.element, steepest)


def _functions(module: Module, entry: Function) -> list[tuple[Function, dict[Value, Value]]]:
    """The entry point and each call of it that is for all of its rows, with what the callee's arguments are there."""
    found: list[tuple[Function, dict[Value, Value]]] = [(entry, {})]
    for op in entry.body.ops:
        if isinstance(op, Call) and op.rows is None:
            callee = module.functions[op.callee]
            found.append((callee, dict(zip(callee.body.args, op.arguments, strict=True))))
    return found
