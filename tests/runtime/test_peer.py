"""The model that ringc is compared with is right: otherwise its times mean nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ringc.model_defs import load_spec
from ringc.runtime.peer.experts import MOE_FORMS, why_not
from ringc.runtime.peer.model import TorchModel
from tests.reference.ring_linear import forward
from tests.runtime.models import reference_config, reference_weights

TOKENS, STEPS, BATCH = 150, 3, 2


@cache
def expected():
    """Sequences [B, T], and the reference's logits [B, T, V] for them, of random draws whose routing is no near tie."""
    spec = load_spec("ring-tiny")
    config = reference_config(spec)
    weights = reference_weights(config, 0)
    generator = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(40):
        ids = torch.randint(spec.vocabulary.size, (TOKENS + STEPS,), generator=generator)
        out = forward(config, weights, ids)
        if out.margin > 1e-5:
            rows.append((ids, out.logits))
        if len(rows) == BATCH:
            return spec, weights, torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    raise AssertionError("every draw has a near tie")


def check(model: TorchModel, split: int) -> None:
    _, _, ids, logits = expected()
    cache = model.new_cache(BATCH, TOKENS + STEPS + 5)
    if split:
        model.prefill(ids[:, :split], cache)
    got = [model.prefill(ids[:, split:TOKENS], cache)]
    got += [model.decode(ids[:, t], cache) for t in range(TOKENS, TOKENS + STEPS)]
    torch.testing.assert_close(torch.stack(got, 1).double(), logits[:, TOKENS - 1 :], rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", MOE_FORMS)
@pytest.mark.parametrize("split", [0, 70])
def test_prefill_and_decode_give_the_reference_logits(form, split):
    if reason := why_not(form):
        pytest.skip(reason)
    spec, weights, _, _ = expected()
    check(TorchModel(spec, weights, form), split)


def test_layers_compiled_apart_give_the_same_and_those_of_a_kind_share_a_graph(monkeypatch):
    plain, counter, modes = torch.compile, CompileCounter(), set()

    def counted(function, *, mode, options, **how):
        modes.add(mode)
        assert options is None
        return plain(function, backend=counter, **how)

    spec, weights, ids, _ = expected()
    torch._dynamo.reset()
    model = TorchModel(spec, weights, "loop")
    monkeypatch.setattr("ringc.runtime.peer.model.torch.compile", counted)
    model.compile_steps("max-autotune-no-cudagraphs", by_layer=True)
    monkeypatch.undo()
    assert modes == {"max-autotune-no-cudagraphs"}
    cache = model.new_cache(BATCH, TOKENS)
    model.prefill(ids[:, :TOKENS], cache)
    kinds = len({(spec.layer_kind(i), spec.mlp_kind(i)) for i in range(spec.layers.count)})
    assert kinds < spec.layers.count
    assert counter.frame_count == kinds + 1  # and the head
    check(model, 70)


def test_a_prompt_may_have_many_chunks(monkeypatch):
    plain = torch.compile
    spec, weights, ids, _ = expected()
    torch._dynamo.reset()
    model = TorchModel(spec, weights, "loop")
    monkeypatch.setattr(
        "ringc.runtime.peer.model.torch.compile", lambda f, *, mode, options, **how: plain(f, backend="eager", **how)
    )
    model.compile_steps(by_layer=True)
    monkeypatch.undo()
    cache = model.new_cache(BATCH, 120)
    for start in range(0, 120, 10):
        model.prefill(ids[:, start : start + 10], cache)
    assert cache.length == 120


def test_the_router_is_that_of_a_published_weight():
    spec, weights, _, _ = expected()
    model = TorchModel(spec, weights, "loop", dtype=torch.bfloat16)
    layer = next(layer for layer in model.layers if layer.moe)
    assert layer.router.dtype is torch.float32
    assert torch.equal(layer.router, layer.router.bfloat16().float())
