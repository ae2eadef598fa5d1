"""From a spec to a graph: the decomposed program of each entry point.

Nothing is fused here: attention is products, a mask and a softmax over the cache, linear attention a scan, routing a chain of sorts and
sums. Tokens of all sequences of a batch are packed end to end (`N` rows in `B` segments), so every operation that doesn't mix tokens is
a plain operation on rows.

Entry points, with `P` slots in each pool and caches of `S` rows:

* `prefill(ids [N], positions [N], slots [B], offsets [B + 1], rows [R], row_offsets [B + 1], states...)
  -> logits [R, vocabulary], states...`
  runs any number of tokens of each sequence, after those that its slot holds. `rows` are the tokens whose logits are wanted, sequence by
  sequence; those of each begin at `row_offsets`. Of the last layer nothing reads the other tokens' rows, but for what is kept of them in
  states: what stands behind the gate of linear attention, or behind the queries of softmax attention, is made for the wanted rows alone.
* `decode(ids [N], positions [N], slots [B], offsets [B + 1], states...) -> logits [N, vocabulary], states...`
  is the same for one token of each sequence: it is called with N = B, and its versions count on that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ringc.errors import SpecError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.composite import expand
from ringc.ir.ops.index import Gather, SortByKey
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.pointwise import Add, Cast, Cos, FloorDiv, Mul, Sigmoid, Sin
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.routing import Route
from ringc.ir.ops.rows import RmsNorm, Rope, Silu
from ringc.ir.ops.shape import Reshape, Slice
from ringc.ir.ops.source import Constant, Param, SegmentIds, scalar
from ringc.ir.ops.state import StateAppend
from ringc.ir.symbols import Bound, Dim, mul, symbol
from ringc.ir.types import DType, StateType, TensorType
from ringc.model_defs.spec import Spec


def lower(spec: Spec, storage: DType) -> Module:
    """The decomposed module of a spec, with `storage` as the type of weights and activations (f32 on a CPU, bf16 on a GPU).

    Of the spec's `precision` points, those inside a kernel (norm weight, rope, gate, query scale) are in f32 whatever they say: `model`
    allows rounding there, and asks for none.

    Raises:
        SpecError: the spec asks for something that is not compiled yet.
    """
    if spec.fp8 is not None:
        raise SpecError("block-scaled FP8 products are not compiled yet", help="set `fp8: null`")
    module = Module(spec.name, bounds={n: Bound() for n in "NBPSR"})
    for entry in ("prefill", "decode"):
        module.add(_Entry(spec, storage, entry).function())
    return module


def state_types(spec: Spec, storage: DType) -> dict[str, StateType]:
    """The pools of a model by name: `layers.3.state`, or `layers.4.keys` and `layers.4.values`."""
    P, S = symbol("P"), symbol("S")
    found: dict[str, StateType] = {}
    for i in range(spec.layers.count):
        if spec.layer_kind(i) == "linear":
            assert spec.linear is not None
            dtype = DType.F32 if spec.linear.state_dtype == "fp32" else storage
            found[f"layers.{i}.state"] = StateType(dtype, P, (spec.heads, spec.head_dim, spec.head_dim))
        else:
            for part in ("keys", "values"):
                found[f"layers.{i}.{part}"] = StateType(storage, P, (S, spec.kv_heads(i), spec.head_dim))
    return found


@dataclass(frozen=True)
class _Tokens:
    """What every layer asks about the tokens."""

    slots: Value
    offsets: Value
    positions: Value
    of_token: Value
    cos: Value
    sin: Value


class _Entry:
    """Writes one entry point."""

    def __init__(self, spec: Spec, storage: DType, entry: str) -> None:
        self.spec = spec
        self.entry = entry
        self.act = storage
        self.residual = DType.F32 if spec.precision.residual == "fp32" else storage
        self.turning = DType.F32 if spec.precision.rope == "fp32" else storage
        B = symbol("B")
        self.rows: Dim = symbol("N")
        token = TensorType(DType.I32, (self.rows,), segments=B)
        one = TensorType(DType.I32, (B,))
        names = {"ids": token, "positions": token, "slots": one, "offsets": TensorType(DType.I32, (B + 1,))}
        if entry == "prefill":
            names["rows"] = TensorType(DType.I32, (symbol("R"),), segments=B)
            names["row_offsets"] = TensorType(DType.I32, (B + 1,))
        self.pools = state_types(spec, storage)
        self.block = Block([*names.values(), *self.pools.values()], [*names, *self.pools])
        self.args = {a.name: a for a in self.block.args}
        self.states = {name: self.args[name] for name in self.pools}
        self.b = Builder(self.block)

    def function(self) -> Function:
        spec, b = self.spec, self.b
        with b.within("embed"):
            tokens = self.tokens()
            table = self.param("model.word_embeddings.weight", spec.vocabulary.size, spec.hidden)
            x = b(Gather(table, self.args["ids"]), "x")
            x = self.cast(x, self.residual)
        for i in range(spec.layers.count):
            x = self.layer(i, x, tokens)
        with b.within("head"):
            logits = self.head(x)
        self.block.set_outputs([logits, *self.states.values()])
        return Function(self.entry, self.block, entry=self.entry)

    # -- small helpers

    def param(self, name: str, *shape: int, dtype: DType | None = None) -> Value:
        return self.b(Param(name, dtype or self.act, shape), name.removeprefix("model.").replace("*", "all"))

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.tensor.dtype == dtype else self.b(Cast(x, dtype))

    def rounded(self, x: Value, precision: str) -> Value:
        """The value, rounded to the activations' type where the spec says so."""
        return x if precision == "fp32" else self.cast(self.cast(x, self.act), x.tensor.dtype)

    def linear(self, x: Value, weight: Value, out: DType | None = None) -> Value:
        return self.b(MatMul(x, weight, transpose_b=True, out=out))

    def expand(self, op: Op) -> Value:
        (value,) = expand(self.b, op)
        return value

    def norm(self, x: Value, name: str) -> Value:
        """RMSNorm in the residual's type, given back in the activations'."""
        weight = self.param(name, int(x.shape[-1]), dtype=self.residual)
        return self.cast(self.expand(RmsNorm(x, weight, self.spec.norm_eps)), self.act)

    def tokens(self) -> _Tokens:
        """Masks and angles, the same for all layers."""
        b, rope = self.b, self.spec.rope
        slots, offsets, positions = (self.args[n] for n in ("slots", "offsets", "positions"))
        of_token = b(Gather(slots, b(SegmentIds(offsets, self.rows))), "slot_of_token")
        frequencies = b(Constant(rope.frequencies, DType.F32, (1, len(rope.frequencies))), "frequencies")
        angle = b(Mul(b(Reshape(b(Cast(positions, DType.F32)), (self.rows, 1))), frequencies))
        turned: list[Value] = []
        for function, name in ((Cos, "cos"), (Sin, "sin")):
            value = b(function(angle))
            if rope.amplitude != 1.0:
                value = b(Mul(value, b(scalar(rope.amplitude, DType.F32))))
            turned.append(self.cast(value, self.turning))
            turned[-1].name = name
        return _Tokens(slots, offsets, positions, of_token, *turned)

    # -- layers

    def layer(self, i: int, x: Value, tokens: _Tokens) -> Value:
        spec, b = self.spec, self.b
        mixer, mlp = spec.layer_kind(i), spec.mlp_kind(i)
        narrows = self.entry == "prefill" and i == spec.layers.count - 1
        with b.within(f"layers.{i}.{mixer}" if narrows else f"layers.{i}.{mixer}_{mlp}"):
            normed = self.norm(x, f"model.layers.{i}.input_layernorm.weight")
            mixed = (self.linear_attention if mixer == "linear" else self.queries)(i, normed, tokens)
            if narrows:
                x, mixed, tokens = self.wanted(x, mixed, tokens)
        with b.within(f"layers.{i}.wanted_{mlp}" if narrows else f"layers.{i}.{mixer}_{mlp}"):
            if mixer == "softmax":
                mixed = self.softmax_attention(i, mixed, tokens)
            return self.behind_mixer(i, x, mixed)

    def wanted(self, x: Value, mixed: Value, tokens: _Tokens) -> tuple[Value, Value, _Tokens]:
        """The same of the wanted rows alone, which are `self.rows` from here on. Nothing is appended to a cache of them."""
        rows, offsets = self.args["rows"], self.args["row_offsets"]
        self.rows = rows.shape[0]
        positions = self.b(Gather(tokens.positions, rows), "positions")
        taken, mixed = (self.b(Gather(value, rows), value.name) for value in (x, mixed))
        return taken, mixed, replace(tokens, offsets=offsets, positions=positions)

    def behind_mixer(self, i: int, x: Value, mixed: Value) -> Value:
        """The residual, with what a layer makes of its mixer's rows [N, width] added: the output product, and the MLP behind it."""
        spec, name = self.spec, f"model.layers.{i}"
        made = self.linear(mixed, self.param(f"{name}.attention.dense.weight", spec.hidden, spec.attention_width))
        x = self.b(Add(x, self.cast(made, self.residual)))
        normed = self.norm(x, f"{name}.post_attention_layernorm.weight")
        dense = spec.mlp_kind(i) == "dense"
        made = self.swiglu(f"{name}.mlp", normed, spec.mlp.width) if dense else self.experts(f"{name}.mlp", normed)
        return self.b(Add(x, self.cast(made, self.residual)), "x")

    def qkv(self, i: int, x: Value, tokens: _Tokens) -> tuple[Value, Value, Value]:
        """Queries, keys and values by heads, normed and turned."""
        spec, b = self.spec, self.b
        heads, shared, d = spec.heads, spec.kv_heads(i), spec.head_dim
        name = f"model.layers.{i}.attention"
        every = heads + 2 * shared
        flat = self.linear(x, self.param(f"{name}.query_key_value.weight", every * d, spec.hidden))
        by_head = b(Reshape(flat, (self.rows, every, d)))
        if spec.layer_kind(i) == "linear" and spec.linear is not None and spec.linear.silu:
            by_head = self.expand(Silu(by_head))
        q = b(Slice(by_head, 1, 0, heads))
        k = b(Slice(by_head, 1, heads, heads + shared))
        v = b(Slice(by_head, 1, heads + shared, every), "v")
        turned: list[Value] = []
        for value, which in ((q, "query"), (k, "key")):
            if spec.qk_norm:
                weight = self.param(f"{name}.{which}_layernorm.weight", d)
                value = self.expand(RmsNorm(value, weight, spec.norm_eps))
            wide = self.cast(value, self.turning)
            wide = self.expand(Rope(wide, tokens.cos, tokens.sin, interleaved=spec.rope.pairing == "interleaved"))
            turned.append(self.cast(wide, self.act))
            turned[-1].name = which[0]
        if spec.layer_kind(i) == "linear" and spec.precision.linear_inputs == "fp32":
            return self.cast(turned[0], DType.F32), self.cast(turned[1], DType.F32), self.cast(v, DType.F32)
        return turned[0], turned[1], v

    def linear_attention(self, i: int, x: Value, tokens: _Tokens) -> Value:
        """What linear attention hands to the output product: [N, width], normed by groups and gated."""
        spec, b = self.spec, self.b
        assert spec.linear is not None
        heads, d, width = spec.heads, spec.head_dim, spec.attention_width
        name = f"model.layers.{i}.attention"
        q, k, v = self.qkv(i, x, tokens)
        slopes = b(Constant(spec.slopes(i), DType.F32, (heads,)), "slopes")
        pool = f"layers.{i}.state"
        attended = LinearAttention(q, k, v, slopes, self.states[pool], tokens.slots, tokens.offsets, scale=d**-0.5)
        o, self.states[pool] = expand(b, attended)
        groups = spec.linear.norm_groups
        normed = self.expand(RmsNorm(b(Reshape(o, (self.rows, groups, width // groups))), None, spec.norm_eps))
        normed = self.cast(b(Reshape(normed, (self.rows, width))), self.act)
        normed = b(Mul(normed, self.param(f"{name}.g_norm.weight", width)))
        if spec.linear.gate == "sigmoid":
            gate = self.linear(x, self.param(f"{name}.g_proj.weight", width, spec.hidden))
            normed = b(Mul(normed, b(Sigmoid(gate))))
        return normed

    def queries(self, i: int, x: Value, tokens: _Tokens) -> Value:
        """Queries of softmax attention [N, H, D]; keys and values go to their caches."""
        q, k, v = self.qkv(i, x, tokens)
        for part, rows in (("keys", k), ("values", v)):
            pool = f"layers.{i}.{part}"
            self.states[pool] = self.b(StateAppend(self.states[pool], tokens.of_token, tokens.positions, rows))
        return q

    def softmax_attention(self, i: int, q: Value, tokens: _Tokens) -> Value:
        """What softmax attention hands to the output product: [N, width]."""
        keys, values = self.states[f"layers.{i}.keys"], self.states[f"layers.{i}.values"]
        scale = self.spec.head_dim**-0.5
        o = self.expand(Attention(q, keys, values, tokens.slots, tokens.offsets, tokens.positions, scale=scale))
        return self.b(Reshape(o, (self.rows, self.spec.attention_width)))

    def swiglu(self, name: str, x: Value, width: int) -> Value:
        gate = self.linear(x, self.param(f"{name}.gate_proj.weight", width, self.spec.hidden))
        up = self.linear(x, self.param(f"{name}.up_proj.weight", width, self.spec.hidden))
        activated = self.b(Mul(self.expand(Silu(gate)), up))
        return self.linear(activated, self.param(f"{name}.down_proj.weight", self.spec.hidden, width))

    def experts(self, name: str, x: Value) -> Value:
        """Mixture of experts: route, sort the (token, expert) pairs by expert, three products, put together again."""
        spec, b = self.spec, self.b
        moe = spec.moe
        assert moe is not None
        experts, k, width, hidden, rows = moe.experts, moe.top_k, moe.width, spec.hidden, self.rows
        ids, weights = self.route(name, x)
        order, offsets, places = b.insert(SortByKey(b(Reshape(ids, (mul(rows, k),))), experts)).results
        token = b(FloorDiv(order, b(scalar(k, DType.I32))), "token")
        taken = b(Gather(x, token))

        def product(rows: Value, part: str, n: int, m: int) -> Value:
            return b(SegmentMatMul(rows, self.param(f"{name}.experts.*.{part}.weight", experts, n, m), offsets))

        gate, up = (product(taken, part, width, hidden) for part in ("gate_proj", "up_proj"))
        activated = b(Mul(self.expand(Silu(gate)), up))
        before = moe.router.weight_position == "before_down"
        if before:
            sorted_weights = b(Gather(b(Reshape(weights, (mul(rows, k),))), order))
            weighted = b(Mul(self.cast(activated, DType.F32), b(Reshape(sorted_weights, (mul(rows, k), 1)))))
            activated = self.cast(weighted, self.act)
        made = b(Gather(product(activated, "down_proj", hidden, width), places))
        made = b(Reshape(made, (rows, k, hidden)))
        made = self.cast(made, DType.F32)
        if not before:
            made = b(Mul(made, b(Reshape(weights, (rows, k, 1)))))
        total = b(Sum(made, axes=(1,)))
        if moe.router.scale_position == "sum" and moe.router.scale != 1.0:
            total = b(Mul(total, b(scalar(moe.router.scale, DType.F32))))
        total = self.cast(total, self.act)
        if moe.total_shared_width:
            total = b(Add(total, self.swiglu(f"{name}.shared_experts", x, moe.total_shared_width)))
        return total

    def route(self, name: str, x: Value) -> tuple[Value, Value]:
        moe = self.spec.moe
        assert moe is not None
        router, groups = moe.router, moe.groups
        weight = self.param(f"{name}.gate.weight", moe.experts, self.spec.hidden)
        logits = self.linear(x, weight, DType.F32)
        logits = self.rounded(logits, router.logits_dtype if router.dtype == "fp32" else router.dtype)
        bias = self.param(f"{name}.gate.expert_bias", moe.experts, dtype=DType.F32) if router.bias else None
        chain = Route(
            logits,
            bias,
            top_k=moe.top_k,
            score=router.score,
            groups=groups.count if groups else 1,
            keep=groups.keep if groups else 1,
            group_top=groups.score_top if groups else 1,
            dropped=float(groups.mask) if groups else float("-inf"),
            normalize=router.normalize,
            eps=router.eps,
            factor=router.scale if router.scale_position == "weights" else 1.0,
        )
        ids, weights = expand(self.b, chain)
        weights = self.rounded(weights, router.weights_dtype)
        ids.name, weights.name = "experts", "weights"
        return ids, weights

    def head(self, x: Value) -> Value:
        spec = self.spec
        normed = self.norm(x, "model.norm.weight")
        table = "model.word_embeddings.weight" if spec.head.tied else "lm_head.weight"
        weight = self.param(table, spec.vocabulary.size, spec.hidden)
        out = DType.F32 if spec.head.dtype == "fp32" else None
        return self.cast(self.linear(normed, weight, out), DType.F32)
