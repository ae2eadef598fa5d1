"""Running the command line: as a process of its own, or in this one, which is as good and much quicker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ringc.cli import main
from ringc.codegen.artifact import MANIFEST, manifest_digest, to_json

Done = subprocess.CompletedProcess[str]

Damage = Callable[[Path], object]
"""What a test does to a folder."""

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


def check(done: Done, message: str, place: str | None) -> None:
    """One message, its place and its remedy."""
    assert done.returncode == 2, done.stdout + done.stderr
    first, *rest = done.stderr.splitlines()
    assert re.match(r"error\[RC0\d\d\d\]: ", first)
    assert message in first
    assert place is None or any(line == f"  --> {place}" for line in rest), done.stderr
    assert any(line.startswith("  = help: ") and len(line) > 15 for line in rest), done.stderr
    assert done.stderr.count("error[") == 1
    assert "Traceback" not in done.stderr + done.stdout


def signed(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a manifest so that its hash fits, as another compiler's would."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        manifest["sha256"] = manifest_digest(manifest)
        (folder / MANIFEST).write_text(to_json(manifest))

    return damage
