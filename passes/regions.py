"""A set of operations as one `fused` region."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.call import Fused
from ringc.ir.ops.source import Constant


def leaving(ops: Iterable[Op]) -> list[Value]:
    """The values that a set of operations makes for others."""
    inside = set(ops)
    return [r for op in ops for r in op.results if any(u not in inside for u in r.uses)]


def as_block(block: Block, ops: Sequence[Op]) -> tuple[list[Value], list[Value], Block]:
    """What a set of operations, given in a block's order, takes from it and makes for others, and a block that does the same."""
    inside = set(ops)
    # Scalars are code: a region has its own.
    scalars = {v for op in ops for v in op.inputs() if isinstance(v.op, Constant) and not v.op.shape}
    taken = [v for v in dict.fromkeys(v for op in ops for v in op.inputs()) if v.op not in inside and v not in scalars]
    made = leaving(ops)
    body = Block([v.type for v in taken], [_short(v.name) for v in taken])
    mapping = dict(zip(taken, body.args, strict=True))
    for scalar in (op for op in block.ops if op.results and op.results[0] in scalars):
        mapping[scalar.results[0]] = body.insert(scalar.clone({})).result
    for op in ops:
        copy = body.insert(op.clone(mapping))
        copy.scope = ""
        mapping.update(zip(op.results, copy.results, strict=True))
    body.set_outputs(mapping[v] for v in made)
    return taken, made, body


def replace(block: Block, ops: Sequence[Op], made: Sequence[Value], by: Op) -> None:
    """Put one operation where the last of some stood: its results are what they made."""
    by.scope = ops[0].scope
    Builder(block, before=ops[-1]).insert(by)
    for old, new in zip(made, by.results, strict=True):
        new.name = old.name
        block.replace_uses(old, new)
    for op in reversed(ops):
        block.erase(op)


def replace_by_region(block: Block, ops: Sequence[Op], family: str) -> Fused:
    """Replace operations of a block, given in its order, by one region that stands where the last of them stood.

    The set must be convex, and what it takes must stand above its last operation (`ringc.passes.fuse` sees to both).
    """
    taken, made, body = as_block(block, ops)
    fused = Fused(tuple(taken), family, body)
    replace(block, ops, made, fused)
    return fused


def inlined(way: Block) -> Block:
    """A copy of a block in which every region is replaced by its operations."""
    flat = Block([a.type for a in way.args], [a.name for a in way.args])
    mapping = dict(zip(way.args, flat.args, strict=True))
    for op in way.ops:
        if not isinstance(op, Fused):
            copy = flat.insert(op.clone(mapping))
            mapping.update(zip(op.results, copy.results, strict=True))
            continue
        inner = dict(zip(op.body.args, (mapping[v] for v in op.arguments), strict=True))
        for part in op.body.ops:
            copy = flat.insert(part.clone(inner))
            for old, new in zip(part.results, copy.results, strict=True):
                new.name = old.name
                inner[old] = new
        mapping.update(zip(op.results, (inner[v] for v in op.body.outputs), strict=True))
    flat.set_outputs(mapping[v] for v in way.outputs)
    return flat


def _short(name: str) -> str:
    """An argument's name inside a kernel, which may serve many layers."""
    parts = name.split(".")
    return "_".join(p for p in parts if p not in ("layers", "weight", "attention", "mlp") and not p.isdigit()) or name
