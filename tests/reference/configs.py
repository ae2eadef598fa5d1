"""Published configurations, and random ones that reach every corner of the family."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from tests.reference.ring_linear import LayerFactor, RingConfig

RING_MINI_LINEAR = RingConfig(
    vocab_size=157184,
    hidden_size=2048,
    intermediate_size=5120,
    moe_intermediate_size=512,
    num_hidden_layers=20,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    layer_group_size=5,
    group_norm_size=4,
    rotary_dim=64,
    rope_theta=1e6,
    num_experts=256,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
)
# group_norm_size, rotary_dim, the dense first layer and the experts' width are inferred; the parameter count agrees with them.
RING_FLASH_LINEAR = replace(
    RING_MINI_LINEAR,
    hidden_size=4096,
    intermediate_size=9216,
    moe_intermediate_size=1024,
    num_hidden_layers=32,
    num_attention_heads=32,
    layer_group_size=8,
)
# Inferred: dense models with grouped queries, every dimension of a head rotated.
QWEN3_8B = RingConfig(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    layer_group_size=1,
    rotary_dim=128,
    rope_theta=1e6,
    num_experts=0,
)

# Name -> configuration and its published (or, for the dense models, inferred) number of parameters.
PUBLISHED: dict[str, tuple[RingConfig, int]] = {
    "ring-mini-linear-2.0": (RING_MINI_LINEAR, 16_423_448_320),
    "ring-flash-linear-2.0": (RING_FLASH_LINEAR, 104_181_665_536),
    "ring-mini-2.0": (replace(RING_MINI_LINEAR, layer_group_size=1), 16_255_643_392),
    "ring-flash-2.0": (replace(RING_FLASH_LINEAR, layer_group_size=1), 102_889_705_216),
    "qwen3-8b": (QWEN3_8B, 8_190_735_360),
    "qwen3-32b": (
        replace(QWEN3_8B, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64),
        32_762_123_264,
    ),
}


def random_config(seed: int) -> RingConfig:
    """The `seed`-th random configuration of the Ring-linear family, small enough to run in well under a second."""
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3, 4])
    head_dim = rng.choice([8, 16, 32])
    n_group = rng.choice([1, 2, 4])
    per_group = rng.choice([1, 2, 3, 4])
    topk_group = rng.randint(1, n_group)
    layers = rng.randint(2, 6)
    factors: tuple[LayerFactor, ...] = ("serving", "hf", "mlx")
    return RingConfig(
        vocab_size=rng.choice([61, 64, 130]),
        hidden_size=rng.choice([24, 32, 48]),
        intermediate_size=rng.choice([40, 64]),
        moe_intermediate_size=rng.choice([12, 16, 24]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        layer_group_size=rng.randint(1, 4),
        tail_layers=rng.choice(["softmax", "softmax", "linear"]),
        group_norm_size=rng.choice([g for g in (1, 2, 3, 4, heads) if heads * head_dim % g == 0]),
        rotary_dim=rng.choice([0, 2, head_dim // 2, head_dim]),
        rope_pairing=rng.choice(["half", "half", "interleaved"]),
        rope_theta=rng.choice([1e4, 6e5, 1e6]),
        use_qk_norm=rng.random() < 0.8,
        linear_silu=rng.random() < 0.25,
        layer_factor=rng.choice(factors),
        num_experts=0 if rng.random() < 0.1 else n_group * per_group,
        num_experts_per_tok=rng.randint(1, min(4, topk_group * per_group)),
        num_shared_experts=rng.choice([0, 1, 1, 2, 3]),
        n_group=n_group,
        topk_group=topk_group,
        masked_score=rng.choice([-math.inf, 0.0]),
        routed_scaling_factor=rng.choice([1.0, 2.5]),
        norm_topk_prob=rng.random() < 0.8,
        routing_weight=rng.choice(["before_down", "after_down"]),
        first_k_dense_replace=rng.randint(0, 2),
        tie_word_embeddings=rng.random() < 0.2,
    )
