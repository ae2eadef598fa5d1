"""What stands in front of an operation, and whether its kernel can do that work too: where kernels are narrower than "work on its rows"."""

from __future__ import annotations

from collections.abc import Collection

from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import expanded, primitive
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.products import GatherMatMul, MatMul
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.rows import Rope
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import Dim, Shape, product
from ringc.ir.types import StateType
from ringc.passes.regions import as_block


def in_front(body: Block, *values: Value) -> list[Op]:
    """The operations that values depend on, in order."""
    needed = set(values)
    ops: list[Op] = []
    for op in reversed(body.ops):
        if needed & set(op.results):
            ops.insert(0, op)
            needed |= set(op.inputs())
    return ops


def cut_of_values(op: LinearAttention) -> Slice | None:
    """The cut of the values out of a wider matrix, if they are some of its columns, in heads: a kernel can read them where they lie."""
    heads = op.v.op
    cut = heads.x.op if isinstance(heads, Reshape) else None
    if not isinstance(cut, Slice) or cut.x.tensor.rank != 2 or (cut.axis, cut.step) != (1, 1):
        return None
    return cut


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
    scalars = [v.op for v in outside if v.op is not None and _is_scalar(v.op)]
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


def parted(body: Block) -> tuple[Block | None, Block]:
    """The work in front of a region's products, if there is any, and the products with what stands behind them, as two regions."""
    left = next(op.a for op in body.ops if isinstance(op, MatMul))
    ops = in_front(body, left)
    if all(isinstance(op, Reshape) for op in ops):
        return None, body
    front, behind = (
        [op for op in body.ops if (op in ops) is inside and not _is_scalar(op)] for inside in (True, False)
    )
    return as_block(body, front)[2], as_block(body, behind)[2]


def _is_scalar(op: Op | None) -> bool:
    return isinstance(op, Constant) and not op.shape


def reduced_extent(ops: list[Op]) -> int:
    """How many neighbouring elements of a row the reductions in front of a product take together; 0 where there are none."""
    return next((int(op.extent) for op in ops if isinstance(op, Reduction)), 0)


def before_product(body: Block) -> str:
    """Why a GPU's product of few rows can't make its left operand from what stands in front of it; empty where it can.

    It makes the left operand [rows, K] piece by piece along K. Element-wise work may be anything. Reductions take all of a row, or the
    same number of neighbours in each group of it, and behind them element k of a row stays element k. A dense product may give its left
    operand back; nothing else that is made in front of it may be wanted.
    """
    body = expanded(body)
    products = [op for op in body.ops if isinstance(op, MatMul | GatherMatMul)]
    lefts = {op.inputs()[0] for op in products}
    ops = in_front(body, *lefts)
    if not ops:
        return ""
    if len(lefts) != 1:
        return "it takes products of one left operand"
    (left,) = lefts
    inside = {op for op in ops if not _is_scalar(op)}
    dense = all(isinstance(op, MatMul) for op in products)
    for op in inside:
        if not isinstance(op, Elementwise | Reduction | Constant) or any(
            isinstance(v.type, StateType) for v in op.inputs()
        ):
            return f"'{op.name}' can't be made again for every piece of a weight"
        others = any(u not in inside and not isinstance(u, MatMul | GatherMatMul) for u in op.results[0].users())
        if others or (op.results[0] in body.outputs and not (dense and op.results[0] is left)):
            return f"%{op.results[0].name} is wanted behind the product too"
    if left.tensor.rank != 2 or not isinstance(left.shape[1], int):
        return "the left operand is no matrix of a known width"
    extent = reduced_extent(ops)
    return _moved(ops, left.shape[0], left.shape[1], extent) if extent else ""


def _moved(ops: list[Op], rows: Dim, width: int, extent: int) -> str:
    """The first operation, if any, whose reduction takes other elements, or behind which they have moved."""
    if width % extent:
        return f"a reduction takes {extent} elements, of which {width} are no multiple"
    groups = width // extent
    whole: set[Shape] = {(rows, width), (rows, groups, extent)}
    reduced: set[Shape] = {(rows, groups, 1), (rows, groups)} | ({(rows, 1), (rows,)} if groups == 1 else set())
    behind: set[Value] = set()
    for op in ops:
        if isinstance(op, Reduction):
            shape = op.x.shape
            if shape not in whole or op.axes != (len(shape) - 1,) or product(op.x.shape[-1:]) != extent:
                return f"'{op.name}' of {list(shape)} takes other elements than {extent} neighbours of {width}"
        elif behind.isdisjoint(op.inputs()):
            continue
        elif not (isinstance(op, Elementwise) and (op.pointwise or isinstance(op, Reshape | Broadcast))):
            return f"'{op.name}' moves elements behind a reduction"
        elif op.result.shape not in whole | reduced:
            return f"'{op.name}' gives {list(op.result.shape)} behind a reduction"
        elif not isinstance(op, Reshape) and not all(_in_place(v, op) for v in behind.intersection(op.inputs())):
            return f"'{op.name}' spreads a reduction over other elements than its own"
        behind.update(op.results)
    return ""


def _in_place(value: Value, op: Op) -> bool:
    """Whether an operand meets its own elements, or those that it was reduced from."""
    shape, made = value.shape, op.results[0].shape
    return shape == made or (shape[-1:] == (1,) and shape[:-1] == made[:-1])
