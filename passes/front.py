"""What stands in front of an operation, and whether its kernel can do that work too."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import primitive
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.rows import Rope
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import Shape


def in_front(body: Block, values: Iterable[Value]) -> list[Op]:
    """The operations that values depend on, in order."""
    needed = set(values)
    ops: list[Op] = []
    for op in reversed(body.ops):
        if needed & set(op.results):
            ops.insert(0, op)
            needed |= set(op.inputs())
    return ops


def front_of(op: LinearAttention, ops: Collection[Op]) -> tuple[Block, list[Value]]:
    """Row work in front of an operation as a block of its own, with composite operations written out.

    Args:
        op: what it is in front of.
        ops: the row work, in the order of its block.

    Returns:
        The block, whose outputs are q, k and v, and which value each of its arguments is.
    """
    inside = set(ops)
    read = dict.fromkeys([v for o in ops for v in o.inputs()] + [op.q, op.k, op.v])
    outside = [v for v in read if v.op not in inside]
    scalars = [v.op for v in outside if isinstance(v.op, Constant) and not v.op.shape]
    taken = [v for v in outside if v.op not in scalars]
    whole = Block()
    whole.args, whole.ops, whole.outputs = taken, [*scalars, *ops], (op.q, op.k, op.v)
    return primitive(whole), taken


def why_not_in_front(op: LinearAttention, ops: Collection[Op]) -> str:
    """Why row work can't stand in front of an operation in its recurrent kernel; empty if it can.

    A task of the kernel is one head of one sequence: it makes q[n, h], k[n, h] and v[n, h] of one token after the other. Element-wise
    work on what the kernel takes may be anything. What is reduced is a part of one token's and head's row, and behind a reduction every
    element stays with its token and head.

    Args:
        op: what the row work is in front of.
        ops: the row work, in the order of its block. What it reads from elsewhere are arguments of the kernel.
    """
    body, _ = front_of(op, ops)
    lead = op.q.shape[:2]
    behind: set[Value] = set()
    for inner in body.ops:
        if isinstance(inner, Reduction):
            if inner.x.shape[:2] != lead or min(inner.axes) < 2:
                return f"'{inner.name}' takes more than a part of one head's row"
        elif not isinstance(inner, Elementwise | Constant):
            return f"'{inner.name}' is no work on rows"
        elif behind.isdisjoint(inner.inputs()):
            continue
        elif not _keeps_heads(inner, lead):
            return f"'{inner.name}' moves elements from head to head behind a reduction"
        behind.update(inner.results)
    return ""


def _keeps_heads(op: Op, lead: Shape) -> bool:
    """Whether element [n, h, ...] of the result is made of elements [n, h, ...] alone, and has them in the same places."""
    if any(v.shape[:2] != lead for v in op.results):
        return False
    match op:
        case Slice() | Concat():
            return op.axis >= 2
        case Reshape() | Broadcast() | Rope():
            return op.inputs()[0].shape[:2] == lead
        case _:
            return isinstance(op, Elementwise) and op.pointwise
