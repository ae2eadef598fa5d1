"""Expert products by Triton: in the interpreter against the reference, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen import standalone
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton import grouped, grouped_many
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.errors import CodegenError
from ringc.ir.text_print import print_function
from ringc.passes.schedules.candidates import candidates
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, kernel, offsets_of


def up(experts: int, width: int, inner: int, top_k: int, dtype: str = "f32", *, weighted: bool = False) -> Kernel:
    """Gate and up of the experts: rows gathered, SwiGLU, maybe times the routing weight."""
    rows, tokens = f"{dtype}[{top_k}*N / {experts}, {width}]", f"{dtype}[{top_k}*N / {experts}, {inner}]"
    weight = f", %weights: f32[{top_k}*N]" if weighted else ""
    behind = (
        f"""
  %w = gather(%weights, %order) : f32[{top_k}*N / {experts}]
  %wide = reshape(%w) {{shape = [{top_k}*N, 1]}} : f32[{top_k}*N / {experts}, 1]
  %y = mul(%h, %wide) : {rows}"""
        if weighted
        else ""
    )
    return kernel(
        f"""
func @up(%order: i32[{top_k}*N / {experts}], %x: {dtype}[N, {inner}], %gate: {dtype}[{experts}, {width}, {inner}],
    %offsets: i32[{experts + 1}], %up: {dtype}[{experts}, {width}, {inner}]{weight}) {{
  %k = constant() {{value = [{top_k}], dtype = i32}} : i32[]
  %token = floordiv(%order, %k) : i32[{top_k}*N / {experts}]
  %rows = gather(%x, %token) : {tokens}
  %0 = segment_matmul(%rows, %gate, %offsets) : {rows}
  %1 = segment_matmul(%rows, %up, %offsets) : {rows}
  %2 = silu(%0) : {rows}
  %h = mul(%2, %1) : {rows}{behind}
  return {"%y" if weighted else "%h"}
}}""",
        "triton.grouped",
    )


def down(experts: int, width: int, inner: int, dtype: str = "f32") -> Kernel:
    return kernel(
        f"""
