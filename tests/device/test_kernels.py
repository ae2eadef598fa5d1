"""Every Triton template on a GPU. `python -m tests.device.run_all` does the same side by side, and times kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.codegen.support_kernels import kernel
from tests.device.cases import build, cases
from tests.device.run_all import checked


@pytest.mark.parametrize("name", [c.name for c in cases()])
def test_kernel(name: str) -> None:
    outcome = checked(name)
    assert not outcome.failed, outcome.failed


def test_what_stands_in_front_of_a_product_is_rounded_as_in_memory(tmp_path: Path) -> None:
    """(1 + 2^-7)^2 in bf16 is 1 + 2^-6."""
    text = """
func @front(%x: bf16[N, 64], %s: bf16[64], %w: bf16[16, 64]) {
  %0 = mul(%x, %s) : bf16[N, 64]
  %1 = matmul(%0, %w) {transpose_b = true, out = f32} : f32[N, 16]
  return %1
}"""
    x, s, w = torch.zeros(1, 64), torch.zeros(64), torch.zeros(16, 64)
    x[0, :2] = torch.tensor([1 + 2**-7, 1.0])
    s[:2] = torch.tensor([1 + 2**-7, 1 + 2**-6])
    w[:, :2] = torch.tensor([1.0, -1.0])
    made = torch.full((1, 16), float("nan"), device="cuda")
    launch, _ = build(kernel(text, "triton.gemv"), tmp_path)
    launch(*(t.cuda().bfloat16() for t in (x, s, w)), made)
    assert float(made.abs().max()) == 0.0
