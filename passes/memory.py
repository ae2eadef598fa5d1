"""Memory plan: which buffer of the arena each result lives in.

A function's own intermediates get numbered buffers, reused as soon as the last reader is done. What a function gives back is written to
memory that its caller provides; a state is updated in place. A buffer's size is the largest of what it holds, as an expression of the
sizes; the runtime evaluates it when the sizes are known, and allocates once for all functions.

A library's call adds a product to what may be its own output. So a sum takes the place of the residual where nothing reads that any more:
in a buffer, in an argument that no caller needs any more, or, of a sum that is given back, in memory of the caller, who then provides the
argument's. The residual of a model goes through all of its layers in one buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.shape import Reshape, storage_of
from ringc.ir.symbols import Dim, dim_text
from ringc.ir.types import StateType, TensorType
from ringc.passes.framework import Pass
from ringc.passes.kernels import host_functions
from ringc.passes.library import replaceable
from ringc.passes.target import Target

CALLER = -1
"""Number of a result that lives in memory of the caller, or in place."""


def in_argument(index: int) -> int:
    """Number of a result that lives in the memory of an argument."""
    return CALLER - 1 - index


def argument_of(buffer: int) -> int | None:
    """The inverse of `in_argument`; None of another place."""
    return CALLER - 1 - buffer if buffer < CALLER else None


@dataclass(frozen=True)
class MemoryPlan(Pass):
    """Number the buffers of every function; their sizes become the function's note `buffers`."""

    name = "memory"

    def apply(self, module: Module, target: Target) -> None:
        spent = _spent(module)
        over: dict[str, dict[int, int]] = {}
        for function in host_functions(module):  # callees stand in front
            plan = _Plan(module, function, spent.get(function.name, set()), over)
            plan.run()
            over[function.name] = plan.over


def joins(body: Block) -> dict[Op, int]:
    """Each launch that runs beside others, and the number of the operation before which it must have ended.

    That is the first that reads what it made.
    """
    place = {op: i for i, op in enumerate(body.ops)}
    found: dict[Op, int] = {}
    run: list[Op] = []
    for op in (*body.ops, None):
        if isinstance(op, Launch) and op.beside:
            run.append(op)
        elif run and not isinstance(op, Reshape):
            readers = [place[u] for o in run for r in o.results for u in _readers(r) if u not in run]
            end = min(readers, default=len(body.ops))
            found |= dict.fromkeys(run, end)
            run = []
    return found


def _readers(value: Value) -> list[Op]:
    """The operations that read a value, or a view of it."""
    return [r for u in value.users() for r in (_readers(u.result) if isinstance(u, Reshape) else [u])]


def _last_uses(body: Block) -> dict[Value, int]:
    """The number of the last operation that needs a value in memory; of one that leaves the block, one behind all."""
    found: dict[Value, int] = {}
    for i, op in enumerate(body.ops):
        for value in op.inputs():
            found[storage_of(value)] = i
    # What runs beside others needs its memory until it has joined them.
    for op, end in joins(body).items():
        for value in (*op.inputs(), *op.results):
            found[storage_of(value)] = max(found.get(storage_of(value), 0), end)
    return found | {storage_of(value): len(body.ops) for value in body.outputs}


def _spent(module: Module) -> dict[str, set[int]]:
    """For each function that is called, the arguments that nothing reads behind any of its calls: their memory is its own then."""
    found: dict[str, set[int]] = {}
    for function in host_functions(module):
        last = _last_uses(function.body)
        for i, op in enumerate(function.body.ops):
            if isinstance(op, Call):
                given = [storage_of(value) for value in op.arguments]
                made = {k for k, v in enumerate(given) if isinstance(v.op, Launch | Call)}
                mine = {k for k in made if last[given[k]] == i and given.count(given[k]) == 1}
                found[op.callee] = found.get(op.callee, mine) & mine
    return found


class _Plan:
    """A function's buffers, as its operations take and leave them.

    Args:
        module, function: what is planned.
        spent: the function's arguments that may be overwritten.
        over_of: of the functions that it calls, `over`.

    Attributes:
        over: result number -> argument number, where a caller may provide the argument's memory for the result.
    """

    def __init__(
        self, module: Module, function: Function, spent: set[int], over_of: Mapping[str, Mapping[int, int]]
    ) -> None:
        self.module = module
        self.function = function
        self.over_of = over_of
        self.last = _last_uses(function.body)
        self.joined = joins(function.body)
        self.given_back = [storage_of(v) for v in function.body.outputs]
        self.sizes: list[Dim] = []
        self.held: dict[int, Value | Launch] = {}
        self.over: dict[int, int] = {}
        self.in_arguments = {arg: arg.index for arg in function.body.args if arg.index in spent}

    def run(self) -> None:
        """Number the places of all results and workspaces."""
        for i, op in enumerate(self.function.body.ops):
            if not isinstance(op, Launch | Call):
                continue
            op.buffers = tuple(self.place(i, op, value) for value in op.results)
            if isinstance(op, Launch):
                types = self.module.functions[op.kernel].notes.get("workspace", ())
                op.scratch = tuple(self.take(type, op) for type in types)
            for number, owner in list(self.held.items()):
                end = self.last.get(owner, -1) if isinstance(owner, Value) else self.joined.get(owner, i)
                if end <= i:
                    del self.held[number]
        self.function.notes["buffers"] = tuple(dim_text(s) for s in self.sizes)

    def place(self, i: int, op: Launch | Call, value: Value) -> int:
        """Where a result of an operation goes: to the place of what it reads and nothing reads behind, or to a buffer that is free."""
        if isinstance(value.type, StateType):
            return CALLER
        assert isinstance(value.type, TensorType)
        old = self.replaced(op, value)
        if old is not None and (op in self.joined or self.last.get(old) != i):
            old = None
        argument = None if old is None else self.in_arguments.get(old)
        if value in self.given_back:
            if argument is None and old is not None and old.op is None:
                argument = old.index
            if argument is not None:
                self.over[self.given_back.index(value)] = argument
            return CALLER
        if argument is not None:
            self.in_arguments[value] = argument
            return in_argument(argument)
        number = next((n for n, owner in self.held.items() if owner is old), None)
        if number is None:
            return self.take(value.type, value)
        self.held[number] = value
        return number

    def replaced(self, op: Launch | Call, value: Value) -> Value | None:
        """What a result may take the place of, if nothing reads it behind; it is read once, so that no other operand lies there."""
        over = self.over_of.get(op.callee, {}).get(value.index) if isinstance(op, Call) else None
        index = replaceable(self.module.functions[op.kernel]) if isinstance(op, Launch) else over
        if index is None:
            return None
        read = [storage_of(v) for v in op.arguments]
        return op.arguments[index] if read.count(read[index]) == 1 else None

    def take(self, type: TensorType, owner: Value | Launch) -> int:
        """A buffer that is free: for as long as a value is needed, or for a launch's workspace."""
        fits = [b for b in range(len(self.sizes)) if b not in self.held]
        # The buffer that has to grow least; an equal size is the common case, for layers repeat the same shapes.
        best = min(fits, key=lambda b: 0 if self.sizes[b] == type.bytes else 1, default=None)
        if best is None:
            self.sizes.append(type.bytes)
            best = len(self.sizes) - 1
        else:
            self.sizes[best] = _larger(self.sizes[best], type.bytes)
        self.held[best] = owner
        return best


def _larger(a: Dim, b: Dim) -> Dim:
    if a == b:
        return a
    made = sympy.Max(a, b)
    return int(made) if made.is_Integer else made
