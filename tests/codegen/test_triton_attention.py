"""Softmax attention by Triton: both templates in the interpreter against fp64, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.errors import CodegenError
from ringc.passes.schedules.attention import few_tokens, implementation
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, distance, kernel, offsets_of, reference, run

PREFILL, DECODE = "triton.attention_prefill", "triton.attention_decode{splits=4}"


def attention(heads: int, shared: int, d: int, template: str, dtype: str = "f32") -> Kernel:
    splits = template.partition("splits=")[2].rstrip("}")
    rows, pool = f"{dtype}[N / B, {heads}, {d}]", f"state<{dtype}[P; S, {shared}, {d}]>"
    where = "%slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]"
    return kernel(
        f"""
func @attend(%q: {rows}, %keys: {pool}, %values: {pool}, {where}) {{
  %o = attention(%q, %keys, %values, %slots, %offsets, %positions) {{scale = {d**-0.5}}} : {rows}
  return %o
}}""",
        template,
        [f"f32[{heads}*{splits}*N, {d}]", f"f32[{heads}*{splits}*N, 2]"] if splits else [],
    )


def inputs(
    heads: int, shared: int, d: int, lengths: list[int], past: list[int], slots: list[int], room: int = 80
) -> list[torch.Tensor]:
    n, pool = sum(lengths), max(slots, default=0) + 2
    keys, values = torch.randn(2, pool, room, shared, d)
    ends = [p + n for p, n in zip(past, lengths, strict=True)]
    for slot in range(pool):
        # What no token has been written to must not be looked at.
        keys[slot, ends[slots.index(slot)] if slot in slots else 0 :] = float("nan")
        values[slot, ends[slots.index(slot)] if slot in slots else 0 :] = float("nan")
    positions = [p + i for p, n in zip(past, lengths, strict=True) for i in range(n)]
    return [
        torch.randn(n, heads, d),
        keys,
        values,
        torch.tensor(slots, dtype=torch.int32),
        offsets_of(lengths),
        torch.tensor(positions, dtype=torch.int32),
    ]


def checked(interpreter: InterpreterWorker, folder: Path, made: Kernel, given: list[torch.Tensor]) -> None:
    """The reference multiplies masked keys by zero, so it is given zeros where the kernel is given NaN."""
    (got,) = run(interpreter, folder, made, given)
    (want,) = reference(made, [x.nan_to_num() if x.is_floating_point() else x for x in given])
    assert distance(got, want) < 2e-5


@pytest.mark.parametrize("template", [PREFILL, DECODE])
@pytest.mark.parametrize(("heads", "shared", "d"), [(4, 2, 32), (3, 1, 24)])
def test_ragged_prompts_on_what_is_cached(
    interpreter: InterpreterWorker, tmp_path: Path, template: str, heads: int, shared: int, d: int
) -> None:
    given = inputs(heads, shared, d, [1, 0, 18, 3], [3, 9, 0, 40], [2, 0, 4, 1], room=50)
    checked(interpreter, tmp_path, attention(heads, shared, d, template), given)


@pytest.mark.parametrize("template", [PREFILL, DECODE])
def test_one_token_of_each_sequence(interpreter: InterpreterWorker, tmp_path: Path, template: str) -> None:
    given = inputs(4, 2, 16, [1, 1, 1], [0, 15, 78], [2, 0, 1])
    checked(interpreter, tmp_path, attention(4, 2, 16, template), given)


@pytest.mark.parametrize("template", [PREFILL, DECODE])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [20, 3, 17]], ids=["decode", "prefill"])
def test_nobodys_slot_gives_zeros(
    interpreter: InterpreterWorker, tmp_path: Path, template: str, lengths: list[int]
) -> None:
    given = inputs(2, 1, 16, lengths, [4, 7, 0], [1, -1, 0])
    made = attention(2, 1, 16, template)
    checked(interpreter, tmp_path, made, given)
    (o,) = run(interpreter, tmp_path, made, given)
    assert not o[lengths[0] : lengths[0] + lengths[1]].any()


@pytest.mark.parametrize("template", [PREFILL, DECODE])
def test_without_tokens(interpreter: InterpreterWorker, tmp_path: Path, template: str) -> None:
    check(interpreter, tmp_path, attention(2, 1, 16, template), inputs(2, 1, 16, [0, 0], [4, 7], [1, 0]))


def test_positions_need_no_order(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    given = inputs(2, 1, 16, [40], [30], [0])
    given[5] = given[5][torch.randperm(40)]
    checked(interpreter, tmp_path, attention(2, 1, 16, PREFILL), given)


def test_the_split_fits_the_heads() -> None:
    body = attention(16, 4, 128, PREFILL).function.body
    for rows in ((1, 1), (1, 16), (2, 64)):
        assert implementation(body, rows, target("sm_90"))[0] == "triton.attention_decode{splits=32}"
    assert implementation(body, (17, 0), target("sm_90")) == ("triton.attention_prefill", ())


def test_keys_are_split_while_tokens_leave_processors_without_a_block() -> None:
    assert few_tokens(4, target("sm_90")) * 4 >= 132 > (few_tokens(4, target("sm_90")) - 1) * 4
    body = attention(16, 4, 128, PREFILL).function.body
    assert implementation(body, (2, 66), target("sm_90")) == ("triton.attention_prefill", ())
    assert implementation(body, (2, 66), target("sm_100"))[1]


def test_only_attention_alone_is_taken() -> None:
    made = attention(2, 1, 16, PREFILL)
    made.function.body.set_outputs([])
    with pytest.raises(CodegenError, match="attention alone"):
        emit(made)


RING_MINI = {
    "attention_prefill": attention(16, 4, 128, PREFILL, "bf16"),
    "attention_decode": attention(16, 4, 128, "triton.attention_decode{splits=32}", "bf16"),
}


@pytest.mark.parametrize("name", RING_MINI)
def test_golden(name: str) -> None:
    check_golden(f"triton_{name}", emit(RING_MINI[name]).text)


@pytest.mark.parametrize("name", RING_MINI)
def test_nothing_spills_at_ring_mini_sizes(name: str) -> None:
    for made in compile_many(compile_jobs(emit(RING_MINI[name]).text, name, 90)):
        assert not made.resources.spills, f"{made.name}: {made.resources}"
