"""Progress: on a terminal, once something takes longer than a second, however few steps it has."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from ringc.cli.console import Bar

SLOW = """
import time
from ringc.cli import console
console.PATIENCE = 0.2
with console.bar() as progress:
    {before}
    time.sleep(0.8)
"""


def seen(before: str) -> str:
    """What a terminal shows of a step that takes longer than the patience."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(before=before)], stderr=theirs, stdout=theirs)
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
    assert process.wait(timeout=30) == 0, shown
    return shown.decode()


def test_one_long_step_is_seen() -> None:
    shown = seen('progress("weights", 3, 10)')
    assert "weights" in shown
    assert "3/10" in shown


def test_before_anything_is_known() -> None:
    assert "starting" in seen("pass")


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
