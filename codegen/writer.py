"""Writes Python source line by line with the indentation that the structure asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Writer:
    """Collects lines of source."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def __call__(self, text: str = "") -> None:
        """Add one line, or several; empty ones stay empty."""
        for line in text.split("\n"):
            self._lines.append("    " * self._depth + line if line.strip() else "")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A line that ends in a colon, and what is written inside indented below it."""
        self(head)
        with self.indented():
            yield

    @contextmanager
    def indented(self) -> Iterator[None]:
        """What is written inside stands one level deeper."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @property
    def depth(self) -> int:
        """Levels of indentation of the next line."""
        return self._depth

    def text(self) -> str:
        return "\n".join(self._lines)
