"""Which launches of a program a layer's experts are, and what they read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.moe_layer import layer_steps, read_bytes

SHARED, ROUTER, CHOICE, SORT = ("mlp.shared_experts.up_proj",), ("mlp.gate",), ("mlp.gate.expert_bias",), ()
UP, DOWN, JOIN = ("mlp.experts.all.gate_proj", "mlp.experts.all.up_proj"), ("mlp.experts.all.down_proj",), ()
NORM = ("input_layernorm",)
APART = [SHARED, ROUTER, CHOICE, SORT, UP, DOWN, JOIN, NORM]
"""Rows in the experts' order: the sum is in a kernel with the next norm, which is the next layer's weight."""
ONE = [SHARED, ROUTER, CHOICE, JOIN, UP, DOWN]
"""One row, whose next norm the next product makes."""


@pytest.mark.parametrize("layer", [APART, ONE])
@pytest.mark.parametrize("number", [0, 1])
def test_they_reach_from_what_runs_beside_routing_to_the_next_norm(layer: list[tuple[str, ...]], number: int) -> None:
    steps: list[tuple[str, ...]] = [
        ("word_embeddings",),
        ("layers.0.mlp.up_proj",),
        ("layers.1.attention.query_key_value",),
    ]
    for at in (1, 2):
        own = [tuple(f"layers.{at + (key in NORM)}.{key}.weight" for key in keys) for keys in layer]
        steps += [
            *own,
            (f"layers.{at + 1}.input_layernorm.weight", f"layers.{at + 1}.attention.query_key_value.weight"),
        ]
    bound = SimpleNamespace(steps=[SimpleNamespace(weights=keys) for keys in steps])
    start, end = layer_steps(bound, number)  # type: ignore[arg-type] # only its steps
    assert (start, end) == (3 + number * (len(layer) + 1), 3 + number * (len(layer) + 1) + len(layer))


def test_weights_are_read_once_and_experts_as_far_as_they_were_chosen() -> None:
    weights = {
        "a.experts.all.up_proj.weight": torch.empty(8, 4, 2),
        "a.shared_experts.up_proj.weight": torch.empty(4, 2),
        "norm": torch.empty(2),
        "another": torch.empty(100),
    }
    up, shared, norm, _ = weights
    steps = [SimpleNamespace(weights=keys) for keys in [(norm, shared), (), (norm, up)]]
    assert read_bytes(steps, weights, 3) == 4 * (3 * 8 + 8 + 2)  # type: ignore[arg-type] # only their weights
