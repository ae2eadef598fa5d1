"""Early: what an expert product may read before the launch in front of it has ended.

Kernels of a GPU overlap: one is placed while the other ends, and waits in front of its first read (`ringc.codegen.triton.overlap`). Which
experts have rows, though, was written by the launch before the last, and so were the weights long before. Where the launch in front waits
before it lets the next one be placed, all launches before it have ended by then, and what they wrote may be read at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Module, Op, Value
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.shape import Reshape
from ringc.passes.framework import Pass
from ringc.passes.target import Target

FAMILY = "grouped"
"""The kernels that read early, and those behind which they may: their first wait stands before they let the next launch be placed."""


@dataclass(frozen=True)
class Early(Pass):
    """Note with each expert product the arguments that the launch in front of it doesn't write, wherever it is launched."""

    name = "early"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend != "triton":
            return
        found: dict[str, set[int]] = {}
        for function in module.functions.values():
            if "family" in function.notes or function.name == "prepare":
                continue
            front: Launch | None = None
            for op in function.body.ops:
                if isinstance(op, Call):
                    front = None
                elif isinstance(op, Launch):
                    safe = set() if op.beside else _safe(module, front, op)
                    found[op.kernel] = found.get(op.kernel, safe) & safe
                    front = front if op.beside else op
        for name, arguments in found.items():
            if arguments:
                module.functions[name].notes["early"] = tuple(sorted(arguments))


def _safe(module: Module, front: Launch | None, launch: Launch) -> set[int]:
    """The numbers of a launch's arguments that were written before the launch in front of it began."""
    if front is None or any(module.functions[op.kernel].notes["family"] != FAMILY for op in (front, launch)):
        return set()
    return {i for i, value in enumerate(launch.arguments) if not _is_late(_maker(value), front)}


def _maker(value: Value) -> Op | None:
    """The operation that makes a value, seen through views; None of an argument."""
    while isinstance(value.op, Reshape):
        value = value.op.x
    return value.op


def _is_late(op: Op | None, front: Launch) -> bool:
    """Whether an operation is the launch in front, or beside the launches of the line, where it may end at any time."""
    return op is front or (isinstance(op, Launch) and op.beside)
