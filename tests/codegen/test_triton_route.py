"""Routing and sorting by Triton: in the interpreter against the reference, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton import choose, route
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.codegen.triton.overlap import NEXT, READ_LATE, WAIT
from ringc.errors import CodegenError
from ringc.ir.ops.routing import Route
from ringc.passes.schedules.routing import route_workspace, sort_workspace
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, kernel, reference, run


def router(
    experts: int, inner: int, attributes: str, *, bias: bool = True, dtype: str = "f32", logits: str = "f32"
) -> Kernel:
    """A router's product and its route."""
    top_k = int(attributes.partition("top_k = ")[2].partition(",")[0])
    function = f"""
func @router(%x: {dtype}[N / B, {inner}], %gate: {dtype}[{experts}, {inner}]{f", %bias: {logits}[{experts}]" if bias else ""}) {{
  %logits = matmul(%x, %gate) {{transpose_b = true, out = {logits}}} : {logits}[N / B, {experts}]
  %experts, %weights = route(%logits, {"%bias" if bias else "_"}) {{{attributes}}} : i32[N / B, {top_k}], {logits}[N / B, {top_k}]
  return %experts, %weights
}}"""
    made = kernel(function, "triton.route")
    made.function.notes["workspace"] = route_workspace(made.function.body)
    return made


def chooser(experts: int, attributes: str) -> Kernel:
    """A route of logits."""
    top_k = int(attributes.partition("top_k = ")[2].partition(",")[0])
    return kernel(
        f"""
func @chooser(%logits: f32[N, {experts}], %bias: f32[{experts}]) {{
  %experts, %weights = route(%logits, %bias) {{{attributes}}} : i32[N, {top_k}], f32[N, {top_k}]
  return %experts, %weights
}}""",
        "triton.route",
    )


def sorter(keys: int) -> Kernel:
    made = kernel(
        f"""
func @sorter(%keys: i32[R]) {{
  %order, %offsets, %places = sort_by_key(%keys) {{num_keys = {keys}}} : i32[R / {keys}], i32[{keys + 1}], i32[R]
  return %order, %offsets, %places
}}""",
        "triton.sort",
    )
    (op,) = made.function.body.ops
    made.function.notes["workspace"] = sort_workspace(op)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("experts", "inner", "attributes"),
    [
        (32, 64, "top_k = 4, groups = 4, keep = 2, factor = 2.5"),
        (64, 48, "top_k = 8, groups = 8, keep = 4, group_top = 3, normalize = false"),
        (24, 80, "top_k = 3, groups = 6, keep = 2, dropped = 0.0"),
        (20, 40, "top_k = 5, groups = 5, keep = 5"),
        (15, 40, "top_k = 4, groups = 3, keep = 2, group_top = 1"),
        (160, 64, 'top_k = 6, score = "softmax", factor = 16.0, normalize = false'),
        (12, 16, 'top_k = 1, score = "softmax", groups = 3, keep = 1, group_top = 1'),
    ],
)
def test_experts_and_weights(
    interpreter: InterpreterWorker, tmp_path: Path, experts: int, inner: int, attributes: str
) -> None:
    made = router(experts, inner, attributes)
    for rows in (1, 5, 16, 17, 37):  # by one row of the weight, by blocks, by tiles
        given = [torch.randn(rows, inner), torch.randn(experts, inner) * inner**-0.5, torch.randn(experts) * 0.1]
        check(interpreter, tmp_path, made, given)


