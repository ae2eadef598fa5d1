"""Where kernels wait for the launch before, and where they let the next one begin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.overlap import NEXT, READ_ASKED, READ_EARLY, READ_FEW, READ_LATE, WAIT, overlapping
from ringc.passes.target import target
from tests.codegen.test_triton_route import sorter

FILE = '''import triton
import triton.language as tl


JOBS = ({"kernel": "scale", "signature": {}, "constants": {}, "num_warps": 1, "num_stages": 1},)


def pinned(job):
    shape = {"num_warps": job["num_warps"], "num_stages": job["num_stages"], "enable_fp_fusion": True}
    return {**job["constants"], **shape}


@triton.jit
def helper(x):
    return x


@triton.jit
def scale(x, y):
    """Twice."""
    # What it begins with.
    at = tl.arange(0, 16)
    value = tl.load(x + at)
    tl.store(y + at, value)
    tl.store(y + at + 16, value)


def launch(x, y):
    scale[(1,)](x, y, **pinned(JOBS[0]))
'''


def body_of(text: str, name: str) -> list[str]:
    (function,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return [line.strip() for line in text.splitlines()[function.lineno : function.end_lineno]]


def test_a_kernel_waits_first_and_lets_the_next_begin_before_its_last_stores() -> None:
    made = overlapping(FILE, "scale")
    assert body_of(made, "scale") == [
        '"""Twice."""', WAIT, "# What it begins with.", "at = tl.arange(0, 16)", "value = tl.load(x + at)", NEXT,
        "tl.store(y + at, value)", "tl.store(y + at + 16, value)",
    ]  # fmt: skip
    assert body_of(made, "helper") == body_of(FILE, "helper")
    assert '"enable_fp_fusion": True, "launch_pdl": True' in made


def test_what_reads_its_weights_first_waits_behind_them_and_lets_the_next_begin_at_once() -> None:
    weights = f"    w = tl.load(y + at)\n    {READ_EARLY}\n    value ="
    made = overlapping(FILE.replace("    value =", weights), "scale")
    assert body_of(made, "scale")[1:7] == [
        NEXT, "# What it begins with.", "at = tl.arange(0, 16)", "w = tl.load(y + at)", READ_EARLY, WAIT,
    ]  # fmt: skip


@pytest.mark.parametrize("mark", [READ_FEW, READ_LATE])
def test_what_reads_little_or_nothing_early_waits_before_it_lets_the_next_begin(mark: str) -> None:
    made = overlapping(FILE.replace("    value =", f"    {mark}\n    value ="), "scale")
    assert body_of(made, "scale")[1:6] == ["# What it begins with.", "at = tl.arange(0, 16)", mark, WAIT, NEXT]


def test_loads_that_were_asked_for_stay_in_front_of_a_second_wait() -> None:
    text = FILE.replace("    at =", f"    {READ_LATE}\n    at =")
    text = text.replace("    tl.store(y + at, ", f"    {READ_ASKED}\n    tl.store(y + at, ")
    body = body_of(overlapping(text, "scale"), "scale")
    assert [line for line in body if line in (READ_LATE, READ_ASKED, WAIT, NEXT)] == [
        READ_LATE,
        WAIT,
        NEXT,
        READ_ASKED,
        WAIT,
    ]


def test_functions_that_a_program_chooses_from_wait_by_themselves() -> None:
    """What launches them doesn't: one of them may read early."""
    text = FILE.replace(
        "def helper(x):\n    return x", f"def helper(x, y):\n    w = tl.load(y)\n    {READ_EARLY}\n    tl.store(x, w)"
    )
    last = "    if tl.program_id(0) == 0:\n        helper(x, y)\n    else:\n        other(x, y)\n"
    text = text.replace("    tl.store(y + at, value)\n    tl.store(y + at + 16, value)\n", last)
    text = text.replace(
        "@triton.jit\ndef scale",
        f"@triton.jit\ndef other(x, y):\n    {READ_LATE}\n    tl.store(x, y)\n\n\n@triton.jit\ndef scale",
    )
    made = overlapping(text, "scale")
    assert body_of(made, "helper") == [NEXT, "w = tl.load(y)", READ_EARLY, WAIT, "tl.store(x, w)"]
    assert body_of(made, "other")[:4] == [READ_LATE, WAIT, NEXT, "tl.store(x, y)"]
    assert body_of(made, "scale") == body_of(text, "scale")


def test_a_program_that_may_not_wait_is_refused() -> None:
    text = FILE.replace("    return x", f"    {READ_LATE}\n    return x")
    text = text.replace(
        "@triton.jit\ndef scale", "@triton.jit\ndef other(x):\n    return x\n\n\n@triton.jit\ndef scale"
    )
    text = text.replace(
        "    value = tl.load(x + at)\n", "    value = helper(x) if tl.program_id(0) == 0 else other(x)\n"
    )
    with pytest.raises(AssertionError, match="doesn't wait"):
        overlapping(text, "scale")


def test_a_kernel_that_ends_otherwise_lets_the_next_begin_before_its_last_statement() -> None:
    text = FILE.replace(
        "    tl.store(y + at, value)\n    tl.store(y + at + 16, value)\n",
        "    for i in range(2):\n        tl.store(y + at + i * 16, value)\n",
    )
    assert body_of(overlapping(text, "scale"), "scale")[-3:] == [
        NEXT, "for i in range(2):", "tl.store(y + at + i * 16, value)",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "overlaps"), [("sm_80", False), ("sm_90", True), ("sm_100", True)])
def test_only_gpus_that_have_it_overlap(name: str, overlaps: bool) -> None:
    text = emit(sorter(40), target(name)).text
    assert (WAIT in text, NEXT in text, "launch_pdl" in text) == (overlaps,) * 3
    assert emit(sorter(40)).text == emit(sorter(40), target("sm_80")).text


def test_the_interpreter_runs_what_overlaps(tmp_path: Path, interpreter: InterpreterWorker) -> None:
    import torch

    path = tmp_path / "sort.py"
    path.write_text(emit(sorter(5), target("sm_90")).text)
    keys = torch.tensor([3, 1, 1, 4, 0], dtype=torch.int32)
    order, places, counts = (torch.empty(n, dtype=torch.int32) for n in (5, 5, 5))
    offsets = torch.empty(6, dtype=torch.int32)
    interpreter.run(path, keys, order, offsets, places, counts)
    assert order.tolist() == [4, 1, 2, 0, 3]
