"""Base of the operations that the compiler recognises in a decomposed graph.

A composite operation keeps its decomposition: that is what it means, what the oracle runs, and what a region falls back to when no kernel
takes the operation whole. Composite operations don't stand in a graph as the front end writes it: `ringc.passes.raising` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Env, Level, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.symbols import Dim, add

if TYPE_CHECKING:
    import torch


class Composite(Op):
    """An operation that stands for several."""

    levels = frozenset({Level.FUSED})

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        """Write the operations that this one stands for, on `inputs` in the place of its own; gives back their results."""
        raise NotImplementedError(f"{self.name} has no decomposition")

    def meaning(self) -> Block:
        """The decomposition as a block whose arguments are the inputs."""
        return meaning_of(self)

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        from ringc.ir.interpret import run_block

        return run_block(self.meaning(), inputs, env)

    def flops(self) -> Dim:
        total: Dim = 0
        for op in self.meaning().ops:
            total = add(total, op.flops())
        return total


def meaning_of(op: Op) -> Block:
    """The decomposition of an operation that has one, as a block whose arguments are its inputs."""
    inputs = op.inputs()
    block = Block([v.type for v in inputs], [v.name for v in inputs])
    block.set_outputs(op.decompose(Builder(block), *block.args))  # type: ignore[attr-defined] # `silu` has one, and is pointwise
    return block


def expand(b: Builder, op: Op) -> tuple[Value, ...]:
    """Write what an operation stands for, down to primitive operations; gives back the results. `op` itself is not inserted."""
    if not hasattr(op, "decompose"):
        return b.insert(op).results
    block = meaning_of(op)
    mapping = dict(zip(block.args, op.inputs(), strict=True))
    for inner in block.ops:
        mapping.update(zip(inner.results, expand(b, inner.clone(mapping)), strict=True))
    return tuple(mapping[v] for v in block.outputs)


def primitive(body: Block) -> Block:
    """A copy of a region with its composite operations written out, but for those that have an element rule."""
    return _written_out(body, lambda op: isinstance(op, Elementwise))


def expanded(body: Block, kept: tuple[type[Op], ...] = ()) -> Block:
    """A copy of a block with composite operations written out, but for those of the classes `kept`."""
    return _written_out(body, lambda op: isinstance(op, kept))


def _written_out(body: Block, kept: Callable[[Op], bool]) -> Block:
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    builder = Builder(copy)
    for op in body.ops:
        clone = op.clone(mapping)
        made = builder.insert(clone).results if kept(clone) else expand(builder, clone)
        for old, new in zip(op.results, made, strict=True):
            new.name = new.name or old.name
            mapping[old] = new
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy
