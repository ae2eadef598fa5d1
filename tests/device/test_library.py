"""Softmax attention of long prompts as PyTorch's call on a GPU, against fp64: prompts from their beginnings, and later parts of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ringc.codegen.backend import run_source
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel, parse_implementation
from ringc.passes.target import target
from tests.device.cases import DeviceInputs, call_tensors, case, compare, reference, results, sizes_of


@pytest.fixture(scope="module")
def made() -> Kernel:
    return Kernel(case("attention_1").kernel.function, parse_implementation("torch.library"))


@pytest.mark.parametrize("integers_only", [True, False])
@pytest.mark.parametrize(("tokens", "sequences"), [(1, 1), (65, 3), (1000, 6), (2048, 1), (8192, 1), (8192, 3)])
def test_against_fp64(made: Kernel, tmp_path: Path, tokens: int, sequences: int, integers_only: bool) -> None:
    """Sequences begin anywhere in their slots, as the cache holds tokens of theirs already; one slot is nobody's."""
    path = tmp_path / "attention.py"
    path.write_text(emit(made, target("sm_90")).text)
    sizes = sizes_of(tokens, sequences)
    inputs = DeviceInputs(made.function, sizes, tokens + sequences, integers_only=integers_only).all()
    given = call_tensors(made, inputs, sizes)
    run_source(path)["launch"](*given)
    (found,) = results(made, given)
    (exact,), (plain,) = (reference(made, inputs, sizes, precision) for precision in (torch.float64, None))
    _, complaint = compare(made, found, exact, plain, integers_only=integers_only)
    assert not complaint, complaint
