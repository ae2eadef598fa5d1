"""An artifact in which PyTorch's calls were chosen runs beside generated kernels, and gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ringc
from ringc.api import describe
from ringc.codegen.compile import compile_module
from ringc.model_defs import load_spec
from ringc.model_defs.lower import lower
from ringc.passes.pipeline import default_pipeline
from ringc.passes.target import target
from tests.reference.ring_linear import forward
from tests.runtime.models import reference_config, reference_weights

TOLERANCE = 2e-4

pytest.importorskip("tvm")


def test_library_calls_beside_generated_kernels(tmp_path: Path) -> None:
    # A machine whose generated products are so slow that every call of the library is taken.
    slow = replace(target("cpu"), matrix_rate=1e6, bandwidth=1e6)
    spec = load_spec("ring-tiny")
    compiled = compile_module(
        lower(spec, slow.storage), slow, tmp_path / "a", describe(spec), default_pipeline()
    ).manifest["kernels"]
    chosen = {k["implementation"].partition("{")[0] for k in compiled.values()}
    assert "torch.library" in chosen
    assert not chosen & {"tvm.matmul", "tvm.grouped_few", "tvm.grouped_tiled", "tvm.attention"}
    assert "tvm.row" in chosen
    model = ringc.load(tmp_path / "a", "random:0")
    config = reference_config(spec)
    ids = torch.randint(0, config.vocab_size, (40,), generator=torch.Generator().manual_seed(2))
    wanted = forward(config, reference_weights(config, 0), ids).logits
    assert float((model(ids[None])[0].double() - wanted).abs().max()) < TOLERANCE
    cache = model.new_cache(1, 40)
    model.prefill(ids[None, :39], cache)
    assert float((model.decode(ids[39:], cache)[0].double() - wanted[39]).abs().max()) < TOLERANCE
