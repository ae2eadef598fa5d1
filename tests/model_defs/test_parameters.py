"""Counts and bytes against the published ones."""

from __future__ import annotations

import pytest

from ringc.model_defs import (
    Parameter,
    active_parameter_count,
    checkpoint_parameters,
    kv_bytes_per_token,
    list_presets,
    load_spec,
    parameter_bytes,
    parameter_count,
    state_bytes_per_sequence,
)
from ringc.model_defs.parameters import IGNORED_TENSORS

MIB = 1 << 20


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("ring-mini-linear-2.0", 16_423_448_320),
        ("ring-flash-linear-2.0", 104_181_665_536),
        ("ring-mini-2.0", 16_255_643_392),
        ("ring-flash-2.0", 102_889_705_216),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: str, count: int) -> None:
    assert parameter_count(load_spec(preset)) == count


def test_active_parameters() -> None:
    mini, flash = load_spec("ring-mini-linear-2.0"), load_spec("ring-flash-linear-2.0")
    assert active_parameter_count(mini) == 956_952_320
    assert active_parameter_count(mini, embeddings=True) == 956_952_320 + 2 * 157_184 * 2048
    assert active_parameter_count(flash) == 6_156_586_752
    assert round(active_parameter_count(flash, embeddings=True) / 1e9, 3) == 7.444


def test_the_small_presets_have_the_sizes_they_promise() -> None:
    assert 0.7e6 < parameter_count(load_spec("ring-tiny")) < 1.5e6
    assert 30e6 < parameter_count(load_spec("ring-small")) < 38e6


def test_state_and_cache_bytes() -> None:
    mini, flash, sibling = (load_spec(n) for n in ("ring-mini-linear-2.0", "ring-flash-linear-2.0", "ring-mini-2.0"))
    assert state_bytes_per_sequence(mini) == 16 * MIB
    assert state_bytes_per_sequence(flash) == 56 * MIB
    assert state_bytes_per_sequence(sibling) == 0
    assert kv_bytes_per_token(mini) == kv_bytes_per_token(flash) == 8192
    assert kv_bytes_per_token(sibling) == 20 * 2 * 4 * 128 * 2


def test_published_names_and_shapes_of_mini() -> None:
    found = {p.name: p for p in checkpoint_parameters(load_spec("ring-mini-linear-2.0"))}
    assert len(found) == 14_845
    shapes = {
        "model.word_embeddings.weight": (157184, 2048),
        "model.norm.weight": (2048,),
        "lm_head.weight": (157184, 2048),
        "model.layers.0.attention.query_key_value.weight": (6144, 2048),
        "model.layers.4.attention.query_key_value.weight": (3072, 2048),
        "model.layers.0.attention.g_proj.weight": (2048, 2048),
        "model.layers.0.attention.g_norm.weight": (2048,),
        "model.layers.19.attention.dense.weight": (2048, 2048),
        "model.layers.19.attention.query_layernorm.weight": (128,),
        "model.layers.19.attention.key_layernorm.weight": (128,),
        "model.layers.0.mlp.gate_proj.weight": (5120, 2048),
        "model.layers.0.mlp.down_proj.weight": (2048, 5120),
        "model.layers.1.mlp.gate.weight": (256, 2048),
        "model.layers.1.mlp.gate.expert_bias": (256,),
        "model.layers.1.mlp.experts.255.up_proj.weight": (512, 2048),
        "model.layers.1.mlp.experts.0.down_proj.weight": (2048, 512),
        "model.layers.1.mlp.shared_experts.gate_proj.weight": (512, 2048),
        "model.layers.1.input_layernorm.weight": (2048,),
        "model.layers.1.post_attention_layernorm.weight": (2048,),
    }
    assert {name: found[name].shape for name in shapes} == shapes
    assert "model.layers.4.attention.g_proj.weight" not in found
    assert "model.layers.0.mlp.gate.weight" not in found
    assert found["model.layers.1.mlp.experts.7.up_proj.weight"] == Parameter(
        "model.layers.1.mlp.experts.7.up_proj.weight", (512, 2048), "bf16", "expert_up", 1, 7
    )
    assert found["model.layers.1.mlp.gate.expert_bias"].dtype == "fp32"


@pytest.mark.parametrize("preset", list_presets())
def test_names_are_unique_and_bytes_add_up(preset: str) -> None:
    spec = load_spec(preset)
    tensors = list(checkpoint_parameters(spec))
    assert len({p.name for p in tensors}) == len(tensors)
    biases = sum(p.size for p in tensors if p.dtype == "fp32")
    assert parameter_bytes(spec) == 2 * parameter_count(spec) + 2 * biases
    assert not any(part in p.name for p in tensors for part in IGNORED_TENSORS)


def test_fields_that_add_or_remove_tensors() -> None:
    spec = load_spec("ring-tiny")
    assert spec.linear is not None
    assert spec.moe is not None

    def names(**changes: object) -> set[str]:
        return {p.name for p in checkpoint_parameters(spec.model_copy(update=changes))}

    everything = names()
    assert everything - names(head=spec.head.model_copy(update={"tied": True})) == {"lm_head.weight"}
    removed = everything - names(linear=spec.linear.model_copy(update={"gate": "none"}))
    assert removed == {f"model.layers.{i}.attention.g_proj.weight" for i in (0, 1, 3, 4)}
    assert len(everything - names(qk_norm=False)) == 2 * 7
    unbiased = spec.moe.model_copy(
        update={"router": spec.moe.router.model_copy(update={"bias": False}), "shared_experts": 0}
    )
    assert len(everything - names(moe=unbiased)) == 6 * (1 + 3)
    assert not any("experts" in name for name in names(moe=None))
