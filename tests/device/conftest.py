"""The model that the device's tests share."""

from __future__ import annotations

import pytest
import torch

import ringc
from ringc.runtime.model import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """ring-tiny with random weights, compiled for the GPU of this machine."""
    major, minor = torch.cuda.get_device_capability()
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    ringc.compile("ring-tiny", folder, target=f"sm_{major}{minor}")
    return ringc.load(folder, "random:0")
