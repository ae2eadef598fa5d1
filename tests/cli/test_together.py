"""Several compiles at once: one kernel cache, or one folder, and equal artifacts from all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringc.codegen.cache import Cache
from tests.cli.support import SMALL, contents, right


def at_once(commands: list[list[str]], cache: Path) -> None:
    """Start `ringc compile` with each list of arguments at the same time; all must succeed."""
    environment = {**os.environ, "RINGC_CACHE_DIR": str(cache)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ringc", "compile", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for arguments in commands
    ]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err


@pytest.mark.parametrize("target", ["cpu", "sm_90"])
def test_one_cold_cache(tmp_path: Path, target: str) -> None:
    (tmp_path / "spec.yaml").write_text(SMALL)
    spec, cache = str(tmp_path / "spec.yaml"), tmp_path / "cache"
    folders = [tmp_path / f"out{i}" for i in range(3 if target == "cpu" else 2)]  # Triton's have 2 workers each
    at_once([[spec, "-o", str(folder), "--target", target] for folder in folders], cache)
    first, *others = (contents(folder) for folder in folders)
    assert len(first) > 10
    assert all(other == first for other in others)
    # What they left in the cache is whole, and all that the next compile needs.
    entries = Cache(cache)
    assert all(entries.get(key) is not None for key in list(entries.keys()))
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".entry"]
    text = right("compile", spec, "-o", str(tmp_path / "warm"), "--target", target, env={"RINGC_CACHE_DIR": str(cache)})
    assert "(0 built," in text
    assert contents(tmp_path / "warm") == first


def test_one_folder(tmp_path: Path) -> None:
    """The last one to finish stands there, whole."""
    folder = tmp_path / "out"
    at_once([["ring-tiny", "-o", str(folder), "--target", "torch"]] * 3, tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["out"]
    assert "kernels of ring-tiny" in right("inspect", str(folder))
