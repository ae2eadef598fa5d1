"""Products by TVM: one or two, any rows and columns, what stands in front and behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.tile import part_length
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built

PLAIN = """
func @product(%x: f32[N / B, {k}], %w: f32[{m}, {k}]{layout}) {{
  %y = matmul(%x, %w) {{transpose_b = true}} : f32[N / B, {m}]
  return %y
}}"""

RESIDUAL = """
func @product(%x: f32[N, {k}], %w: f32[{m}, {k}]{layout}, %r: f32[N, {m}], %b: f32[{m}]) {{
  %1 = matmul(%x, %w) {{transpose_b = true}} : f32[N, {m}]
  %2 = add(%1, %b) : f32[N, {m}]
  %3 = sigmoid(%2) : f32[N, {m}]
  %4 = mul(%r, %3) : f32[N, {m}]
  return %2, %4
}}"""

SWIGLU = """
func @product(%x: f32[N, {k}], %gate: f32[{m}, {k}]{layout}, %up: f32[{m}, {k}]{layout}) {{
  %g = matmul(%x, %gate) {{transpose_b = true}} : f32[N, {m}]
  %u = matmul(%x, %up) {{transpose_b = true}} : f32[N, {m}]
  %3 = silu(%g) : f32[N, {m}]
  %4 = mul(%3, %u) : f32[N, {m}]
  return %4
}}"""

NORMED = """
func @product(%x: f32[R, {k}], %n: f32[{k}], %r: f32[R, {k}], %w: f32[{m}, {k}]{layout}) {{
  %1 = add(%x, %r) : f32[R, {k}]
  %2 = rms_norm(%1, %n) : f32[R, {k}]
  %3 = matmul(%2, %w) {{transpose_b = true}} : f32[R, {m}]
  %4 = exp(%3) : f32[R, {m}]
  return %4
}}"""

GATE = """
func @product(%wide: f32[N, 136], %o: f32[N, 8, 12], %g: f32[{k}], %w: f32[{m}, {k}]{layout}, %r: f32[N, {m}]) {{
  %0 = slice(%wide) {{axis = 1, start = 40, stop = 136}} : f32[N, {k}]
  %1 = reshape(%o) {{shape = [N, 4, 24]}} : f32[N, 4, 24]
  %2 = rms_norm(%1, _) : f32[N, 4, 24]
  %3 = reshape(%2) {{shape = [N, {k}]}} : f32[N, {k}]
  %4 = mul(%3, %g) : f32[N, {k}]
  %5 = sigmoid(%0) : f32[N, {k}]
  %6 = mul(%4, %5) : f32[N, {k}]
  %7 = matmul(%6, %w) {{transpose_b = true}} : f32[N, {m}]
  %8 = add(%r, %7) : f32[N, {m}]
  return %8
}}"""

NORMED_SWIGLU = (
    SWIGLU.replace("%x: f32[N, {k}],", "%x: f32[N, {k}], %n: f32[{k}],")
    .replace("  %g =", "  %0 = rms_norm(%x, %n) : f32[N, {k}]\n  %g =")
    .replace("matmul(%x,", "matmul(%0,")
)

PUBLISHED = """
func @product(%x: f32[N, {k}], %w: f32[{k}, {m}], %v: f32[{m}, {k}]{layout}) {{
  %1 = matmul(%x, %w) : f32[N, {m}]
  %2 = matmul(%x, %v) {{transpose_b = true}} : f32[N, {m}]
  %3 = mul(%1, %2) : f32[N, {m}]
  return %3
}}"""


def product(text: str, k: int, m: int, rows: int, layout: str = "@0x32") -> Kernel:
    block = int(layout.partition("x")[2] or 32)
    return kernel(text.format(k=k, m=m, layout=layout), f"tvm.matmul{{rows={rows},block={block}}}")


CASES: dict[str, Callable[[], Kernel]] = {
    "one_row": lambda: product(PLAIN, 48, 96, 1),
    "tiles": lambda: product(PLAIN, 48, 96, 8),
    "vocabulary_260": lambda: product(PLAIN, 40, 260, 8),
    "vocabulary_272": lambda: product(PLAIN, 40, 272, 1),
    "narrow": lambda: product(PLAIN, 7, 5, 8),
    "narrow_one_row": lambda: product(SWIGLU, 7, 5, 1),
    "block_16": lambda: product(PLAIN, 33, 37, 2, "@0x16"),
    "residual": lambda: product(RESIDUAL, 24, 70, 8),
    "residual_one_row": lambda: product(RESIDUAL, 24, 70, 1),
    "swiglu": lambda: product(SWIGLU, 64, 75, 8),
    "swiglu_one_row": lambda: product(SWIGLU, 64, 75, 1),
    "normed": lambda: product(NORMED, 50, 44, 8),
    "normed_one_row": lambda: product(NORMED, 50, 44, 1),
    "gate": lambda: product(GATE, 96, 44, 8),
    "gate_one_row": lambda: product(GATE, 96, 44, 1),
    "normed_swiglu": lambda: product(NORMED_SWIGLU, 64, 75, 8),
    "normed_swiglu_one_row": lambda: product(NORMED_SWIGLU, 64, 75, 1),
    "row_major": lambda: product(SWIGLU, 45, 20, 8, ""),
    "not_transposed": lambda: product(PUBLISHED, 21, 40, 1),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return cache(lambda name: Built(CASES[name](), tmp_path_factory.mktemp("kernel")))


@pytest.mark.parametrize("name", CASES)
def test_products(make: Callable[[str], Built], name: str) -> None:
    """Rows before, at and behind the edges of tiles and of a task's chunk."""
    built = make(name)
    for rows in (1, 2, 4, 5, 8, 9, 13, 23, 257, 300):
        built.check(random_inputs(built.kernel.function, {"N": rows, "B": 1, "R": rows}, rows))


