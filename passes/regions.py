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


def replace_by_region(block: Block, ops: Sequence[Op], family: str) -> Fused:
    """Replace operations of a block, given in its order, by one region that stands where the last of them stood.

    The set must be convex, and what it takes must stand above its last operation (`ringc.passes.fuse` sees to both).
    """
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
    fused = Fused(tuple(taken), family, body)
    fused.scope = ops[0].scope
    Builder(block, before=ops[-1]).insert(fused)
    for old, new in zip(made, fused.results, strict=True):
        new.name = old.name
        block.replace_uses(old, new)
    for op in reversed(ops):
        block.erase(op)
    return fused


def _short(name: str) -> str:
    """An argument's name inside a kernel, which may serve many layers."""
    parts = name.split(".")
    return "_".join(p for p in parts if p not in ("layers", "weight", "attention", "mlp") and not p.isdigit()) or name