func @down(%h: {dtype}[R / {experts}, {inner}], %down: {dtype}[{experts}, {width}, {inner}], %offsets: i32[{experts + 1}]) {{
  %0 = segment_matmul(%h, %down, %offsets) : {dtype}[R / {experts}, {width}]
  return %0
}}""",
        "triton.grouped",
    )


def spread(lengths: Sequence[int], top_k: int, width: int, inner: int) -> list[torch.Tensor]:
    """Inputs of `up`: so many rows for each expert."""
    rows, experts = sum(lengths), len(lengths)
    order = torch.randperm(rows).to(torch.int32)
    gate, up_ = (torch.randn(experts, width, inner) * inner**-0.5 for _ in range(2))
    return [order, torch.randn(rows // top_k, inner), gate, offsets_of(lengths), up_]


LENGTHS = {
    "one": [0, 0, 2, 0, 0, 0, 2, 0],
    "decode": [3, 0, 0, 1, 0, 9, 0, 3],
    "uneven": [0, 40, 1, 0, 17, 16, 2, 0],
    "all in one": [0, 0, 0, 0, 0, 100, 0, 0],
    "last": [0, 0, 0, 0, 0, 0, 0, 4],
    "middle": [130, 0, 64, 1, 63, 65, 200, 5],
    "none": [0] * 8,
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LENGTHS)
def test_up(interpreter: InterpreterWorker, tmp_path: Path, name: str, weighted: bool) -> None:
    """Experts without rows, with a few, with several tiles; widths that no block divides."""
    lengths, top_k = LENGTHS[name], 4
    inputs = spread(lengths, top_k, 40, 48)
    weights = [torch.rand(sum(lengths))] if weighted else []
    check(interpreter, tmp_path, up(8, 40, 48, top_k, weighted=weighted), [*inputs, *weights])


@pytest.mark.parametrize("name", LENGTHS)
def test_down(interpreter: InterpreterWorker, tmp_path: Path, name: str) -> None:
    lengths = LENGTHS[name]
    inputs = [torch.randn(sum(lengths), 40), torch.randn(8, 130, 40) * 0.2, offsets_of(lengths)]
    check(interpreter, tmp_path, down(8, 130, 40), inputs)


MANY_ROWS = [[600, 0, 140], [193, 192, 191], [64, 65, 1], [128, 129, 320]]
"""By tiles of 192 rows: of one part, of the other, of both; a number of experts that is no power of two."""


@pytest.mark.parametrize("lengths", MANY_ROWS)
def test_many_rows(interpreter: InterpreterWorker, tmp_path: Path, lengths: list[int]) -> None:
    inputs = [torch.randn(sum(lengths), 32), torch.randn(3, 128, 32) * 0.2, offsets_of(lengths)]
    check(interpreter, tmp_path, down(3, 128, 32), inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", MANY_ROWS)
def test_many_rows_of_two_weights(
    interpreter: InterpreterWorker, tmp_path: Path, lengths: list[int], weighted: bool
) -> None:
    """Columns and an inner axis that no block divides."""
    rows = sum(lengths) // 2 * 2
    lengths = [*lengths[:2], lengths[2] - (sum(lengths) - rows)]
    weights = [torch.rand(rows)] if weighted else []
    check(interpreter, tmp_path, up(3, 72, 48, 2, weighted=weighted), [*spread(lengths, 2, 72, 48), *weights])


def test_every_tile_has_a_number() -> None:
    """What the kernel's numbering rests on: no two tiles share one, and none lies behind the grid."""
    for block in (grouped.FEW, grouped_many.ROWS + grouped_many.MORE):
        for lengths in (*LENGTHS.values(), [1] * 8, [block] * 8, [block - 1, block + 1, 2 * block, 0, 1, 0, 0, 5]):
            starts = offsets_of(lengths).tolist()
            numbers = [starts[e] // block + e + i for e, n in enumerate(lengths) for i in range(-(-n // block))]
            assert len(set(numbers)) == len(numbers)
            assert all(n < sum(lengths) // block + len(lengths) for n in numbers)


def test_a_dense_product_is_refused() -> None:
    text = "func @dense(%x: f32[N, 8], %w: f32[8, 8]) {\n  %0 = matmul(%x, %w) {transpose_b = true} : f32[N, 8]\n  return %0\n}"
    with pytest.raises(CodegenError, match="has no expert product"):
        emit(kernel(text, "triton.grouped"))


def test_golden() -> None:
    check_golden("triton_grouped_up", emit(up(256, 512, 2048, 8, "bf16")).text)


def test_ring_mini_does_not_spill() -> None:
    jobs = [
        job
        for made in (
            up(256, 512, 2048, 8, "bf16"),
            down(256, 2048, 512, "bf16"),
            up(8, 512, 2048, 2, "f32"),
            down(8, 2048, 512, "f32"),
        )
        for job in compile_jobs(emit(made).text, made.name, 90)
    ]
    for job, made in zip(jobs, compile_many(jobs), strict=True):
        used = made.resources
        assert (used.spill_stores, used.spill_loads, used.stack_bytes) == (0, 0, 0), (job.kernel, job.constants)
        assert used.register_a_wgmma == 0 or "fp32" in job.signature["x" if "x" in job.signature else "h"]
        assert used.hgmma > 0 or job.constants["ROWS"] == 16
        assert used.shared_bytes <= 227 * 1024


def test_columns_that_are_not_there_are_not_read() -> None:
    text = emit(down(8, 130, 40)).text
    few, many = text[: text.index("def left_of")], text[text.index("def left_of") :]
    assert "tl.minimum(columns, 129)" in few
    assert "tl.minimum(first_column + tl.arange(0, COLUMNS), 129)" in many


@pytest.mark.parametrize("made", [up(256, 512, 2048, 8, "bf16"), down(256, 2048, 512, "bf16")], ids=["up", "down"])
def test_an_a100_gets_tiles_that_fit(made: Kernel) -> None:
    (chosen,) = candidates("grouped", made.function.body, (17, 0), target("sm_80"))
    narrow = kernel(str(print_function(made.function)), chosen.implementation)
    for compiled in compile_many(compile_jobs(emit(narrow).text, made.name, 80)):
        assert compiled.resources.shared_bytes <= 163 * 1024
        assert compiled.resources.spill_stores <= 8


def test_variables_of_the_kernel_are_no_tensors_names(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    text = str(print_function(down(3, 72, 48).function))
    for old, new in (("%h", "%more"), ("%down", "%finish"), ("%offsets", "%acc_more")):
        text = text.replace(old, new)
    lengths = [40, 0, 41]
    inputs = [torch.randn(sum(lengths), 48), torch.randn(3, 72, 48) * 0.2, offsets_of(lengths)]
    check(interpreter, tmp_path, kernel(text, "triton.grouped"), inputs)


def test_by_itself_it_takes_few_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU the interpreter runs it, at half a second for each expert that has a row."""
    made = up(4, 32, 32, 2, "bf16")
    made.function.notes["family"] = "grouped"
    path = tmp_path / "up.py"
    path.write_text(emit(made).text)
    assert standalone.run(path)
    shown = capsys.readouterr().out
    assert ("at N=4\n" in shown) != torch.cuda.is_available(), shown


def test_by_itself_it_takes_many_rows_too(tmp_path: Path) -> None:
    """The interpreter runs it in f32, whose elements are twice as far apart."""
    made = up(4, 32, 32, 2, "bf16")
    made.function.notes["family"] = "grouped"
    path = tmp_path / "up.py"
    path.write_text(emit(made).text)
    assert standalone.run(path, ["N=40"])
