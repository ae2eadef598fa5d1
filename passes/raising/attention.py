"""Softmax attention over a cache: scores, causal mask, softmax, weighted sum."""

from __future__ import annotations

from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.mixers import Attention
from ringc.ir.ops.pointwise import Cast, Le, Lt, Mul, Where
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.rows import Softmax
from ringc.ir.ops.shape import Reshape, storage_of
from ringc.ir.ops.source import Iota, SegmentIds
from ringc.ir.ops.state import StateRead
from ringc.ir.symbols import Dim, product
from ringc.ir.types import StateType
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.raising.cache_view import CacheView, cache_view
from ringc.passes.raising.match import Match, look, without_units
from ringc.passes.rewrite import Rewriter, need, pattern

_NOTHING = -1e30
"""A score at most this is as good as -inf: its exponential is 0 in every precision, beside any score that isn't masked."""


@pattern(MatMul)
def attention(op: MatMul, r: Rewriter) -> None:
    """`softmax(where(s <= position, scale q k^T, -inf)) v` over the rows s of a cache.

    The scale may stand on q, on the scores, before or after the mask; the scores may be [N, H, 1, S], [N, Hk, group, S] or
    [N, Hk, group, 1, S]; which key-value head a query head reads is followed through any reshapes (`cache_view`).
    """
    m = Match()
    m.found[op] = None
    need(not op.transpose_b and op.b.tensor.rank == op.a.tensor.rank >= 3, "no weighted sum for each token")
    weights, one = m.scaled(op.a, casts=True)
    softmax = m.take(weights, Softmax)
    masked, outer = m.scaled(softmax.x, casts=True)
    where = m.take(masked, Where)
    scores, positions = _causal(where)
    raw, inner = m.scaled(scores, casts=True)
    scored = m.take(raw, MatMul)
    q, before = _unscaled(scored.a)
    m.closed(op.result)
    need(one == 1 and outer > 0, "the weights are scaled after the softmax, or the mask's sign is turned")

    *leading, rows, d = scored.a.shape
    longest = op.b.shape[-2]
    need(all(v.shape[-1] == longest for v in (softmax.x, where.result, raw)), "the softmax is over another axis")
    keys, values = cache_view(scored.b), cache_view(op.b)
    _check_heads(keys, [*leading[1:]], rows, ("s", "d") if scored.transpose_b else ("d", "s"))
    _check_heads(values, [*leading[1:]], rows, ("s", "d"))
    slots, offsets = _of_tokens(keys.read, positions)
    need(_of_tokens(values.read, positions) == (slots, offsets), "keys and values of different sequences")
    for read in (keys.read, values.read):
        need(read.pool().dtype == q.type.dtype, "the caches' type is not the queries'")
        need(not written_before(r.block, read.state, op), "the cache is written before it is attended to")

    heads = product([*leading[1:], rows])
    tokens = scored.a.shape[0]
    made = Attention(
        r(Reshape(q, (tokens, heads, d))), keys.read.state, values.read.state, slots, offsets, positions,
        outer * inner * before,
    )  # fmt: skip
    r.replace(op, r(Reshape(r(made), op.result.shape)))


def _unscaled(q: Value) -> tuple[Value, float]:
    """The queries without constant factors, which may stand before or after a reshape."""
    factor, value = 1.0, q
    while True:
        inner = storage_of(value)
        if not (isinstance(inner.op, Mul) and is_number(inner.op.b)):
            return value, factor
        factor *= number(inner.op.b)
        value = inner.op.a


def _causal(where: Where) -> tuple[Value, Value]:
    """(scores, positions) of a choice that keeps the scores of row s where s <= the token's position."""
    condition = without_units(where.condition)
    if isinstance(condition.op, Le):
        kept, dropped, row, position = where.a, where.b, condition.op.a, condition.op.b
    else:
        later = look(condition, Lt)
        kept, dropped, row, position = where.b, where.a, later.b, later.a
    need(is_number(dropped) and number(dropped) <= _NOTHING, "masked scores are not -inf")
    mask = where.condition
    shape = where.result.shape
    need(
        len(shape) >= 2 and mask.shape == (shape[0], *[1] * (len(shape) - 2), shape[-1]), "not one mask for each token"
    )
    compared = condition.shape
    need(mask.shape[0] == compared[0] and mask.shape[-1] == compared[-1], "the mask is not tokens by cache rows")
    need(row.shape == (*[1] * (row.tensor.rank - 1), compared[-1]), "rows are not counted along the last axis")
    counted = look(_integers(row), Iota)
    need(counted.length == compared[-1], "not a count of the cache's rows")
    need(position.shape == (compared[0], *[1] * (len(compared) - 1)), "positions are not along the first axis")
    positions = _integers(position)
    need(positions.shape == compared[:1], "not one position for each token")
    return kept, positions


def _integers(value: Value) -> Value:
    value = without_units(value)
    while isinstance(value.op, Cast) and not value.op.x.type.dtype.is_float:
        value = without_units(value.op.x)
    return value


def _check_heads(view: CacheView, between: list[Dim], rows: Dim, last: tuple[str, str]) -> None:
    """Query head a, counted over the axes `between` and the rows of the product, must read head a // (H / Hk) of the cache."""
    rank = len(view.axes)
    need(view.kinds(0) in ("n", ""), "not token by token")
    need(all(view.kinds(rank - 2 + i) in (k, "") for i, k in enumerate(last)), "rows and channels are exchanged")
    need(isinstance(rows, int) and all(isinstance(d, int) for d in between), "an unknown number of heads")
    have = [h for h in view.heads(1, rank - 2) for _ in range(int(rows))]
    shared = view.read.pool().shape[1]
    group = len(have) // int(shared)
    need(
        have == [a // group for a in range(len(have))] and group * int(shared) == len(have),
        "heads are shared otherwise",
    )


def _of_tokens(read: StateRead, positions: Value) -> tuple[Value, Value]:
    """(slots, offsets) when a cache is read by each token's own sequence."""
    slots = look(read.slots, Gather)
    ids = look(slots.ids, SegmentIds)
    need(slots.x.tensor.rank == 1 and ids.length == positions.shape[0], "not the slot of each token's sequence")
    return slots.x, ids.offsets


def written_before(block: Block, state: Value, op: Op) -> bool:
    """Whether a state gets a new value before an operation: from there on the old one may not be read."""
    writers = [u for u in state.users() if any(isinstance(v.type, StateType) for v in u.results)]
    if not writers:
        return False
    at = block.ops.index(op)
    return any(block.ops.index(w) < at for w in writers)


RULES = (attention,)
