"""What each operation means, said a second time: in numpy and plain loops, without a line of `ringc`'s references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ringc.ir.core import Block
from ringc.ir.symbols import evaluate

Array = npt.NDArray[Any]
Meaning = Callable[..., Any]
"""`(op, given, *inputs) -> result or results`, all numpy arrays; floating-point ones in f64."""


@dataclass
class Given:
    """The values of the symbols, the parameters by name, the functions that calls call."""

    sizes: Mapping[str, int]
    parameters: Callable[[str], Array]
    bodies: Mapping[str, Block] = field(default_factory=dict)

    def shape(self, shape: Sequence[Any]) -> tuple[int, ...]:
        return tuple(evaluate(d, self.sizes) for d in shape)


def elementwise(function: Callable[..., Any]) -> Meaning:
    return lambda op, given, *inputs: function(*inputs)


def run_body(body: Block, given: Given, inputs: Sequence[Array]) -> list[Array]:
    """A block, by the meanings of this file."""
    values = dict(zip(body.args, inputs, strict=True))
    for op in body.ops:
        made = MEANINGS[op.name](op, given, *(values[v] for v in op.inputs()))
        values.update(zip(op.results, made if isinstance(made, list | tuple) else [made], strict=True))
    return [values[v] for v in body.outputs]


def cast(op: Any, given: Given, x: Array) -> Array:
    if op.dtype.is_float:
        return x.astype(np.float64)
    if op.dtype.value == "bool":
        return np.not_equal(x, 0)
    return np.trunc(x).astype({"i64": np.int64, "i32": np.int32, "i8": np.int8}[op.dtype.value])


def slice_(op: Any, given: Given, x: Array) -> Array:
    return np.take(x, np.arange(op.start, op.stop, op.step), axis=op.axis)


def param(op: Any, given: Given) -> Array:
    if "*" not in op.source:
        return given.parameters(op.source)
    return np.stack([given.parameters(op.source.replace("*", str(i))) for i in range(op.shape[0])])


def constant(op: Any, given: Given) -> Array:
    kind = np.float64 if op.dtype.is_float else bool if op.dtype.value == "bool" else np.int64
    return np.array(op.value, dtype=kind).reshape(op.shape)


def segment_ids(op: Any, given: Given, offsets: Array) -> Array:
    return np.array([e for e in range(len(offsets) - 1) for _ in range(offsets[e], offsets[e + 1])], dtype=np.int32)


def gather(op: Any, given: Given, x: Array, ids: Array) -> Array:
    made = np.empty((*ids.shape, *x.shape[1:]))
    for at in np.ndindex(ids.shape):
        made[at] = x[ids[at]]
    return made


def take_along(op: Any, given: Given, x: Array, ids: Array) -> Array:
    return np.take_along_axis(x, ids.astype(np.int64), axis=-1)


def scatter(op: Any, given: Given, base: Array, ids: Array, src: Array) -> Array:
    made = base.copy()
    for at in np.ndindex(ids.shape):
        made[(*at[:-1], ids[at])] = src[at]
    return made


def scatter_add(op: Any, given: Given, x: Array, ids: Array) -> Array:
    made = np.zeros(given.shape((op.length, *op.x.shape[1:])))
    for row, place in zip(x, ids, strict=True):
        made[place] += row
    return made


def topk(op: Any, given: Given, x: Array) -> tuple[Array, Array]:
    values, positions = np.empty((*x.shape[:-1], op.k)), np.empty((*x.shape[:-1], op.k), dtype=np.int32)
    for at in np.ndindex(x.shape[:-1]):
        best = sorted(range(x.shape[-1]), key=lambda j: (-x[at][j], j))[: op.k]
        positions[at], values[at] = best, x[at][best]
    return values, positions


def sort_by_key(op: Any, given: Given, keys: Array) -> tuple[Array, Array, Array]:
    rows = sorted(range(len(keys)), key=lambda r: keys[r])
    offsets = [sum(1 for k in keys if k < e) for e in range(op.num_keys + 1)]
    return (
        np.array(rows, dtype=np.int32),
        np.array(offsets),
        np.array([rows.index(r) for r in range(len(keys))], dtype=np.int32),
    )


def matmul(op: Any, given: Given, a: Array, b: Array) -> Array:
    spec = "...nk" if op.transpose_b else "...kn"
    made: Array = np.einsum(f"...mk,{spec}->...mn", a, b)
    return made


def segment_matmul(op: Any, given: Given, x: Array, w: Array, offsets: Array) -> Array:
    owner = segment_ids(op, given, offsets)
    made = np.empty((len(x), w.shape[1]))
    for r, e in enumerate(owner):
        made[r] = w[e] @ x[r]
    return made


def gather_matmul(op: Any, given: Given, x: Array, w: Array, ids: Array) -> Array:
    made = np.empty((*ids.shape, w.shape[1]))
    for n, j in np.ndindex(*ids.shape):
        made[n, j] = w[ids[n, j]] @ (x[n, j] if x.ndim == 3 else x[n])
    return made


def state_read(op: Any, given: Given, state: Array, slots: Array) -> Array:
    return np.array([state[s] if s >= 0 else np.zeros(state.shape[1:]) for s in slots]).reshape(
        len(slots), *state.shape[1:]
    )


def state_write(op: Any, given: Given, state: Array, slots: Array, content: Array) -> Array:
    made = state.copy()
    for s, c in zip(slots, content, strict=True):
        if s >= 0:
            made[s] = c
    return made


def state_append(op: Any, given: Given, state: Array, slots: Array, positions: Array, rows: Array) -> Array:
    made = state.copy()
    for s, p, row in zip(slots, positions, rows, strict=True):
        if s >= 0:
            made[s, p] = row
    return made


def rms_norm(op: Any, given: Given, x: Array, weight: Array | None = None) -> Array:
    made: Array = x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + op.eps)
    return made if weight is None else made * weight


def softmax(op: Any, given: Given, x: Array) -> Array:
    made: Array = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return made


def rope(op: Any, given: Given, x: Array, cos: Array, sin: Array) -> Array:
    """A rotation of complex numbers, pair by pair."""
    made, half = x.copy(), cos.shape[1]
    for n, h, j in np.ndindex(x.shape[0], x.shape[1], half):
        first, second = (2 * j, 2 * j + 1) if op.interleaved else (j, j + half)
        turned = complex(x[n, h, first], x[n, h, second]) * complex(cos[n, j], sin[n, j])
        made[n, h, first], made[n, h, second] = turned.real, turned.imag
    return made


def route(op: Any, given: Given, logits: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """Group-limited top-k, token by token in plain Python."""
    count = logits.shape[1]
    each = count // op.groups
    ids, weights = np.empty((len(logits), op.top_k), dtype=np.int32), np.empty((len(logits), op.top_k))
    for token, row in enumerate(logits):
        p = [1 / (1 + math.exp(-x)) for x in row]
        if op.score == "softmax":
            p = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        b = p if bias is None else [x + y for x, y in zip(p, bias, strict=True)]
        groups = [b[i * each : (i + 1) * each] for i in range(op.groups)]
        score = [sum(sorted(group, reverse=True)[: op.group_top]) for group in groups]
        best = sorted(range(op.groups), key=lambda i: (-score[i], i))[: op.keep]
        if op.keep < op.groups:
            b = [x if e // each in best else op.dropped for e, x in enumerate(b)]
        chosen = sorted(range(count), key=lambda e: (-b[e], e))[: op.top_k]
        total = sum(p[e] for e in chosen) + op.eps if op.normalize else 1.0
        ids[token], weights[token] = chosen, [op.factor * p[e] / total for e in chosen]
    return ids, weights


def attention(
    op: Any, given: Given, q: Array, keys: Array, values: Array, slots: Array, offsets: Array, positions: Array
) -> Array:
    made = np.empty_like(q)
    group = q.shape[1] // keys.shape[2]
    for b, slot in enumerate(slots):
        for t, h in itertools.product(range(offsets[b], offsets[b + 1]), range(q.shape[1])):
            seen = range(positions[t] + 1)
            if slot < 0:  # nobody's slot reads as zeros
                made[t, h] = 0
                continue
            weight = [math.exp(op.scale * float(q[t, h] @ keys[slot, s, h // group])) for s in seen]
            made[t, h] = sum(w * values[slot, s, h // group] for w, s in zip(weight, seen, strict=True)) / sum(weight)
    return made


def linear_attention(
    op: Any, given: Given, q: Array, k: Array, v: Array, slopes: Array, state: Array, slots: Array, offsets: Array
) -> tuple[Array, Array]:
    """The parallel form: every token looks back at all earlier ones and at the initial state, with the decay of the distance."""
    o, pool = np.empty_like(v), state.copy()
    for b, slot in enumerate(slots):
        start, stop = offsets[b], offsets[b + 1]
        for h, slope in enumerate(slopes):
            initial = state[slot, h] if slot >= 0 else np.zeros(state.shape[2:])
            for t in range(start, stop):
                o[t, h] = q[t, h] @ initial * math.exp(-slope * (t - start + 1))
                for s in range(start, t + 1):
                    o[t, h] += math.exp(-slope * (t - s)) * (q[t, h] @ k[s, h]) * v[s, h]
                o[t, h] *= op.scale
            final = initial * math.exp(-slope * (stop - start))
            for s in range(start, stop):
                final = final + math.exp(-slope * (stop - 1 - s)) * np.outer(k[s, h], v[s, h])
            if slot >= 0:
                pool[slot, h] = final
    return o, pool


def scan(op: Any, given: Given, initial: Array, *rest: Array) -> list[Array]:
    count = len(op.xs)
    xs, constants, offsets = rest[:count], rest[count:-1], rest[-1]
    final, ys = initial.copy(), [np.empty(given.shape(r.shape)) for r in op.results[1:]]
    for t, b in enumerate(segment_ids(op, given, offsets)):
        final[b], *row = run_body(op.body, given, [final[b], *(x[t] for x in xs), *constants])
        for y, value in zip(ys, row, strict=True):
            y[t] = value
    return [final, *ys]


def reduction(function: Callable[..., Any]) -> Meaning:
    return lambda op, given, x: function(x, axis=op.axes, keepdims=op.keep)


MEANINGS: dict[str, Meaning] = {
    "abs": elementwise(np.abs),
    "add": elementwise(np.add),
    "alternatives": lambda op, given, *inputs: run_body(op.ways[0], given, inputs),
    "and": elementwise(np.logical_and),
    "attention": attention,
    "broadcast": lambda op, given, x: np.broadcast_to(x, given.shape(op.shape)),
    "call": lambda op, given, *inputs: run_body(given.bodies[op.callee], given, inputs),
    "cast": cast,
    "concat": lambda op, given, *parts: np.concatenate(parts, op.axis),
    "constant": constant,
    "cos": elementwise(np.cos),
    "div": elementwise(np.true_divide),
    "eq": elementwise(np.equal),
    "exp": elementwise(np.exp),
    "floordiv": elementwise(np.floor_divide),
    "fused": lambda op, given, *inputs: run_body(op.body, given, inputs),
    "gather": gather,
    "gather_matmul": gather_matmul,
    "ge": elementwise(np.greater_equal),
    "gt": elementwise(np.greater),
    "iota": lambda op, given: np.arange(*given.shape((op.length,))),
    "launch": lambda op, given, *inputs: run_body(given.bodies[op.kernel], given, inputs),
    "le": elementwise(np.less_equal),
    "linear_attention": linear_attention,
    "log": elementwise(np.log),
    "lt": elementwise(np.less),
    "matmul": matmul,
    "max": reduction(np.max),
    "maximum": elementwise(np.maximum),
    "mean": reduction(np.mean),
    "minimum": elementwise(np.minimum),
    "mod": elementwise(lambda a, b: a - b * np.floor(a / b).astype(a.dtype)),
    "mul": elementwise(np.multiply),
    "neg": elementwise(np.negative),
    "not": elementwise(np.logical_not),
    "or": elementwise(np.logical_or),
    "pack": lambda op, given, x: x,
    "param": param,
    "reshape": lambda op, given, x: x.reshape(given.shape(op.shape)),
    "rms_norm": rms_norm,
    "rope": rope,
    "route": route,
    "rsqrt": elementwise(lambda x: x**-0.5),
    "scan": scan,
    "scatter": scatter,
    "scatter_add": scatter_add,
    "segment_ids": segment_ids,
    "segment_matmul": segment_matmul,
    "sigmoid": elementwise(lambda x: 1 / (1 + np.exp(-x))),
    "silu": elementwise(lambda x: x / (1 + np.exp(-x))),
    "sin": elementwise(np.sin),
    "slice": slice_,
    "softmax": softmax,
    "sort_by_key": sort_by_key,
    "sqrt": elementwise(np.sqrt),
    "state_append": state_append,
    "state_read": state_read,
    "state_write": state_write,
    "sub": elementwise(np.subtract),
    "sum": reduction(np.sum),
    "take_along": take_along,
    "topk": topk,
    "transpose": lambda op, given, x: np.transpose(x, op.axes),
    "weight": lambda op, given: given.parameters(op.key),
    "where": elementwise(np.where),
}
