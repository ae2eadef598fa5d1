"""Whole models on a GPU."""

from __future__ import annotations

import pytest
import torch

import ringc
from ringc.runtime.model import Model
from ringc.runtime.weights import random_parameter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    major, minor = torch.cuda.get_device_capability()
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    ringc.compile("ring-tiny", folder, target=f"sm_{major}{minor}")
    return ringc.load(folder, "random:0")


def test_random_weights_are_drawn_on_the_gpu(model: Model) -> None:
    for name, kept in model.state_dict().items():
        drawn = random_parameter(name, kept.shape, 0, "cuda")
        assert torch.equal(kept, drawn.to(kept.dtype)), name
