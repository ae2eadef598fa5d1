"""A disk that fills up in the middle of writing: one message, exit code 2, and nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ringc.codegen.artifact import MANIFEST
from tests.cli.support import SMALL, Done, command, contents, needs_tvm

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from ringc.cli import main
sys.argv = ["ringc", *sys.argv[2:]]
main()
"""
"""Every write beyond so many bytes of a file fails in its middle, as on a full disk, for this process and those that it starts."""


def limited(size: int, *arguments: str | Path) -> Done:
    return command([sys.executable, "-c", LIMITED, str(size), *map(str, arguments)])


def check(done: Done, message: str, place: Path) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error[RC0"), done.stderr
    assert message in done.stderr.splitlines()[0], done.stderr
    assert f"  --> {place}" in done.stderr
    assert "\n  = help: " in done.stderr
    assert done.stderr.count("error[") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SMALL)
    return tmp_path / "spec.yaml"


# 10 kB: some kernels are written, and the host program isn't. The manifest is the last file; all before it are smaller.
@pytest.mark.parametrize("size", [1000, 10_000])
def test_an_artifact(tmp_path: Path, spec: Path, size: int) -> None:
    folder = tmp_path / "out"
    check(limited(size, "compile", spec, "-o", folder, "--target", "torch"), "can't write the artifact: ", folder)
    assert list(contents(tmp_path)) == ["spec.yaml"]


def test_an_artifact_that_replaces_another(tmp_path: Path, spec: Path, tiny: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "out"))
    before = contents(tmp_path)
    done = limited(10_000, "compile", "ring-tiny", "-o", folder, "--target", "torch", "--dump", "all")
    check(done, "can't write the artifact: ", folder)
    assert contents(tmp_path) == before


@needs_tvm
def test_the_kernel_cache(tmp_path: Path, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("RINGC_CACHE_DIR", str(cache))
    done = limited(2000, "compile", spec, "-o", tmp_path / "out", "--target", "cpu")
    check(done, "can't write the kernel cache: ", cache)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert all(path.stat().st_size < 2000 for path in cache.rglob("*.entry"))


def test_an_imported_spec(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BailingMoeLinearV2ForCausalLM"]}')
    check(limited(1000, "import", tmp_path, "-o", tmp_path / "new.yaml"), "can't be written: ", tmp_path / "new.yaml")
    (tmp_path / "old.yaml").write_text("mine")
    check(limited(1000, "import", tmp_path, "-o", tmp_path / "old.yaml"), "can't be written: ", tmp_path / "old.yaml")
    assert contents(tmp_path) == {
        "config.json": (tmp_path / "config.json").read_bytes(),
        "old.yaml": b"mine",
    }


# ---------------------------------------------------------------- a real one

SMALL_DISK = 'mount -t tmpfs -o size="$1" small "$2" && shift 2 && "$@"; code=$?; cd "$0" && find . | sort; exit $code'


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    line = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "small", "/tmp"]
    return subprocess.run(line, check=False, capture_output=True).returncode == 0


real = pytest.mark.skipif(not can_mount(), reason="needs a small disk of its own; the limits above stand for it")


def on_small_disk(size: str, disk: Path, *arguments: str | Path) -> tuple[Done, list[str]]:
    """Run the command where `disk` is a small one, and list what is on it at the end."""
    disk.mkdir()
    line = ["unshare", "-rm", "bash", "-c", SMALL_DISK, str(disk), size, str(disk), sys.executable, "-m", "ringc"]
    done = command([*line, *map(str, arguments)])
    return done, [found for found in done.stdout.splitlines() if found.startswith("./")]


@real
@pytest.mark.parametrize("size", ["40k", "200k", "400k"])
def test_an_artifact_on_a_full_disk(tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    done, left = on_small_disk(size, disk, "compile", "ring-tiny", "-o", disk / "out", "--target", "torch")
    check(done, "no space left on the disk", disk / "out")
    assert left == []


@real
@needs_tvm
def test_the_kernel_cache_on_a_full_disk(tmp_path: Path, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    monkeypatch.setenv("RINGC_CACHE_DIR", str(disk / "cache"))
    done, left = on_small_disk("40k", disk, "compile", spec, "-o", tmp_path / "out", "--target", "cpu")
    check(done, "no space left for the kernel cache", disk / "cache")
    assert not (tmp_path / "out").exists()
    assert not [name for name in left if "/.writing-" in name]


def test_the_small_model_s_largest_file_is_larger_than_the_limits(tmp_path: Path, spec: Path) -> None:
    """Or the tests above would test nothing."""
    done = limited(1 << 30, "compile", spec, "-o", tmp_path / "out", "--target", "torch")
    assert done.returncode == 0, done.stderr
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert sizes["program.py"] > 10_000 or sizes[MANIFEST] > 10_000
    assert min(sizes.values()) < 10_000
