"""Rotary positions, from the halves or pairs of each head, or from the whole head and its rotated copy.

All spellings become `rope` on the channels that turn; a rule of its own then takes in the channels that pass.
"""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Add, Cast, Cos, Mul, Neg, Sin, Sub
from ringc.ir.ops.rows import Rope
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice
from ringc.passes.canonicalize.arithmetic import is_number
from ringc.passes.canonicalize.slices import count
from ringc.passes.raising.match import Match, either, is_unit_reshape, look, without_units
from ringc.passes.rewrite import Rewriter, need, no_match, pattern


def _channels(value: Value) -> tuple[Value, int, int, int]:
    """(x, start, step, count): which channels of which x [N, H, D] a value is, axes of size 1 aside."""
    value = without_units(value)
    op = value.op
    if isinstance(op, Slice) and op.axis == 2 and op.x.tensor.rank == 3:
        return op.x, op.start, op.step, count(op)
    need(value.tensor.rank == 3 and isinstance(value.shape[2], int), "not channels of [N, H, D]")
    return value, 0, 1, int(value.shape[2])


def _range(r: Rewriter, x: Value, start: int, size: int) -> Value:
    """Channels `start .. start + size` of x."""
    return x if size == x.shape[2] else r(Slice(x, 2, start, start + size))


def _rotation(m: Match, first: Value, second: Value) -> tuple[Value, Value, Value, Value]:
    """(a, b, cos, sin) with `first = a cos - b sin` and `second = b cos + a sin`."""
    minus, plus = m.take(m.peel(first), Sub), m.take(m.peel(second), Add)
    left, right = m.take(minus.a, Mul), m.take(minus.b, Mul)
    sums = [m.take(plus.a, Mul), m.take(plus.b, Mul)]
    have = [{t.a, t.b} for t in sums]
    for a, cos in ((left.a, left.b), (left.b, left.a)):
        for b, sin in ((right.a, right.b), (right.b, right.a)):
            if {b, cos} in have and {a, sin} in have and a is not b:
                try_slices = isinstance(without_units(a).op, Slice) and isinstance(without_units(b).op, Slice)
                if try_slices and cos.shape == sin.shape:
                    return a, b, cos, sin
    return no_match("not a rotation of two halves")


def _angles(r: Rewriter, table: Value, x: Value, pairs: int) -> Value:
    """A table of cosines or sines [N, 1, r/2] (or with one more axis of size 1, where pairs or halves have their own) as [N, r/2]."""
    rows = x.shape[0]
    need(
        table.shape in ((rows, 1, pairs), (rows, 1, pairs, 1), (rows, 1, 1, pairs)),
        f"angles of the shape {list(table.shape)}",
    )
    return r(Reshape(table, (rows, pairs)))


def _rotated(op: Concat | Reshape, r: Rewriter, first: Value, second: Value, interleaved: bool) -> Value:
    """`rope` of the channels that these two results come from."""
    m = Match()
    if isinstance(op, Reshape):
        m.take(op.x, Concat)
    m.found[op] = None
    a, b, cos, sin = _rotation(m, first, second)
    m.closed(op.result)
    (x, start, step, pairs), (y, start2, step2, pairs2) = _channels(a), _channels(b)
    need(x is y and pairs == pairs2, "halves of different values")
    if interleaved:
        need(step == step2 == 2 and start2 == start + 1, "not neighbouring channels")
    else:
        need(step == step2 == 1 and start2 == start + pairs, "not two halves")
    return r(Rope(_range(r, x, start, 2 * pairs), _angles(r, cos, x, pairs), _angles(r, sin, x, pairs), interleaved))


@pattern(Concat)
def rope_halves(op: Concat, r: Rewriter) -> None:
    """`concat(a cos - b sin, b cos + a sin, rest)` of the halves a, b of the channels that turn."""
    need(op.axis == 2 and op.result.tensor.rank == 3 and len(op.parts) >= 2, "not a concatenation of channels")
    turned = _rotated(op, r, op.parts[0], op.parts[1], False)
    r.replace(op, turned if len(op.parts) == 2 else r(Concat((turned, *op.parts[2:]), 2)))


