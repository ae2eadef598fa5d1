"""Every error that a user can meet, one class each.

The command line prints `str(error)` and exits with code 2: no traceback for a user's mistake. A message says what is wrong, where
(file, line, column and the line itself, when there is a file), and what to do. This module imports nothing of ringc: every layer may
raise from it, and loading an artifact must not pull in the compiler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

_SHOWN = 160
"""Columns of an offending line that are printed."""


@dataclass(frozen=True)
class Place:
    """Where in a text an error stands. Lines and columns count from 1; `width` is the number of columns to underline."""

    file: str | Path
    line: int | None = None
    column: int | None = None
    text: str | None = None
    width: int = 1

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def excerpt(self) -> list[str]:
        """The offending line with carets under the offending columns, as lines to print."""
        if self.text is None or self.line is None:
            return []
        gutter = " " * len(str(self.line))
        # Of a line that fills screens, the part around the column.
        start = 0 if self.column is None or self.column < _SHOWN else self.column - _SHOWN // 2
        shown = [f" {gutter} |", f" {self.line} | {self.text[start : start + _SHOWN]}"]
        if self.column is not None:
            carets = "^" * min(max(self.width, 1), _SHOWN)
            shown.append(f" {gutter} | {' ' * (self.column - 1 - start)}{carets}")
        return shown


class RingcError(Exception):
    """Base of all errors that are the input's fault, not ringc's.

    Args:
        message: one sentence that says what is wrong.
        place: where it is wrong, if it stands in a file.
        help: what to do about it.
    """

    code: ClassVar[str] = "RC0000"

    def __init__(self, message: str, *, place: Place | None = None, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.help = help

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        if self.place is not None:
            lines.append(f"  --> {self.place}")
            lines += self.place.excerpt()
        if self.help:
            lines.append(f"  = help: {self.help}")
        return "\n".join(lines)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the nearest known word, or None when nothing is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else None


def reason(error: OSError | UnicodeError | ValueError | RecursionError) -> str:
    """Why a file can't be read or written, in a few words."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, UnicodeError):
        return "it is no UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition(";")[0][:200]


class UsageError(RingcError):
    """The command line was called with arguments that don't fit together."""

    code = "RC0001"


class SpecError(RingcError):
    """A spec file is not a valid architecture description."""

    code = "RC0100"


class CheckpointError(RingcError):
    """A checkpoint folder, its config.json or its tensors don't fit the model."""

    code = "RC0200"


class IRError(RingcError):
    """A graph in text form can't be read, or a graph breaks a rule of the IR."""

    code = "RC0300"


class PassError(RingcError):
    """A pass doesn't exist, or was given options that it doesn't have."""

    code = "RC0400"


class CodegenError(RingcError):
    """No kernel family of the target can implement a region."""

    code = "RC0500"


class ArtifactError(RingcError):
    """An artifact is damaged, edited, of another format version or for another machine."""

    code = "RC0600"


class RunError(RingcError):
    """A model was called with inputs that it can't take: ids outside the vocabulary, an overfull cache, an empty batch."""

    code = "RC0700"


class ToolchainError(RingcError):
    """A package, compiler or device that the request needs is missing or of a known-bad version."""

    code = "RC0800"


class RecordError(RingcError):
    """A tuning record is damaged, of another format version, target or device, or can't be written."""

    code = "RC0900"


class DeviceError(RingcError):
    """A device description is damaged, of another format version or target, or can't be written."""

    code = "RC0950"
