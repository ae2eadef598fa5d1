"""Composite operations that mix tokens of a sequence: softmax attention over a cache, and linear attention over a state."""

from __future__ import annotations

from collections.abc import Sequence

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Effect, Op, Value, attr, operand, operation
from ringc.ir.ops.composite import Composite
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Add, Exp, Le, Mul, Neg, Where
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.rows import Softmax
from ringc.ir.ops.scan import Scan
from ringc.ir.ops.shape import Broadcast, Reshape, Transpose
from ringc.ir.ops.source import Iota, SegmentIds, scalar
from ringc.ir.ops.state import StateRead, StateWrite
from ringc.ir.symbols import Dim, add, dim_text, mul, product
from ringc.ir.types import DType, StateType, TensorType, Type


def check_segments(op: Op, slots: Value, offsets: Value) -> None:
    """Slots i32[B] and offsets i32[B + 1], or an IRError."""
    op.require(slots.tensor.dtype is DType.I32 and slots.tensor.rank == 1, "slots are i32[B]")
    fit = offsets.tensor.dtype is DType.I32 and offsets.shape == (add(slots.shape[0], 1),)
    op.require(fit, "needs one slot for each segment: offsets are i32[B + 1]")


def tensor_bytes(op: Op) -> Dim:
    """Bytes of the operands and results that are no pools."""
    total: Dim = 0
    for value in (*op.inputs(), *op.results):
        if not isinstance(value.type, StateType):
            total = add(total, value.type.bytes)
    return total


@operation("attention")
class Attention(Composite):
    """Causal softmax attention of packed tokens over their sequences' caches; query heads share key-value heads in runs (GQA).

    A token attends to the cache rows 0 .. its own position, its own included: the caches already hold this call's keys and values.
    q [N / B, H, D], keys and values `state<[P; S, Hk, D]>`, slots i32[B], offsets i32[B + 1], positions i32[N / B] -> [N / B, H, D].
    """

    q: Value = operand()
    keys: Value = operand()
    values: Value = operand()
    slots: Value = operand()
    offsets: Value = operand()
    positions: Value = operand()
    scale: float = attr()
    effect = Effect.READS_STATE

    def infer(self) -> Sequence[Type]:
        q = self.q.tensor
        self.require(q.rank == 3, "queries are [N, H, D]")
        for pool in (self.keys.type, self.values.type):
            self.require(isinstance(pool, StateType) and len(pool.shape) == 3, "caches are state<[P; S, Hk, D]>")
            heads, mine = pool.shape[1], q.shape[1]
            fit = isinstance(heads, int) and isinstance(mine, int) and heads >= 1 and mine % heads == 0
            self.require(fit, f"{dim_text(mine)} heads can't share {dim_text(heads)}")
            self.require(pool.shape[2] == q.shape[2], "heads of different size")
            self.require(pool.dtype == q.dtype, f"queries of type {q.dtype}, a cache of {pool.dtype}")
        self.require(self.keys.type == self.values.type, "the caches differ in shape")
        check_segments(self, self.slots, self.offsets)
        positions = self.positions.tensor
        self.require(
            positions.dtype is DType.I32 and positions.shape == q.shape[:1], "needs one position i32 for each token"
        )
        return [q]

    @property
    def cache(self) -> StateType:
        assert isinstance(self.keys.type, StateType)
        return self.keys.type

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        q, keys, values, slots, offsets, positions = inputs
        tokens, heads, d = q.shape
        longest, shared, _ = self.cache.shape
        group = int(heads) // int(shared)
        of_token = b(Gather(slots, b(SegmentIds(offsets, tokens))))

        def repeated(pool: Value) -> Value:
            held = b(Transpose(b(StateRead(pool, of_token)), (0, 2, 1, 3)))  # [N, Hk, S, D]
            wide = b(Broadcast(b(Reshape(held, (tokens, shared, 1, longest, d))), (tokens, shared, group, longest, d)))
            return b(Reshape(wide, (tokens, heads, longest, d)))

        scores = b(MatMul(b(Reshape(q, (tokens, heads, 1, d))), repeated(keys), transpose_b=True))
        scores = b(Mul(scores, b(scalar(self.scale, q.tensor.dtype))))
        seen = b(Le(b(Iota(longest)), b(Reshape(positions, (tokens, 1, 1, 1)))))
        masked = b(Where(seen, scores, b(scalar(float("-inf"), q.tensor.dtype))))
        return [b(Reshape(b(MatMul(b(Softmax(masked)), repeated(values))), (tokens, heads, d)))]

    def flops(self) -> Dim:
        """Two products over the whole cache length: an upper bound, as the lengths in use are data."""
        longest = self.cache.shape[0]
        return mul(mul(4, self.q.tensor.elements), longest)

    def bytes(self) -> Dim:
        """Queries, outputs, and each sequence's cache once (an upper bound likewise)."""
        longest, shared, d = self.cache.shape
        cached = mul(mul(mul(2, self.slots.shape[0]), longest), mul(mul(shared, d), self.cache.dtype.bytes))
        return add(cached, tensor_bytes(self))


