"""Random models of the family: as specs, with weights and a text, and what ringc makes of them beside the reference."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ringc.model_defs.spec import Spec
from ringc.runtime.model import Model
from ringc.runtime.routing import NONE
from tests.reference.configs import random_config
from tests.reference.ring_linear import Output, RingConfig, forward, random_weights

TOLERANCE = 2e-4
"""Largest error of a logit, at a standard deviation of 1."""

MARGIN = 1e-5
"""Models with a smaller routing margin are drawn anew where nothing is replayed: single precision may take another expert."""

Weights = dict[str, torch.Tensor]


# ---------------------------------------------------------------- configurations


def draw_config(seed: int) -> RingConfig:
    """The `seed`-th random configuration that a spec can say: at least one pair of a head rotates."""
    config = random_config(seed)
    return replace(config, rotary_dim=max(2, config.rotary_dim))


def moe_layers(config: RingConfig) -> list[int]:
    return [i for i in range(config.num_hidden_layers) if not config.is_dense(i)]


def linear_layers(config: RingConfig) -> list[int]:
    return [i for i in range(config.num_hidden_layers) if not config.is_softmax(i)]


def _tail(config: RingConfig, kind: str) -> bool:
    group = config.layer_group_size
    return group > 1 and config.num_hidden_layers % group > 0 and config.tail_layers == kind


def _limited(config: RingConfig) -> bool:
    return bool(moe_layers(config)) and config.topk_group < config.n_group


Condition = Callable[[RingConfig], object]


def _all(*conditions: Condition) -> Condition:
    return lambda config: all(c(config) for c in conditions)


def _is(field: str, value: object) -> Condition:
    return lambda config: getattr(config, field) == value


FEATURES: dict[str, Condition] = {
    "leftover layers, softmax": lambda c: _tail(c, "softmax"),
    "leftover layers, linear": lambda c: _tail(c, "linear"),
    "linear layers alone": lambda c: len(linear_layers(c)) == c.num_hidden_layers,
    "softmax layers alone": lambda c: not linear_layers(c),
    **{f"{n} heads": _all(linear_layers, _is("num_attention_heads", n)) for n in (1, 3, 4, 6, 12)},
    "grouped queries": lambda c: (
        len(linear_layers(c)) < c.num_hidden_layers and 1 < c.num_key_value_heads < c.num_attention_heads
    ),
    **{
        f"decay as {law}": _all(lambda c: len(linear_layers(c)) > 1, _is("layer_factor", law))
        for law in ("serving", "hf", "mlx")
    },
    "one norm group": _all(linear_layers, lambda c: c.group_norm_size == 1 < c.num_attention_heads),
    "norm groups of several heads": _all(linear_layers, lambda c: 1 < c.group_norm_size < c.num_attention_heads),
    "a norm group for each head": _all(linear_layers, lambda c: 1 < c.group_norm_size == c.num_attention_heads),
    "norm groups within heads": _all(linear_layers, lambda c: c.group_norm_size > c.num_attention_heads),
    "SiLU on q, k, v": _all(linear_layers, _is("linear_silu", True)),
    "no q/k norm": _is("use_qk_norm", False),
    "rope by neighbours": lambda c: c.rope_pairing == "interleaved" and c.rotary_dim > 2,
    "rope of whole heads": lambda c: c.rotary_dim == c.head_dim,
    "group limits": _limited,
    "group limits, dropped scores are 0": _all(_limited, _is("masked_score", 0)),
    "no group limits": _all(moe_layers, lambda c: c.topk_group == c.n_group),
    **{f"{n} shared experts": _all(moe_layers, _is("num_shared_experts", n)) for n in (0, 1, 2, 3)},
    "weights not normalized": _all(moe_layers, _is("norm_topk_prob", False)),
    **{f"weight {p}": _all(moe_layers, _is("routing_weight", p)) for p in ("before_down", "after_down")},
    "a dense layer before experts": _all(moe_layers, lambda c: c.first_k_dense_replace > 0),
    "dense": lambda c: not moe_layers(c),
    "tied embeddings": _is("tie_word_embeddings", True),
}
"""What random models must reach: name -> whether a configuration has it."""


def spec_of(config: RingConfig, name: str) -> Spec:
    """The spec of a configuration, in single precision."""
    groups = None
    if config.n_group > 1:
        each = config.num_experts // config.n_group
        mask = "-inf" if config.masked_score == -math.inf else 0
        groups = {"count": config.n_group, "keep": config.topk_group, "score_top": min(2, each), "mask": mask}
    moe = {
        "experts": config.num_experts,
        "top_k": config.num_experts_per_tok,
        "width": config.moe_intermediate_size,
        "shared_experts": config.num_shared_experts,
        "groups": groups,
        "router": {
            "normalize": config.norm_topk_prob,
            "scale": config.routed_scaling_factor,
            "weight_position": config.routing_weight,
        },
    }
    linear = {
        "decay": {"kind": "power_law", "layer_factor": config.layer_factor, "eps": config.decay_eps},
        "silu": config.linear_silu,
        "norm_groups": config.group_norm_size,
    }
    return Spec.model_validate({
        "name": name,
        "dtype": "fp32",
        "vocabulary": {"size": config.vocab_size},
        "max_positions": 4096,
        "hidden": config.hidden_size,
        "layers": {"count": config.num_hidden_layers, "M": config.layer_group_size - 1, "tail": config.tail_layers},
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "norm_eps": config.rms_norm_eps,
        "qk_norm": config.use_qk_norm,
        "rope": {"theta": config.rope_theta, "rotary_dim": config.rotary_dim, "pairing": config.rope_pairing},
        "linear": linear if linear_layers(config) else None,
        "softmax": {"kv_heads": config.num_key_value_heads},
        "mlp": {
            "width": config.intermediate_size,
            "first_k": min(config.first_k_dense_replace, config.num_hidden_layers),
        },
        "moe": moe if moe_layers(config) else None,
        "head": {"tied": config.tie_word_embeddings},
    })  # fmt: skip


# ---------------------------------------------------------------- weights and a text


@dataclass(frozen=True)
class Draw:
    """Weights of a configuration that single precision holds exactly, ids [T], and what the reference makes of them."""

    config: RingConfig
    weights: Weights
    ids: torch.Tensor
    output: Output


def draw(config: RingConfig, seed: int, *, least: float = 0.0) -> tuple[Draw, int]:
    """Weights with which logits have a standard deviation of 1, and 3 to 40 ids.

    Drawn anew until the reference's smallest routing margin is at least `least`; how often that was, too.
    """
    for attempt in range(100):
        rng = random.Random(f"{seed} {attempt}")
        weights = {n: w.float().double() for n, w in random_weights(config, rng.randrange(1 << 30)).items()}
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        ids = torch.randint(0, config.vocab_size, (rng.randint(3, 40),), generator=generator)
        norm = weights["model.norm.weight"]
        weights["model.norm.weight"] = (norm / forward(config, weights, ids).logits.std()).float().double()
        output = forward(config, weights, ids)
        if output.margin >= least:
            return Draw(config, weights, ids, output), attempt
    raise AssertionError("100 draws with hardly a margin")


# ---------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Finding:
    """How ringc compares with the reference on one draw.

    Attributes:
        error: the largest of any logit, in one call and in pieces.
        unfused: that of the reference's own code in single precision: beside the error it tells an ill-conditioned model from a wrong one.
        margin: the reference's smallest routing margin.
        other: the largest margin of a token that was given to other experts than the reference chooses; 0 where there is none.
    """

    error: float
    unfused: float
    margin: float
    other: float


def compare(model: Model, drawn: Draw, seed: int, *, replayed: bool) -> Finding:
    """One call; then prefill cut at random places and decode. `replayed`: with the experts that ringc took, else the reference's."""
    config, ids = drawn.config, drawn.ids
    findings = [
        _against(drawn, logits, rows, experts if replayed else None)
        for logits, rows, experts in (_at_once(model, ids, config), _in_pieces(model, ids, config, random.Random(seed)))
    ]
    return Finding(*(max(values) for values in zip(*findings, strict=True)))


