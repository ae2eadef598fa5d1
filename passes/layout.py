"""Weight layout: what is made of weights alone is made once, by the `prepare` function, and entry points read the results.

Anything that an entry point computes from parameters and tables (rows of three projections laid under each other, a conversion to the
target's type, a blocked layout that a selected kernel wants) moves into `prepare`, whose outputs are the tensors that the runtime keeps.
How published tensors become prepared ones is therefore ordinary IR, and the loader's map is read off it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call, Fused
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.shape import Concat, Pack
from ringc.ir.ops.source import Constant, Param, Weight
from ringc.ir.types import Layout, TensorType
from ringc.passes.framework import Pass
from ringc.passes.fuse import is_weight
from ringc.passes.schedules.model import parse_config
from ringc.passes.target import Target

Blocks = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WeightLayout(Pass):
    """Split every entry point into `prepare` and the rest."""

    name = "layout"

    def apply(self, module: Module, target: Target) -> None:
        _pack_weights(module)
        prepare = _Prepare()
        for function in module.functions.values():
            if "entry" in function.notes:
                prepare.take_from(function.body)
        module.add(prepare.function())


def _pack_weights(module: Module) -> None:
    """Give the weights of products the layout that the selected implementation reads, from the kernels up to where they come in."""
    functions = [f for f in module.functions.values() if f.name != "prepare"]
    for function in sorted(functions, key=lambda f: "entry" in f.notes):  # layers first: their arguments' types change
        for op in list(function.body.ops):
            if isinstance(op, Fused):
                for i, blocks in _packed_arguments(op).items():
                    _pack(function.body, op, i, blocks)
            elif isinstance(op, Call):
                for i, (value, arg) in enumerate(zip(op.arguments, module.functions[op.callee].body.args, strict=True)):
                    if value.type != arg.type and isinstance(arg.type, TensorType):
                        op.arguments = _replaced(op, i, _packed(function.body, value, arg.type.layout.blocks, op))


def _packed_arguments(op: Fused) -> dict[int, Blocks]:
    """Argument number -> blocks, for the weights of a region's products. `few` and `tiled` read the same layout, to share it."""
    width = dict(parse_config(op.implementation)).get("block", 0)
    if not width:
        return {}
    products = [p for p in op.body.ops if isinstance(p, MatMul | SegmentMatMul)]
    weights = [p.b if isinstance(p, MatMul) else p.w for p in products]
    return {op.body.args.index(w): ((w.tensor.rank - 2, width),) for w in weights if w in op.body.args}


def _pack(body: Block, op: Fused, i: int, blocks: Blocks) -> None:
    inner, value = op.body.args[i], op.arguments[i]
    assert isinstance(inner.type, TensorType)
    inner.type = replace(inner.type, layout=Layout(blocks))
    op.arguments = _replaced(op, i, _packed(body, value, blocks, op))


def _packed(body: Block, value: Value, blocks: Blocks, before: Op) -> Value:
    """The value in this layout: an argument simply has it, as its callers see to it; a weight is packed."""
    if isinstance(value.type, TensorType) and value.type.layout.blocks == blocks:
        return value
    if value.op is None:
        assert isinstance(value.type, TensorType)
        value.type = replace(value.type, layout=Layout(blocks))
        return value
    for user in value.users():
        if isinstance(user, Pack) and user.blocks == blocks and body.ops.index(user) < body.ops.index(before):
            return user.result
    after = body.ops[body.ops.index(value.op) + 1]
    packed = Builder(body, before=after).insert(Pack(value, blocks)).result
    packed.name = value.name
    return packed


def _replaced(op: Fused | Call, i: int, value: Value) -> tuple[Value, ...]:
    """The arguments of an operation with one of them another; the lists of uses follow."""
    old = op.arguments[i]
    if old is not value:
        old.uses.remove(op)
        value.uses.append(op)
    return (*op.arguments[:i], value, *op.arguments[i + 1 :])


class _Prepare:
    def __init__(self) -> None:
        self.block = Block()
        self.made: dict[str, Value] = {}
        self.keys: dict[Value, str] = {}

    def take_from(self, body: Block) -> None:
        for op in list(body.ops):
            for value in op.results:
                outside = [u for u in value.users() if not all(is_weight(r) for r in u.results)]
                if is_weight(value) and outside:
                    key = self.keep(value)
                    weight = Builder(body, before=op, scope=op.scope).insert(Weight(key, value.tensor)).result
                    weight.name = _as_name(key)
                    for user in outside:
                        user.replace_input(value, weight)
        for op in reversed(list(body.ops)):
            if op.results and not isinstance(op, Weight) and all(is_weight(r) and not r.uses for r in op.results):
                body.erase(op)

    def keep(self, value: Value) -> str:
        """Make sure that `prepare` gives back this value; its key."""
        mine = self.copy(value)
        if mine not in self.keys:
            self.keys[mine] = _fresh(_key(value), set(self.keys.values()))
        return self.keys[mine]

    def copy(self, value: Value) -> Value:
        assert value.op is not None
        expression = _expression(value)
        if expression not in self.made:
            mapping = {v: self.copy(v) for v in value.op.inputs()}
            copy = self.block.insert(value.op.clone(mapping))
            copy.scope = ""
            self.made[expression] = copy.results[value.index]
        return self.made[expression]

    def function(self) -> Function:
        self.block.set_outputs(self.keys)
        for value, key in self.keys.items():
            value.name = _as_name(key)
        return Function("prepare", self.block, entry="prepare", keys=tuple(self.keys.values()))


def _expression(value: Value) -> str:
    op = value.op
    assert op is not None
    return f"{op.name}({','.join(map(_expression, op.inputs()))}){op.attrs()}[{value.index}]"


def _key(value: Value) -> str:
    """A readable name for a prepared tensor: the published name, or those that it is made of."""
    op = value.op
    assert op is not None
    match op:
        case Param():
            return op.source.removeprefix("model.").replace("*", "all")
        case Constant():
            return f"table.{value.name or 'constant'}"
        case Concat():
            first, *rest = (_key(v) for v in op.inputs())
            return "+".join([first, *(r.split(".")[-2] for r in rest)]) if rest else first
        case Op():
            return _key(op.inputs()[0])
    raise AssertionError(op)


def _fresh(key: str, taken: set[str]) -> str:
    number, made = 1, key
    while made in taken:
        number += 1
        made = f"{key}#{number}"
    return made


def _as_name(key: str) -> str:
    return re.sub(r"[^\w.-]", "_", key)