@operation("linear_attention")
class LinearAttention(Composite):
    """Linear attention with a fixed decay for each head (arXiv 2510.19338, eq. 2-4).

    Per segment and head, from the state S in the segment's slot: `S = exp(-slope) S + k^T v; o = scale q S` for each token in turn,
    the new state going back to the slot. q, k, v [N / B, H, D], slopes f32[H] (positive), `state<[P; H, Dk, Dv]>`, slots i32[B],
    offsets i32[B + 1] -> o [N / B, H, D], state. `form` is chosen by the `versions` pass, which also notes the `steepest` slope that the
    operation is run with in any layer: it decides which forms are numerically safe.
    """

    q: Value = operand()
    k: Value = operand()
    v: Value = operand()
    slopes: Value = operand()
    state: Value = operand()
    slots: Value = operand()
    offsets: Value = operand()
    scale: float = attr()
    form: str = attr(default="")
    steepest: float = attr(default=0.0)
    effect = Effect.WRITES_STATE

    def infer(self) -> Sequence[Type]:
        q, v = self.q.tensor, self.v.tensor
        pool = self.state.type
        if not isinstance(pool, StateType):
            self.fail(f"the state is a {pool}")
        self.require(q == self.k.tensor and q.rank == 3 and v.shape[:2] == q.shape[:2], "q, k, v are [N, H, D]")
        self.require(pool.shape == (q.shape[1], q.shape[2], v.shape[2]), f"the state {pool} doesn't fit the heads")
        self.require(v.rank == 3 and v.dtype == q.dtype and v.segments == q.segments, "v doesn't go with q and k")
        slopes = self.slopes.tensor
        self.require(slopes.dtype is DType.F32 and slopes.shape == q.shape[1:2], "needs one slope f32 for each head")
        check_segments(self, self.slots, self.offsets)
        self.require(q.segments == self.slots.shape[0], "the tokens aren't cut into one segment for each slot")
        self.require(self.form in ("", "recurrent", "chunked"), f"there is no form '{self.form}'")
        return [v, pool]

    @property
    def pool(self) -> StateType:
        assert isinstance(self.state.type, StateType)
        return self.state.type

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        q, k, v, slopes, state, slots, offsets = inputs
        _, heads, dk = q.shape
        dv = v.shape[2]
        wide = self.pool.dtype
        decay = b(Reshape(b(Exp(b(Neg(slopes)))), (heads, 1, 1)))
        body = recurrence_body(heads, dk, dv, wide, q.tensor.dtype, self.scale)
        final, o = b.insert(Scan(b(StateRead(state, slots)), (q, k, v), (decay,), offsets, body)).results
        return [o, b(StateWrite(state, slots, final))]

    def flops(self) -> Dim:
        """Of the recurrence: the state's decay, the outer product and its addition, and the read-out."""
        return mul(mul(5, self.q.tensor.elements), self.v.shape[2])

    def bytes(self) -> Dim:
        """Each sequence's state out and in, and the rows of q, k, v and o once."""
        state = mul(product(self.pool.shape), self.pool.dtype.bytes)
        return add(mul(mul(2, self.slots.shape[0]), state), tensor_bytes(self))


def recurrence_body(heads: Dim, dk: Dim, dv: Dim, wide: DType, narrow: DType, scale: float) -> Block:
    """One token of linear attention: (S, q, k, v, decay) -> (S', o)."""
    from ringc.ir.ops.pointwise import Cast

    state = TensorType(wide, (heads, dk, dv))
    row_k, row_v = TensorType(narrow, (heads, dk)), TensorType(narrow, (heads, dv))
    decay = TensorType(DType.F32, (heads, 1, 1))
    body = Block([state, row_k, row_k, row_v, decay], ["S", "q", "k", "v", "decay"])
    b = Builder(body)
    S, q, k, v, lam = body.args

    def widened(x: Value) -> Value:
        return x if x.tensor.dtype == wide else b(Cast(x, wide))

    outer = b(Mul(b(Reshape(widened(k), (heads, dk, 1))), b(Reshape(widened(v), (heads, 1, dv)))))
    new = b(Add(b(Mul(widened(lam), S)), outer))
    scaled = b(Mul(widened(q), b(scalar(scale, wide))))
    o = b(Reshape(b(MatMul(b(Reshape(scaled, (heads, 1, dk))), new)), (heads, dv)))
    body.set_outputs([new, o if narrow == wide else b(Cast(o, narrow))])
    return body
