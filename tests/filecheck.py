"""Golden tests in LLVM's FileCheck syntax: `.ring` files that say how to run themselves.

    # RUN: ringc-opt %s -p 'raise,fuse{max-ops=8}' | filecheck %s
    graph @g(%x: f32[T, 64]) { ... }
    # CHECK: fused.row

Each RUN line is one test. It runs in this process: the file's text goes through `ringc.passes.tool.run_text`, and what comes out
through the `filecheck` package. A command may also be

    # RUN: not ringc-opt %s -p verify | filecheck %s --check-prefix ERROR

which wants the passes to raise a `RingcError` and checks its message. It may carry `--target T` (else `cpu`), and
`--split-input`, which runs the parts between lines `# -----` one by one (one that fails doesn't hide the next) and joins
their outputs with the same line.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ringc.errors import RingcError

Opt = Callable[[str, str, str], str]
"""(text, pipeline, target) -> text."""

_FORM = "expected: [not] ringc-opt %s [-p PIPELINE] [--target T] [--split-input] | filecheck %s [FLAGS]"

_RUN = re.compile(r"^\s*#\s*RUN:\s*(.*?)\s*$")
_SPLIT = re.compile(r"^\s*# -----\s*$", re.MULTILINE)


class CheckError(AssertionError):
    """The output of a RUN line isn't what the file's checks say."""


@dataclass(frozen=True)
class RunLine:
    """One `# RUN:` line. `checks` are filecheck's own flags; `line` counts from 1."""

    line: int
    pipeline: str
    target: str
    fails: bool
    split: bool
    checks: tuple[str, ...]

    @classmethod
    def parse(cls, command: str, line: int) -> RunLine:
        """Read what follows `RUN:`.

        Raises:
            ValueError: it isn't of the form in this module's docstring.
        """
        try:
            pipe = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"line {line}: {error}; {_FORM}") from error
        if pipe.count("|") != 1:
            raise ValueError(f"line {line}: one pipe is needed; {_FORM}")
        opt, check = pipe[: pipe.index("|")], pipe[pipe.index("|") + 1 :]
        fails = opt[:1] == ["not"]
        opt = opt[fails:]
        opt = ["ringc-opt", *opt[2:]] if opt[:2] == ["ringc", "opt"] else opt
        flags = {"-p": "", "--target": "cpu"}
        split = False
        rest: list[str] = []
        words = iter(opt)
        for word in words:
            if word == "--split-input":
                split = True
            elif word in flags:
                flags[word] = next(words, "")
            else:
                rest.append(word)
        if rest != ["ringc-opt", "%s"]:
            raise ValueError(f"line {line}: can't read {' '.join(opt)!r}; {_FORM}")
        if check[:1] != ["filecheck"] or check.count("%s") != 1:
            raise ValueError(f"line {line}: can't read {' '.join(check)!r}; {_FORM}")
        checks = tuple(word for word in check[1:] if word != "%s")
        return cls(line, flags["-p"], flags["--target"], fails, split, checks)


def run_lines(text: str) -> list[RunLine]:
    """The RUN lines of a file.

    Raises:
        ValueError: there is none, or one can't be read.
    """
    found = [(n, match[1]) for n, line in enumerate(text.splitlines(), 1) if (match := _RUN.match(line))]
    if not found:
        raise ValueError("no '# RUN:' line: the file tests nothing")
    return [RunLine.parse(command, n) for n, command in found]


def _transform(run: RunLine, text: str, opt: Opt) -> str:
    parts = _SPLIT.split(text) if run.split else [text]
    outputs = []
    for part in parts:
        try:
            output = opt(part, run.pipeline, run.target)
        except RingcError as error:
            if not run.fails:
                raise
            outputs.append(str(error))
            continue
        if run.fails:
            raise CheckError(f"line {run.line}: expected an error, but the passes gave\n{output}")
        outputs.append(output)
    return "\n# -----\n".join(outputs)


def check(path: Path, run: RunLine, opt: Opt) -> None:
    """Run one RUN line of the file at `path`.

    Raises:
        CheckError: a check doesn't hold, or there are no checks.
        RingcError: the passes failed where they should not.
    """
    from filecheck.finput import FInput
    from filecheck.matcher import Matcher
    from filecheck.options import parse_argv_options
    from filecheck.parser import Parser

    output = _transform(run, path.read_text(encoding="utf-8"), opt)
    options = parse_argv_options(["filecheck", *run.checks, str(path)])
    matcher = Matcher(options, FInput("<output>", output), Parser.from_opts(options))
    matcher.stderr = io.StringIO()
    if matcher.run() != 0:
        raise CheckError(f"{matcher.stderr.getvalue()}\noutput of line {run.line}:\n{output}")


class RingFile(pytest.File):
    """Collects a `.ring` file's RUN lines."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item a RUN line, named by its line."""
        try:
            runs = run_lines(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.CollectError(f"{self.path}: {error}") from error
        for run in runs:
            yield RingItem.from_parent(self, name=f"line{run.line}", run=run)


class RingItem(pytest.Item):
    """One RUN line of a `.ring` file."""

    def __init__(self, *, run: RunLine, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def runtest(self) -> None:
        pytest.importorskip("filecheck")
        from ringc.passes.tool import run_text

        check(self.path, self.run, partial(run_text, file=self.path))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, CheckError | RingcError):
            return str(excinfo.value)
        excinfo.traceback = excinfo.traceback.cut(path=__file__)  # what pytest did to get here is of no interest
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.run.line - 1, f"{self.path.name}:{self.run.line}"
