"""Dense products by Triton: in the interpreter against the reference, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check, check_golden, kernel

PLAIN = """
func @plain(%x: f32[N, 72], %w: f32[50, 72]) {
  %y = matmul(%x, %w) {transpose_b = true} : f32[N, 50]
  return %y
}"""

STRAIGHT = """
func @straight(%x: f32[N, 64], %w: f32[64, 48]) {
  %y = matmul(%x, %w) : f32[N, 48]
  return %y
}"""

GATED = """
func @gated(%x: f32[N, 80], %gate: f32[96, 80], %up: f32[96, 80]) {
  %0 = matmul(%x, %gate) {transpose_b = true} : f32[N, 96]
  %1 = matmul(%x, %up) {transpose_b = true} : f32[N, 96]
  %2 = silu(%0) : f32[N, 96]
  %3 = mul(%2, %1) : f32[N, 96]
  return %3
}"""

RESIDUAL = """
func @residual(%x: f32[N, 64], %w: f32[128, 64], %bias: f32[128], %scale: f32[N, 1], %r: f32[N, 128]) {
  %0 = matmul(%x, %w) {transpose_b = true} : f32[N, 128]
  %1 = add(%0, %bias) : f32[N, 128]
  %2 = mul(%1, %scale) : f32[N, 128]
  %3 = add(%r, %2) : f32[N, 128]
  %4 = sigmoid(%3) : f32[N, 128]
  return %3, %4
}"""

REGIONS = {"plain": PLAIN, "straight": STRAIGHT, "gated": GATED, "residual": RESIDUAL}


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 65, 129, 260])
@pytest.mark.parametrize("name", REGIONS)
def test_products(interpreter: InterpreterWorker, tmp_path: Path, name: str, rows: int) -> None:
    """Few rows, some and many; sizes that no block divides; rows that end inside of a tile."""
    made = kernel(REGIONS[name], "triton.matmul")
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": rows}))


def test_wide_product_in_groups(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """More row tiles than a group has, the last group not full."""
    text = PLAIN.replace("72", "32").replace("50", "300")
    made = kernel(text, "triton.matmul")
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": 1300}))


def test_every_argument_may_have_a_name_of_the_kernel(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    text = PLAIN.replace("%x", "%acc").replace("%w", "%rows").replace("%y", "%row")
    made = kernel(text, "triton.matmul")
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": 5}))


def test_two_left_operands_are_refused() -> None:
    text = """
func @two(%a: f32[N, 8], %b: f32[N, 8], %w: f32[8, 8]) {
  %0 = matmul(%a, %w) {transpose_b = true} : f32[N, 8]
  %1 = matmul(%b, %w) {transpose_b = true} : f32[N, 8]
  %2 = add(%0, %1) : f32[N, 8]
  return %2
}"""
    with pytest.raises(CodegenError, match="no product of one left operand"):
        emit(kernel(text, "triton.matmul"))


MINI = {
    "matmul_down": """
func @down(%x: bf16[N / B, 5120], %down_proj: bf16[2048, 5120], %residual: bf16[N / B, 2048]) {
  %0 = matmul(%x, %down_proj) {transpose_b = true} : bf16[N / B, 2048]
  %1 = add(%residual, %0) : bf16[N / B, 2048]
  return %1
}""",
    "matmul_gate_up": """
func @gate_up(%x: bf16[N / B, 2048], %gate_proj: bf16[5120, 2048], %up_proj: bf16[5120, 2048]) {
  %0 = matmul(%x, %gate_proj) {transpose_b = true} : bf16[N / B, 5120]
  %1 = matmul(%x, %up_proj) {transpose_b = true} : bf16[N / B, 5120]
  %2 = silu(%0) : bf16[N / B, 5120]
  %3 = mul(%2, %1) : bf16[N / B, 5120]
  return %3
}""",
    "matmul_head": """
func @head(%x: bf16[R, 2048], %lm_head: bf16[157184, 2048]) {
  %logits = matmul(%x, %lm_head) {transpose_b = true, out = f32} : f32[R, 157184]
  return %logits
}""",
}


def test_golden() -> None:
    check_golden("triton_matmul_gate_up", emit(kernel(MINI["matmul_gate_up"], "triton.matmul")).text)


def test_ring_mini_does_not_spill() -> None:
    """And products of more than 16 rows run as warpgroup products with both operands in shared memory."""
    jobs = [
        job for text in MINI.values() for job in compile_jobs(emit(kernel(text, "triton.matmul")).text, "matmul", 90)
    ]
    for job, made in zip(jobs, compile_many(jobs), strict=True):
        used = made.resources
        assert (used.spill_stores, used.spill_loads, used.stack_bytes) == (0, 0, 0), (job.kernel, job.constants)
        assert used.register_a_wgmma == 0
        assert used.hgmma > 0 or job.constants["ROWS"] == 16
        assert used.shared_bytes <= 227 * 1024


@pytest.mark.parametrize(("columns", "tile"), [(2048, (128, 256)), (1920, (256, 128))])
def test_the_largest_tiles_fill_the_columns(columns: int, tile: tuple[int, int]) -> None:
    text = f"""func @f(%x: bf16[N / B, 2048], %w: bf16[{columns}, 2048]) {{
      %y = matmul(%x, %w) {{transpose_b = true}} : bf16[N / B, {columns}]
      return %y
    }}"""
    *_, largest = compile_jobs(emit(kernel(text, "triton.matmul")).text, "matmul", 90)
    assert (largest.constants["ROWS"], largest.constants["COLUMNS"]) == tile


def test_torch_agrees(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """The same numbers as torch's own product, for the reading of the reference's."""
    x, w = torch.randn(20, 72), torch.randn(50, 72)
    made, y = kernel(PLAIN, "triton.matmul"), torch.full((20, 50), float("nan"))
    path = tmp_path / "plain.py"
    path.write_text(emit(made).text)
    interpreter.run(path, x, w, y)
    torch.testing.assert_close(y, x @ w.T, rtol=1e-5, atol=1e-4)
