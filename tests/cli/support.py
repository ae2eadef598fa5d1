"""Running the command line: as a process of its own, or in this one, which is as good and much quicker."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ringc.cli import main

Done = subprocess.CompletedProcess[str]

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="needs TVM, which compiles for the CPU")


SMALL = """\
name: small
dtype: fp32
vocabulary: {size: 256, tokenizer: bytes}
max_positions: 512
hidden: 32
layers: {count: 1, M: 0, tail: softmax}
heads: 2
head_dim: 16
norm_eps: 1e-6
rope: {theta: 1e4, rotary_dim: 16}
softmax: {kv_heads: 1}
mlp: {width: 32, first_k: 1}
head: {dtype: fp32}
"""
"""A model of few kernels."""


def ringc(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Done:
    """Run the command in a process of its own, as a shell would."""
    return command([sys.executable, "-m", "ringc", *arguments], stdin=stdin, env=env)


def command(arguments: list[str], *, stdin: str | None = None, env: dict[str, str] | None = None) -> Done:
    """Run any command with the environment that the tests of the command line have."""
    environment = {**os.environ, "COLUMNS": "140", "NO_COLOR": "1", **(env or {})}
    return subprocess.run(
        arguments,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        input=stdin,
        errors="replace",
    )


def right(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    done = ringc(*arguments, stdin=stdin, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Here:
    """Runs the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Done:
        argv = ["ringc", *map(str, arguments)]
        self._monkeypatch.setattr(sys, "argv", argv)
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self._capsys.readouterr()
        return subprocess.CompletedProcess(argv, int(caught.value.code or 0), out, err)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: files with their bytes, folders, and links with what they point at."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            found[name] = "folder" if path.is_dir() else path.read_bytes()
    return found
