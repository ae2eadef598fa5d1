"""The command line: every verb once, and how long `--help` takes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringc.codegen.cache import Cache
from ringc.codegen.triton.toolchain import installed_versions, known_problems
from ringc.model_defs import list_presets
from tests.cli.support import right, ringc


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    text = right("compile", "ring-tiny", "-o", str(folder), "--target", "torch")
    for shown in ("1,321,888", "7 (4 linear, 3 softmax, 1 dense, 6 moe)", "prefill.short", "N <= 16", "predicted"):
        assert shown in text
    return folder


VERBS = (
    "compile",
    "tune",
    "calibrate",
    "run",
    "inspect",
    "check",
    "explain",
    "opt",
    "import",
    "presets",
    "schema",
    "doctor",
    "cache",
)


def test_help_is_quick() -> None:
    text, walls, processors = "", [], []
    for _ in range(5):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        text = right("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - start)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"ringc --help: {min(walls):.3f} s by the clock, {min(processors):.3f} s of a processor (best of 5)")
    for verb in VERBS:
        assert f"  {verb} " in text
    # The processor's time: the clock's depends on what else runs. On an idle machine they are the same.
    assert min(processors) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    text = right(verb, "--help", env={"COLUMNS": "80"})
    assert f"{verb} [OPTIONS]" in text
    line = next(line for line in right("--help", env={"COLUMNS": "80"}).splitlines() if line.startswith(f"  {verb} "))
    assert line.endswith(".") and not line.endswith("...")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, ringc.cli; heavy = {'torch', 'sympy', 'pydantic', 'networkx', 'tvm', 'triton', 'numpy', 'ruamel', 'safetensors'};"
        "print(sorted(heavy & {m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_has_a_short_name() -> None:
    assert right("-h") == right("--help")
    assert right("compile", "-h") == right("compile", "--help")


def test_version() -> None:
    import ringc as package

    assert right("--version") == f"ringc {package.__version__}\n"


def test_run_streams_text_and_says_how_fast(folder: Path) -> None:
    arguments = ["--weights", "random:0", "--prompt", "hello", "--max-new-tokens", "5"]
    done = ringc("run", str(folder), *arguments, "--temperature", "1", "--top-k", "40", "--top-p", "0.9", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello")
    assert "[6 tokens in, 5 out" in done.stderr  # the prompt and what begins a text
    assert "tokens/s]" in done.stderr


def test_text_comes_as_it_is_made(folder: Path) -> None:
    """Not all at once at the end, although nobody sits at a terminal."""
    words = ["run", str(folder), "--weights", "random:0", "--prompt", "hello", "--max-new-tokens", "30"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ringc", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    assert process.stdout is not None
    pieces = []
    while piece := os.read(process.stdout.fileno(), 1 << 16):
        pieces.append(piece)
    process.stdout.close()
    assert process.wait(60) == 0
    assert b"".join(pieces).startswith(b"hello")
    assert len(pieces) >= 5


def test_run_of_ids_prints_ids(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("[1, 2, 3]")
    text = right(
        "run", str(folder), "--weights", "random:0", "--prompt-ids", str(tmp_path / "ids"), "--max-new-tokens", "4"
    )
    assert len([int(t) for t in text.split()]) == 4


def test_inspect_lists_and_shows(folder: Path) -> None:
    text = right("inspect", str(folder))
    assert "linear_attention_1" in text
    assert "torch.eager" in text
    assert right("inspect", str(folder), "row_1") == (folder / "kernels" / "row_1.py").read_text()
    assert right("inspect", str(folder), "program") == (folder / "program.py").read_text()
    assert right("inspect", str(folder), "row_1", "--stage", "ir").startswith("func @row_1(")
    assert "no resources" in right("inspect", str(folder), "--resources")


def test_check_passes_and_says_so(folder: Path) -> None:
    text = right("check", str(folder), "--tokens", "20")
    assert "prefill in chunks" in text
    assert "at N=37 [37" in text and "at N=600 [600" in text
    assert "0 wrong" in text
    assert "WRONG" not in text


def test_check_finds_a_wrong_kernel(folder: Path, tmp_path: Path) -> None:
    right("compile", "ring-tiny", "-o", str(tmp_path / "a"), "--target", "torch")
    path = tmp_path / "a" / "kernels" / "row_2.py"
    assert "1e-06" in path.read_text()
    path.write_text(path.read_text().replace(", 1e-06)", ", 1e-02)"))
    assert "row_2.py" in ringc("check", str(tmp_path / "a"), "--kernels").stderr
    done = ringc("check", str(tmp_path / "a"), "--kernels", "--allow-edited")
    assert done.returncode == 1
    wrong = [line.split()[0] for line in done.stdout.splitlines() if line.rstrip().endswith("WRONG")]
    assert set(wrong) == {"row_2"}


def test_a_kernel_file_checks_itself(folder: Path) -> None:
    path = folder / "kernels" / "linear_attention_1.py"
    done = subprocess.run([sys.executable, str(path), "N=19"], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  ok") == 2
    assert "N=19" in done.stdout
    assert "us (median of" in done.stdout


def test_explain_says_why(folder: Path) -> None:
    text = right("explain", str(folder), "schedule")
    for shown in (
        "tested from top to bottom",
        "chunked form of linear attention costs less",
        "decode: library calls go the way of many rows from 17 rows on",
        "prefill: library calls go the way of many rows from 17 rows on",
        "candidates of each kernel",
        "chosen",
    ):
        assert shown in text


def test_opt_runs_passes_on_text(tmp_path: Path) -> None:
    module = "module @m level graph\n\nfunc @f(%x: f32[4]) {\n  %1 = exp(%x) : f32[4]\n  return %x\n}\n"
    (tmp_path / "m.ring").write_text(module)
    text = right("opt", str(tmp_path / "m.ring"), "-p", "dce")
    assert "exp" not in text
    assert right("opt", "-", "-p", "dce", stdin=module) == text
    assert "outline" in right("opt", "--list")


def test_presets_and_schema() -> None:
    assert [p["name"] for p in json.loads(right("presets", "--json"))] == list_presets()
    assert "16,423,448,320" in right("presets")
    assert right("presets", "ring-tiny").startswith("# ring-tiny")
    assert json.loads(right("schema"))["$schema"].startswith("https://json-schema.org")


def test_import_makes_a_spec(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = ringc("import", str(tmp_path))
    assert done.returncode == 2
    assert "LlamaForCausalLM" in done.stderr


PTXAS = """#!/bin/sh
echo 'ptxas: NVIDIA (R) Ptx optimizing assembler'
echo 'Cuda compilation tools, release {0}, V{0}.20'
echo 'Build cuda_{0}.r{0}/compiler.1_0'
"""


@pytest.mark.parametrize(("release", "is_bad"), [("12.8", True), ("13.5", False)])
def test_doctor_says_what_works_and_which_assembler_does_not(tmp_path: Path, release: str, is_bad: bool) -> None:
    pytest.importorskip("triton")
    (tmp_path / "ptxas").write_text(PTXAS.format(release))
    (tmp_path / "ptxas").chmod(0o755)
    lines = right("doctor", env={"TRITON_PTXAS_PATH": str(tmp_path / "ptxas")}).splitlines()
    rows = {words[0]: words[1:] for line in lines if len(words := line.split()) > 1}
    assert rows["torch"][:2] == ["yes", "yes"]
    assert rows["sm_90"][0] == ("badly" if is_bad else "yes")
    assert f"ptxas {release}.20 (environment)" in " ".join(rows["sm_90"])
    assert any(line.startswith("error (sm_90): ") for line in lines) == is_bad
    others = known_problems(installed_versions(), stage="interpreter")
    if not any(p.severity == "error" for p in others):
        assert any(line.startswith("no combination of these versions is known to be bad") for line in lines) != is_bad


def test_the_cache_is_counted_and_cleared(tmp_path: Path) -> None:
    own = {"RINGC_CACHE_DIR": str(tmp_path / "cache")}
    assert f"{tmp_path / 'cache'}: 0 kernels, 0 bytes" in right("cache", env=own)
    Cache(tmp_path / "cache").put("ab" * 32, {".ll": b"x" * 1000})
    assert ": 1 kernel, " in right("cache", "size", env=own)
    assert "removed 1 kernel, " in right("cache", "clear", env=own)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
