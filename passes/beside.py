"""Beside: launches that are off the critical path run beside it.

A layer's launches are a line, but not all of them depend on the one before: the shared expert waits for nothing that routing finds, and
while routing keeps a few processors busy it can have the others. What is off the path that takes longest by predicted times moves to where
its operands are there, is marked, and joins where its results are read. `ringc.passes.memory` keeps its buffers apart until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ringc.ir.core import Block, Function, Module, Op
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.shape import Reshape
from ringc.ir.types import StateType
from ringc.passes.framework import Pass
from ringc.passes.kernels import host_functions
from ringc.passes.schedules.candidates import service, typical_sizes
from ringc.passes.schedules.predict import predicted_seconds, seconds_at
from ringc.passes.target import Target


@dataclass(frozen=True)
class Beside(Pass):
    """Mark launches that can run beside others, on a device that can run several."""

    name = "beside"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend != "triton":
            return  # a kernel has all threads of a CPU
        for function in host_functions(module):
            _mark(function, _seconds(module, function, typical_sizes(*service(function))))


@dataclass(frozen=True)
class Branch:
    """Launches that depend on nothing behind the operation number `start`; none before number `end` reads what they make."""

    ops: Sequence[Op]
    start: int
    end: int


def _seconds(module: Module, function: Function, sizes: Mapping[str, int]) -> dict[Op, float]:
    """The predicted time of each operation; of a call that of all launches in it."""
    found: dict[Op, float] = {}
    calls: dict[str, float] = {}
    for op in function.body.ops:
        found[op] = 0.0
        if isinstance(op, Launch):
            found[op] = seconds_at(str(module.functions[op.kernel].notes.get("seconds", "0")), sizes)
        elif isinstance(op, Call):
            if op.callee not in calls:
                calls[op.callee] = predicted_seconds(module, module.functions[op.callee], op.inside(sizes))
            found[op] = calls[op.callee]
    return found


def _mark(function: Function, seconds: Mapping[Op, float]) -> None:
    """Move the branches of a function to their beginnings, and mark them."""
    ops = function.body.ops
    critical = _critical(ops, seconds)
    taken: list[Branch] = []
    for branch in sorted(_branches(ops, critical), key=lambda b: -sum(seconds[op] for op in b.ops)):
        between = ops[branch.start + 1 : branch.end]
        beside = any(isinstance(op, Launch | Call) and op not in branch.ops for op in between)
        if beside and all(branch.end <= other.start + 1 or other.end <= branch.start + 1 for other in taken):
            taken.append(branch)
    for branch in sorted(taken, key=lambda b: -b.start):
        _move(function.body, branch)


def _critical(ops: Sequence[Op], seconds: Mapping[Op, float]) -> set[Op]:
    """The operations on the path that takes longest."""
    until: dict[Op, float] = {}
    through: dict[Op, Op | None] = {}
    for op in ops:
        before = max((v.op for v in op.inputs() if v.op is not None), key=lambda o: until[o], default=None)
        through[op] = before
        until[op] = seconds[op] + (until[before] if before is not None else 0.0)
    found: set[Op] = set()
    last: Op | None = max(ops, key=lambda o: until[o], default=None)
    while last is not None:
        found.add(last)
        last = through[last]
    return found


def _branches(ops: Sequence[Op], critical: set[Op]) -> list[Branch]:
    """The launches off the critical path that touch no state, together with what they depend on there."""
    place = {op: i for i, op in enumerate(ops)}
    found: list[set[Op]] = []
    for op in ops:
        values = (*op.inputs(), *op.results)
        if op in critical or not isinstance(op, Launch | Reshape) or any(isinstance(v.type, StateType) for v in values):
            continue
        joined = {op}.union(*(b for b in found if any(v.op in b for v in op.inputs())))
        found = [b for b in found if not b <= joined] + [joined]
    branches: list[Branch] = []
    for members in found:
        if not any(isinstance(op, Launch) for op in members):
            continue
        start = max(
            (place[v.op] for op in members for v in op.inputs() if v.op is not None and v.op not in members), default=-1
        )
        users = [place[u] for op in members for r in op.results for u in r.users() if u not in members]
        branches.append(Branch([op for op in ops if op in members], start, min(users, default=len(ops))))
    return branches


def _move(body: Block, branch: Branch) -> None:
    """Put a branch's operations right behind what they depend on."""
    rest = [op for op in body.ops if op not in branch.ops]
    after = rest.index(body.ops[branch.start]) + 1 if branch.start >= 0 else 0
    for op in branch.ops:
        if isinstance(op, Launch):
            op.beside = True
    body.ops[:] = [*rest[:after], *branch.ops, *rest[after:]]
