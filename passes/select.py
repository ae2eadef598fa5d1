"""Select: give every region its implementation, a template and its configuration: the cheapest legal one for the rows that it serves."""

from __future__ import annotations

from dataclasses import dataclass

from ringc.errors import CodegenError
from ringc.ir.core import Module
from ringc.ir.ops.call import Fused
from ringc.passes.framework import Pass
from ringc.passes.schedules.candidates import candidates, typical_sizes
from ringc.passes.schedules.model import Candidate, Rows, at
from ringc.passes.target import Target


@dataclass(frozen=True)
class Select(Pass):
    """Choose among the candidates of every region by predicted time at the typical sizes of its version."""

    name = "select"

    def apply(self, module: Module, target: Target) -> None:
        known: dict[tuple[str, Rows, str], Candidate] = {}
        for function in module.functions.values():
            rows, serves = function.notes.get("rows", (1, 0)), function.notes.get("serves", "prefill")
            for op in function.body.ops:
                if isinstance(op, Fused):
                    # Layers of one kind in several versions are equal: costs are worked out once.
                    key = (op.family + op.body.structural_hash(), rows, serves)
                    if key not in known:
                        known[key] = choose(op, rows, serves, target)
                    op.implementation = known[key].implementation
                    op.seconds = str(known[key].seconds)
                    op.workspace = known[key].workspace


def choose(op: Fused, rows: Rows, serves: str, target: Target) -> Candidate:
    """The cheapest legal candidate of a region.

    Raises:
        CodegenError: all candidates are illegal.
    """
    sizes = typical_sizes(rows, serves)
    found = candidates(op.family, op.body, rows, target)
    legal = [c for c in found if not c.illegal]
    if not legal:
        raise CodegenError(f"no {op.family} kernel is legal on {target.name}: " + "; ".join(c.illegal for c in found))
    return min(legal, key=lambda c: at(c.seconds, sizes))
