"""cse: an operation that computes what an earlier one computes is dropped."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ringc.ir.core import OPS, Block, Effect, Module, Op, Value, attributes, operand_fields
from ringc.passes.framework import Pass
from ringc.passes.target import Target


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Merges pure operations with the same operands, attributes and bodies, in every block by itself."""

    name = "cse"

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            merge_equal(function.body)


def merge_equal(block: Block) -> None:
    """Merge equal operations of a block, and of the regions in it.

    What stays belongs to the innermost scope that holds all that it stands for.
    """
    seen: dict[Hashable, Op] = {}
    number: dict[Value, int] = {}
    kept: list[Op] = []

    def numbered(value: Value) -> int:
        return number.setdefault(value, len(number))

    for op in block.ops:
        for body in op.regions():
            merge_equal(body)
        first = None
        if op.effect is Effect.PURE:
            first = seen.setdefault(_key(op, [numbered(v) for v in op.inputs()]), op)
        if first is None or first is op:
            kept.append(op)
            continue
        first.scope = _common_scope(first.scope, op.scope)
        for mine, theirs in zip(first.results, op.results, strict=True):
            mine.name = mine.name or theirs.name
            block.replace_uses(theirs, mine)
        for value in op.inputs():
            value.uses.remove(op)
        op.block = None
    block.ops = kept


def _key(op: Op, operands: list[int]) -> Hashable:
    taken = sorted(operands) if op.commutative else operands
    many, plain = _fields(op.name)
    # How many operands each field holds, and which are absent, is part of what an operation is.
    layout = tuple(len(v) if isinstance(v, tuple) else v is None for v in (getattr(op, name) for name in many))
    attrs = tuple(_hashable(getattr(op, name)) for name in plain)
    return type(op), tuple(taken), layout, attrs, tuple(body.structural_hash() for body in op.regions())


@cache
def _fields(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the fields that hold several or optional operands, and of the attributes."""
    cls = OPS[name]
    many = [f.name for f in operand_fields(cls) if f.metadata["kind"] == "operands" or f.metadata.get("optional")]
    return tuple(many), tuple(f.name for f in attributes(cls))


def _hashable(value: Any) -> Hashable:
    """Numbers by how they are written: 0.0 equals -0.0, and 1 equals True, but they aren't the same constant."""
    if isinstance(value, bool | int | float):
        return type(value), repr(value)
    if isinstance(value, tuple | list):
        return tuple(_hashable(v) for v in value)
    assert isinstance(value, Hashable)
    return value


def _common_scope(a: str, b: str) -> str:
    if a == b:
        return a
    common: list[str] = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        common.append(x)
    return ".".join(common)
