"""Every Triton template on a GPU. `python -m tests.device.run_all` does the same side by side, and times kernels."""

from __future__ import annotations

import pytest

from tests.device.cases import cases
from tests.device.run_all import checked


@pytest.mark.parametrize("name", [c.name for c in cases()])
def test_kernel(name: str) -> None:
    outcome = checked(name)
    assert not outcome.failed, outcome.failed
