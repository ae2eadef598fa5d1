"""A random valid instance of every operation. `STRATEGIES` is complete: a test fails for an operation that it lacks."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.call import Alternatives, Call, Fused, Launch
from ringc.ir.ops.index import Gather, Scatter, ScatterAdd, SortByKey, TakeAlong, TopK
from ringc.ir.ops.mixers import Attention, LinearAttention, recurrence_body
from ringc.ir.ops.pointwise import (
    Abs,
    Add,
    And,
    Binary,
    Cast,
    Cos,
    Div,
    Eq,
    Exp,
    FloorDiv,
    Ge,
    Gt,
    Le,
    Log,
    Lt,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Neg,
    Not,
    Or,
    Rsqrt,
    Sigmoid,
    Sin,
    Sqrt,
    Sub,
    Unary,
    Where,
)
from ringc.ir.ops.products import GatherMatMul, MatMul, SegmentMatMul
from ringc.ir.ops.reduce import Max, Mean, Reduction, Sum
from ringc.ir.ops.routing import Route
from ringc.ir.ops.rows import RmsNorm, Rope, Silu, Softmax
from ringc.ir.ops.scan import Scan
from ringc.ir.ops.shape import Broadcast, Concat, Pack, Reshape, Slice, Transpose
from ringc.ir.ops.source import Constant, Iota, Param, SegmentIds, Weight
from ringc.ir.ops.state import StateAppend, StateRead, StateWrite
from ringc.ir.symbols import Dim, Shape, mul, product
from ringc.ir.types import DType, Layout, Quant, StateType, TensorType, Type
from tests.ir.graphs import (
    INTS,
    B,
    Fill,
    Graph,
    M,
    N,
    P,
    S,
    Strategy,
    any_slots,
    below,
    counting,
    distinct_below,
    floats,
    nonzero,
    offsets,
    positive,
    region,
    slots,
)

I32, F32, BOOL = DType.I32, DType.F32, DType.BOOL


# -- arithmetic


def unary(cls: Callable[[Value], Unary], fill: Fill | None = None) -> Strategy:
    def make(g: Graph) -> Op:
        return cls(g.value(g.tensor(), fill))

    return make


def binary(cls: Callable[[Value, Value], Binary], dtypes: tuple[DType, ...] = (), divisor: bool = False) -> Strategy:
    def make(g: Graph) -> Op:
        t = g.tensor(g.pick(*dtypes) if dtypes else g.pick(g.dtype(), *INTS))
        both = [t, g.broadcastable(t)]
        if g.flag():
            both.reverse()
        return cls(g.value(both[0]), g.value(both[1], nonzero(t.dtype) if divisor else None))

    return make


def logical(cls: type[And | Or]) -> Strategy:
    def make(g: Graph) -> Op:
        t = g.tensor(BOOL)
        return cls(g.value(t), g.value(g.broadcastable(t)))

    return make


def where(g: Graph) -> Op:
    t = g.tensor(g.pick(g.dtype(), *INTS, BOOL))
    return Where(g.value(g.broadcastable(t, BOOL)), g.value(t), g.value(g.broadcastable(t)))


def cast(g: Graph) -> Op:
    return Cast(g.value(g.tensor(g.pick(g.dtype(), *INTS, BOOL))), g.pick(g.dtype(), *INTS, BOOL))


# -- moving elements


def reshape(g: Graph) -> Op:
    shape = list(g.shape(1, 4))
    target: list[Dim] = []
    for d in shape:  # split known axes, merge neighbours, add axes of size 1
        if d == 8 and g.flag():
            target += g.pick((2, 4), (4, 2), (2, 2, 2))
        elif target and g.flag():
            target[-1] = mul(target[-1], d)
        else:
            target.append(d)
        if g.integer(0, 4) == 0:
            target.append(1)
    if g.flag():
        shape, target = target, shape
    return Reshape(g.value(TensorType(g.dtype(), tuple(shape))), tuple(target))


def broadcast(g: Graph) -> Op:
    t = g.tensor()
    return Broadcast(g.value(g.broadcastable(t)), t.shape)


def transpose(g: Graph) -> Op:
    t = g.tensor()
    return Transpose(g.value(t), tuple(g.draw(st.permutations(range(t.rank)))))


def slice_(g: Graph) -> Op:
    size = g.integer(1, 9)
    start = g.integer(0, size - 1)
    axis, shape = _with_axis(g, size)
    return Slice(g.value(TensorType(g.dtype(), shape)), axis, start, g.integer(start + 1, size), g.integer(1, 3))


def pack(g: Graph) -> Op:
    t = g.tensor(low=1)
    return Pack(
        g.value(t), tuple((a, g.pick(2, 16)) for a in sorted(g.draw(st.sets(st.integers(0, t.rank - 1), min_size=1))))
    )


def concat(g: Graph) -> Op:
    axis, shape = _with_axis(g, 1)
    dtype = g.dtype()
    parts = [(*shape[:axis], g.pick(1, 2, 5, N), *shape[axis + 1 :]) for _ in range(g.integer(1, 3))]
    return Concat(tuple(g.value(TensorType(dtype, p)) for p in parts), axis)


def _with_axis(g: Graph, size: Dim) -> tuple[int, Shape]:
    shape = g.shape(0, 2)
    axis = g.integer(0, len(shape))
    return axis, (*shape[:axis], size, *shape[axis:])


# -- sources


def param(g: Graph) -> Op:
    name, shape = g.pick(
        ("lm_head.weight", (3, 4)), ('odd "name"\n\\ é', (2,)), ("experts.*.up", (3, 2, 2)), ("bias", ())
    )
    return Param(name, g.dtype(), shape)


def weight(g: Graph) -> Op:
    t = TensorType(g.dtype(), g.pick((), (3,), (4, 2)))
    if g.reuse and g.flag():
        t = TensorType(DType.F8E4M3, (128, 256), None, Quant((128, 128), F32), Layout(((0, 16),)))
    return Weight(g.pick("layers.0.qkv", 'odd "key"'), t)


def constant(g: Graph) -> Op:
    dtype = g.pick(g.dtype(), *INTS, BOOL)
    element = st.booleans() if dtype is BOOL else floats() if dtype.is_float else st.integers(-(2**31), 2**31 - 1)
    shape = g.pick((), (), (1,), (3,), (2, 2))
    count = int(product(shape))
    return Constant(tuple(g.draw(st.lists(element, min_size=count, max_size=count))), dtype, shape)


def iota(g: Graph) -> Op:
    return Iota(g.dim())


def segment_ids(g: Graph) -> Op:
    return SegmentIds(g.value(TensorType(I32, (B + 1,)), offsets(N)), N)


# -- reductions


def reduction(cls: type[Sum | Max | Mean]) -> Strategy:
    def make(g: Graph) -> Op:
        # The largest of no elements is nothing, so the axes of a `max` are known.
        shape = tuple(g.pick(1, 2, 5) for _ in range(g.integer(1, 4))) if cls is not Sum else g.shape(1, 4)
        axes = tuple(sorted(g.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
        if 0 not in axes:
            shape = (g.dim(), *shape[1:])
        dtype = g.dtype() if cls is Mean else g.pick(g.dtype(), *INTS)
        made: Reduction = cls(g.value(TensorType(dtype, shape, g.pick(None, B))), axes, g.flag())
        return made

    return make


# -- positions that are data


def gather(g: Graph) -> Op:
    ids = TensorType(g.pick(*INTS), g.shape(0, 2))
    rows = g.pick(2, 7, M)
    return Gather(g.value(TensorType(g.dtype(), (rows, *g.shape(0, 2)))), g.value(ids, below(rows)))


def take_along(g: Graph) -> Op:
    shape = g.shape(0, 2)
    size = g.pick(2, 7, M)
    return TakeAlong(
        g.value(TensorType(g.dtype(), (*shape, size))), g.value(TensorType(I32, (*shape, g.dim())), below(size))
    )


def scatter(g: Graph) -> Op:
    base = TensorType(g.pick(g.dtype(), BOOL), (*g.shape(0, 2), 7))
    ids = TensorType(I32, (*base.shape[:-1], g.integer(1, 7)))
    return Scatter(g.value(base), g.value(ids, distinct_below(7)), g.value(TensorType(base.dtype, ids.shape)))


def scatter_add(g: Graph) -> Op:
    rows, length = g.dim(), g.pick(2, 7, M)
    return ScatterAdd(
        g.value(TensorType(g.dtype(), (rows, *g.shape(0, 2)))), g.value(TensorType(I32, (rows,)), below(length)), length
    )


def topk(g: Graph) -> Op:
    n = g.integer(1, 8)
    return TopK(g.value(TensorType(g.dtype(), (*g.shape(0, 2), n))), g.integer(1, n))


def sort_by_key(g: Graph) -> Op:
    keys = g.integer(1, 6)
    return SortByKey(g.value(TensorType(I32, (g.dim(),)), below(keys)), keys)


# -- products


def matmul(g: Graph) -> Op:
    dtype, (m, k, n) = g.dtype(), (g.dim(), g.pick(1, 3, 8), g.dim())
    batch, transposed = g.shape(0, 2), g.flag()
    b = (n, k) if transposed else (k, n)
    return MatMul(
        g.value(TensorType(dtype, (*batch, m, k))),
        g.value(TensorType(dtype, g.pick(b, (*batch, *b)))),
        transposed,
        g.pick(None, DType.F32, DType.F64),
    )


def segment_matmul(g: Graph) -> Op:
    experts, dtype = g.integer(1, 4), g.dtype()
    n, k = g.integer(1, 5), g.integer(1, 5)
    return SegmentMatMul(
        g.value(TensorType(dtype, (N, k), experts)),
        g.value(TensorType(dtype, (experts, n, k))),
        g.value(TensorType(I32, (experts + 1,)), offsets(N)),
        g.pick(None, DType.F32),
    )


def gather_matmul(g: Graph) -> Op:
    experts, dtype = g.integer(1, 4), g.dtype()
    n, k, choices = g.integer(1, 5), g.integer(1, 5), g.integer(1, 3)
    return GatherMatMul(
        g.value(TensorType(dtype, g.pick((N, k), (N, choices, k)))),
        g.value(TensorType(dtype, (experts, n, k))),
        g.value(TensorType(I32, (N, choices)), below(experts)),
        g.pick(None, DType.F32),
    )


# -- states


def _pool(g: Graph, rows: bool = False) -> StateType:
    return StateType(g.dtype(), P, (S, *g.pick((), (2,), (2, 3))) if rows else g.pick((), (3,), (2, 2, 3)))


def state_read(g: Graph) -> Op:
    pool = _pool(g)
    return StateRead(g.state(pool), g.value(TensorType(I32, (g.pick(N, B),)), any_slots(P)))


def state_write(g: Graph) -> Op:
    pool = _pool(g)
    return StateWrite(
        g.state(pool), g.value(TensorType(I32, (B,)), slots(P)), g.value(TensorType(pool.dtype, (B, *pool.shape)))
    )


def state_append(g: Graph) -> Op:
    pool = _pool(g, rows=True)
    ids = TensorType(I32, (N,))
    rows = TensorType(pool.dtype, (N, *pool.shape[1:]))
    return StateAppend(g.state(pool), g.value(ids, any_slots(P)), g.value(ids, counting), g.value(rows))


# -- composite operations


def rms_norm(g: Graph) -> Op:
    t = TensorType(g.dtype(), (*g.shape(0, 2), g.pick(1, 5, 8)))
    weight = g.value(TensorType(t.dtype, t.shape[-1:])) if g.flag() else None
    return RmsNorm(g.value(t), weight, g.pick(1e-6, 1e-20, 0.1, 1.0))


def softmax(g: Graph) -> Op:
    return Softmax(g.value(TensorType(g.dtype(), (*g.shape(0, 2), g.pick(1, 5, 8)))))


def rope(g: Graph) -> Op:
    dtype, half = g.dtype(), g.integer(1, 3)
    angles = TensorType(dtype, (N, half))
    x = TensorType(dtype, (N, g.integer(1, 2), 2 * half + g.integer(0, 3)), g.pick(None, B))
    return Rope(g.value(x), g.value(angles), g.value(angles), g.flag())


def route(g: Graph) -> Op:
    groups, each = g.integer(1, 3), g.integer(1, 4)
    keep = g.integer(1, groups)
    logits = TensorType(F32, (N, groups * each))
    return Route(
        g.value(logits),
        g.value(TensorType(F32, (groups * each,))) if g.flag() else None,
        top_k=g.integer(1, keep * each),
        score=g.pick("sigmoid", "softmax"),
        groups=groups,
        keep=keep,
        group_top=g.integer(1, each),
        dropped=g.pick(float("-inf"), 0.0),
        normalize=g.flag(),
        eps=g.pick(1e-20, 0.0, 1e-6),
        factor=g.pick(1.0, 1, 2.5),
    )


def attention(g: Graph) -> Op:
    dtype, shared, d = g.dtype(), g.integer(1, 2), g.integer(1, 4)
    heads = shared * g.integer(1, 3)
    cache = StateType(dtype, P, (S, shared, d))
    return Attention(
        g.value(TensorType(dtype, (N, heads, d), B)),
        g.state(cache),
        g.state(cache),
        g.value(TensorType(I32, (B,)), slots(P)),
        g.value(TensorType(I32, (B + 1,)), offsets(N)),
        g.value(TensorType(I32, (N,), g.pick(None, B)), below(S)),
        g.pick(0.25, 1.0),
    )


def linear_attention(g: Graph) -> Op:
    dtype, heads, dk, dv = g.dtype(), g.integer(1, 3), g.integer(1, 3), g.integer(1, 3)
    qk = TensorType(dtype, (N, heads, dk), B)
    return LinearAttention(
        g.value(qk),
        g.value(qk),
        g.value(TensorType(dtype, (N, heads, dv), B)),
        g.value(TensorType(F32, (heads,)), positive),
        g.state(StateType(g.pick(F32, DType.F64, dtype), P, (heads, dk, dv))),
        g.value(TensorType(I32, (B,)), slots(P)),
        g.value(TensorType(I32, (B + 1,)), offsets(N)),
        g.pick(1.0, 0.125),
        g.pick("", "recurrent", "chunked"),
    )


# -- regions


def scan(g: Graph) -> Op:
    dtype, at = g.dtype(), TensorType(I32, (B + 1,))
    if g.flag():  # a running sum of x * factor, with two outputs a row
        state, row = TensorType(dtype, (B, 2)), TensorType(dtype, (2,))

        def write(body: Block) -> list[Value]:
            s, x, factor = body.args
            scaled = body.insert(Mul(x, factor)).result
            new = body.insert(Add(s, scaled)).result
            return [new, new, scaled]

        body = region([row, row, TensorType(dtype)], write, ["s", "x", "factor"])
        xs = (g.value(TensorType(dtype, (N, 2), B)),)
        return Scan(g.value(state), xs, (g.value(TensorType(dtype)),), g.value(at, offsets(N)), body)
    qk, v = TensorType(dtype, (N, 2, 3), B), TensorType(dtype, (N, 2, 2), B)
    body = recurrence_body(2, 3, 2, F32, dtype, 0.5)
    qkv = (g.value(qk), g.value(qk), g.value(v))
    decay = g.value(TensorType(F32, (2, 1, 1)))
    return Scan(g.value(TensorType(F32, (B, 2, 3, 2))), qkv, (decay,), g.value(at, offsets(N)), body)


def _body(g: Graph, write_state: bool) -> tuple[list[Type], Block]:
    """Something to run: `silu(x) + y` and, if asked for, a pool that the sum is written to."""
    dtype = g.dtype()
    types: list[Type] = [TensorType(dtype, (B, 3)), TensorType(dtype, (3,))]
    if write_state:
        types += [StateType(dtype, P, (3,)), TensorType(I32, (B,))]

    def write(body: Block) -> list[Value]:
        x, y, *rest = body.args
        total = body.insert(Add(body.insert(Mul(x, body.insert(Sigmoid(x)).result)).result, y)).result
        return [total, body.insert(StateWrite(rest[0], rest[1], total)).result] if rest else [total]

    return types, region(types, write, ["x", "y", "", "slots"][: len(types)])


def _arguments(g: Graph, types: list[Type]) -> tuple[Value, ...]:
    """Operands for `_body`; a pool is always a new one, as no pool may be written twice."""
    made = []
    for t in types:
        if isinstance(t, StateType):
            made.append(g.state(t))
        else:
            made.append(g.value(t, slots(P) if t.dtype is I32 else None))
    return tuple(made)


def fused(g: Graph) -> Op:
    if g.integer(0, 3) == 0:  # a scaled value, only passed on
        t = TensorType(
            DType.F8E4M3, (N, 256), quant=Quant((1, 128), F32), layout=g.pick(Layout(), Layout(((1, 16), (0, 4))))
        )
        return Fused((g.value(t),), "row", region([t], lambda body: body.args))
    types, body = _body(g, g.flag())
    return Fused(_arguments(g, types), g.pick("row", "matmul"), body, g.pick("", "tvm.recurrent{lanes=16}"))


def alternatives(g: Graph) -> Op:
    types, body = _body(g, g.flag())
    ways = [body.clone() for _ in range(g.integer(1, 3))]
    return Alternatives(_arguments(g, types), tuple(f"way {i}" for i in range(len(ways))), tuple(ways))


def _function(g: Graph) -> tuple[tuple[Value, ...], str, tuple[Type, ...]]:
    types, body = _body(g, g.flag())
    name = f"f{len(g.bodies)}.body"
    g.bodies[name] = body
    return _arguments(g, types), name, tuple(v.type for v in body.outputs)


def running(cls: type[Call | Launch]) -> Strategy:
    def make(g: Graph) -> Op:
        arguments, name, out = _function(g)
        return cls(arguments, name, out, g.pick((), tuple(range(-1, len(out) - 1))))

    return make


STRATEGIES: dict[str, Strategy] = {
    "abs": unary(Abs),
    "add": binary(Add),
    "alternatives": alternatives,
    "and": logical(And),
    "attention": attention,
    "broadcast": broadcast,
    "call": running(Call),
    "cast": cast,
    "concat": concat,
    "constant": constant,
    "cos": unary(Cos),
    "div": binary(Div, (F32, DType.F64), divisor=True),
    "eq": binary(Eq),
    "exp": unary(Exp),
    "floordiv": binary(FloorDiv, INTS, divisor=True),
    "fused": fused,
    "gather": gather,
    "gather_matmul": gather_matmul,
    "ge": binary(Ge),
    "gt": binary(Gt),
    "iota": iota,
    "launch": running(Launch),
    "le": binary(Le),
    "linear_attention": linear_attention,
    "log": unary(Log, positive),
    "lt": binary(Lt),
    "matmul": matmul,
    "max": reduction(Max),
    "maximum": binary(Maximum),
    "mean": reduction(Mean),
    "minimum": binary(Minimum),
    "mod": binary(Mod, INTS, divisor=True),
    "mul": binary(Mul),
    "neg": unary(Neg),
    "not": lambda g: Not(g.value(g.tensor(BOOL))),
    "or": logical(Or),
    "pack": pack,
    "param": param,
    "reshape": reshape,
    "rms_norm": rms_norm,
    "rope": rope,
    "route": route,
    "rsqrt": unary(Rsqrt, positive),
    "scan": scan,
    "scatter": scatter,
    "scatter_add": scatter_add,
    "segment_ids": segment_ids,
    "segment_matmul": segment_matmul,
    "sigmoid": unary(Sigmoid),
    "silu": unary(Silu),
    "sin": unary(Sin),
    "slice": slice_,
    "softmax": softmax,
    "sort_by_key": sort_by_key,
    "sqrt": unary(Sqrt, positive),
    "state_append": state_append,
    "state_read": state_read,
    "state_write": state_write,
    "sub": binary(Sub),
    "sum": reduction(Sum),
    "take_along": take_along,
    "topk": topk,
    "transpose": transpose,
    "weight": weight,
    "where": where,
}
