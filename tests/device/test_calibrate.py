"""A GPU is measured into a description: its numbers are those of a GPU, and a compile takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ringc import api
from ringc.passes.device import load_device
from ringc.passes.target import target_of

pytestmark = pytest.mark.device


def test_a_gpu_is_measured(tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    name, path = f"sm_{major}{minor}", tmp_path / "device.json"
    found = api.calibrate(path, target=name)
    assert load_device(path, name) == found
    assert found.name == torch.cuda.get_device_name()
    # Of any GPU since 2020; what a number is far off by is its unit, or work that wasn't done.
    assert 3e11 < found.bandwidth < 3e13
    assert 1e13 < found.vector_rate < found.matrix_rate < 1e16
    assert 2e-7 < found.launch < 2e-5
    assert found.width == torch.cuda.get_device_properties(0).multi_processor_count
    assert set(dict(found.measured_with)) == {"CUDA", "driver", "ptxas", "torch", "triton"}
    assert target_of(name, path).launch == found.launch