@pattern(Reshape)
def rope_pairs(op: Reshape, r: Rewriter) -> None:
    """The same of channels 2j and 2j + 1, laid side by side again: `reshape(concat([N, H, r/2, 1] twice))`."""
    stacked = op.x.op
    need(isinstance(stacked, Concat) and len(stacked.parts) == 2, "not a concatenation of two")
    assert isinstance(stacked, Concat)
    rows, heads, pairs, one = (*stacked.parts[0].shape, 0, 0, 0, 0)[:4]
    need(
        stacked.axis == 3 and one == 1 and stacked.result.tensor.rank == 4 and isinstance(pairs, int),
        "not pairs of channels",
    )
    need(op.shape == (rows, heads, 2 * int(pairs)), "the pairs are not laid side by side")
    first, second = stacked.parts
    r.replace(op, _rotated(op, r, first, second, True))


def _half(r: Rewriter, table: Value) -> Value:
    """One half of a table whose last axis holds everything twice: `concat(t, t)`, maybe before a function or a gather."""
    op = table.op
    match op:
        case Concat(parts=(first, second)) if first is second and op.axis == table.tensor.rank - 1:
            return first
        case Reshape() if is_unit_reshape(op) and op.shape[-1:] == op.x.shape[-1:]:
            half = _half(r, op.x)
            return r(Reshape(half, (*op.shape[:-1], half.shape[-1])))
        case Cos() | Sin() | Cast():
            return r(op.clone({op.x: _half(r, op.x)}))
        case Mul() if is_number(op.b):
            return r(Mul(_half(r, op.a), op.b))
        case Gather() if op.x.tensor.rank == 2:
            return r(Gather(_half(r, op.x), op.ids))
        case Broadcast() if op.x.shape[-1:] == op.shape[-1:]:
            half = _half(r, op.x)
            return r(Broadcast(half, (*op.shape[:-1], half.shape[-1])))
    return no_match("not a table that holds everything twice")


@pattern(Add)
def rope_rotate_half(op: Add, r: Rewriter) -> None:
    """`x cos2 + concat(-b, a) sin2` with the halves a, b of x, and tables that hold every angle twice."""

    def terms(plain: Value, turned: Value) -> tuple[Mul, Mul, Concat, Value]:
        product = look(turned, Mul)
        copy, sin = either(product, lambda table, copy: (_rotated_copy(copy), table))
        return look(plain, Mul), product, copy, sin

    plain, turned, copy, sin = either(op, terms)
    minus_b = look(copy.parts[0], Neg)
    a, b = copy.parts[1], minus_b.x
    x, cos = (plain.a, plain.b) if _channels(plain.a)[0] is _channels(b)[0] else (plain.b, plain.a)
    m = Match()
    m.found |= dict.fromkeys([op, plain, turned, copy, minus_b])
    m.closed(op.result)
    (whole, start, step, size), (base, b_start, b_step, pairs) = _channels(x), _channels(b)
    other_base, a_start, a_step, a_count = _channels(a)
    need(whole is base and base is other_base and step == a_step == b_step == 1, "halves of different values")
    need(size == 2 * pairs == 2 * a_count and a_start == start and b_start == start + pairs, "not the two halves")
    need(cos.shape == sin.shape == (x.shape[0], 1, size), "tables of another shape")
    cos, sin = (_angles(r, _half(r, t), x, pairs) for t in (cos, sin))
    r.replace(op, r(Rope(x, cos, sin, False)))


def _rotated_copy(value: Value) -> Concat:
    copy = look(value, Concat)
    need(copy.axis == 2 and copy.result.tensor.rank == 3 and len(copy.parts) == 2, "not a copy of a head's channels")
    look(copy.parts[0], Neg)
    return copy


@pattern(Concat)
def rope_rest(op: Concat, r: Rewriter) -> None:
    """`concat(rope(x[..r]), x[r..])` -> `rope(x)`: rope lets the channels behind the angles pass."""
    first, *others = op.parts
    rope = first.op
    need(isinstance(rope, Rope) and len(others) == 1 and len(first.uses) == 1, "not rotated channels and a rest")
    assert isinstance(rope, Rope)
    need(rope.x.shape[2] == 2 * rope.pairs, "the rotation has a rest already")
    (x, start, step, size), (y, rest, rest_step, rest_size) = _channels(rope.x), _channels(others[0])
    need(x is y and step == rest_step == 1 and rest == start + size, "the rest is not what follows")
    r.replace(op, r(Rope(_range(r, x, start, size + rest_size), rope.cos, rope.sin, rope.interleaved)))


RULES = (rope_halves, rope_pairs, rope_rotate_half, rope_rest)
