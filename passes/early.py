"""Early: what a kernel may read before the launch in front of it has ended.

Kernels of a GPU overlap: one is placed while the other ends, and waits in front of its first read (`ringc.codegen.triton.overlap`). What
no launch in front may still be writing it may read before.

* An expert product: where the launch in front waits before it lets the next one be placed, all launches before it have ended by then, and
  what they wrote may be read at once. The choice of experts waits so, and behind it rows are there, but not whose they are. So does the
  product that has to know that from it, and behind that one it is there. A product that knows it early lets the next be placed before it
  waits, and what both write is waited for.
* Linear attention, and a product of one row: what comes from outside the program, a state and whose it is, weights. A state was written by
  the same launch of the run before, and between two runs stands row work (what looks the tokens up), which waits before it lets the next
  be placed.

A grid begins with nothing in the first-level caches, and is placed after what it reads early was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.products import GatherMatMul
from ringc.ir.ops.shape import storage_of
from ringc.ir.ops.source import Weight
from ringc.passes.framework import Pass
from ringc.passes.kernels import host_functions
from ringc.passes.target import Target

EXPERTS = "grouped"
"""The kernels that read early behind each other."""

CHOICE = "route"
"""The kernels of which the last launch, the choice, waits before it lets the next be placed."""


@dataclass(frozen=True)
class Early(Pass):
    """Note with each kernel that can read early the arguments that it may, wherever it is launched."""

    name = "early"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend != "triton":
            return
        outside = _Outside(module)
        found: dict[str, set[int]] = {}
        for function in host_functions(module):
            front: list[Launch] = []  # what may not have ended: the choice right in front, or the expert products
            for op in function.body.ops:
                if isinstance(op, Call):
                    front = []
                elif isinstance(op, Launch):
                    kernel, safe = module.functions[op.kernel], set()
                    if kernel.notes["family"] == EXPERTS:
                        safe = set() if op.beside else _written_before(front, op)
                    elif _reads_early(kernel):
                        safe = {i for i, value in enumerate(op.arguments) if outside.has(value, function.body)}
                    found[op.kernel] = found.get(op.kernel, safe) & safe
                    if not op.beside:
                        front = _not_ended(module, front, op)
        for name, arguments in found.items():
            if arguments:
                module.functions[name].notes["early"] = tuple(sorted(arguments))


def _reads_early(kernel: Function) -> bool:
    """Whether a kernel's template reads what it is given from outside in front of its wait."""
    family, implementation = str(kernel.notes["family"]), str(kernel.notes.get("implementation", ""))
    return family == "linear_attention" or implementation.startswith("triton.gemv")


def _not_ended(module: Module, front: Sequence[Launch], launch: Launch) -> list[Launch]:
    """The launches that may not have ended when the one behind this one begins; none where nothing is known of those before."""
    kernel = module.functions[launch.kernel]
    if kernel.notes["family"] == EXPERTS:
        return [*(op for op in front if not _is_chosen_by(op, launch, kernel)), launch]
    return [launch] if kernel.notes["family"] == CHOICE else []


def _is_chosen_by(choice: Launch, launch: Launch, kernel: Function) -> bool:
    """Whether an expert product has to know from a launch which experts it takes."""
    ids = [storage_of(op.ids) for op in kernel.body.ops if isinstance(op, GatherMatMul)]
    return any(storage_of(launch.arguments[value.index]).op is choice for value in ids if value.op is None)


def _written_before(front: Sequence[Launch], launch: Launch) -> set[int]:
    """The numbers of an expert product's arguments that were written before the launches right in front of it began."""
    return {i for i, value in enumerate(launch.arguments) if front and not _is_late(storage_of(value).op, front)}


def _is_late(op: Op | None, front: Sequence[Launch]) -> bool:
    """Whether an operation is one of those in front, or beside the launches of the line, where it may end at any time."""
    return isinstance(op, Launch) and (op.beside or op in front)


class _Outside:
    """Which values are weights, or come from outside the program wherever a function is called.

    Of a program that doesn't begin with row work nothing is known: its first launch is the one that waits for all that was before it.
    """

    def __init__(self, module: Module) -> None:
        self.calls: dict[Block, list[tuple[Block, Call]]] = {}
        self.entries: set[Block] = set()
        for function in host_functions(module):
            line = [
                op for op in function.body.ops if isinstance(op, Call) or (isinstance(op, Launch) and not op.beside)
            ]
            for op in line:
                if isinstance(op, Call):
                    self.calls.setdefault(module.functions[op.callee].body, []).append((function.body, op))
            first = line[0] if line else None
            if "entry" in function.notes and isinstance(first, Launch):
                rows = module.functions[first.kernel].notes["family"] == "row"
                self.entries |= {function.body} if rows else set()

    def has(self, value: Value, body: Block) -> bool:
        """Whether a value of a function's body is one of these."""
        value = storage_of(value)
        if value.op is not None:
            return isinstance(value.op, Weight)
        calls = self.calls.get(body, ())
        return (
            all(self.has(call.arguments[value.index], caller) for caller, call in calls)
            if calls
            else body in self.entries
        )