@pytest.mark.parametrize("name", CASES)
def test_no_rows(make: Callable[[str], Built], name: str) -> None:
    built = make(name)
    made = built.results(random_inputs(built.kernel.function, {"N": 0, "B": 1, "R": 0}))
    assert all(x.numel() == 0 for x in made)


def test_vector_loops_have_no_conditions() -> None:
    """The last panel's columns are computed like the others'; a condition stands around vector loops, never inside."""
    for name in ("vocabulary_260", "swiglu", "residual"):
        text = emit(CASES[name]()).text
        inside = re.findall(r"in T\.vectorized\(\d+\):\n\s+(.*)", text)
        assert inside and not any("if" in line or "Select" in line for line in inside)


@pytest.mark.parametrize("name", ["normed", "gate", "normed_swiglu"])
def test_work_in_front_wakes_no_thread(name: str) -> None:
    """It is of few rows, which one thread has done before another is awake: the one parallel loop is the product's."""
    assert emit(CASES[name]()).text.count("in T.parallel(") == 1


@pytest.mark.parametrize("name", ["one_row", "swiglu", "vocabulary_260"])
def test_sums_take_no_memory(make: Callable[[str], Built], name: str) -> None:
    """They lie on the stack, where those of a part become registers; none is taken from TVM's pool."""
    assert make(name).built.resources["heap_workspaces"] == 0


def test_different_operands_are_refused() -> None:
    text = """
func @product(%x: f32[N, 8], %z: f32[N, 8], %w: f32[32, 8]@0x32) {
  %1 = matmul(%x, %w) {transpose_b = true} : f32[N, 32]
  %2 = matmul(%z, %w) {transpose_b = true} : f32[N, 32]
  %3 = add(%1, %2) : f32[N, 32]
  return %3
}"""
    with pytest.raises(CodegenError, match="one left operand"):
        emit(kernel(text, "tvm.matmul{rows=1,block=32}"))


def test_reading_a_product_elsewhere_is_refused() -> None:
    text = """
func @product(%x: f32[N, 8], %w: f32[32, 8]@0x32, %ids: i32[N]) {
  %1 = matmul(%x, %w) {transpose_b = true} : f32[N, 32]
  %2 = gather(%1, %ids) : f32[N, 32]
  return %2
}"""
    with pytest.raises(CodegenError, match="its own place"):
        emit(kernel(text, "tvm.matmul{rows=8,block=32}"))


def test_results_repeat(make: Callable[[str], Built]) -> None:
    """A row's result doesn't depend on how many rows come with it."""
    built = make("tiles")
    x, w = random_inputs(built.kernel.function, {"N": 20, "B": 1})
    (whole,) = built.results([x, w])
    for rows in (1, 3, 7, 20):
        (part,) = built.results([x[:rows], w])
        assert torch.equal(part, whole[:rows])


@pytest.mark.parametrize("rows", [1, 8])
def test_sums_in_parts_round_less(rows: int, tmp_path: Path) -> None:
    """Over 1024 terms the error (root mean square, relative) is 5.7e-7 where they are added up one by one, and 1.5e-7 in parts of 32."""
    built = Built(product(PLAIN, 1024, 96, rows), tmp_path)
    x, w = random_inputs(built.kernel.function, {"N": 20, "B": 1})
    (made,) = built.results([x, w])
    wanted = x.double() @ w.double().T
    assert float((made - wanted).norm() / wanted.norm()) < 2e-7


@pytest.mark.parametrize(
    ("inner", "length"), [(1, 1), (7, 7), (32, 8), (40, 8), (512, 32), (1024, 32), (2048, 64), (18944, 148)]
)
def test_part_length(inner: int, length: int) -> None:
    assert part_length(inner) == length


@pytest.mark.parametrize("name", ["swiglu", "one_row"])
def test_golden(name: str) -> None:
    check_golden(f"tvm_matmul_{name}", emit(CASES[name]()).text)
