"""dce: operations whose results nobody uses, and that change no state, are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Block, Effect, Module
from ringc.passes.framework import Pass
from ringc.passes.target import Target


@dataclass(frozen=True)
class DeadCode(Pass):
    """Drops unused operations of every function and region. Calls are kept: what they call may write a state."""

    name = "dce"

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            drop_dead(function.body)


def drop_dead(block: Block) -> None:
    """Drop the unused operations of a block, and of the regions in what stays."""
    kept = []
    for op in reversed(block.ops):
        if op.effect is not Effect.WRITES_STATE and not any(r.uses for r in op.results):
            for value in op.inputs():
                value.uses.remove(op)
            op.block = None
        else:
            kept.append(op)
            for body in op.regions():
                drop_dead(body)
    block.ops = kept[::-1]
