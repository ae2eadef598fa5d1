"""Versions: an entry point is cut into few versions, each for a range of sizes in which one form of everything is best.

A version is a copy of the entry point and of the layers that it calls, with a *guard* (a condition on the sizes, which the host program
tests in order) and the form of linear attention fixed: the form decides what may be fused around it, so it comes before fusing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Function, Module
from ringc.ir.ops.call import Call
from ringc.ir.ops.mixers import LinearAttention
from ringc.passes.framework import Pass
from ringc.passes.schedules.ranges import Version, versions_of
from ringc.passes.target import Target


@dataclass(frozen=True)
class Versions(Pass):
    """Replace every entry point by its versions."""

    name = "versions"

    def apply(self, module: Module, target: Target) -> None:
        for entry in [f for f in module.functions.values() if "entry" in f.notes]:
            for version in versions_of(entry):
                _copy(module, entry, version)
            _remove(module, entry)


def _copy(module: Module, entry: Function, version: Version) -> None:
    renamed: dict[str, str] = {}

    def copy(function: Function, name: str, **notes: object) -> None:
        body = function.body.clone()
        for op in body.ops:
            if isinstance(op, LinearAttention):
                op.form = version.form
            elif isinstance(op, Call):
                if op.callee not in renamed:
                    renamed[op.callee] = op.callee.replace(entry.name, name if function is entry else "", 1)
                    copy(module.functions[op.callee], renamed[op.callee], rows=version.rows)
                op.callee = renamed[op.callee]
        module.add(Function(name, body, **notes))

    notes = {
        "entry": entry.notes["entry"],
        "guard": version.guard,
        "rows": version.rows,
        "predicted": version.predicted,
    }
    copy(entry, f"{entry.name}.{version.name}", **notes)


def _remove(module: Module, entry: Function) -> None:
    called = {op.callee for op in entry.body.ops if isinstance(op, Call)}
    for name in (entry.name, *called):
        module.functions.pop(name, None)
