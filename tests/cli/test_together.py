"""Several compiles at once: one kernel cache, or one folder, and equal artifacts from all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringc.codegen.cache import Cache
from tests.cli.support import SMALL, contents, needs_tvm, right

IN_STEP = """
import os, sys, time
from pathlib import Path
from ringc.cli import main
from ringc.codegen.cache import Cache

folder, count = Path(sys.argv[1]), int(sys.argv[2])
put = Cache.put

def together(self, key, files):
    here = folder / key
    here.mkdir(parents=True, exist_ok=True)
    (here / str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(here.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    put(self, key, files)

if count:
    Cache.put = together
sys.argv = ["ringc", "compile", *sys.argv[3:]]
main()
"""
"""`ringc compile` that waits before it stores a kernel until so many processes are about to store the same one; 0: doesn't wait."""


def at_once(commands: list[list[str]], cache: Path, *, in_step: bool = False) -> None:
    """Start `ringc compile` with each list of arguments at the same time; all must succeed."""
    environment = {**os.environ, "RINGC_CACHE_DIR": str(cache)}
    meeting = [str(cache.parent / "meeting"), str(len(commands) if in_step else 0)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", IN_STEP, *meeting, *arguments],
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


@pytest.mark.parametrize("target", [pytest.param("cpu", marks=needs_tvm), "sm_90"])
def test_one_cold_cache(tmp_path: Path, target: str) -> None:
    (tmp_path / "spec.yaml").write_text(SMALL)
    spec, cache = str(tmp_path / "spec.yaml"), tmp_path / "cache"
    folders = [tmp_path / f"out{i}" for i in range(3 if target == "cpu" else 2)]  # Triton's have 2 workers each
    # Triton's kernels are stored by worker processes, which nothing holds in step.
    in_step = target == "cpu"
    at_once([[spec, "-o", str(folder), "--target", target] for folder in folders], cache, in_step=in_step)
    assert not in_step or len(list((tmp_path / "meeting").iterdir())) == len(list(Cache(cache).keys()))
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
