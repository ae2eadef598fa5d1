"""Which launches of a program a layer's router is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.router import router_steps

APART = [("library_7", ("mlp.gate.weight",)), ("route_2", ("mlp.gate.expert_bias",))]
ONE = [("route_1", ("mlp.gate.weight", "mlp.gate.expert_bias"))]
WITHOUT_BIAS = [("library_7", ("mlp.gate.weight",)), ("route_2", ())]


@pytest.mark.parametrize("router", [APART, ONE, WITHOUT_BIAS])
@pytest.mark.parametrize("number", [0, 1])
def test_they_reach_from_the_weight_to_the_choice(router: list[tuple[str, tuple[str, ...]]], number: int) -> None:
    steps = [SimpleNamespace(kernel="matmul_1", weights=("layers.0.mlp.gate_proj.weight",))]
    for layer in (1, 2):
        steps.append(SimpleNamespace(kernel="row_1", weights=(f"layers.{layer}.post_attention_layernorm.weight",)))
        steps += [
            SimpleNamespace(kernel=name, weights=tuple(f"layers.{layer}.{k}" for k in keys)) for name, keys in router
        ]
        steps.append(SimpleNamespace(kernel="grouped_1", weights=(f"layers.{layer}.mlp.experts.all.up_proj.weight",)))
    start, end = router_steps(SimpleNamespace(steps=steps), number)  # type: ignore[arg-type] # only its steps
    assert start == 2 + number * (len(router) + 2)
    assert end == start + len(router)
