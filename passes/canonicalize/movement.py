"""Rules of reshapes, broadcasts, transposes and gathers: operations that move elements without changing them."""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast, FloorDiv, Pointwise
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.shape import Broadcast, Reshape, Transpose
from ringc.ir.ops.source import Constant, Iota, scalar
from ringc.ir.symbols import Shape, mul
from ringc.ir.types import DType
from ringc.passes.canonicalize.arithmetic import is_number
from ringc.passes.rewrite import Rewriter, need, no_match, pattern


def squeezed(shape: Shape) -> Shape:
    """A shape without its axes of size 1."""
    return tuple(d for d in shape if d != 1)


@pattern(Reshape)
def reshape_away(op: Reshape, r: Rewriter) -> None:
    """A reshape to a value's own shape is the value; of two reshapes the last counts."""
    if op.shape == op.x.shape:
        r.replace(op, op.x)
        return
    inner = op.x.op
    need(isinstance(inner, Reshape), "no reshape below")
    assert isinstance(inner, Reshape)
    r.replace(op, inner.x if inner.x.type == op.result.type else r(Reshape(inner.x, op.shape)))


@pattern(Reshape)
def reshape_of_constant(op: Reshape, r: Rewriter) -> None:
    """A reshaped constant is a constant."""
    inner = op.x.op
    need(isinstance(inner, Constant), "not a constant")
    assert isinstance(inner, Constant)
    r.replace(op, r(Constant(inner.value, inner.dtype, op.shape)))


@pattern(Broadcast)
def broadcast_away(op: Broadcast, r: Rewriter) -> None:
    """A broadcast that repeats nothing is a reshape, or nothing; of two broadcasts the last counts."""
    if op.shape == op.x.shape:
        r.replace(op, op.x)
    elif squeezed(op.shape) == squeezed(op.x.shape):
        r.replace(op, r(Reshape(op.x, op.shape)))
    elif isinstance(op.x.op, Broadcast):
        r.replace(op, r(Broadcast(op.x.op.x, op.shape)))
    elif (plain := without_leading_ones(op.x)) is not None:
        r.replace(op, r(Broadcast(plain, op.shape)))
    else:
        no_match("repeats elements")


def without_leading_ones(value: Value) -> Value | None:
    """What a value is a reshape of, when the reshape only puts axes of size 1 in front: numpy broadcasting does that anyway."""
    op = value.op
    if not isinstance(op, Reshape):
        return None
    added = len(op.shape) - op.x.tensor.rank
    return op.x if added > 0 and op.shape == (1,) * added + op.x.shape else None


def _as_broadcast_operand(value: Value) -> Value | Constant | None:
    """A simpler value that broadcasts to the same elements, or None."""
    op = value.op
    if isinstance(op, Broadcast):
        return op.x
    if isinstance(op, Constant) and op.shape and all(v == op.value[0] for v in op.value):
        return scalar(op.value[0], op.dtype)
    return without_leading_ones(value)


@pattern(Pointwise)
def implied_broadcast(op: Pointwise, r: Rewriter) -> None:
    """A broadcast (or leading axes of size 1) that the operation makes anyway is dropped."""
    for value in op.inputs():
        simpler = _as_broadcast_operand(value)
        if simpler is not None:
            made = op.clone({value: r(simpler) if isinstance(simpler, Constant) else simpler})
            if made.results[0].type == op.result.type:
                r.replace(op, r(made))
                return
    no_match("no broadcast that is implied")


@pattern(Pointwise, Cast)
def broadcast_outward(op: Pointwise | Cast, r: Rewriter) -> None:
    """A function of one repeated value (and constant scalars) is computed once and then repeated."""
    operands = [v for v in op.inputs() if not is_number(v)]
    need(len(operands) == 1, "several values")
    wide = operands[0].op
    need(isinstance(wide, Broadcast), "not repeated")
    assert isinstance(wide, Broadcast)
    made = Broadcast(r(op.clone({wide.result: wide.x})), wide.shape)
    r.replace(op, r(made))


@pattern(Transpose)
def transpose_away(op: Transpose, r: Rewriter) -> None:
    """The identity is dropped, two transposes become one, and one that moves only axes of size 1 is a reshape."""
    inner = op.x.op
    if op.axes == tuple(range(len(op.axes))):
        r.replace(op, op.x)
    elif isinstance(inner, Transpose):
        r.replace(op, r(Transpose(inner.x, tuple(inner.axes[a] for a in op.axes))))
    else:
        moved = [a for a in op.axes if op.x.shape[a] != 1]
        need(moved == sorted(moved), "moves elements")
        r.replace(op, r(Reshape(op.x, op.result.shape)))


@pattern(MatMul)
def transpose_into_product(op: MatMul, r: Rewriter) -> None:
    """A transposed right operand: the product reads it with its last two axes in their first order, transposed or not as needed."""
    inner = op.b.op
    if isinstance(inner, Transpose) and inner.axes[-2] > inner.axes[-1]:
        axes = (*inner.axes[:-2], inner.axes[-1], inner.axes[-2])
        r.replace(op, r(MatMul(op.a, r(Transpose(inner.x, axes)), not op.transpose_b, op.out)))
        return
    # [..., n, 1] transposed is [..., 1, n]: the same elements in the same order.
    need(op.transpose_b and op.b.tensor.rank > 2 and 1 in op.b.shape[-2:], "not transposed")
    shape = (*op.b.shape[:-2], op.b.shape[-1], op.b.shape[-2])
    r.replace(op, r(MatMul(op.a, r(Reshape(op.b, shape)), False, op.out)))


@pattern(Gather)
def gather_of_iota(op: Gather, r: Rewriter) -> None:
    """Element i of `0, 1, 2, ...` is i."""
    need(isinstance(op.x.op, Iota) and op.ids.type.dtype is DType.I32, "not a count")
    r.replace(op, op.ids)


@pattern(Gather)
def gather_of_repeat(op: Gather, r: Rewriter) -> None:
    """Row i of x with every row k times is row i // k of x: `gather(reshape(broadcast(x[N, 1, ..] to [N, k, ..])), i)`."""
    flat = op.x.op
    need(isinstance(flat, Reshape) and isinstance(flat.x.op, Broadcast), "rows are not repeated")
    assert isinstance(flat, Reshape)
    wide = flat.x.op
    assert isinstance(wide, Broadcast)
    rows, times = (*wide.shape[:2], 1, 1)[:2]
    need(len(wide.shape) >= 2 and isinstance(times, int) and times > 1, "rows are not repeated a known number of times")
    need(flat.shape == (mul(rows, times), *wide.shape[2:]), "the repeats are not merged with the rows")
    need(
        wide.x.tensor.rank == len(wide.shape) and wide.x.shape == (rows, 1, *wide.shape[2:]),
        "not repeated behind the rows",
    )
    row = r(FloorDiv(op.ids, r(scalar(int(times), op.ids.type.dtype))))
    r.replace(op, r(Gather(r(Reshape(wide.x, (rows, *wide.shape[2:]))), row)))


RULES = (
    reshape_away,
    reshape_of_constant,
    broadcast_away,
    implied_broadcast,
    broadcast_outward,
    transpose_away,
    transpose_into_product,
    gather_of_iota,
    gather_of_repeat,
)
