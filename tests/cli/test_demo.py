"""`make demo` on a machine that has no C++ compiler: its own recipe, from an empty kernel cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cli.support import needs_tvm

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "c89", "c99", "cpp", "tcc", "icx", "nvcc", "ld", "as")


@needs_tvm
def test_the_demo_needs_no_compiler(tmp_path: Path) -> None:
    # Of programs there are make and what its recipes name, and a virtual environment that counts as installed.
    programs, venv = tmp_path / "programs", tmp_path / "venv" / "bin"
    programs.mkdir()
    venv.mkdir(parents=True)
    for name in ("make", "bash", "sh"):
        found = shutil.which(name)
        assert found is not None, f"{name} is needed to make the demo"
        (programs / name).symlink_to(found)
    (venv / "ringc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ringc "$@"\n')
    (venv / "ringc").chmod(0o755)
    (venv.parent / ".installed").touch()
    path = f"{programs}:{venv}"
    assert [c for c in COMPILERS if shutil.which(c, path=path)] == []
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR", "TVM_NUM_THREADS")}
    environment = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "140", **kept}
    environment["RINGC_CACHE_DIR"] = str(tmp_path / "cache")

    done = subprocess.run(
        [
            "make",
            "-C",
            str(ROOT),
            "--no-print-directory",
            "demo",
            f"VENV={venv.parent}",
            f"DEMO_DIR={tmp_path / 'out'}",
        ],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout
    for shown in (
        "compiled ring-tiny",
        " 0 from the cache)",
        "kernels of ring-tiny for cpu",
        "linear_attention_1",
        "  tokens after the prompt",
        "results compared, 0 wrong",
    ):
        assert shown in done.stdout, done.stdout
    # The prompt and its continuation stand between the commands' own lines, which make prints.
    streamed = done.stdout.split("--max-new-tokens", 1)[1].split("\n", 1)[1].rsplit("/bin/ringc check", 1)[0]
    assert streamed.startswith("The state of a linear-attention layer")
    assert len(streamed.split("adds to.", 1)[1]) > 20
    assert "tokens/s]" in done.stderr
