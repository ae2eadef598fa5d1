"""Softmax attention of a GPU's long prompts as PyTorch's call: here on the CPU, where the file computes it itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ringc.codegen.backend import run_source
from ringc.codegen.check import call_tensors, check_kernel
from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel
from ringc.ir.core import Block
from ringc.passes.schedules.candidates import candidates
from ringc.passes.schedules.model import Rows
from ringc.passes.target import target
from tests.codegen.support_kernels import kernel

TEXT = """
func @attention(%q: bf16[N / B, 8, 16], %keys: state<bf16[P; S, 2, 16]>, %values: state<bf16[P; S, 2, 16]>, %slots: i32[B],
    %offsets: i32[B + 1], %positions: i32[N / B]) {
  %o = attention(%q, %keys, %values, %slots, %offsets, %positions) {scale = 0.25} : bf16[N / B, 8, 16]
  return %o
}"""


@pytest.fixture(scope="module")
def made() -> Kernel:
    return kernel(TEXT, "torch.library")


@pytest.mark.parametrize("sizes", [(1, 1), (5, 1), (37, 3), (40, 6), (3, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_sequences_that_begin_anywhere(made: Kernel, tmp_path: Path, sizes: tuple[int, int], seed: int) -> None:
    """Empty ones, one whose slot is nobody's, some that the cache holds tokens of already."""
    path = tmp_path / "attention.py"
    path.write_text(emit(made).text)
    tokens, sequences = sizes
    shape = {"N": tokens, "B": sequences, "P": sequences + 2, "S": 64}
    (compared,) = check_kernel(made, run_source(path)["launch"], shape, seed=seed)
    assert compared.passed, compared


def test_lengths_are_those_that_the_host_knows(made: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "attention.py"
    path.write_text(emit(made).text)
    names = run_source(path)
    assert names["READS_HOST"]
    sizes = {"N": 12, "B": 2, "P": 4, "S": 64}
    given = call_tensors(made, random_inputs(made.function, sizes), sizes)
    names["launch"](*given)
    wanted = given[-1].clone()
    for x in given[3:6]:
        x.ringc_host = x.numpy().copy()  # type: ignore[attr-defined]
        x.fill_(-7)
    given[-1].fill_(float("nan"))
    names["launch"](*given)
    assert torch.equal(given[-1], wanted)


@pytest.mark.parametrize(
    "text", [TEXT.replace("bf16", "f32"), TEXT.replace("8, 16]", "8, 20]").replace("2, 16]>", "2, 20]>")]
)
def test_cudnn_takes_no_other_heads(text: str) -> None:
    assert "cuDNN takes heads" in choice(kernel(text, "torch.library").function.body, (2048, 0))


def choice(body: Block, rows: Rows) -> str:
    return candidates("library", body, rows, target("sm_90"))[0].illegal


def test_it_is_for_long_prompts_alone(made: Kernel) -> None:
    body = made.function.body
    assert choice(body, (2048, 0)) == ""
    for rows in ((1, 1), (17, 0), (1, 16)):
        assert "on the host" in choice(body, rows)