def test_of_more_scores_than_a_warp_holds(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    made = router(600, 24, "top_k = 4, groups = 6, keep = 3")
    for rows in (2, 6):
        check(interpreter, tmp_path, made, [torch.randn(rows, 24), torch.randn(600, 24) * 0.2, torch.randn(600) * 0.1])


def test_sums_are_rounded_to_the_type_of_the_logits(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """Four experts in a row differ by less than f16 holds: the first of them wins."""
    made = router(16, 64, "top_k = 6", dtype="f16", logits="f16")
    x, gate = torch.zeros(6, 64), torch.zeros(16, 64)
    x[:, 0], x[:, 1] = 1, 2.0**-12
    gate[:, 0], gate[:, 1] = torch.arange(16) // 4 / 4 + 1, torch.arange(16) / 16
    experts, _ = run(interpreter, tmp_path, made, [x.half(), gate.half(), torch.zeros(16).half()])
    assert experts.tolist() == 6 * [[12, 13, 14, 15, 8, 9]]


def test_long_rows(interpreter: InterpreterWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few there are more parts than elsewhere, and no program holds one whole."""
    monkeypatch.setattr(route, "LONGEST", 64)
    monkeypatch.setattr(route, "DEEPEST", 32)
    made = router(16, 200, "top_k = 4")
    for rows in (1, 9):
        check(interpreter, tmp_path, made, [torch.randn(rows, 200), torch.randn(16, 200) * 0.1, torch.randn(16) * 0.1])
    monkeypatch.setattr(route, "ROUTE_ROWS", 64)
    with pytest.raises(CodegenError, match="rows of 200 are longer than 64"):
        emit(made)


def test_without_a_bias(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    made = router(32, 64, "top_k = 4, groups = 4, keep = 2", bias=False)
    check(interpreter, tmp_path, made, [torch.randn(7, 64), torch.randn(32, 64) * 0.1])


def test_without_rows(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    check(
        interpreter, tmp_path, router(32, 64, "top_k = 4"), [torch.randn(0, 64), torch.randn(32, 64), torch.randn(32)]
    )


@pytest.mark.parametrize(
    "attributes",
    [
        "top_k = 4",
        "top_k = 4, groups = 4, keep = 2",
        "top_k = 7, groups = 6, keep = 3, group_top = 3",
        "top_k = 3, groups = 3, keep = 2, dropped = 0.0",
    ],
)
def test_of_equals_the_lower_expert_wins(interpreter: InterpreterWorker, tmp_path: Path, attributes: str) -> None:
    logits = torch.randint(-1, 2, (25, 24)).float()
    check(interpreter, tmp_path, chooser(24, attributes), [logits, torch.zeros(24)])


@pytest.mark.parametrize(
    "attributes",
    [
        "top_k = 4, groups = 8, keep = 4, factor = 2.5",
        "top_k = 5, groups = 6, keep = 3, group_top = 3",
        'top_k = 3, groups = 3, keep = 1, group_top = 1, score = "softmax", normalize = false',
    ],
)
@pytest.mark.parametrize("pairs", [4096, 4])
def test_of_logits(
    interpreter: InterpreterWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: str, pairs: int
) -> None:
    """The groups that stay are read again; of many rows two are taken at a time, and the last of an odd number alone."""
    monkeypatch.setattr(choose, "PAIRS", pairs)
    for rows in (37, 38):
        check(interpreter, tmp_path, chooser(48, attributes), [3 * torch.randn(rows, 48), torch.randn(48) * 0.3])


@pytest.mark.parametrize(
    ("experts", "attributes"),
    [
        (20, "top_k = 4, groups = 4, keep = 2"),
        (15, "top_k = 4, groups = 3, keep = 2, group_top = 1"),
        (20, "top_k = 4, groups = 4, keep = 2, dropped = -9.0"),
    ],
)
@pytest.mark.parametrize("pairs", [4096, 4])
def test_what_fills_a_tile_counts_for_no_group(
    interpreter: InterpreterWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experts: int,
    attributes: str,
    pairs: int,
) -> None:
    """All scores are far below those of experts that aren't there."""
    monkeypatch.setattr(choose, "PAIRS", pairs)
    check(interpreter, tmp_path, chooser(experts, attributes), [torch.randn(25, experts), torch.full((experts,), -3.0)])


def test_a_row_that_takes_several_warps_is_not_paired() -> None:
    assert "PAIRS" in emit(chooser(512, "top_k = 4")).text
    assert "PAIRS" not in emit(chooser(1024, "top_k = 4")).text


def test_logits_without_a_bias(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    made = kernel(
        """
func @chooser(%logits: f16[N, 48]) {
  %experts, %weights = route(%logits, _) {top_k = 4, groups = 8, keep = 4} : i32[N, 4], f16[N, 4]
  return %experts, %weights
}""",
        "triton.route",
    )
    assert READ_LATE in emit(made).text
    logits = torch.randn(9, 48).half()
    assert torch.equal(run(interpreter, tmp_path, made, [logits])[0], reference(made, [logits])[0])


CHOICES = {
    "of_logits": chooser(48, "top_k = 4, groups = 8, keep = 4"),
    "without_a_bias": router(48, 64, "top_k = 4", bias=False),
    "of_ring_mini": router(256, 2048, "top_k = 8, groups = 8, keep = 4, factor = 2.5", dtype="bf16"),
    "of_several_warps": router(1000, 64, "top_k = 4"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice_waits_before_it_lets_the_next_begin(name: str) -> None:
    """What reads early behind it relies on that (`ringc.passes.early`)."""
    text = emit(CHOICES[name], target("sm_90")).text
    choose = text.partition("def choose(")[2].partition("\n\n\n")[0]
    assert choose.count(WAIT) == choose.count(NEXT) == 1 and choose.index(WAIT) < choose.index(NEXT)
    launch = text.partition("def launch(")[2]
    assert launch.rstrip().partition("if __name__")[0].rstrip().splitlines()[-1].lstrip().startswith("choose[")


def test_a_score_that_is_not_a_number_is_the_largest(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """As PyTorch's topk has it: what is wrong stays to be seen."""
    made = chooser(48, "top_k = 4, groups = 8, keep = 4")
    logits = torch.randn(9, 48)
    logits[::2, 7] = float("nan")
    experts, weights = run(interpreter, tmp_path, made, [logits, torch.zeros(48)])
    assert experts[::2, 0].eq(7).all()
    assert weights[::2, 0].isnan().all()
    assert "propagate_nan=tl.PropagateNan.ALL" in emit(made).text  # which the interpreter does anyway


def test_dropped_groups_may_win_where_they_count_as_zero(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    bias = torch.full((16,), -3.0)
    check(
        interpreter, tmp_path, chooser(16, "top_k = 4, groups = 4, keep = 1, dropped = 0.0"), [torch.randn(9, 16), bias]
    )


@pytest.mark.parametrize("keys", [1, 3, 16, 40, 256])
@pytest.mark.parametrize("rows", [0, 1, 512, 513])
def test_sort(interpreter: InterpreterWorker, tmp_path: Path, keys: int, rows: int) -> None:
    check(interpreter, tmp_path, sorter(keys), [torch.randint(0, keys, (rows,), dtype=torch.int32)])


def test_sort_of_many_blocks_with_keys_that_nothing_has(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    rows = torch.randint(0, 5, (3_000,), dtype=torch.int32) * 7
    check(interpreter, tmp_path, sorter(40), [rows])


def test_other_regions_are_refused() -> None:
    made = router(32, 64, "top_k = 4")
    made.function.body.set_outputs(list(made.function.body.outputs)[:1])
    with pytest.raises(CodegenError, match="route"):
        emit(made)
    assert isinstance(made.function.body.ops[-1], Route)


RING_MINI = {
    "route": router(256, 2048, "top_k = 8, groups = 8, keep = 4, factor = 2.5", dtype="bf16"),
    "choose": chooser(256, "top_k = 8, groups = 8, keep = 4, factor = 2.5"),
    "sort": sorter(256),
}


@pytest.mark.parametrize("name", RING_MINI)
def test_golden(name: str) -> None:
    check_golden(f"triton_{name}", emit(RING_MINI[name]).text)


def test_nothing_spills_where_four_warps_choose() -> None:
    text = emit(router(1024, 2048, "top_k = 8, groups = 8, keep = 4", dtype="bf16")).text
    for made in compile_many(compile_jobs(text, "router", 90)):
        assert not made.resources.spills, f"{made.name}: {made.resources}"


@pytest.mark.parametrize("name", RING_MINI)
def test_nothing_spills_at_ring_mini_sizes(name: str) -> None:
    for made in compile_many(compile_jobs(emit(RING_MINI[name]).text, name, 90)):
        assert not made.resources.spills, f"{made.name}: {made.resources}"
