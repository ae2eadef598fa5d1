"""Whole models on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ringc
from ringc.runtime.drawn import random_parameter
from ringc.runtime.model import Model

PROMPT = 37
STEPS = 5


def logits(model: Model) -> torch.Tensor:
    """Of a prompt in pieces of one length and of some steps of decode, so that programs run more than once."""
    cache = model.new_cache(2, 3 * PROMPT + STEPS)
    ids = torch.randint(model.vocabulary["size"], (2, 3 * PROMPT + STEPS), generator=torch.Generator().manual_seed(1))
    made = [model.prefill(ids[:, i * PROMPT : (i + 1) * PROMPT], cache) for i in range(3)]
    made += [model.decode(ids[:, 3 * PROMPT + i], cache) for i in range(STEPS)]
    return torch.stack(made)


def test_replayed_programs_equal_launched_ones(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = logits(model)
    assert torch.equal(replayed, logits(model))  # after the graphs of the first cache are gone
    monkeypatch.setattr(model._arena, "graphs", None)
    assert torch.equal(replayed, logits(model))
    assert replayed.isfinite().all()
    assert float(replayed.std()) > 0.1


def test_an_edited_kernel_runs_through_triton(model: Model, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model.artifact.folder, tmp_path / "edited")
    for path in (tmp_path / "edited" / "kernels").glob("*.py"):
        path.write_text(path.read_text().replace("\nJOBS = (", "\n# A remark.\nJOBS = ("))
    edited = ringc.load(tmp_path / "edited", "random:0", allow_edited=True)
    assert torch.equal(logits(edited), logits(model))


def test_random_weights_are_drawn_on_the_gpu(model: Model) -> None:
    for name, tensor in model.state_dict().items():
        assert tensor.is_cuda, name
        drawn = random_parameter(name, tensor.shape, 0, "cuda")
        assert torch.equal(tensor, drawn.to(tensor.dtype)), name
