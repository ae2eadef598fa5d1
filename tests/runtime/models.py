"""Compiled models for tests, and the reference's view of the same spec and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ringc.model_defs.spec import Spec
from ringc.runtime.drawn import random_parameter
from tests.reference.ring_linear import RingConfig, weight_shapes


def reference_config(spec: Spec) -> RingConfig:
    """The reference's configuration of a spec."""
    moe, linear = spec.moe, spec.linear
    groups = moe.groups if moe else None
    slopes = tuple(
        spec.slopes(i) if spec.layer_kind(i) == "linear" else (1.0,) * spec.heads for i in range(spec.layers.count)
    )
    return RingConfig(
        vocab_size=spec.vocabulary.size,
        hidden_size=spec.hidden,
        intermediate_size=spec.mlp.width,
        moe_intermediate_size=moe.width if moe else 1,
        num_hidden_layers=spec.layers.count,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.softmax.kv_heads if spec.softmax else spec.heads,
        head_dim=spec.head_dim,
        layer_group_size=spec.group_size,
        tail_layers=spec.layers.tail,
        group_norm_size=linear.norm_groups if linear else 1,
        rotary_dim=spec.rope.rotary_dim,
        rope_pairing=spec.rope.pairing,
        rope_theta=spec.rope.theta,
        use_qk_norm=spec.qk_norm,
        linear_silu=linear.silu if linear else False,
        slopes=slopes,
        num_experts=moe.experts if moe else 0,
        num_experts_per_tok=moe.top_k if moe else 1,
        # The reference knows a number of shared experts of the routed experts' width; a wider one counts as several.
        num_shared_experts=moe.total_shared_width // moe.width if moe else 0,
        n_group=groups.count if groups else 1,
        topk_group=groups.keep if groups else 1,
        masked_score=float(groups.mask) if groups else -math.inf,
        routed_scaling_factor=moe.router.scale if moe else 1.0,
        norm_topk_prob=moe.router.normalize if moe else True,
        routing_weight=moe.router.weight_position if moe else "after_down",
        first_k_dense_replace=spec.mlp.first_k,
        rms_norm_eps=spec.norm_eps,
        tie_word_embeddings=spec.head.tied,
    )


def reference_weights(config: RingConfig, seed: int) -> dict[str, torch.Tensor]:
    """What `random:SEED` gives, in double precision."""
    return {name: random_parameter(name, shape, seed).double() for name, shape in weight_shapes(config).items()}


def sharded(folder: Path, tensors: Mapping[str, torch.Tensor], count: int = 3) -> Path:
    """A checkpoint in several files with an index."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {n: tensors[n] for n in names[i::count]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def compiled(spec: str | Spec, folder: Path, target: str = "torch") -> Path:
    """A compiled artifact's folder."""
    import ringc

    ringc.compile(spec, folder, target=target)
    return folder
