"""Linear attention with a fixed decay: a read of the state, a scan with the recurrence as its body, and the write back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ringc.ir.core import Block, Value
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.pointwise import Add, Cast, Exp, Mul, Neg
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.scan import Scan
from ringc.ir.ops.shape import Reshape, Transpose
from ringc.ir.ops.source import Constant
from ringc.ir.ops.state import StateRead, StateWrite
from ringc.ir.symbols import Dim
from ringc.ir.types import DType
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.raising.attention import written_before
from ringc.passes.raising.match import Match, either, is_unit_reshape, known_numbers, look
from ringc.passes.rewrite import NoMatch, Rewriter, need, no_match, pattern, single_user


@dataclass(frozen=True)
class _Recurrence:
    """A body `S' = decay S + k^T v; o = scale q S'`. q, k, v are its arguments; decay is an argument or a table."""

    q: Value
    k: Value
    v: Value
    decay: Value
    scale: float


@pattern(Scan)
def linear_attention(op: Scan, r: Rewriter) -> None:
    """`state_read -> scan -> state_write` of one pool and slots, when the body is the recurrence with a decay that no row changes."""
    need(len(op.results) == 2, "not a state and one row for each token")
    read = look(op.initial, StateRead)
    final, rows = op.results
    write = single_user(final)
    need(isinstance(write, StateWrite), "the final state is not written back")
    assert isinstance(write, StateWrite)
    need(
        write.state is read.state and write.slots is read.slots,
        "the state is written to another pool, or to other slots",
    )
    need(not written_before(r.block, read.state, op), "the pool is written before the scan")
    readers = [u for u in read.state.users() if u not in (read, write)]
    at = r.block.ops.index(op) if readers else 0
    need(all(r.block.ops.index(u) < at for u in readers), "the old state is read after the scan")

    found = _recurrence(op.body)
    arguments = dict(zip(op.body.args[1 : 1 + len(op.xs)], op.xs, strict=True))
    constants = dict(zip(op.body.args[1 + len(op.xs) :], op.constants, strict=True))
    need(all(x in arguments for x in (found.q, found.k, found.v)), "q, k and v are not rows")
    need(len(op.xs) == 3, "rows that the recurrence doesn't take")
    q, k, v = (arguments[x] for x in (found.q, found.k, found.v))
    need(found.decay not in arguments, "the decay depends on the row")
    slopes = _slopes(r, found.decay, op.body, constants, int(q.shape[1]))
    q, scale = _scaled(q)
    made = r.insert(LinearAttention(q, k, v, slopes, read.state, read.slots, op.offsets, found.scale * scale))
    r.replace_values((rows, made.results[0]), (write.result, made.results[1]))
    r.block.erase(write)


def _scaled(value: Value) -> tuple[Value, float]:
    """Without constant factors: (what is scaled, factor)."""
    factor = 1.0
    while isinstance(value.op, Mul) and is_number(value.op.b):
        factor *= number(value.op.b)
        value = value.op.a
    return value, factor


def _plain(value: Value) -> Value:
    """Before casts between floating-point types and reshapes by axes of size 1."""
    while True:
        op = value.op
        is_cast = isinstance(op, Cast) and op.dtype.is_float and op.x.type.dtype.is_float
        if op is None or not (is_cast or is_unit_reshape(op)):
            return value
        (value,) = op.inputs()


def _row(value: Value) -> Value:
    """The argument [H, D] that a value is, casts and axes of size 1 aside, with the heads still in front."""
    found = _plain(value)
    need(found.op is None and found.tensor.rank == 2 and value.shape[0] == found.shape[0], "not a row of heads")
    return found


def _recurrence(body: Block) -> _Recurrence:
    need(len(body.outputs) == 2, "not a state and one row")
    new, out = body.outputs
    state = body.args[0]
    need(state.tensor.rank == 3, "the state is not [H, Dk, Dv]")
    heads, dk, dv = state.shape
    m = Match()
    update = m.take(new, Add)

    def terms(decayed: Value, outer: Value) -> tuple[Value, tuple[Value, Value]]:
        return either(look(decayed, Mul), lambda s, x: _decay(s, x, state)), _outer_product(outer, state)

    decay, (k, v) = either(update, terms)
    read_out, outer_scale = m.scaled(out, casts=True)
    q, inner_scale = _read_out(read_out, new, state)
    need(q.shape == (heads, dk) and k.shape == (heads, dk) and v.shape == (heads, dv), "rows don't fit the state")
    return _Recurrence(q, k, v, decay, outer_scale * inner_scale)


def _decay(old: Value, decay: Value, state: Value) -> Value:
    need(old is state, "not the old state that decays")
    need(decay.tensor.rank in (0, 3) and all(d == 1 for d in decay.shape[1:]), "not one decay for each head")
    return _plain(decay)


def _outer_product(value: Value, state: Value) -> tuple[Value, Value]:
    """(k, v) of `k[:, :, None] * v[:, None, :]`, or of the matrix product of the two."""
    heads, dk, dv = state.shape
    op = value.op
    if isinstance(op, MatMul):
        need(not op.transpose_b, "not a product of a column and a row")
        a, b = op.a, op.b
    else:
        product = look(value, Mul)
        a, b = product.a, product.b
        if _spread(a) != (heads, dk, 1):
            a, b = b, a
    need(_spread(a) == (heads, dk, 1) and _spread(b) == (heads, 1, dv), "not an outer product of a key and a value")
    return _row(a), _row(b)


def _spread(value: Value) -> tuple[Dim, ...]:
    """The shape with the leading axes of size 1 that arithmetic gives it: those of a single head may have been left out."""
    return (1,) * (3 - value.tensor.rank) + value.shape


def _read_out(o: Value, new: Value, state: Value) -> tuple[Value, float]:
    """(q, factor) of `factor q S'`: a product with a matrix, or products summed over the key channels."""
    heads, dk, _ = state.shape
    column, row = (heads, dk, 1), (heads, 1, dk)
    op = o.op
    if isinstance(op, Sum):
        need(op.axes == (1,), "the sum is not over the key channels")
        terms = look(op.x, Mul)
        q, other, shape = (terms.b, terms.a, column) if terms.a is new else (terms.a, terms.b, column)
    elif isinstance(op, MatMul) and isinstance(op.a.op, Transpose):
        need(op.a.op.axes == (0, 2, 1) and not op.transpose_b, "the state is read along another axis")
        q, other, shape = op.b, op.a.op.x, column
    elif isinstance(op, MatMul):
        need(not op.transpose_b, "the state is read along another axis")
        q, other, shape = op.a, op.b, row
    else:
        no_match("no product with the state")
    need(other is new, "reads another state than the updated one")
    need(q.shape == shape, "the query is not along the key channels")
    inner, factor = Match().scaled(q, casts=True)
    return _row(inner), factor


def _slopes(r: Rewriter, decay: Value, body: Block, constants: Mapping[Value, Value], heads: int) -> Value:
    """-log of the decay, f32[H]: what it is the exponential of, or the logarithm of constants.

    The exponential and the sign may stand in the body or in front of the scan, whose `constants` are the body's arguments.
    """

    def outside(value: Value) -> Value:
        value = _plain(value)
        return _plain(constants.get(value, value))

    decay = outside(decay)
    exponent = outside(decay.op.x) if isinstance(decay.op, Exp) else None
    try:
        numbers = known_numbers(decay if exponent is None else exponent)
    except NoMatch:
        need(exponent is not None, "the decay is no exponential")
        assert exponent is not None
        slopes = outside(look(exponent, Neg).x)
        need(slopes.op not in body.ops and slopes not in body.args, "the slopes are computed in the body")
        need(slopes.type.dtype is DType.F32 and slopes.tensor.elements == heads, "not one slope for each head")
        return r(Reshape(slopes, (heads,)))
    if exponent is None:
        need(all(n > 0 for n in numbers), "a decay that is not positive has no logarithm")
        numbers = [math.log(n) for n in numbers]
    numbers = numbers * heads if len(numbers) == 1 else numbers
    need(len(numbers) == heads and all(n < 0 for n in numbers), "not a decay below one for each head")
    return r(Constant(tuple(-n for n in numbers), DType.F32, (heads,)))


RULES = (linear_attention,)
