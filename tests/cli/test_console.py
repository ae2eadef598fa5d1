"""Progress: on a terminal, once something takes longer than a second, however few steps it has."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ringc.api import compile  # noqa: A004 - as in `re.compile`
from ringc.cli.console import Bar
from tests.cli.support import SMALL

SLOW = """
import time
from ringc.cli import console
console.PATIENCE = 0.2
with console.bar() as progress:
    {before}
    time.sleep(0.8)
"""


VERB = """
from ringc.cli import console, main
console.PATIENCE = 0.0
main()
"""


def seen(before: str) -> str:
    """What a terminal shows of a step that takes longer than the patience."""
    return terminal(SLOW.format(before=before))


def terminal(script: str, *arguments: str) -> str:
    """What a terminal shows of a script that succeeds."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=theirs, stdout=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown
    return shown.decode()


def test_one_long_step_is_seen() -> None:
    shown = seen('progress("weights", 3, 10)')
    assert "weights" in shown
    assert "3/10" in shown


def test_before_anything_is_known() -> None:
    assert "starting" in seen("pass")


@pytest.mark.parametrize("verb", ["doctor", "opt", "explain", "inspect"])
def test_verbs_show_that_they_work_before_their_results(verb: str, tmp_path: Path) -> None:
    result = {"doctor": "known to be bad", "opt": "module @empty", "explain": "candidates of each", "inspect": ".text"}
    arguments: list[str] = []
    if verb == "opt":
        (tmp_path / "empty.ring").write_text("module @empty level graph\n")
        arguments = [str(tmp_path / "empty.ring")]
    elif verb != "doctor":
        pytest.importorskip("tvm")
        (tmp_path / "small.yaml").write_text(SMALL)
        artifact = compile(tmp_path / "small.yaml", tmp_path / "small").folder
        arguments = [str(artifact), "row_1", "--stage", "asm"] if verb == "inspect" else [str(artifact)]
    shown = terminal(VERB, verb, *arguments)
    assert 0 <= shown.find("starting") < shown.index(result[verb])
    assert "starting" not in shown[shown.index(result[verb]) :]


def test_nothing_is_shown_where_it_is_no_terminal() -> None:
    script = SLOW.format(before='progress("weights", 3, 10)')
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize("seconds", ["0.0", "0.1"])
def test_nothing_is_shown_of_what_is_quick(seconds: str) -> None:
    assert "weights" not in seen(f'progress("weights", 3, 10)\n    time.sleep({seconds})\n    raise SystemExit')


def test_a_timer_that_fires_while_it_is_stopped_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = Bar()
    stopped("weights", 3, 10)
    stopped.stop()
    stopped._show()
    assert stopped._progress is None
    assert capsys.readouterr().err == ""
