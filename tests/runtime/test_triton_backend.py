"""Launching what was compiled ahead of time: which binary a file's `launch` takes, with which arguments. The driver is a recorder here."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import ringc
from ringc.codegen.backend import Built
from ringc.codegen.cache import Cache
from ringc.codegen.triton.build import TritonBackend
from ringc.codegen.triton.jobs import Job
from ringc.errors import ArtifactError, RunError, ToolchainError
from ringc.passes.target import target
from ringc.runtime import triton_backend
from ringc.runtime.artifact import Artifact
from ringc.runtime.backends import Kernels
from ringc.runtime.triton_backend import TritonLoader
from tests.codegen.test_triton_build import small

GOOD = {"triton": "3.7.1", "ptxas": "13.5.37 (build)"}


@dataclass
class Recorder:
    """In the place of a binary: its parameters as the cubin's ELF would tell, and what is launched."""

    cubin: bytes
    name: str
    warps: int
    shared: int
    overlaps: bool = False
    sizes: tuple[int, ...] = (8, 8, 4, 8, 8)
    launched: list[tuple[tuple[int, ...], list[Any]]] = field(default_factory=list)

    def parameters(self) -> list[int]:
        return list(self.sizes)

    def prepared(self, grid: Sequence[int], arguments: Sequence[Any]) -> Callable[[], None]:
        return lambda: self.launched.append((tuple(grid), [a.value for a in arguments]))


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    made: list[Recorder] = []

    def binary(*given: Any, **options: Any) -> Recorder:
        made.append(Recorder(*given, **options))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_backend, "Binary", binary)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    return TritonBackend().build([small(*jobs())], target("sm_90"), cache, lambda _: None)["small"]


def jobs() -> list[Job]:
    return [
        Job("double", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": b}, num_warps=w)
        for b, w in ((16, 1), (64, 2))
    ]


def opened(
    folder: Path, built: Built, launch: str = "", tools: dict[str, str] | None = None
) -> tuple[Artifact, dict[str, Any]]:
    """An artifact of one kernel, with another `launch` if one is given."""
    text = small(*jobs()).text
    if launch:
        text = text[: text.index("def launch")] + launch
    (folder / "small.py").write_text(text)
    for ending, data in built.files.items():
        (folder / f"small{ending}").write_bytes(data)
    entry = {"source": "small.py", "built": {e: f"small{e}" for e in built.files}, "launch": built.launch}
    return Artifact(folder, {"tools": tools or GOOD, "target": {"arch": 90}, "kernels": {"small": entry}}), entry


CHOOSES = """def launch(x, y):
    job = JOBS[0] if x.shape[0] <= 16 else JOBS[1]
    double[(-(-x.shape[0] // job["constants"]["BLOCK"]),)](x, y, x.shape[0], **pinned(job))
"""


def test_launch_decides_once_and_its_binaries_run_with_scratch_pointers_behind(
    binaries: list[Recorder], built: Built, tmp_path: Path
) -> None:
    artifact, entry = opened(tmp_path, built, CHOOSES)
    loader = TritonLoader()
    launch = loader.load(artifact, "small", entry)
    assert binaries == []  # loaded when first used
    x, y = torch.zeros(100), torch.zeros(100)
    run = loader.bind(launch, [x, y])
    (large,) = binaries
    assert large.launched == []
    run()
    run()
    assert large.launched == [((2,), [x.data_ptr(), y.data_ptr(), 100, None, None])] * 2
    assert (large.name, large.warps) == ("double", 2)
    assert large.cubin == built.files[".double_2.cubin"]
    launch(x[:16], y[:16])
    assert binaries[1].cubin == built.files[".double_1.cubin"]
    assert binaries[1].launched[0][0] == (1,)
    loader.bind(launch, [x[:0], y[:0]])()  # no program: nothing is launched
    assert sum(len(b.launched) for b in binaries) == 3


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_bound_launch_keeps_its_tensors_alive(
    binaries: list[Recorder], built: Built, tmp_path: Path, calls: int
) -> None:
    """A graph replays addresses: memory that was freed meanwhile would be another's."""
    call = "    double[(1,)](x, y, x.shape[0], **pinned(JOBS[0]))\n"
    artifact, entry = opened(tmp_path, built, f"def launch(x, y):\n    pass\n{call * calls}")
    loader = TritonLoader()
    tensors = [torch.zeros(32), torch.zeros(32)]
    living = [weakref.ref(t.untyped_storage()) for t in tensors]
    run = loader.bind(loader.load(artifact, "small", entry), tensors)
    del tensors
    assert all(one() is not None for one in living)
    run()
    assert sum(len(b.launched) for b in binaries) == calls
    del run
    assert all(one() is None for one in living)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ("def launch(x, y):\n    double[(1,)](x, y, 3, BLOCK=17)\n", "no configuration of JOBS pins"),
        ("def launch(x, y):\n    double[(1,)](x, y, **pinned(JOBS[0]))\n", "is given x, y, and takes x, y, n"),
    ],
)
def test_what_a_binary_wouldnt_take_is_refused(
    binaries: list[Recorder], built: Built, tmp_path: Path, launch: str, said: str
) -> None:
    artifact, entry = opened(tmp_path, built, launch)
    with pytest.raises(ArtifactError, match=said):
        TritonLoader().load(artifact, "small", entry)(torch.zeros(32), torch.zeros(32))
    assert not any(b.launched for b in binaries)