Made = tuple[torch.Tensor, Sequence[int], dict[int, torch.Tensor]]
"""Logits [M, V] of some rows, which rows they are, and the experts [T, k] of all rows by layer."""


def _at_once(model: Model, ids: torch.Tensor, config: RingConfig) -> Made:
    with model.record_routing() as calls:
        logits = model(ids[None])[0]
    return logits, range(len(ids)), _by_layer(config, calls)


def _in_pieces(model: Model, ids: torch.Tensor, config: RingConfig, rng: random.Random) -> Made:
    """Up to four pieces of a prefill, and up to five steps of decode; in the second of two slots."""
    decoded = rng.randint(0, min(5, len(ids) - 1))
    total = len(ids) - decoded
    ends = sorted({total, *(rng.randint(1, total) for _ in range(rng.randint(0, 3)))})
    cache = model.new_cache(2, len(ids))
    with model.record_routing() as calls:
        made = [model.prefill(ids[None, a:b], cache, slots=[1])[0] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        made += [model.decode(ids[t : t + 1], cache, slots=[1])[0] for t in range(total, len(ids))]
    rows = [end - 1 for end in ends] + list(range(total, len(ids)))
    return torch.stack(made), rows, _by_layer(config, calls)


def _by_layer(config: RingConfig, calls: Sequence[Sequence[torch.Tensor]]) -> dict[int, torch.Tensor]:
    return {layer: torch.cat([call[i] for call in calls]).long() for i, layer in enumerate(moe_layers(config))}


def _against(
    drawn: Draw, logits: torch.Tensor, rows: Sequence[int], experts: Mapping[int, torch.Tensor] | None
) -> tuple[float, float, float, float]:
    config, weights, ids = drawn.config, drawn.weights, drawn.ids
    # What the last layer hasn't made nothing reads: any experts do.
    unmade = {layer: (taken == NONE).any(-1) for layer, taken in (experts or {}).items()}
    some = torch.arange(config.num_experts_per_tok)
    whole = {layer: torch.where(unmade[layer][:, None], some, taken) for layer, taken in (experts or {}).items()}
    exact = drawn.output if experts is None else forward(config, weights, ids, replay_ids=whole)
    assert logits.shape == (len(rows), config.vocab_size) and logits.dtype == torch.float32
    taken = list(rows)
    narrow = {name: w.float() for name, w in weights.items()}
    plain = [
        forward(config, narrow, ids, replay_ids=exact.replay_ids, chunk=chunk).logits[taken] for chunk in (32, None)
    ]
    unfused = max(largest(x, exact.logits[taken]) for x in plain)
    other = 0.0
    for layer, routing in exact.routing.items():
        differs = (routing.own.sort(-1).values != routing.ids.sort(-1).values).any(-1)
        if layer in unmade:
            differs &= ~unmade[layer]
        other = max([other, *routing.margin[differs].tolist()])
    return largest(logits, exact.logits[taken]), unfused, exact.margin, other


def largest(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error of a logit; infinite where one is no number."""
    return float((logits.double() - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf).max())
