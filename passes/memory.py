"""Memory plan: which buffer of the arena each result lives in.

A function's own intermediates get numbered buffers, reused as soon as the last reader is done. What a function gives back is written to
memory that its caller provides; a state is updated in place. A buffer's size is the largest of what it holds, as an expression of the
sizes; the runtime evaluates it when the sizes are known, and allocates once for all functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.shape import Reshape, storage_of
from ringc.ir.symbols import Dim, dim_text
from ringc.ir.types import StateType, TensorType
from ringc.passes.framework import Pass
from ringc.passes.kernels import host_functions
from ringc.passes.target import Target

CALLER = -1
"""Number of a result that lives in memory of the caller, or in place."""


@dataclass(frozen=True)
class MemoryPlan(Pass):
    """Number the buffers of every function; their sizes become the function's note `buffers`."""

    name = "memory"

    def apply(self, module: Module, target: Target) -> None:
        for function in host_functions(module):
            _plan(module, function)


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


def _plan(module: Module, function: Function) -> None:
    body = function.body
    last: dict[Value, int] = {}
    for i, op in enumerate(body.ops):
        for value in op.inputs():
            last[storage_of(value)] = i
    # What runs beside others needs its memory until it has joined them.
    joined = joins(body)
    for op, end in joined.items():
        for value in (*op.inputs(), *op.results):
            last[storage_of(value)] = max(last.get(storage_of(value), 0), end)
    given_back = {storage_of(v) for v in body.outputs}
    sizes: list[Dim] = []
    held: dict[int, Value] = {}

    def take(type: TensorType, forbidden: set[int]) -> int:
        fits = [b for b in range(len(sizes)) if b not in held and b not in forbidden]
        # The buffer that has to grow least; an equal size is the common case, for layers repeat the same shapes.
        best = min(fits, key=lambda b: 0 if sizes[b] == type.bytes else 1, default=None)
        if best is None:
            sizes.append(type.bytes)
            return len(sizes) - 1
        sizes[best] = _larger(sizes[best], type.bytes)
        return best

    for i, op in enumerate(body.ops):
        if not isinstance(op, Launch | Call):
            continue
        places: list[int] = []
        for value in op.results:
            if value in given_back or isinstance(value.type, StateType):
                places.append(CALLER)
                continue
            assert isinstance(value.type, TensorType)
            places.append(take(value.type, set()))
            held[places[-1]] = value
        scratch: list[int] = []
        if isinstance(op, Launch):
            for type in module.functions[op.kernel].notes.get("workspace", ()):
                scratch.append(take(type, {*scratch}))
                held[scratch[-1]] = op.results[0]
            op.scratch = tuple(scratch)
        op.buffers = tuple(places)
        for number, value in list(held.items()):
            if (number in scratch and op not in joined) or last.get(value, -1) <= i:
                del held[number]
    function.notes["buffers"] = tuple(dim_text(s) for s in sizes)


def _larger(a: Dim, b: Dim) -> Dim:
    if a == b:
        return a
    made = sympy.Max(a, b)
    return int(made) if made.is_Integer else made
