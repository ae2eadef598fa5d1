"""The runner of golden files: it must fail where the file's checks don't hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringc.errors import IRError
from tests.filecheck import CheckError, RunLine, check, run_lines

pytest.importorskip("filecheck")


def upper(text: str, pipeline: str, target: str) -> str:
    """A stand-in for the passes: names the pipeline, then shouts; refuses `bad`."""
    if "bad" in text:
        raise IRError("no such op 'bad'")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return f"ran {pipeline!r} for {target}\n{body.upper()}"


def run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "case.ring"
    path.write_text(text)
    for line in run_lines(text):
        check(path, line, upper)


def test_checks_hold(tmp_path):
    run(
        tmp_path,
        "# RUN: ringc-opt %s -p 'raise,fuse{max-ops=8}' | filecheck %s\n"
        "x = add\ny = mul x\n"
        "# CHECK: ran 'raise,fuse{max-ops=8}'\n# CHECK: [[V:[A-Z]]] = ADD\n# CHECK-NEXT: MUL [[V]]\n# CHECK-NOT: DIV\n",
    )


@pytest.mark.parametrize(
    "checks",
    [
        "# CHECK: SUB",
        "# CHECK: MUL\n# CHECK: ADD",
        "# CHECK-NOT: MUL",
        "# CHECK: ADD\n# CHECK-NEXT: ADD",
        "# OTHER: ADD",
    ],
)
def test_checks_that_do_not_hold(tmp_path, checks):
    with pytest.raises(CheckError, match="output of line 1"):
        run(tmp_path, f"# RUN: ringc-opt %s | filecheck %s\nx = add\ny = mul x\n{checks}\n")


def test_prefixes_and_several_run_lines(tmp_path):
    text = (
        "# RUN: ringc-opt %s -p a | filecheck %s --check-prefix A\n"
        "# RUN: ringc opt %s -p b --target sm_90 | filecheck %s --check-prefix=B\n"
        "# A: ran 'a' for cpu\n# B: ran 'b' for sm_90\n"
    )
    run(tmp_path, text)
    with pytest.raises(CheckError):
        run(tmp_path, text.replace("# B: ran 'b'", "# B: ran 'a'"))


def test_expected_error(tmp_path):
    run(tmp_path, "# RUN: not ringc-opt %s | filecheck %s\nbad\n# CHECK: error[RC0300]: no such op 'bad'\n")
    with pytest.raises(CheckError, match="expected an error"):
        run(tmp_path, "# RUN: not ringc-opt %s | filecheck %s\ngood\n# CHECK: GOOD\n")
    with pytest.raises(IRError):
        run(tmp_path, "# RUN: ringc-opt %s | filecheck %s\nbad\n# CHECK: BAD\n")


def test_split_input_runs_every_part(tmp_path):
    text = "# RUN: not ringc-opt %s --split-input | filecheck %s\nbad\n# CHECK: RC0300\n# -----\nbad\n# CHECK: RC0300\n"
    run(tmp_path, text)
    with pytest.raises(CheckError, match="expected an error"):
        run(tmp_path, text.replace("# -----\nbad", "# -----\ngood"))


def test_parse():
    assert RunLine.parse("not ringc-opt -p 'a{b=c},d' %s | filecheck %s --match-full-lines", 7) == RunLine(
        7, "a{b=c},d", "cpu", fails=True, split=False, checks=("--match-full-lines",)
    )


@pytest.mark.parametrize(
    "command",
    [
        "ringc-opt %s -p a",
        "ringc-opt -p a | filecheck %s",
        "ringc-opt %s -p a | grep x",
        "ringc-opt %s -p 'a | filecheck %s",
        "ringc-opt %s --unknown | filecheck %s",
        "opt %s | filecheck %s",
        "ringc-opt %s | filecheck",
    ],
)
def test_commands_that_cannot_be_read(command):
    with pytest.raises(ValueError, match=r"line 1: .*expected: "):
        run_lines(f"# RUN: {command}")


def test_a_file_without_a_run_line_is_an_error():
    with pytest.raises(ValueError, match="tests nothing"):
        run_lines("x = add\n# CHECK: add\n")
