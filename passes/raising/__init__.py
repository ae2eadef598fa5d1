"""raise: composite operations, found in a graph of primitives however it was written.

Rules in small files, one for each idea, tried in three rounds: what stands on single rows first, because attention and routing are made
of it; then what mixes rows; then the products, when it is known what their columns are for. Each rule demands that nobody else needs what
lies inside the composite operation, and that the result has the type of what it replaces.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ringc.ir.core import Block, Level, Module
from ringc.passes.canonicalize import canonicalize_block
from ringc.passes.cse import merge_equal
from ringc.passes.dce import drop_dead
from ringc.passes.framework import Pass
from ringc.passes.raising import attention, experts, gates, linear_attention, norms, rope, routing
from ringc.passes.raising.projections import merge_projections
from ringc.passes.rewrite import apply_rules
from ringc.passes.target import Target

ROWS = (*gates.ROW_RULES, *norms.RULES)
MIXERS = (
    *rope.RULES,
    *attention.RULES,
    *linear_attention.RULES,
    *routing.RULES,
    *experts.RULES,
    *gates.PRODUCT_RULES,
)


@dataclass(frozen=True)
class Raise(Pass):
    """Brings a module from level graph to level fused. Composite operations that it holds already are kept."""

    name = "raise"

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            raise_block(function.body)
        module.level = Level.FUSED


def raise_block(block: Block) -> Counter[str]:
    """Raise one block; gives back how often each rule applied.

    Regions (the bodies of scans) are canonicalized, but keep their primitives: they are matched as wholes.
    """
    _tidy(block)
    hits = apply_rules(block, ROWS)
    hits += apply_rules(block, MIXERS)
    # The rules leave reshapes and slices behind; the rows that stand after a slice may only now have the products' columns as theirs.
    _tidy(block)
    merged = merge_projections(block)
    hits["merge_projections"] += merged
    if merged:
        canonicalize_block(block)  # a slice of a product that is now itself a slice
        drop_dead(block)
    return hits


def _tidy(block: Block) -> None:
    """One value for each thing that is said twice: the rules compare values by identity."""
    canonicalize_block(block)
    merge_equal(block)
    drop_dead(block)


__all__ = ["Raise", "raise_block"]
