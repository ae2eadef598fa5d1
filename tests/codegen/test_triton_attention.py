"""Softmax attention by Triton: its ways in the interpreter against fp64, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.inputs import check_sizes
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.errors import CodegenError
from ringc.passes.schedules.attention import few_tokens
from ringc.passes.schedules.candidates import candidates
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, distance, kernel, offsets_of, reference, run

WHOLE, SPLIT = (f"triton.attention{{splits=4,few={few}}}" for few in (0, 64))
"""No token's keys are split, or those of up to 64 tokens are."""


def attention(heads: int, shared: int, d: int, template: str, dtype: str = "f32") -> Kernel:
    splits, few = (int(part.rstrip("}").partition("=")[2]) for part in template.split(","))
    rows, pool = f"{dtype}[N / B, {heads}, {d}]", f"state<{dtype}[P; S, {shared}, {d}]>"
    where = "%slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]"
    parts = f"{heads * splits}*min(N, {few})"
    return kernel(
        f"""
func @attend(%q: {rows}, %keys: {pool}, %values: {pool}, {where}) {{
  %o = attention(%q, %keys, %values, %slots, %offsets, %positions) {{scale = {d**-0.5}}} : {rows}
  return %o
}}""",
        template,
        [f"f32[{parts}, {d}]", f"f32[{parts}, 2]"],
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


@pytest.mark.parametrize("template", [WHOLE, SPLIT])
@pytest.mark.parametrize(("heads", "shared", "d"), [(4, 2, 32), (3, 1, 24)])
def test_ragged_prompts_on_what_is_cached(
    interpreter: InterpreterWorker, tmp_path: Path, template: str, heads: int, shared: int, d: int
) -> None:
    given = inputs(heads, shared, d, [1, 0, 18, 3], [3, 9, 0, 40], [2, 0, 4, 1], room=50)
    checked(interpreter, tmp_path, attention(heads, shared, d, template), given)


@pytest.mark.parametrize("template", [WHOLE, SPLIT])
def test_one_token_of_each_sequence(interpreter: InterpreterWorker, tmp_path: Path, template: str) -> None:
    given = inputs(4, 2, 16, [1, 1, 1], [0, 15, 78], [2, 0, 1])
    checked(interpreter, tmp_path, attention(4, 2, 16, template), given)


@pytest.mark.parametrize("template", [WHOLE, SPLIT])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [20, 3, 17]], ids=["decode", "prefill"])
def test_nobodys_slot_gives_zeros(
    interpreter: InterpreterWorker, tmp_path: Path, template: str, lengths: list[int]
) -> None:
    given = inputs(2, 1, 16, lengths, [4, 7, 0], [1, -1, 0])
    made = attention(2, 1, 16, template)
    checked(interpreter, tmp_path, made, given)
    (o,) = run(interpreter, tmp_path, made, given)
    assert not o[lengths[0] : lengths[0] + lengths[1]].any()


@pytest.mark.parametrize("template", [WHOLE, SPLIT])
def test_without_tokens(interpreter: InterpreterWorker, tmp_path: Path, template: str) -> None:
    check(interpreter, tmp_path, attention(2, 1, 16, template), inputs(2, 1, 16, [0, 0], [4, 7], [1, 0]))


def test_positions_need_no_order(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    given = inputs(2, 1, 16, [40], [30], [0])
    given[5] = given[5][torch.randperm(40)]
    checked(interpreter, tmp_path, attention(2, 1, 16, WHOLE), given)


def test_the_split_fits_the_heads_and_the_device() -> None:
    body = attention(16, 4, 128, WHOLE).function.body
    (found,) = candidates("attention", body, (1, 0), target("sm_90"))
    assert found.implementation == "triton.attention{splits=32,few=32}"
    assert [str(t) for t in found.workspace] == ["f32[512*min(32, N), 128]", "f32[512*min(32, N), 2]"]
    few = few_tokens(4, target("sm_90"))
    assert (few + 1) * 4 >= 132 > few * 4, "as many tokens as leave a processor without a block"


@pytest.mark.parametrize("few", [16, 32, 65])
def test_checks_go_all_ways(few: int) -> None:
    made = attention(16, 4, 128, f"triton.attention{{splits=32,few={few}}}").function
    made.notes |= {"rows": (1, 0), "serves": "decode+prefill"}
    sizes = [(s["N"], s["B"]) for s in check_sizes(made)]
    assert {"split" if n <= few else "one" if n < 2 * b else "tiles" for n, b in sizes} == {"split", "one", "tiles"}


def test_ways_are_chosen_by_tokens(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """At the limit, above it, and of more tokens than there are sequences."""
    made = attention(2, 1, 16, "triton.attention{splits=4,few=3}")
    for lengths in ([1, 1, 1], [1, 1, 1, 1], [2, 0, 1], [5]):
        past = [7 * i for i in range(len(lengths))]
        checked(interpreter, tmp_path, made, inputs(2, 1, 16, lengths, past, [*range(len(lengths))]))


def test_only_attention_alone_is_taken() -> None:
    made = attention(2, 1, 16, WHOLE)
    made.function.body.set_outputs([])
    with pytest.raises(CodegenError, match="attention alone"):
        emit(made)


RING_MINI = attention(16, 4, 128, "triton.attention{splits=32,few=32}", "bf16")


def test_golden() -> None:
    check_golden("triton_attention", emit(RING_MINI).text)


def test_nothing_spills_at_ring_mini_sizes() -> None:
    for made in compile_many(compile_jobs(emit(RING_MINI).text, "attention", 90)):
        assert not made.resources.spills, f"{made.name}: {made.resources}"
