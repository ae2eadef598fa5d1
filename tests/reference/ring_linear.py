"""The Ring-linear model family in plain PyTorch: the oracle for whole-model tests.

One sequence at a time, cache in and cache out, in the dtype of the weights (float64 unless asked otherwise). Nothing here is fast and
nothing is shared with ringc: where both agree, they agree by two routes. Weight names and shapes are those of the published
checkpoints, so one dictionary serves this module, a safetensors file and ringc.

Shapes use T tokens, h hidden size, H query heads, Hk key/value heads, D head size, E experts, k experts a token, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
LayerState = Tensor | tuple[Tensor, Tensor]
"""A linear layer's S [H, D, D] (first index of the key, second of the value) or a softmax layer's (k, v), each [S, Hk, D]."""

LayerFactor = Literal["serving", "hf", "mlx"]


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """One architecture.

    Fields that a published config.json has carry its names; the rest are points that implementations disagree on. The
    defaults make a small model in which every feature is on.
    """

    vocab_size: int = 97
    hidden_size: int = 48
    intermediate_size: int = 80
    moe_intermediate_size: int = 24
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    layer_group_size: int = 3
    """A group is layer_group_size - 1 linear layers, then a softmax one; 1 makes every layer softmax."""
    tail_layers: Literal["softmax", "linear"] = "softmax"
    """What the layers after the last whole group are."""
    group_norm_size: int = 2
    """Number of groups (not their size) of the norm after linear attention."""
    rotary_dim: int = 8
    """Leading dimensions of a head that are rotated; 0 for none."""
    rope_pairing: Literal["half", "interleaved"] = "half"
    """Which two dimensions turn together: (j, j + rotary_dim / 2), or (2j, 2j + 1)."""
    rope_theta: float = 1e4
    use_qk_norm: bool = True
    linear_silu: bool = False
    """SiLU on q, k and v of linear layers, before their norm."""
    layer_factor: LayerFactor = "serving"
    decay_eps: float = 1e-5
    slopes: tuple[tuple[float, ...], ...] | None = None
    """Any other decay law: -log of the decay a token, [layer][head]. Overrides layer_factor and decay_eps."""
    num_experts: int = 8
    """0 makes every layer dense."""
    num_experts_per_tok: int = 2
    num_shared_experts: int = 1
    n_group: int = 4
    topk_group: int = 2
    masked_score: float = -math.inf
    """The biased score that experts of a dropped group are given: -inf, or 0 in some engines."""
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    routing_weight: Literal["before_down", "after_down"] = "after_down"
    """Where an expert's weight enters: equal in exact arithmetic, rounded differently."""
    first_k_dense_replace: int = 1
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        width = heads * self.head_dim
        rules = {
            "num_attention_heads is a multiple of num_key_value_heads": heads % kv_heads == 0,
            "group_norm_size divides num_attention_heads * head_dim": width % self.group_norm_size == 0,
            "rotary_dim is even and at most head_dim": self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            "n_group divides num_experts": self.num_experts % self.n_group == 0,
            "the kept groups hold num_experts_per_tok experts": not self.num_experts
            or self.topk_group * (self.num_experts // self.n_group) >= self.num_experts_per_tok,
            "slopes has a row for each layer": self.slopes is None or len(self.slopes) == self.num_hidden_layers,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError("; ".join(f"must hold: {rule}" for rule in broken))

    def is_softmax(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) is softmax attention."""
        group = self.layer_group_size
        in_tail = layer >= self.num_hidden_layers // group * group
        return self.tail_layers == "softmax" if in_tail else (layer + 1) % group == 0

    def is_dense(self, layer: int) -> bool:
        """Whether layer `layer` has one MLP in place of experts."""
        return self.num_experts == 0 or layer < self.first_k_dense_replace


@dataclass(frozen=True)
class Cache:
    """The state of one sequence after `length` tokens, one entry a layer."""

    layers: tuple[LayerState, ...]
    length: int


@dataclass(frozen=True)
class Routing:
    """What a layer's router chose: expert ids [T, k] in falling order of score, their weights [T, k], and the margin [T].

    The margin is the smallest gap between a score that was taken and one that was not, over the choice of groups and the choice of
    experts: the choice is the same for any scores that differ by less than half of it (groups: a quarter). `own` are the ids that the
    router itself chooses: `ids`, unless these are replayed.
    """

    ids: Tensor
    weights: Tensor
    margin: Tensor
    own: Tensor


@dataclass(frozen=True)
class Output:
    """Logits [T, V], the cache to go on from, and the routing of each layer that has experts."""

    logits: Tensor
    cache: Cache
    routing: dict[int, Routing] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """The smallest routing margin of any token in any layer; inf for a dense model."""
        return min((float(r.margin.min()) for r in self.routing.values()), default=math.inf)

    @property
    def replay_ids(self) -> dict[int, Tensor]:
        """The ids chosen in each layer, as `forward(replay_ids=...)` takes them."""
        return {layer: r.ids for layer, r in self.routing.items()}


# ---------------------------------------------------------------- norms, positions, decay


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def group_rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """`rms_norm` in each of `groups` equal runs of channels; the weight is as wide as x."""
    y: Tensor = x.unflatten(-1, (groups, -1))
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2) * weight


def rope(config: RingConfig, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the first `rotary_dim` dimensions of x [T, H, D] by the angles position * theta^(-2j / rotary_dim)."""
    r = config.rotary_dim
    frequency = config.rope_theta ** (-torch.arange(0, r, 2, dtype=torch.float64) / max(r, 1))
    angle = positions.to(torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
    turned, rest = x[..., :r], x[..., r:]
    if config.rope_pairing == "half":
        a, b = turned[..., : r // 2], turned[..., r // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    a, b = turned[..., 0::2], turned[..., 1::2]
    return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)


def head_slopes(heads: int) -> list[float]:
    """2^(-8 (j + 1) / heads) for head j in 0..heads-1.

    A head count that isn't a power of two takes the lower power's slopes, then every other one of the upper power's.
    """
    power = 2 ** int(math.log2(heads))
    own = [2.0 ** (-8 * (j + 1) / power) for j in range(power)]
    return own + head_slopes(2 * power)[0::2][: heads - power] if power < heads else own


def layer_slopes(config: RingConfig, layer: int) -> Tensor:
    """-log of the decay a token, for each head of layer `layer`: [H], float64, positive."""
    if config.slopes is not None:
        return torch.tensor(config.slopes[layer], dtype=torch.float64)
    position = {"serving": layer, "hf": layer - 1, "mlx": max(0, layer - 1)}[config.layer_factor]
    factor = 1 - position / max(1, config.num_hidden_layers - 1) + config.decay_eps
    return torch.tensor(head_slopes(config.num_attention_heads), dtype=torch.float64) * factor


# ---------------------------------------------------------------- attention


def linear_attention_recurrent(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(-slope) S_{t-1} + k_t^T v_t,  o_t = D^-1/2 q_t S_t, token by token.

    Args:
        q, k, v: [T, H, D].
        slopes: [H].
        state: S_0, [H, D, D].

    Returns:
        o [T, H, D] and the last state.
    """
    decay = torch.exp(-slopes)[:, None, None]
    q = q * q.shape[-1] ** -0.5
    out = torch.empty_like(v)
    for t in range(q.shape[0]):
        state = decay * state + k[t][:, :, None] * v[t][:, None, :]
        out[t] = torch.einsum("hk,hkv->hv", q[t], state)
    return out, state


def linear_attention_chunked(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """The same function in blocks of `chunk` tokens: matrix products inside a block, one state update a block."""
    q = q * q.shape[-1] ** -0.5
    slope = slopes[:, None, None]
    out = []
    for qc, kc, vc in zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True):
        qh, kh, vh = (x.transpose(0, 1) for x in (qc, kc, vc))  # [H, b, D]
        j = torch.arange(qh.shape[1], dtype=q.dtype)
        distance = j[:, None] - j[None, :]
        within = torch.exp(-slope * distance.clamp(min=0)).tril()
        from_block = (qh @ kh.transpose(1, 2) * within) @ vh
        from_state = torch.exp(-slope * (j[:, None] + 1)) * (qh @ state)
        to_end = torch.exp(-slope * (len(j) - 1 - j)[:, None])
        state = torch.exp(-slope * len(j)) * state + (kh * to_end).transpose(1, 2) @ vh
        out.append((from_block + from_state).transpose(0, 1))
    return torch.cat(out), state


def _qkv(
    config: RingConfig, p: Weights, x: Tensor, positions: Tensor, *, linear: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Project, split by heads into [all q | all k | all v], norm each head of q and k, rotate."""
    heads = config.num_attention_heads
    kv_heads = heads if linear else config.num_key_value_heads
    qkv = (x @ p["query_key_value.weight"].T).unflatten(-1, (heads + 2 * kv_heads, config.head_dim))
    if linear and config.linear_silu:
        qkv = F.silu(qkv)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], -2)
    if config.use_qk_norm:
        q = rms_norm(q, p["query_layernorm.weight"], config.rms_norm_eps)
        k = rms_norm(k, p["key_layernorm.weight"], config.rms_norm_eps)
    return rope(config, q, positions), rope(config, k, positions), v


def linear_attention_block(
    config: RingConfig, p: Weights, x: Tensor, positions: Tensor, layer: int, state: Tensor, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """x [T, h] -> y [T, h] and the new state [H, D, D]; `chunk=None` takes the recurrent form."""
    q, k, v = _qkv(config, p, x, positions, linear=True)
    slopes = layer_slopes(config, layer).to(x.dtype)
    if chunk is None:
        o, state = linear_attention_recurrent(q, k, v, slopes, state)
    else:
        o, state = linear_attention_chunked(q, k, v, slopes, state, chunk)
    o = group_rms_norm(o.flatten(-2), p["g_norm.weight"], config.rms_norm_eps, config.group_norm_size)
    return (o * torch.sigmoid(x @ p["g_proj.weight"].T)) @ p["dense.weight"].T, state


def softmax_attention_block(
    config: RingConfig, p: Weights, x: Tensor, positions: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x [T, h] -> y [T, h] and (k, v) with the T new rows appended; query head a reads key/value head a // (H / Hk)."""
    q, k_new, v_new = _qkv(config, p, x, positions, linear=False)
    k, v = torch.cat([state[0], k_new]), torch.cat([state[1], v_new])
    shared_by = config.num_attention_heads // config.num_key_value_heads
    scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(shared_by, 1)) * config.head_dim**-0.5
    tokens, total = scores.shape[1:]
    future = torch.ones(tokens, total, dtype=torch.bool).triu(total - tokens + 1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    o = torch.einsum("hts,shd->thd", weights, v.repeat_interleave(shared_by, 1))
    return o.flatten(-2) @ p["dense.weight"].T, (k, v)


# ---------------------------------------------------------------- MLP and experts


def swiglu(p: Weights, prefix: str, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """down(silu(gate(x)) * up(x)); `weight` [T, 1] multiplies what enters the down product."""
    inner = F.silu(x @ p[prefix + "gate_proj.weight"].T) * (x @ p[prefix + "up_proj.weight"].T)
    if weight is not None:
        inner = inner * weight
    return inner @ p[prefix + "down_proj.weight"].T


def _gap(scores: Tensor, taken: int) -> Tensor:
    """The last score taken less the first one left, [T]: inf where every other score is -inf or there is no other."""
    if scores.shape[-1] == taken:
        return torch.full(scores.shape[:-1], math.inf, dtype=scores.dtype)
    ranked = scores.sort(-1, descending=True).values
    return ranked[..., taken - 1] - ranked[..., taken]


def route(config: RingConfig, p: Weights, x: Tensor, replay: Tensor | None = None) -> Routing:
    """Choose k of E experts for each token of x [T, h].

    The bias steers the choice only; the weights come from the sigmoid scores without it. A group's score is the sum of its two best
    biased scores. `replay` [T, k] takes the ids as given (the weights and the margin are still this input's own).
    """
    scores = torch.sigmoid(x @ p["gate.weight"].T)
    biased = scores + p["gate.expert_bias"]
    margin = torch.full(x.shape[:1], math.inf, dtype=x.dtype)
    if config.topk_group < config.n_group:
        size = config.num_experts // config.n_group
        by_group = biased.unflatten(-1, (config.n_group, size)).topk(min(2, size), -1).values.sum(-1)
        margin = _gap(by_group, config.topk_group)
        best = by_group.topk(config.topk_group, -1).indices
        kept = torch.zeros_like(by_group, dtype=torch.bool).scatter_(1, best, True)
        biased = biased.masked_fill(~kept.repeat_interleave(size, -1), config.masked_score)
    margin = torch.minimum(margin, _gap(biased, config.num_experts_per_tok))
    own = biased.topk(config.num_experts_per_tok, -1).indices
    ids = own if replay is None else replay
    weights = scores.gather(1, ids)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(ids, weights * config.routed_scaling_factor, margin, own)


def moe(config: RingConfig, p: Weights, x: Tensor, replay: Tensor | None = None) -> tuple[Tensor, Routing]:
    """x [T, h] -> sum over a token's experts of weight * expert(x), plus the shared experts; and the routing."""
    routing = route(config, p, x, replay)
    y = torch.zeros_like(x)
    for expert in routing.ids.unique().tolist():
        token, choice = (routing.ids == expert).nonzero(as_tuple=True)
        weight = routing.weights[token, choice][:, None]
        prefix = f"experts.{expert}."
        if config.routing_weight == "before_down":
            y.index_add_(0, token, swiglu(p, prefix, x[token], weight))
        else:
            y.index_add_(0, token, weight * swiglu(p, prefix, x[token]))
    if config.num_shared_experts:
        y = y + swiglu(p, "shared_experts.", x)
    return y, routing


# ---------------------------------------------------------------- the model


def _under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def new_cache(config: RingConfig, dtype: torch.dtype = torch.float64) -> Cache:
    """The cache of an empty sequence."""
    return random_cache(config, 0, torch.Generator(), dtype, scale=0.0)


def random_cache(
    config: RingConfig, length: int, generator: torch.Generator, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> Cache:
    """A cache as if `length` tokens had gone by, of normal random numbers times `scale`: tests start from no zero state."""

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    state = (config.num_attention_heads, config.head_dim, config.head_dim)
    rows = (length, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    return Cache(tuple((draw(*rows), draw(*rows)) if config.is_softmax(i) else draw(*state) for i in layers), length)


def forward(
    config: RingConfig,
    weights: Weights,
    ids: Tensor,
    cache: Cache | None = None,
    *,
    replay_ids: Mapping[int, Tensor] | None = None,
    chunk: int | None = 32,
) -> Output:
    """Run `ids` [T] after what `cache` holds (nothing, when None).

    Args:
        weights: by published name; their dtype is the dtype of the computation.
        replay_ids: expert ids [T, k] by layer, taken in place of the router's choice.
        chunk: block length of linear attention; None takes the recurrent form.
    """
    x = weights["model.word_embeddings.weight"][ids]
    if cache is None:
        cache = new_cache(config, x.dtype)
    positions = torch.arange(cache.length, cache.length + len(ids))
    states: list[LayerState] = []
    routing: dict[int, Routing] = {}
    for i, old in enumerate(cache.layers):
        p = _under(weights, f"model.layers.{i}.")
        attention, mlp = _under(p, "attention."), _under(p, "mlp.")
        y = rms_norm(x, p["input_layernorm.weight"], config.rms_norm_eps)
        new: LayerState
        if isinstance(old, Tensor):
            y, new = linear_attention_block(config, attention, y, positions, i, old, chunk)
        else:
            y, new = softmax_attention_block(config, attention, y, positions, old)
        states.append(new)
        x = x + y
        y = rms_norm(x, p["post_attention_layernorm.weight"], config.rms_norm_eps)
        if config.is_dense(i):
            y = swiglu(mlp, "", y)
        else:
            y, routing[i] = moe(config, mlp, y, None if replay_ids is None else replay_ids[i])
        x = x + y
    x = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    head = weights["model.word_embeddings.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return Output(x @ head.T, Cache(tuple(states), cache.length + len(ids)), routing)


# ---------------------------------------------------------------- weights


def _mlp_shapes(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield prefix + "gate_proj.weight", (width, hidden)
    yield prefix + "up_proj.weight", (width, hidden)
    yield prefix + "down_proj.weight", (hidden, width)


def _layer_shapes(config: RingConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, dim, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    softmax = config.is_softmax(layer)
    kv_heads = config.num_key_value_heads if softmax else heads
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    yield "attention.query_key_value.weight", ((heads + 2 * kv_heads) * dim, hidden)
    yield "attention.dense.weight", (hidden, heads * dim)
    if config.use_qk_norm:
        yield "attention.query_layernorm.weight", (dim,)
        yield "attention.key_layernorm.weight", (dim,)
    if not softmax:
        yield "attention.g_proj.weight", (heads * dim, hidden)
        yield "attention.g_norm.weight", (heads * dim,)
    if config.is_dense(layer):
        yield from _mlp_shapes("mlp.", hidden, config.intermediate_size)
        return
    yield "mlp.gate.weight", (config.num_experts, hidden)
    yield "mlp.gate.expert_bias", (config.num_experts,)
    for expert in range(config.num_experts):
        yield from _mlp_shapes(f"mlp.experts.{expert}.", hidden, config.moe_intermediate_size)
    if config.num_shared_experts:
        yield from _mlp_shapes("mlp.shared_experts.", hidden, config.moe_intermediate_size * config.num_shared_experts)


def weight_shapes(config: RingConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a published checkpoint, by name."""
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (config.vocab_size, config.hidden_size)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(config, i)}
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def random_weights(config: RingConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Weights that keep activations near unit size and give logits of standard deviation near 1.

    Matrices are normal with variance 1 / inputs, norm weights 1 + 0.2 normal, the routing bias 0.05 normal.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            draw = 1 + 0.2 * draw
        elif name.endswith("expert_bias"):
            draw = 0.05 * draw
        else:
            draw = draw * shape[-1] ** -0.5
        weights[name] = draw.to(dtype)
    return weights
