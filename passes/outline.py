"""Outline repeated layers: equal bodies become one function that is called many times.

From here on the work of compiling follows the number of *different* layers (three in Ring-mini-linear: linear with a dense MLP, linear with
experts, softmax with experts). What differs between equal layers comes in as arguments: weights, pools, and tables known at compile time
such as the decay's slopes, which are therefore no part of a body's identity.

A layer's boundary is rotated: `(residual, normed) -> (residual', normed')`, where `normed'` is what the next layer's first norm makes of
`residual'`. So the last addition of a layer and the first norm of the next stand in one body and can become one kernel.

```
%h1 = add(%h0, ...)  in layers.0.linear_moe            %h1, %n1 = call([%h0, %n0, ...]) {callee = "prefill.linear_moe"}
%n1 = rms_norm(%h1, %w1)  in layers.1.linear_moe  =>   %h2, %n2 = call([%h1, %n1, ...]) {callee = "prefill.linear_moe"}
...
```
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call
from ringc.ir.ops.rows import RmsNorm
from ringc.ir.ops.source import Constant, Param
from ringc.ir.resize import resized
from ringc.ir.symbols import symbol, symbols_of
from ringc.ir.types import TensorType
from ringc.passes.framework import Pass
from ringc.passes.target import Target

LAYER = "layers."
"""Scopes of this form, `layers.<number>.<kind>`, are layers."""


@dataclass(frozen=True)
class OutlineLayers(Pass):
    """Replace each layer of every entry point by a call."""

    name = "outline"

    def apply(self, module: Module, target: Target) -> None:
        for function in list(module.functions.values()):
            if "entry" in function.notes:
                _outline(module, function)


def _outline(module: Module, entry: Function) -> None:
    body = entry.body
    _lift_weights(body)
    _rotate(body)
    known: dict[str, str] = {}
    for scope in dict.fromkeys(op.scope for op in body.ops if op.scope.startswith(LAYER)):
        _outline_one(module, entry, scope, known)


def _lift_weights(body: Block) -> None:
    """Weights and tables, and what is made of them alone, are no part of a layer: they go to the front and become arguments.

    A scalar constant is code, not data, and stays with each layer that uses it.
    """
    lifted: set[Op] = set()
    for op in body.ops:
        inputs = op.inputs()
        made_of_weights = bool(inputs) and all(v.op in lifted for v in inputs)
        table = isinstance(op, Param) or (isinstance(op, Constant) and bool(op.shape))
        # What several layers share, and no layer makes, belongs to none of them.
        shared = bool(inputs) and all(v.op is None or not v.op.scope.startswith(LAYER) for v in inputs)
        shared = shared and len({u.scope for r in op.results for u in r.users()}) > 1
        if table or made_of_weights:
            lifted.add(op)
        if table or made_of_weights or (shared and op.scope.startswith(LAYER)):
            op.scope = ""
    for op in list(body.ops):
        if isinstance(op, Constant) and not op.shape:
            for user in op.result.users():
                if user.scope != op.scope and user.scope.startswith(LAYER):
                    copy = body.insert(op.clone({}), before=user)
                    copy.scope = user.scope
                    user.replace_input(op.result, copy.result)
    body.ops.sort(key=lambda op: op not in lifted)


def _rotate(body: Block) -> None:
    """Give a norm of another scope's result to that scope."""
    for op in body.ops:
        if isinstance(op, RmsNorm):
            maker = op.x.op
            before = maker.scope if maker is not None else ""
            if before != op.scope and op.x.tensor.rank == 2:
                op.scope = before


def _outline_one(module: Module, entry: Function, scope: str, known: dict[str, str]) -> None:
    body = entry.body
    inside = [op for op in body.ops if op.scope == scope]
    taken = _in_order_of_use(inside)
    made = [r for op in inside for r in op.results if any(u not in inside for u in r.uses)]
    outlined = Block([v.type for v in taken], [_role(v) for v in taken])
    mapping = dict(zip(taken, outlined.args, strict=True))
    for op in inside:
        copy = op.clone(mapping)
        copy.scope = ""
        outlined.insert(copy)
        mapping.update(zip(op.results, copy.results, strict=True))
    outlined.set_outputs(mapping[v] for v in made)
    # Rows that are not the entry point's are rows all the same: such a layer's kernels are those of the other layers.
    sizes = symbols_of(d for v in (*taken, *made) if isinstance(v.type, TensorType) for d in v.type.shape)
    rows = symbol("R") if "R" in sizes and "N" not in sizes else None
    if rows is not None:
        outlined = resized(outlined, {"R": symbol("N")})
    key = outlined.structural_hash()
    if key not in known:
        known[key] = _fresh(module, f"{entry.name}.{scope.rsplit('.', maxsplit=1)[-1]}")
        module.add(Function(known[key], outlined))
    call = Call(tuple(taken), known[key], out=tuple(v.type for v in made), rows=rows)
    call.scope = ".".join(scope.split(".")[:2])
    # Before everything that uses the layer, behind everything that it uses: right behind its last operation.
    after = body.ops.index(inside[-1]) + 1
    Builder(body, before=body.ops[after] if after < len(body.ops) else None).insert(call)
    for old, new in zip(made, call.results, strict=True):
        new.name = old.name
        body.replace_uses(old, new)
    for op in reversed(inside):
        body.erase(op)


def _in_order_of_use(ops: Iterable[Op]) -> list[Value]:
    """Values that the operations take from outside, in the order in which they first do: the same for equal bodies."""
    ops = list(ops)
    made = {r for op in ops for r in op.results}
    return list(dict.fromkeys(v for op in ops for v in op.inputs() if v not in made))


def _role(value: Value) -> str:
    """An argument's name without the layer that it first came from: `layers.3.mlp.gate.weight` is `mlp.gate.weight`."""
    parts = value.name.split(".")
    return ".".join(parts[2:]) if len(parts) > 2 and parts[0] == "layers" else value.name


def _fresh(module: Module, name: str) -> str:
    number, made = 1, name
    while made in module.functions:
        number += 1
        made = f"{name}_{number}"
    return made