def test_memory_that_isnt_aligned_is_refused(binaries: list[Recorder], built: Built, tmp_path: Path) -> None:
    artifact, entry = opened(tmp_path, built)
    with pytest.raises(RunError, match="x isn't at a multiple of 16 bytes"):
        TritonLoader().load(artifact, "small", entry)(torch.zeros(33)[1:], torch.zeros(32))


def test_parameters_of_another_size_are_refused(
    binaries: list[Recorder], built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "parameters", lambda _: [8, 8, 8, 8, 8])
    artifact, entry = opened(tmp_path, built)
    with pytest.raises(ArtifactError, match="the binary takes others"):
        TritonLoader().load(artifact, "small", entry)(torch.zeros(32), torch.zeros(32))


def test_what_was_built_by_bad_tools_or_isnt_there_is_refused(
    binaries: list[Recorder], built: Built, tmp_path: Path
) -> None:
    artifact, entry = opened(tmp_path, built, tools={"triton": "3.7.1", "ptxas": "12.8.93 (build)"})
    with pytest.raises(ToolchainError, match=r"12\.8\.93") as caught:
        TritonLoader().load(artifact, "small", entry)
    assert "compile it again" in str(caught.value.help)
    artifact, entry = opened(tmp_path, built)
    launch = TritonLoader().load(artifact, "small", {**entry, "built": {}})
    with pytest.raises(ArtifactError, match="there is no binary of double_1"):
        launch(torch.zeros(32), torch.zeros(32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_no_loader() -> None:
    with pytest.raises(ToolchainError, match="no CUDA GPU"):
        TritonLoader()


def parameters_in(ptx: str) -> list[int]:
    """Bytes of each parameter of a PTX text's kernel."""
    head = ptx[ptx.index(".entry") :]
    return [int(bits) // 8 for bits in re.findall(r"\.param \.[bufs](\d+)", head[: head.index(")")])]


def test_every_kernel_of_a_model_launches_binaries_that_it_has(
    binaries: list[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one row and at many, on tensors as the manifest says: each launch finds its configuration, and its binary takes its arguments."""
    ringc.compile("ring-tiny", tmp_path / "tiny", target="sm_90")
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text())
    artifact = Artifact(tmp_path / "tiny", {**manifest, "tools": GOOD})
    sizes = {
        path.read_bytes(): parameters_in(path.with_suffix(".ptx").read_text())
        for path in (artifact.folder / "kernels").glob("*.cubin")
    }
    monkeypatch.setattr(Recorder, "parameters", lambda self: sizes[self.cubin])
    kernels = Kernels(artifact)
    names = [name for name, entry in artifact.kernels.items() if entry["backend"] == "triton"]
    assert len(names) > 20
    for rows, sequences in ((1, 1), (16, 2), (100, 100), (700, 3), (9000, 1)):
        for name in names:
            wanted = kernels.wanted(name, {"N": rows, "B": sequences, "R": rows, "P": sequences, "S": 64})
            before = len(binaries)
            kernels.bind(name, [torch.zeros(shape, dtype=dtype) for shape, dtype in wanted])()
            assert all(b.launched for b in binaries[before:])
    assert sum(len(b.launched) for b in binaries) >= 5 * len(names)
