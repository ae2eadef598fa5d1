"""The map from published tensors to prepared ones, read off the `prepare` function.

Each prepared tensor is a table of numbers, or is put together from published tensors by moving elements: laid end to end, stacked,
transposed, reshaped, cut, converted, packed. The map says for each part which published tensor it is and where it goes, so a loader fills
prepared tensors part by part in any order, and the inverse reads published tensors back out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ringc.errors import CodegenError
from ringc.ir.core import Block, Env, Module, Value
from ringc.ir.interpret import run_block
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast
from ringc.ir.ops.shape import Concat, Pack, Reshape, Slice, Transpose
from ringc.ir.ops.source import Param, Weight
from ringc.ir.types import Layout


@dataclass(frozen=True)
class Part:
    """One published tensor's way into a prepared one: its elements, moved by `steps`, fill `region`.

    `stack` is the number of tensors that a `*` in the name stands for, stacked along axis 0 before anything else.
    """

    source: str
    shape: tuple[int, ...]
    stack: int
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    region: tuple[tuple[int, int], ...]

    def entry(self) -> dict[str, Any]:
        """As the manifest has it."""
        made: dict[str, Any] = {
            "source": self.source,
            "shape": list(self.shape),
            "region": [list(r) for r in self.region],
        }
        if self.stack:
            made["stack"] = self.stack
        if self.steps:
            made["steps"] = [[name, list(numbers)] for name, numbers in self.steps]
        return made


def prepare_map(module: Module) -> dict[str, dict[str, Any]]:
    """Key -> how the prepared tensor is made, as the manifest holds it: `shape`, `dtype`, `blocks`, and `parts` or `table`.

    Raises:
        CodegenError: a prepared tensor is computed in a way that is no movement of elements.
    """
    function = module.functions["prepare"]
    rows_only = _gathered(module)
    found: dict[str, dict[str, Any]] = {}
    for key, value in zip(function.notes["keys"], function.body.outputs, strict=True):
        type = value.tensor
        entry: dict[str, Any] = {"shape": [int(d) for d in type.shape], "dtype": str(type.dtype)}
        if type.layout != Layout():
            entry["blocks"] = [list(b) for b in type.layout.blocks]
            if isinstance(value.op, Pack):
                value = value.op.x
        if key in rows_only:
            entry["gathered"] = True
        if _is_table(value):
            (table,) = run_block(_only(value), [], Env({}))
            entry["table"] = table.flatten().tolist()
        else:
            entry["parts"] = [_loadable(part, value).entry() for part in _parts(value)]
        found[str(key)] = entry
    return found


def _is_table(value: Value) -> bool:
    return value.op is not None and not isinstance(value.op, Param) and all(map(_is_table, value.op.inputs()))


def _only(value: Value) -> Block:
    """A block that computes one value from constants."""
    block = Block()
    mapping: dict[Value, Value] = {}

    def copy(v: Value) -> Value:
        assert v.op is not None
        if v not in mapping:
            for taken in v.op.inputs():
                copy(taken)
            made = block.insert(v.op.clone(mapping))
            mapping.update(zip(v.op.results, made.results, strict=True))
        return mapping[v]

    block.set_outputs([copy(value)])
    return block


def _parts(value: Value) -> list[Part]:
    op = value.op
    shape = tuple(int(d) for d in value.shape)
    match op:
        case Param():
            stack = shape[0] if "*" in op.source else 0
            return [Part(op.source, shape[1:] if stack else shape, stack, (), tuple((0, n) for n in shape))]
        case Cast():
            return _parts(op.x)
        case Concat():
            made: list[Part] = []
            start = 0
            for x in op.parts:
                made += [_shifted(p, op.axis, start) for p in _parts(x)]
                start += int(x.shape[op.axis])
            return made
        case Transpose():
            return [_turned(p, op.axes) for p in _parts(op.x)]
        case Slice() if op.step == 1:
            return [p for part in _parts(op.x) if (p := _cut(part, op.axis, op.start, op.stop)) is not None]
        case Reshape():
            (part,) = _whole(_parts(op.x), value)
            return [replace(part, steps=(*part.steps, ("reshape", shape)), region=tuple((0, n) for n in shape))]
        case _:
            name = op.name if op is not None else "an argument"
            raise CodegenError(f"the weight %{value.name} is made by {name}, which the loader's map can't say")


def _whole(parts: list[Part], value: Value) -> list[Part]:
    if len(parts) != 1:
        raise CodegenError(
            f"the weight %{value.name} reshapes several tensors at once, which the loader's map can't say"
        )
    return parts


def _loadable(part: Part, value: Value) -> Part:
    """The part, if its stacked tensors can be loaded one at a time: no step moves the axis that they are stacked along."""
    fine = {"permute": lambda n: n[0] == 0, "slice": lambda n: n[0] != 0, "reshape": lambda n: n[0] == part.stack}
    if part.stack and not all(fine[name](numbers) for name, numbers in part.steps):
        raise CodegenError(f"the weight %{value.name} moves the axis that {part.source} is stacked along")
    return part


def _shifted(part: Part, axis: int, by: int) -> Part:
    region = list(part.region)
    region[axis] = (region[axis][0] + by, region[axis][1] + by)
    return replace(part, region=tuple(region))


def _turned(part: Part, axes: Sequence[int]) -> Part:
    return replace(part, steps=(*part.steps, ("permute", tuple(axes))), region=tuple(part.region[a] for a in axes))


def _cut(part: Part, axis: int, start: int, stop: int) -> Part | None:
    """The part of a part that a slice keeps; None where it keeps nothing."""
    a, b = part.region[axis]
    first, last = max(a, start), min(b, stop)
    if first >= last:
        return None
    steps = part.steps if (first, last) == (a, b) else (*part.steps, ("slice", (axis, first - a, last - a)))
    region = list(part.region)
    region[axis] = (first - start, last - start)
    return replace(part, steps=steps, region=tuple(region))


def _gathered(module: Module) -> set[str]:
    """Keys of tables of which kernels read numbered rows only: the embedding."""

    def only_gathered(value: Value) -> bool:
        for user in value.users():
            if isinstance(user, Launch | Call):
                name = user.kernel if isinstance(user, Launch) else user.callee
                args = module.functions[name].body.args
                if not all(only_gathered(a) for a, v in zip(args, user.arguments, strict=True) if v is value):
                    return False
            elif not (isinstance(user, Gather) and user.x is value):
                return False
        return bool(value.users())

    found: dict[str, bool] = {}
    for function in module.functions.values():
        for op in function.body.ops:
            if isinstance(op, Weight) and op.result.tensor.rank >= 2:
                found[op.key] = found.get(op.key, True) and only_gathered(op.result)
    return {key for key, only in found.items() if only}
