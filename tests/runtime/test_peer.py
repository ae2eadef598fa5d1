"""The model that ringc is compared with is right: otherwise its times mean nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch

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


def test_layers_compiled_apart_give_the_same(monkeypatch):
    compiled, plain = [], torch.compile

    def eagerly(function, **how):
        compiled.append(how)
        return plain(function, backend="eager", dynamic=how["dynamic"])

    spec, weights, _, _ = expected()
    model = TorchModel(spec, weights, "loop")
    monkeypatch.setattr("ringc.runtime.peer.model.torch.compile", eagerly)
    model.compile_steps("max-autotune-no-cudagraphs", by_layer=True)
    monkeypatch.undo()
    check(model, 70)
    assert len(compiled) == 2 * spec.layers.count + 1
    assert {how["mode"] for how in compiled} == {"max-autotune-no-cudagraphs"}
