"""The reference against itself by another route, against PyTorch's own functions, and against published numbers."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import ring_linear as ref
from tests.reference.configs import PUBLISHED, RING_MINI_LINEAR, random_config
from tests.reference.ring_linear import RingConfig

CLOSE = 2e-12


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def tensors(state: ref.LayerState) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else state


def cache_distance(a: ref.Cache, b: ref.Cache) -> float:
    assert a.length == b.length
    worst = 0.0
    for x, y in zip(a.layers, b.layers, strict=True):
        for p, q in zip(tensors(x), tensors(y), strict=True):
            worst = max(worst, distance(p, q))
    return worst


def random_ids(config: RingConfig, length: int, seed: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("seed", range(24))
def test_prefill_and_decode_equal_one_shot(seed, generator):
    config = random_config(seed)
    weights, length = ref.random_weights(config, seed), 41
    ids = random_ids(config, length, seed)
    start = ref.random_cache(config, seed % 7, generator)
    whole = ref.forward(config, weights, ids, start)

    rng = random.Random(seed)
    cuts = [0, *sorted(rng.sample(range(1, length - 5), 2)), *range(length - 5, length + 1)]
    cache, logits = start, []
    for a, b in pairwise(cuts):
        part = ref.forward(config, weights, ids[a:b], cache, chunk=rng.choice([None, 1, 5, 32]))
        cache = part.cache
        logits.append(part.logits)
        for layer, routing in part.routing.items():
            assert torch.equal(routing.ids, whole.routing[layer].ids[a:b])
    assert whole.logits.isfinite().all()
    assert 0.3 < float(whole.logits.std()) < 3
    assert distance(torch.cat(logits), whole.logits) < CLOSE
    assert cache_distance(cache, whole.cache) < CLOSE * 10  # states are sums over tokens: not of unit size


def test_the_cache_given_is_not_changed(generator):
    config = RingConfig()
    cache = ref.random_cache(config, 3, generator)
    before = [[x.clone() for x in tensors(state)] for state in cache.layers]
    ref.forward(config, ref.random_weights(config), random_ids(config, 9, 0), cache, chunk=None)
    after = [list(tensors(state)) for state in cache.layers]
    assert all(torch.equal(x, y) for a, b in zip(before, after, strict=True) for x, y in zip(a, b, strict=True))


def test_no_token_sees_a_later_one():
    config = RingConfig()
    weights, ids = ref.random_weights(config), random_ids(config, 20, 1)
    changed = ids.clone()
    changed[12] = (changed[12] + 1) % config.vocab_size
    a, b = (ref.forward(config, weights, x).logits for x in (ids, changed))
    assert distance(a[:12], b[:12]) < CLOSE
    assert distance(a[12], b[12]) > 1e-3
    assert distance(a[13:], b[13:]) > 1e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    config, parameters = PUBLISHED[name]
    assert sum(math.prod(shape) for shape in ref.weight_shapes(config).values()) == parameters


def test_the_published_checkpoint_has_this_many_tensors():
    assert len(ref.weight_shapes(RING_MINI_LINEAR)) == 14_845


def test_layer_kinds():
    def kinds(**fields):
        config = RingConfig(**fields)
        return "".join("s" if config.is_softmax(i) else "l" for i in range(config.num_hidden_layers))

    assert kinds(num_hidden_layers=8, layer_group_size=3) == "llsllsss"
    assert kinds(num_hidden_layers=8, layer_group_size=3, tail_layers="linear") == "llsllsll"
    assert kinds(num_hidden_layers=6, layer_group_size=3, tail_layers="linear") == "llslls"
    assert kinds(num_hidden_layers=3, layer_group_size=1) == "sss"
    assert kinds(num_hidden_layers=3, layer_group_size=4, tail_layers="linear") == "lll"
    mini = [i for i in range(20) if RING_MINI_LINEAR.is_softmax(i)]
    assert mini == [4, 9, 14, 19]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 3},
        {"group_norm_size": 5},
        {"rotary_dim": 7},
        {"rotary_dim": 18},
        {"n_group": 3},
        {"topk_group": 1, "num_experts_per_tok": 3},
        {"slopes": ((0.5,) * 4,)},
    ],
)
def test_fields_that_do_not_fit(fields):
    with pytest.raises(ValueError, match="must hold"):
        RingConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_factor": "hf"},
        {"layer_factor": "mlx"},
        {"slopes": ((0.3, 0.2, 0.1, 0.05),) * 5},
        {"tail_layers": "linear", "num_key_value_heads": 4, "num_hidden_layers": 4},
        {"linear_silu": True},
        {"rope_pairing": "interleaved"},
        {"rotary_dim": 16},
        {"rotary_dim": 0},
        {"rope_theta": 100.0},
        {"group_norm_size": 1},
        {"topk_group": 4},
        {"routed_scaling_factor": 1.0},
        {"norm_topk_prob": False},
        {"num_experts_per_tok": 3},
    ],
)
def test_every_field_changes_the_logits(fields):
    ids = random_ids(RingConfig(), 24, 2)
    shape = {k: v for k, v in fields.items() if k in ("num_key_value_heads", "num_hidden_layers")}
    base, other = RingConfig(**shape), RingConfig(**fields)
    # A linear tail has tensors that a softmax one lacks, and never the other way round.
    weights = ref.random_weights(other) | ref.random_weights(base)
    a, b = (ref.forward(config, weights, ids).logits for config in (base, other))
    assert distance(a, b) > 1e-3


# ---------------------------------------------------------------- linear attention


def qkv_state(tokens: int, heads: int, dim: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, heads, dim)] * 3 + [(heads, dim, dim)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@given(
    tokens=st.integers(1, 90),
    chunk=st.integers(1, 100),
    slopes=st.lists(st.floats(1e-6, 2.0), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_chunks_equal_the_recurrence(tokens, chunk, slopes, seed):
    q, k, v, state = qkv_state(tokens, len(slopes), 6, seed)
    slope = torch.tensor(slopes, dtype=torch.float64)
    o1, s1 = ref.linear_attention_recurrent(q, k, v, slope, state)
    o2, s2 = ref.linear_attention_chunked(q, k, v, slope, state, chunk)
    size = max(1.0, float(o1.abs().max()), float(s1.abs().max()))
    assert distance(o1, o2) < CLOSE * size
    assert distance(s1, s2) < CLOSE * size


def test_the_recurrence_is_the_weighted_sum():
    """o_t = D^-1/2 (sum over s <= t of lambda^(t-s) (q_t . k_s) v_s + lambda^(t+1) q_t S_0), all pairs written out."""
    q, k, v, state = qkv_state(23, 3, 8, 0)
    slopes = torch.tensor([1.3, 0.2, 0.004], dtype=torch.float64)
    t = torch.arange(23, dtype=torch.float64)
    decay = torch.exp(-slopes[:, None, None] * (t[:, None] - t)).tril()
    expected = torch.einsum("thd,shd,hts,she->the", q, k, decay, v)
    expected += torch.einsum("thd,hde,ht->the", q, state, torch.exp(-slopes[:, None] * (t + 1)))
    out, _ = ref.linear_attention_recurrent(q, k, v, slopes, state)
    assert distance(out, expected * 8**-0.5) < CLOSE * 10


def test_head_slopes():
    assert ref.head_slopes(16)[0] == pytest.approx(2**-0.5)
    assert ref.head_slopes(16)[15] == 2**-8
    assert ref.head_slopes(32)[0] == pytest.approx(2**-0.25)
    assert ref.head_slopes(1) == [2**-8]
    # The next power's 1st, 3rd, ... follow the lower power's own.
    assert ref.head_slopes(12) == pytest.approx([2.0**-j for j in range(1, 9)] + [2.0 ** -(j + 0.5) for j in range(4)])
    assert ref.head_slopes(6) == pytest.approx([2.0 ** (-2 * j) for j in range(1, 5)] + [2.0**-1, 2.0**-3])


@pytest.mark.parametrize(
    ("variant", "first", "last"),
    [("serving", 0.707114, 0.037223), ("hf", 0.744330, 0.074439), ("mlx", 0.707114, 0.074439)],
)
def test_layer_factors(variant, first, last):
    config = replace(RING_MINI_LINEAR, layer_factor=variant)
    assert float(ref.layer_slopes(config, 0)[0]) == pytest.approx(first, abs=1e-6)
    assert float(ref.layer_slopes(config, 18)[0]) == pytest.approx(last, abs=1e-6)
    assert all(float(ref.layer_slopes(config, i).min()) > 0 for i in range(20))


# ---------------------------------------------------------------- norms, rope, softmax attention


def test_norms_are_pytorchs(generator):
    x = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(24, generator=generator, dtype=torch.float64)
    assert distance(ref.rms_norm(x, weight, 1e-3), F.rms_norm(x, (24,), weight, 1e-3)) < 1e-14
    by_group = [F.rms_norm(xg, (8,), wg, 1e-3) for xg, wg in zip(x.split(8, dim=-1), weight.split(8), strict=True)]
    assert distance(ref.group_rms_norm(x, weight, 1e-3, 3), torch.cat(by_group, -1)) < 1e-14


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_rope_depends_on_relative_positions_and_turns_only_its_dimensions(pairing, generator):
    config = RingConfig(rope_pairing=pairing, head_dim=16, rotary_dim=6)
    q, k = torch.randn(2, 1, 1, 16, generator=generator, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        return float((ref.rope(config, q, torch.tensor([i])) * ref.rope(config, k, torch.tensor([j]))).sum())

    assert product(17, 5) == pytest.approx(product(1012, 1000), abs=1e-9)
    assert abs(product(17, 5) - product(17, 6)) > 1e-3
    turned = ref.rope(config, q, torch.tensor([7]))
    assert torch.equal(turned[..., 6:], q[..., 6:])
    assert (turned[..., :6] != q[..., :6]).all()


def test_rope_pairings_are_one_rotation_in_two_orders(generator):
    half, pairs = (RingConfig(rope_pairing=p, head_dim=8, rotary_dim=8) for p in ("half", "interleaved"))
    x = torch.randn(5, 2, 8, generator=generator, dtype=torch.float64)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    positions = torch.arange(3, 8)
    assert distance(ref.rope(half, x, positions)[..., order], ref.rope(pairs, x[..., order], positions)) < 1e-14


def test_softmax_attention_is_pytorchs(generator):
    config = RingConfig(rotary_dim=0, use_qk_norm=False, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    weights = ref.random_weights(config)
    p = {n.split("attention.")[1]: w for n, w in weights.items() if n.startswith("model.layers.2.attention.")}
    x = torch.randn(9, config.hidden_size, generator=generator, dtype=torch.float64)
    old = torch.randn(2, 4, 2, 8, generator=generator, dtype=torch.float64)
    y, (k, v) = ref.softmax_attention_block(config, p, x, torch.arange(4, 13), (old[0], old[1]))
    q = (x @ p["query_key_value.weight"].T).unflatten(-1, (10, 8))[:, :6]
    q, k, v = (z.transpose(0, 1)[None] for z in (q, k, v))
    seen = torch.ones(9, 13, dtype=torch.bool).tril(4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1).flatten(-2)
    assert distance(y, expected @ p["dense.weight"].T) < 1e-13


# ---------------------------------------------------------------- routing


def router(config: RingConfig, scores: list[list[float]], bias: list[float] | None = None) -> ref.Routing:
    """Route one token a row, with the sigmoid scores given outright."""
    logits = torch.logit(torch.tensor(scores, dtype=torch.float64))
    experts = logits.shape[1]
    gate = torch.eye(experts, dtype=torch.float64)
    expert_bias = torch.tensor(bias or [0.0] * experts, dtype=torch.float64)
    return ref.route(config, {"gate.weight": gate, "gate.expert_bias": expert_bias}, logits)


FOUR = RingConfig(num_experts=4, n_group=2, topk_group=1, num_experts_per_tok=1, routed_scaling_factor=2.0)


def test_the_margin_is_the_smallest_deciding_gap():
    # Groups: 0.9 + 0.3 against 0.5 + 0.6, gap 0.1; experts of the kept group: 0.9 against 0.3.
    r = router(FOUR, [[0.9, 0.3, 0.5, 0.6]])
    assert r.ids.tolist() == [[0]]
    assert float(r.margin) == pytest.approx(0.1)
    # Without limits only the experts decide: 0.9 against 0.6.
    r = router(replace(FOUR, topk_group=2), [[0.9, 0.3, 0.5, 0.6]])
    assert float(r.margin) == pytest.approx(0.3)
    # Every expert of the kept group taken: only the groups decide.
    r = router(replace(FOUR, num_experts_per_tok=2), [[0.9, 0.3, 0.5, 0.6]])
    assert float(r.margin) == pytest.approx(0.1)
    # Nothing to decide at all.
    r = router(replace(FOUR, topk_group=2, num_experts_per_tok=4), [[0.9, 0.3, 0.5, 0.6]])
    assert float(r.margin) == math.inf


def test_the_bias_steers_the_choice_but_not_the_weight():
    config = replace(FOUR, num_experts_per_tok=2)
    r = router(config, [[0.9, 0.3, 0.5, 0.6]], bias=[0.0, 0.0, 0.4, 0.0])
    assert r.ids.tolist() == [[2, 3]]
    assert r.weights[0].tolist() == pytest.approx([2 * 0.5 / 1.1, 2 * 0.6 / 1.1])
    r = router(replace(config, norm_topk_prob=False), [[0.9, 0.3, 0.5, 0.6]], bias=[0.0, 0.0, 0.4, 0.0])
    assert r.weights[0].tolist() == pytest.approx([1.0, 1.2])


def test_the_value_of_masked_experts_matters_when_kept_scores_are_negative():
    config = replace(FOUR, num_experts_per_tok=2)
    scores, bias = [[0.9, 0.3, 0.2, 0.1]], [0.0, -0.4, 0.0, 0.0]
    assert router(config, scores, bias).ids.tolist() == [[0, 1]]
    masked = router(replace(config, masked_score=0.0), scores, bias)
    assert masked.ids[0, 0] == 0
    assert masked.ids[0, 1] in (2, 3)
    assert float(masked.margin) == 0  # both dropped experts stand at 0: which one is taken is an accident


@given(seed=st.integers(0, 2**31), experts=st.sampled_from([4, 8, 12]), limit=st.integers(1, 4), k=st.integers(1, 3))
def test_the_choice_holds_within_the_margin(seed, experts, limit, k):
    config = RingConfig(
        num_experts=experts, n_group=4, topk_group=max(limit, -(-k * 4 // experts)), num_experts_per_tok=k
    )
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, experts, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    base = router(config, scores.tolist())
    shift = torch.rand(6, experts, generator=generator, dtype=torch.float64) * 2 - 1
    reach = base.margin.clamp(max=0.4)[:, None] * 0.2499
    moved = router(config, (scores + shift * reach).tolist())
    assert torch.equal(base.ids.sort(-1).values, moved.ids.sort(-1).values)


def test_replayed_routing():
    config = RingConfig()
    weights, ids = ref.random_weights(config), random_ids(config, 15, 3)
    base = ref.forward(config, weights, ids)
    again = ref.forward(config, weights, ids, replay_ids=base.replay_ids)
    assert torch.equal(base.logits, again.logits)
    assert again.margin == base.margin
    assert 0 < base.margin < 0.5
    assert sorted(base.routing) == [1, 2, 3, 4]

    other = {layer: (chosen + 1) % config.num_experts for layer, chosen in base.replay_ids.items()}
    forced = ref.forward(config, weights, ids, replay_ids=other)
    assert all(torch.equal(r.ids, other[layer]) for layer, r in forced.routing.items())
    assert distance(base.logits, forced.logits) > 1e-2


def test_a_dense_model_has_no_margin():
    config = RingConfig(num_experts=0)
    assert not any(".experts." in name for name in ref.weight_shapes(config))
    assert ref.forward(config, ref.random_weights(config), random_ids(config, 4, 0)).margin == math.inf


def test_the_weight_before_or_after_the_down_product_is_the_same_function():
    config = RingConfig()
    weights, ids = ref.random_weights(config), random_ids(config, 12, 4)
    a, b = (
        ref.forward(replace(config, routing_weight=where), weights, ids).logits
        for where in ("before_down", "after_down")
    )
    assert 0 < distance(a, b) < CLOSE


def test_shared_experts_add_up():
    """Two shared experts are one of twice the width: dropping the second's rows leaves the model with one."""
    two, one, none = (RingConfig(num_shared_experts=n) for n in (2, 1, 0))
    ids = random_ids(two, 6, 5)
    weights = ref.random_weights(two)
    width = two.moe_intermediate_size
    halved = dict(weights)
    for name in weights:
        if "shared_experts.down" in name:
            halved[name] = weights[name][:, :width]
        elif "shared_experts" in name:
            halved[name] = weights[name][:width]
    zeroed = {
        name: torch.cat([w[:, :width], torch.zeros_like(w[:, width:])], 1) if "shared_experts.down" in name else w
        for name, w in weights.items()
    }
    assert distance(ref.forward(one, halved, ids).logits, ref.forward(two, zeroed, ids).logits) < CLOSE
    assert distance(ref.forward(one, halved, ids).logits, ref.forward(two, weights, ids).logits) > 1e-3
    assert distance(ref.forward(none, weights, ids).logits, ref.forward(two, weights, ids).logits) > 1e-3


def test_single_precision_is_near_double():
    config = RingConfig()
    weights, ids = ref.random_weights(config), random_ids(config, 32, 6)
    double = ref.forward(config, weights, ids)
    single = ref.forward(config, {n: w.float() for n, w in weights.items()}, ids, replay_ids=double.replay_ids)
    assert single.logits.dtype == torch.float32
    assert 0 < distance(single.logits.double(), double.logits) < 2e-4
