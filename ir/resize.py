"""The same code for other sizes: a block whose symbols stand for other things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from ringc.ir.core import Block, Op, Value, region_fields
from ringc.ir.symbols import Dim, substitute
from ringc.ir.types import StateType, TensorType, with_sizes


def resized(block: Block, values: Mapping[str, Dim]) -> Block:
    """A copy of a block with symbols replaced by other sizes, in its types and in what its operations say of sizes."""
    made = Block([with_sizes(a.type, values) for a in block.args], [a.name for a in block.args])
    mapping = dict(zip(block.args, made.args, strict=True))
    for op in block.ops:
        copy = made.insert(_resized_op(op, mapping, values))
        mapping.update(zip(op.results, copy.results, strict=True))
    made.set_outputs(mapping[v] for v in block.outputs)
    return made


def _resized_op(op: Op, mapping: Mapping[Value, Value], values: Mapping[str, Dim]) -> Op:
    said = {name: _resized_value(value, values) for name, value in op.attrs().items()}
    inner = {f.name: _resized_regions(getattr(op, f.name), values) for f in region_fields(type(op))}
    return op.clone(mapping, **said, **inner)


def _resized_regions(bodies: Block | tuple[Block, ...], values: Mapping[str, Dim]) -> Block | tuple[Block, ...]:
    return resized(bodies, values) if isinstance(bodies, Block) else tuple(resized(body, values) for body in bodies)


def _resized_value(value: Any, values: Mapping[str, Dim]) -> Any:
    match value:
        case sympy.Expr():
            return substitute(value, values)
        case TensorType() | StateType():
            return with_sizes(value, values)
        case tuple():
            return tuple(_resized_value(v, values) for v in value)
        case _:
            return value
