"""PyTorch's calls on a GPU against fp64: softmax attention of prompts and of later parts of them, products of experts and of the router."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ringc.codegen.backend import run_source
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.ir.core import Function
from ringc.ir.text_parse import parse_module
from ringc.passes.target import target
from tests.device.cases import DeviceInputs, call_tensors, case, compare, reference, results, sizes_of

PRODUCTS = parse_module("""module @m level kernel
symbol B >= 1
symbol N >= 1

func @experts(%x: bf16[8*N / 256, 2048], %w: bf16[256, 512, 2048], %offsets: i32[257]) {
  %1 = segment_matmul(%x, %w, %offsets) : bf16[8*N / 256, 512]
  return %1
}

func @router(%x: bf16[N / B, 2048], %w: bf16[256, 2048]) {
  %1 = matmul(%x, %w) {transpose_b = true, out = f32} : f32[N / B, 256]
  return %1
}
""").functions


def call(function: Function) -> Kernel:
    made = Function(function.name, function.body.clone(), family="library", implementation="torch.library")
    return kernel_of(made)


def check(made: Kernel, folder: Path, tokens: int, sequences: int, *, integers_only: bool) -> None:
    path = folder / "call.py"
    path.write_text(emit(made, target("sm_90")).text)
    sizes = sizes_of(tokens, sequences)
    inputs = DeviceInputs(made.function, sizes, tokens + sequences, integers_only=integers_only).all()
    given = call_tensors(made, inputs, sizes)
    run_source(path)["launch"](*given)
    (found,) = results(made, given)
    (exact,), (plain,) = (reference(made, inputs, sizes, precision) for precision in (torch.float64, None))
    _, complaint = compare(made, found, exact, plain, integers_only=integers_only)
    assert not complaint, complaint


@pytest.mark.parametrize("integers_only", [True, False])
@pytest.mark.parametrize(("tokens", "sequences"), [(1, 1), (65, 3), (1000, 6), (2048, 1), (8192, 1), (8192, 3)])
def test_softmax_attention(tmp_path: Path, tokens: int, sequences: int, *, integers_only: bool) -> None:
    """Sequences begin anywhere in their slots, as the cache holds tokens of theirs already; one slot is nobody's."""
    check(call(case("attention_1").kernel.function), tmp_path, tokens, sequences, integers_only=integers_only)


@pytest.mark.parametrize("integers_only", [True, False])
@pytest.mark.parametrize("tokens", [1, 65, 2048])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(tmp_path: Path, name: str, tokens: int, *, integers_only: bool) -> None:
    check(call(PRODUCTS[name]), tmp_path, tokens, 1, integers_only=integers_only)
