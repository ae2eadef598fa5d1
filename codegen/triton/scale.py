"""A norm in front of a product of few rows, half of it moved behind: `(x * s * w) @ W = s * ((x * w) @ W)` for a number s of each row.

The product then waits for no reduction: the sums that s rests on are made from the same loads, beside the product.
"""

from __future__ import annotations

from functools import reduce

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Value
from ringc.ir.ops.pointwise import Cast, Mul
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.reduce import Reduction
from ringc.ir.types import DType
from ringc.passes.front import in_front


def scaled_behind(body: Block) -> Block | None:
    """The region with the factor of its left operand's rows moved behind the products; None where there is none, or it doesn't come out.

    Rounding stays as it was: what the dot takes is rounded to the operand's type as before, only unscaled. In f16 that might overflow.
    """
    anchors = [op for op in body.ops if isinstance(op, MatMul)]
    left = anchors[0].a
    if left.type.dtype is DType.F16 or any(a.result.type.dtype not in (DType.F32, left.type.dtype) for a in anchors):
        return None
    parted = _factors(left, _dependent(body, left))
    if parted is None:
        return None
    scales, rest = parted
    ride = reductions(body, scales)
    if not scales or not any(v.shape == left.shape for v in rest) or not ride:
        return None
    if any(r.x.shape != left.shape or any(isinstance(op, Reduction) for op in in_front(body, r.x)) for r in ride):
        return None
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    b = Builder(copy)
    for op in body.ops:
        if op is anchors[0]:
            mapping[left] = reduce(lambda x, y: b(Mul(x, y)), (mapping[v] for v in rest))
        made = b.insert(op.clone(mapping))
        mapping.update(zip(op.results, made.results, strict=True))
        if isinstance(op, MatMul):
            scale = reduce(lambda x, y: b(Mul(x, y)), (mapping[v] for v in scales))
            wide = scale.type.dtype is not op.result.type.dtype
            mapping[op.result] = b(Mul(made.result, b(Cast(scale, DType.F32)) if wide else scale))
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy


def reductions(body: Block, values: list[Value]) -> list[Reduction]:
    """The reductions that values rest on."""
    found = [op for v in values for op in in_front(body, v) if isinstance(op, Reduction)]
    return list(dict.fromkeys(found))


def _dependent(body: Block, left: Value) -> set[Value]:
    """The values in front that a reduction is part of."""
    found: set[Value] = set()
    for op in in_front(body, left):
        if isinstance(op, Reduction) or not found.isdisjoint(op.inputs()):
            found.update(op.results)
    return found


def _factors(value: Value, dependent: set[Value]) -> tuple[list[Value], list[Value]] | None:
    """A value as a product: numbers of a row, and factors that no reduction is part of; None if it isn't one."""
    if value not in dependent:
        return [], [value]
    if value.shape[-1:] == (1,):
        return [value], []
    if not isinstance(value.op, Mul):
        return None
    sides = [_factors(v, dependent) for v in value.op.inputs()]
    if sides[0] is None or sides[1] is None:
        return None
    return sides[0][0] + sides[1][0], sides[0][1] + sides[1][1]
