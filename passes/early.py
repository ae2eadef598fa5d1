"""Early: what an expert product may read before the launch in front of it has ended.

Kernels of a GPU overlap: one is placed while the other ends, and waits in front of its first read (`ringc.codegen.triton.overlap`). Which
experts have rows, though, was written by the launch before the last, and so were the weights long before. Where the launch in front waits
before it lets the next one be placed, all launches before it have ended by then, and what they wrote may be read at once. A launch that
reads early itself lets the next be placed before it waits; so what any launch of an unbroken row of expert products writes is waited for,
behind the first of them, which has something else in front and reads nothing early.

A grid begins with nothing in the first-level caches, and is placed after what it reads early was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringc.ir.core import Module, Op
from ringc.ir.ops.call import Call, Launch
from ringc.passes.framework import Pass
from ringc.passes.kernels import host_functions
from ringc.passes.memory import storage_of
from ringc.passes.target import Target

FAMILY = "grouped"
"""The kernels that read early, and those behind which they may."""


@dataclass(frozen=True)
class Early(Pass):
    """Note with each expert product the arguments that the launch in front of it doesn't write, wherever it is launched."""

    name = "early"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend != "triton":
            return
        found: dict[str, set[int]] = {}
        for function in host_functions(module):
            front: list[Launch] = []  # the expert products right in front
            for op in function.body.ops:
                if isinstance(op, Call):
                    front = []
                elif isinstance(op, Launch):
                    product = module.functions[op.kernel].notes["family"] == FAMILY and not op.beside
                    safe = _safe(front, op) if product else set()
                    found[op.kernel] = found.get(op.kernel, safe) & safe
                    if not op.beside:
                        front = [*front, op] if product else []
        for name, arguments in found.items():
            if arguments:
                module.functions[name].notes["early"] = tuple(sorted(arguments))


def _safe(front: Sequence[Launch], launch: Launch) -> set[int]:
    """The numbers of an expert product's arguments that were written before the expert products in front of it began."""
    return {i for i, value in enumerate(launch.arguments) if front and not _is_late(storage_of(value).op, front)}


def _is_late(op: Op | None, front: Sequence[Launch]) -> bool:
    """Whether an operation is one of those in front, or beside the launches of the line, where it may end at any time."""
    return isinstance(op, Launch) and (op.beside or op in front)
