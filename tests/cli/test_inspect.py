"""What `ringc inspect` shows of kernels that have several configurations, and what their files do when they are run by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ringc
from ringc.cli.inspect_ import _resources
from ringc.codegen.triton.toolchain import installed_versions, known_problems
from ringc.model_defs import load_spec
from ringc.runtime.artifact import open_artifact
from tests.cli.support import right
from tests.cli.support import ringc as command

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, linear and dense, for sm_90."""
    tiny = load_spec("ring-tiny")
    layers = tiny.layers.model_copy(update={"count": 1, "tail": "linear"})
    folder = tmp_path_factory.mktemp("inspect") / "one-layer"
    ringc.compile(tiny.model_copy(update={"layers": layers, "moe": None}), folder, target="sm_90")
    return folder


def chunked(folder: Path) -> str:
    """The kernel that is two."""
    files = (folder / "kernels").glob("linear_attention_*.py")
    return next(f.stem for f in files if "triton.linear_chunked" in f.read_text())


@pytest.mark.parametrize(
    ("stage", "holds"),
    [("ttir", "tt.func"), ("ttgir", "#ttg.blocked"), ("ptx", ".visible .entry"), ("sass", "EXIT")],
)
def test_each_stage_shows_every_configuration(folder: Path, stage: str, holds: str) -> None:
    text = right("inspect", str(folder), chunked(folder), "--stage", stage)
    first, second = text.index("// ---- inflow_of\n"), text.index("// ---- scan\n")
    assert holds in text[first:second]
    assert holds in text[second:]


def test_one_configuration_is_shown_as_it_is(folder: Path) -> None:
    (file,) = (folder / "kernels").glob("row_1.*.ptx")
    assert right("inspect", str(folder), "row_1", "--stage", "ptx") == file.read_text()


def test_a_stage_that_is_not_there(folder: Path) -> None:
    done = command("inspect", str(folder), "row_1", "--stage", "llvm")
    assert done.returncode == 2
    assert "it has source, ir, ttir, ttgir, ptx, sass" in done.stderr


def test_resources_of_one_kernel_name_its_configurations(folder: Path) -> None:
    assert "inflow_of" not in right("inspect", str(folder), "--resources")
    text = right("inspect", str(folder), chunked(folder), "--resources")
    assert "inflow_of" in text
    assert "scan" in text


def test_resources_of_an_artifact_with_library_calls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = open_artifact(folder, any_machine=True)
    kernels = {**whole.kernels, "row_1": {**whole.kernels["row_1"], "resources": {}, "launch": {}}}
    opened = replace(whole, manifest={**whole.manifest, "kernels": kernels})
    _resources(opened, None)
    text = capsys.readouterr().out
    assert "tensor cores" in text
    calls = [name for name, entry in kernels.items() if not entry["resources"]]
    assert "row_1" in calls
    head, _, tail = text.partition("library calls, which have no resources to count: ")
    assert tail == f"{', '.join(calls)}\n"
    assert all((f" {name} " in head) == (name not in calls) for name in kernels)

    _resources(opened, "row_1")
    assert capsys.readouterr().out == "the kernel row_1 is Python or library calls: they have no resources to count\n"


def alone(path: Path) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "PYTHONPATH": str(Path(ringc.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(path)], check=False, capture_output=True, text=True, timeout=300, env=here
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the file runs there")
@pytest.mark.skipif(
    any(p.severity == "error" for p in known_problems(installed_versions(), stage="interpreter")),
    reason="these versions can't interpret",
)
def test_a_kernel_file_checks_itself_in_the_interpreter(folder: Path) -> None:
    path = folder / "kernels" / f"{chunked(folder)}.py"
    assert "bf16" in path.read_text()
    done = alone(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ok\n") == 2
    assert "in Triton's interpreter" in done.stdout

    edited = path.with_name("edited.py")
    edited.write_text(path.read_text().replace("tl.exp2(decay * count)", "tl.exp2(decay * (count + 1))"))
    done = alone(edited)
    edited.unlink()
    assert done.returncode == 1, done.stderr
    assert "WRONG" in done.stdout
