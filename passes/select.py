"""Select: give every region its implementation, a template and its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Module
from ringc.ir.ops.call import Fused
from ringc.passes.framework import Pass
from ringc.passes.schedules.candidates import candidates
from ringc.passes.target import Target


@dataclass(frozen=True)
class Select(Pass):
    """Choose the best candidate of every region for the rows that its function serves."""

    name = "select"

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            rows = function.notes.get("rows", (1, 0))
            for op in function.body.ops:
                if isinstance(op, Fused):
                    op.implementation = candidates(op.family, op.body, rows, target)[0].implementation
