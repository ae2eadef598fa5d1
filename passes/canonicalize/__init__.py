"""canonicalize: one spelling for each idea, so that the passes after it have fewer cases.

Every rule is exact in real arithmetic, and takes something away or moves towards one fixed order (constants to the right, negations and
constant factors outward, slices inward before reshapes, broadcasts left to the operations that broadcast anyway), so the rules come to
rest. They hold at every level below kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Block, Module
from ringc.passes.canonicalize import arithmetic, logic, movement, reductions, slices
from ringc.passes.framework import Pass
from ringc.passes.rewrite import apply_rules
from ringc.passes.target import Target

RULES = (*arithmetic.RULES, *logic.RULES, *movement.RULES, *slices.RULES, *reductions.RULES)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies the rules of this package to every function and every region until none applies."""

    name = "canonicalize"

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            canonicalize_block(function.body)


def canonicalize_block(block: Block) -> None:
    """Apply all rules to a block, the regions in it first."""
    for op in block.ops:
        for body in op.regions():
            canonicalize_block(body)
    apply_rules(block, RULES)


__all__ = ["RULES", "Canonicalize", "canonicalize_block"]
