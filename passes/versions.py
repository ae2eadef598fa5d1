"""Versions: an entry point is cut into few versions, each for a range of sizes in which one form of everything is best.

A version is a copy of the entry point and of the layers that it calls, with a *guard* (a condition on the sizes, which the host program
tests in order) and the form of linear attention fixed: what may be fused around it depends on the form, so it comes before fusing. What the
forms cost, and where they cross, stays with every version for `ringc explain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ringc.ir.core import Function, Module
from ringc.ir.ops.call import Call
from ringc.ir.ops.mixers import LinearAttention
from ringc.passes.framework import Pass
from ringc.passes.schedules.ranges import Schedule, Version, schedule_of
from ringc.passes.target import Target

ONE_ROW = (1, 1)
"""The rows of a version, if it is for one."""


def is_one_row(function: Function, target: Target) -> bool:
    """Whether a function, of a version, is for one row on a GPU: there row work costs less in each of its readers than as a launch."""
    return target.backend == "triton" and function.notes.get("rows") == ONE_ROW


@dataclass(frozen=True)
class Versions(Pass):
    """Replace every entry point by its versions."""

    name = "versions"

    def apply(self, module: Module, target: Target) -> None:
        for entry in [f for f in module.functions.values() if "entry" in f.notes]:
            schedule = schedule_of(module, entry, target)
            for version in schedule.versions:
                _copy(module, entry, version, schedule)
            for name in (entry.name, *{op.callee for op in entry.body.ops if isinstance(op, Call)}):
                module.functions.pop(name, None)


def _copy(module: Module, entry: Function, version: Version, schedule: Schedule) -> None:
    name = f"{entry.name}.{version.name}"
    renamed: dict[str, str] = {}
    served: dict[str, Any] = {"rows": version.rows, "serves": entry.notes["entry"]}
    if version.each:
        served["each"] = version.each
    # Of any number of rows one may be wanted, or all. So nothing is taken for granted that holds for the version's tokens, as that they are
    # many of each sequence, one behind the other, where softmax attention may be a library's.
    wanted = {"rows": (1, version.rows[1]), "serves": entry.notes["entry"]}

    def copy(function: Function, to: str, **notes: Any) -> None:
        body = function.body.clone()
        for op in body.ops:
            if isinstance(op, LinearAttention):
                op.form, op.steepest = version.form, schedule.steepest
            elif isinstance(op, Call):
                if op.callee not in renamed:
                    renamed[op.callee] = name + op.callee.removeprefix(entry.name)
                    copy(module.functions[op.callee], renamed[op.callee], **(served if op.rows is None else wanted))
                op.callee = renamed[op.callee]
        module.add(Function(to, body, **notes))

    copy(
        entry,
        name,
        entry=entry.notes["entry"],
        guard=version.guard,
        **served,
        form=version.form,
        switch=schedule.switch,
        forms=schedule.costs,
        crossovers=tuple((c.regime, c.rows, c.why, c.first, c.second) for c in schedule.crossovers),
    )
