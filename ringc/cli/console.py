"""What the verbs share: printing, tables, numbers for people, progress on what takes longer than a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PATIENCE = 1.0
"""Seconds after which progress is shown."""

STARTING = "starting"
"""What is shown while nothing is known to be going on: large packages are being imported."""


def out(text: str = "") -> None:
    """One line on the standard output."""
    sys.stdout.write(text + "\n")


def warn(message: str, help: str) -> None:
    """Print a warning and its remedy."""
    sys.stderr.write(f"warning: {message}\n  = help: {help}\n")


def console() -> Console:
    """A rich console on the standard output; wide where it is no terminal, so that tables aren't cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table; the first `left` columns are aligned to the left, the others to the right. A head of nothing is left out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headed = any(columns)
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if headed else None,
        show_header=headed,
    )
    if not headed:
        made.padding = (0, 1, 0, 2)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    printer = console()
    if printer.is_terminal:
        printer.print(made)
        return
    # In a file or a pipe nobody wants the blanks that fill up lines.
    with printer.capture() as captured:
        printer.print(made)
    lines = (line.rstrip() for line in captured.get().rstrip().split("\n"))
    out("\n".join(lines) + "\n")


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def flops(number: float) -> str:
    """`1.5 GFLOP`."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} TFLOP"


class Bar:
    """Progress on the standard error, shown only once something has taken longer than a second, and only on a terminal.

    A timer shows it, so that one long step is seen too, not only the steps behind the first second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._stopped = False
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True
        if sys.stderr.isatty():
            self._timer.start()

    def __call__(self, what: str, done: int, total: int) -> None:
        """So much of this is done."""
        with self._lock:
            self._known[what] = (done, total)
            if self._progress is not None:
                self._draw(self._progress)

    def stop(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._stopped = True
            if self._progress is not None:
                self._progress.stop()

    def _show(self) -> None:
        with self._lock:
            if self._stopped:  # the timer had fired already, and waited for the lock
                return
            self._progress = _progress()
            self._draw(self._progress)
            self._progress.start()

    def _draw(self, progress: Progress) -> None:
        if self._known and STARTING in self._tasks:
            progress.remove_task(self._tasks.pop(STARTING))
        for what, (done, total) in (self._known or {STARTING: (0, 1)}).items():
            if what not in self._tasks:
                self._tasks[what] = progress.add_task(what)
            progress.update(self._tasks[what], completed=done, total=total)


@contextmanager
def bar() -> Iterator[Bar]:
    """A progress bar that goes away at the end."""
    made = Bar()
    try:
        yield made
    finally:
        made.stop()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
