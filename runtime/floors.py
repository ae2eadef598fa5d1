"""The least that a program's run must move and compute, from the manifest's own counts.

Two floors are told apart. A kernel's is of the bytes that it moves when nothing is cached, what other kernels made included. A whole run's
is of what no program of the same model could leave out: each weight once, states and caches, inputs and logits; what passes between
kernels could stay on chip and doesn't count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import sympy

from ringc.ir.symbols import Dim, parse_dim
from ringc.passes.schedules.model import at
from ringc.runtime.backends import DTYPES
from ringc.runtime.execute import Step

ID_BYTES = 4
"""Of a token, a position, a slot, an offset, a wanted row and its offset."""

LOGIT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Bytes moved and floating-point operations."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Run:
    """What is known of one run of a program when its floor is asked for.

    Attributes:
        batch: sequences.
        tokens: new tokens of each.
        context: tokens that each slot holds before.
        rows: rows of logits that are wanted.
        takes_rows: whether the wanted rows are an input.
        distinct_ids: different tokens among the new ones.
        experts: experts that have tokens, for each layer with experts, in order.
    """

    batch: int
    tokens: int
    context: int
    rows: int
    takes_rows: bool
    distinct_ids: int
    experts: Sequence[int] = ()

    @property
    def sizes(self) -> dict[str, float]:
        """Values of the symbols; S is what is read of a cache, not what it could hold."""
        S = self.context + self.tokens
        return {"N": self.batch * self.tokens, "B": self.batch, "R": self.rows, "P": self.batch, "S": S}

    @property
    def attended(self) -> float:
        """Cache rows that a new token attends to, on average: attention is causal."""
        return self.context + (self.tokens + 1) / 2


def kernel_work(entry: Mapping[str, Any], run: Run, experts: int | None = None, launched: int | None = None) -> Work:
    """What a kernel moves and computes.

    Args:
        entry: the manifest's.
        run: the sizes.
        experts: how many have tokens; None for as many as can have.
        launched: for how many rows; None for all new tokens. If they are fewer, they are the last of each sequence.
    """
    sizes = run.sizes if launched is None else {**run.sizes, "N": launched}
    moved = at(sympy.sympify(_with_experts(entry["bytes"], experts)), sizes)
    seen = run.attended if sizes["N"] == run.sizes["N"] else sizes["S"]
    flops = at(sympy.sympify(parse_dim(entry["flops"])), {**sizes, "S": seen})
    return Work(moved, flops)


@cache
def _with_experts(text: str, experts: int | None) -> Dim:
    """A count of bytes with the number of experts put in for what experts' products count at most, `min(rows, experts)`."""
    counted = parse_dim(text)
    if experts is None or isinstance(counted, int):
        return counted
    bounds = [low for low in counted.atoms(sympy.Min) if any(arg.is_Integer for arg in low.args)]
    replaced: sympy.Expr = counted.xreplace({low: sympy.Integer(experts) for low in bounds})
    return replaced


def step_works(manifest: Mapping[str, Any], steps: Sequence[Step], run: Run) -> list[Work]:
    """The work of each step of a bound program's kernels; none of a copy."""
    kernels = manifest["kernels"]
    return [
        kernel_work(kernels[step.kernel], run, experts, step.rows) if step.kernel in kernels else Work()
        for step, experts in zip(steps, _experts(kernels, steps, run), strict=True)
    ]


def _experts(kernels: Mapping[str, Any], steps: Sequence[Step], run: Run) -> list[int | None]:
    """For each step the number of experts that have tokens in its layer, which begins where it routes."""
    found: list[int | None] = []
    layers = iter(run.experts)
    now: int | None = None
    for step in steps:
        if step.kernel in kernels and kernels[step.kernel]["family"] == "route":
            now = next(layers, None)
        found.append(now)
    return found


def necessary_work(manifest: Mapping[str, Any], steps: Sequence[Step], run: Run) -> Work:
    """What a run of the whole program must move and compute."""
    moved = float(_weight_bytes(manifest, steps, run))
    for state in manifest["states"].values():
        element = DTYPES[state["dtype"]].itemsize
        rows = prod(d for d in state["shape"] if d != "S") * element
        if "S" in state["shape"]:  # the context is read, new rows are written
            moved += run.batch * (run.context + run.tokens) * rows
        else:
            moved += 2 * run.batch * rows
    N, B, R = run.batch * run.tokens, run.batch, run.rows
    moved += ID_BYTES * (2 * N + B + B + 1 + (R + B + 1 if run.takes_rows else 0))
    moved += LOGIT_BYTES * R * manifest["vocabulary"]["size"]
    return Work(moved, sum(work.flops for work in step_works(manifest, steps, run)))


def _weight_bytes(manifest: Mapping[str, Any], steps: Sequence[Step], run: Run) -> float:
    """Bytes of the weights that the steps read, each once however many read it; of a table the rows, of experts those with tokens."""
    prepare = manifest["prepare"]
    experts: dict[str, int | None] = {}
    for step, now in zip(steps, _experts(manifest["kernels"], steps, run), strict=True):
        for key in step.weights:
            experts.setdefault(key, now)
    total = 0.0
    for key, touched in experts.items():
        entry = prepare[key]
        whole = prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        stack = max((part.get("stack", 0) for part in entry.get("parts", ())), default=0)
        if entry.get("gathered", False):
            whole = whole * min(run.distinct_ids, entry["shape"][0]) / entry["shape"][0]
        elif stack and touched is not None:
            whole = whole * touched / stack
        total += whole
    return total
