"""Prologues: beside a product or a recurrence of few rows, one kernel that does the row work in front of it too.

The norm in front of a product, the gate in front of the output projection, qk-norm and rope in front of linear attention: a kernel of their
own writes what the next one reads, and costs a launch. For few rows it is cheaper to make them in the next kernel, once in memory on a CPU
and in every program again on a GPU, and versions for few rows are offered both ways, as `alternatives` that `select` prices. For many rows
it isn't, but for the recurrence of a decode step, which reads each row once whatever their number. The chunked form reads rows twice, and
takes nothing in front but the cut of its values, which costs nothing (`ringc.passes.fuse`).

One row on a GPU may be made by each of several readers, none of which then waits for a launch that makes it. What has to wait for one of
these anyhow, as the experts for the router, reads what that one gives back beside its product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Effect, Module, Op, Value
from ringc.ir.ops.call import Alternatives, Fused
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.products import GatherMatMul, MatMul
from ringc.ir.ops.shape import Reshape
from ringc.passes.framework import Pass
from ringc.passes.front import in_front, why_not_in_front
from ringc.passes.regions import as_block, inlined, replace
from ringc.passes.schedules.crossovers import ROWS_ALONE
from ringc.passes.target import Target
from ringc.passes.versions import is_one_row

ANCHORS: dict[str, type[Op] | UnionType] = {
    "matmul": MatMul,
    "grouped": GatherMatMul | MatMul,
    "linear_attention": LinearAttention,
}
"""Families of regions that take work in front, and their anchors. A router's product is one of them where it stands apart (one row)."""


@dataclass(frozen=True)
class Prologues(Pass):
    """Offer the row work in front of a region as a part of it."""

    name = "prologues"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend == "torch":
            return  # its kernels are made of calls: there is no program to do the work in
        for function in module.functions.values():
            notes = function.notes
            few = 0 < notes.get("rows", (1, 0))[1] <= ROWS_ALONE
            one = is_one_row(function, target)
            takes = {"matmul": few, "grouped": one, "linear_attention": few or notes.get("serves") == "decode"}
            families = [family for family in ANCHORS if takes[family]]
            for op in list(function.body.ops):
                if isinstance(op, Fused) and op.family == "row":
                    for rows in _one_for_each(function.body, op, families) if one else [op]:
                        _offer(function.body, rows, families, one=one)


def _one_for_each(body: Block, rows: Fused, families: list[str]) -> list[Fused]:
    """A copy of row work for each region that reads it, if it makes one value and each of them can make that itself; else what is there.

    One that needs another's dense product reads the copy of that one, which can give it back.
    """
    value = rows.results[0]
    readers = [op for op in value.users() if isinstance(op, Fused) and op.family in families]
    if len(readers) < 2 or set(readers) != set(value.uses) or len(rows.results) > 1 or rows.effect is not Effect.PURE:
        return [rows]
    for reader in readers:
        _, _, apart = as_block(body, [rows, reader])
        flat = inlined(apart)
        if not _takes_front(flat, len(flat.ops) - len(reader.body.ops), reader.family):
            return [rows]
    first, *others = sorted(readers, key=body.ops.index)
    makers = {first: rows}
    for reader in others:
        maker = next((m for m in makers if m.family == "matmul" and _needs(body, reader, m)), reader)
        if maker is reader:
            copy = Builder(body, before=reader, scope=rows.scope).insert(rows.clone({}))
            assert isinstance(copy, Fused)
            makers[reader] = copy
        if maker is not first:
            reader.replace_input(value, makers[maker].results[0])
    return list(makers.values())


def _needs(body: Block, op: Op, other: Op) -> bool:
    """Whether an operation needs what another one makes, from it or by way of others."""
    return other in in_front(body, *op.inputs())


def _offer(body: Block, rows: Fused, families: list[str], *, one: bool) -> None:
    """Put a choice in the place of row work and the region that reads it, if one kernel can do both; `one`: see `_read_by`."""
    chain = _read_by(body, rows, one=one)
    if chain is None:
        return
    region = chain[-1]
    assert isinstance(region, Fused)
    if region.family not in families:
        return
    taken, made, apart = as_block(body, chain)
    flat = inlined(apart)
    if not _takes_front(flat, len(flat.ops) - len(region.body.ops), region.family):
        return
    together = Block([a.type for a in apart.args], [a.name for a in apart.args])
    fused = together.insert(Fused(tuple(together.args), region.family, flat))
    together.set_outputs(fused.results)
    replace(body, chain, made, Alternatives(tuple(taken), ("apart", "together"), (apart, together)))


def _read_by(body: Block, rows: Fused, *, one: bool) -> list[Op] | None:
    """The row work, the views of its results, and the region that reads them; None where anything else does.

    `one`: further regions may, if they need the first one's product. They read what its kernel gives back.
    """
    if rows.effect is not Effect.PURE:
        return None  # what is appended to a pool must be there before the pool is read
    chain: list[Op] = [rows]
    readers: set[Fused] = set()
    for op in chain:
        for use in (u for r in op.results for u in r.uses):
            if isinstance(use, Reshape):
                if use not in chain:
                    chain.append(use)
            elif isinstance(use, Fused) and use.family != "row":
                readers.add(use)
            else:
                return None
    if not readers:
        return None
    first, *others = sorted(readers, key=body.ops.index)
    if others and not (one and all(_needs(body, other, first) for other in others)):
        return None
    return [*chain, first]


def _takes_front(flat: Block, count: int, family: str) -> bool:
    """Whether the anchors of a region take the first `count` operations: as their rows alone, and in a form that can make those."""
    rows = {op: _made_of(op) for op in flat.ops if isinstance(op, ANCHORS[family])}
    front = set(in_front(flat, *(v for made in rows.values() for v in made)))
    if front & rows.keys() or not front.issuperset(flat.ops[:count]):
        return False
    read = [(op, v) for op in flat.ops if op not in front for v in op.inputs() if v.op in front]
    if not all(v in rows.get(op, ()) for op, v in read):
        return False
    mixers = [op for op in rows if isinstance(op, LinearAttention)]
    return all(op.form == "recurrent" and not why_not_in_front(op, in_front(flat, *rows[op])) for op in mixers)


def _made_of(anchor: Op) -> Sequence[Value]:
    """The operands of an anchor that its kernel may make."""
    return (anchor.q, anchor.k, anchor.v) if isinstance(anchor, LinearAttention) else anchor.inputs()[:1]
