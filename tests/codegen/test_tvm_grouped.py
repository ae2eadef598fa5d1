"""Products of rows by expert, by TVM: any spread of the rows over the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

pytest.importorskip("tvm")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built, offsets_of

EXPERTS = 6

UP = """
func @experts(%order: i32[3*N / 6], %x: f32[N, {k}], %gate: f32[6, {m}, {k}]{layout}, %offsets: i32[7], %up: f32[6, {m}, {k}]{layout}) {{
  %c = constant() {{value = [3], dtype = i32}} : i32[]
  %token = floordiv(%order, %c) : i32[3*N / 6]
  %rows = gather(%x, %token) : f32[3*N / 6, {k}]
  %g = segment_matmul(%rows, %gate, %offsets) : f32[3*N / 6, {m}]
  %u = segment_matmul(%rows, %up, %offsets) : f32[3*N / 6, {m}]
  %1 = silu(%g) : f32[3*N / 6, {m}]
  %2 = mul(%1, %u) : f32[3*N / 6, {m}]
  return %2
}}"""

DOWN = """
func @experts(%h: f32[3*N / 6, {k}], %w: f32[6, {m}, {k}]{layout}, %offsets: i32[7], %order: i32[3*N / 6], %weights: f32[3*N]) {{
  %y = segment_matmul(%h, %w, %offsets) : f32[3*N / 6, {m}]
  %1 = gather(%weights, %order) : f32[3*N / 6]
  %2 = reshape(%1) {{shape = [3*N, 1]}} : f32[3*N / 6, 1]
  %3 = mul(%y, %2) : f32[3*N / 6, {m}]
  return %3
}}"""

NORMED = """
func @experts(%h: f32[3*N / 6, {k}], %n: f32[{k}], %w: f32[6, {m}, {k}]{layout}, %offsets: i32[7]) {{
  %1 = rms_norm(%h, %n) : f32[3*N / 6, {k}]
  %2 = segment_matmul(%1, %w, %offsets) : f32[3*N / 6, {m}]
  return %2
}}"""


def grouped(text: str, k: int, m: int, template: str, layout: str = "@1x32") -> Kernel:
    block = int(layout.rpartition("x")[2] or 32)
    config = f"rows=8,block={block}" if template == "tiled" else f"block={block}"
    made = kernel(text.format(k=k, m=m, layout=layout), f"tvm.grouped_{template}{{{config}}}")
    made.function.notes["family"] = "grouped"
    return made


CASES: dict[str, Callable[[str], Kernel]] = {
    "up": lambda t: grouped(UP, 40, 64, t),
    "up_uneven": lambda t: grouped(UP, 23, 45, t),
    "down": lambda t: grouped(DOWN, 64, 40, t),
    "block_16": lambda t: grouped(DOWN, 18, 16, t, "@1x16"),
    "normed": lambda t: grouped(NORMED, 20, 33, t),
    "row_major": lambda t: grouped(UP, 20, 37, t, ""),
}

SPREADS: dict[str, list[int]] = {
    "one_each": [1, 1, 1, 1, 1, 1],
    "ragged": [7, 0, 17, 1, 8, 9],
    "one_expert": [0, 0, 0, 27, 0, 0],
    "first": [12, 0, 0, 0, 0, 0],
    "last": [0, 0, 0, 0, 0, 3],
    "none": [0, 0, 0, 0, 0, 0],
    "halves": [4, 5, 0, 12, 13, 2],
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    return cache(lambda name, template: Built(CASES[name](template), tmp_path_factory.mktemp("kernel")))


def inputs(built: Built, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Random content for so many rows of each expert."""
    rows = sum(lengths)
    made: list[torch.Tensor] = []
    for arg in built.kernel.function.body.args:
        shape = [d if isinstance(d, int) else rows if str(d) == "3*N" else rows // 3 for d in arg.shape]
        match arg.name:
            case "offsets":
                made.append(offsets_of(lengths))
            case "order":
                made.append(torch.randperm(rows).int())
            case _:
                made.append(torch.randn(shape))
    return made


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("template", ["few", "tiled"])
@pytest.mark.parametrize("name", CASES)
def test_experts(make: Callable[[str, str], Built], name: str, template: str, spread: str) -> None:
    built = make(name, template)
    built.check(inputs(built, SPREADS[spread]))


def test_both_forms_agree(make: Callable[[str, str], Built]) -> None:
    """A row's sum runs over the same terms in the same order in both templates."""
    few, tiled = make("down", "few"), make("down", "tiled")
    given = inputs(few, SPREADS["ragged"])
    assert torch.equal(few.results(given)[0], tiled.results(given)[0])


def test_different_rows_are_refused() -> None:
    text = """
func @experts(%x: f32[N / 6, 8], %z: f32[N / 6, 8], %w: f32[6, 32, 8]@1x32, %offsets: i32[7]) {
  %1 = segment_matmul(%x, %w, %offsets) : f32[N / 6, 32]
  %2 = segment_matmul(%z, %w, %offsets) : f32[N / 6, 32]
  %3 = add(%1, %2) : f32[N / 6, 32]
  return %3
}"""
    for config in ("few{block=32}", "tiled{rows=8,block=32}"):
        with pytest.raises(CodegenError, match="the same rows"):
            emit(kernel(text, f"tvm.grouped_{config}"))


@pytest.mark.parametrize("template", ["few", "tiled"])
def test_golden(template: str) -> None:
    check_golden(f"tvm_grouped_{template}", emit(CASES["up"](template)).text)
