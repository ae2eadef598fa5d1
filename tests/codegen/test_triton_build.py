"""Building Triton kernel files ahead of time, and loading them for running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.cache import Cache
from ringc.codegen.emit import emit
from ringc.codegen.inspect.resources import Resources
from ringc.codegen.kernel import Source
from ringc.codegen.triton import jit
from ringc.codegen.triton.build import KEPT, TritonBackend
from ringc.codegen.triton.jobs import Job, compile_jobs, jobs_text, padded, read_jobs
from ringc.codegen.triton.labels import labels
from ringc.codegen.triton.toolchain import Ptxas, Toolchain
from ringc.errors import CodegenError, ToolchainError
from ringc.passes.target import target
from tests.codegen.test_triton_route import sorter

SMALL = """import triton
import triton.language as tl

{jobs}


@triton.jit(do_not_specialize=["n"])
def double(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) * 2.0, mask=at < n)


def launch(x, y):
    double[(-(-x.shape[0] // 16),)](x, y, x.shape[0], **pinned(JOBS[0]))
"""


def small(*jobs: Job) -> Source:
    made = jobs or (Job("double", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 16}, num_warps=1, num_stages=1),)
    return Source("small", "triton", SMALL.format(jobs=jobs_text(made)))


def test_every_configuration_of_every_file_is_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    done: list[str] = []
    two = [Job("double", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": b}, num_warps=1) for b in (16, 64)]
    sources = [small(*two), Source("other", "triton", small().text)]
    cold = TritonBackend().build(sources, target("sm_90"), cache, done.append)
    assert done == ["small", "other"]
    assert sorted(cold["small"].files) == sorted(f".double_{i}.{stage}" for i in (1, 2) for stage in KEPT)
    assert set(cold["other"].files) == {f".double.{stage}" for stage in KEPT}
    assert b".visible .entry double" in cold["other"].files[".double.ptx"]
    assert not cold["small"].cached
    warm = TritonBackend().build(sources, target("sm_90"), cache, done.append)
    assert warm["small"].cached
    assert warm["small"].files == cold["small"].files


def test_resources_are_those_of_the_most_demanding_configuration(tmp_path: Path) -> None:
    two = [Job("double", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": b}, num_warps=1) for b in (4096, 16)]
    built = TritonBackend().build([small(*two)], target("sm_90"), Cache(tmp_path), lambda _: None)["small"]
    most = Resources.from_dict(dict(built.resources))  # type: ignore[arg-type]
    each = built.launch["configurations"]
    assert most.registers == each["double_1"]["registers"] > each["double_2"]["registers"]
    assert json.loads(json.dumps(built.launch)) == built.launch


def test_a_kernel_that_doesnt_compile_is_named() -> None:
    broken = Source("broken", "triton", small().text.replace("tl.store", "tl.stroe"))
    with pytest.raises(CodegenError, match=r"kernels/broken\.py"):
        TritonBackend().build([broken], target("sm_90"), None, lambda _: None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "has no JOBS"),
        ("JOBS = make()\n", "isn't made of literals"),
        ("JOBS = ({'kernel': 'f'},)\n", "lacks"),
        ("def", "no Python"),
    ],
)
def test_files_without_usable_jobs_are_refused(text: str, said: str) -> None:
    with pytest.raises(CodegenError, match=said):
        compile_jobs(text, "bad", 90)


def test_jobs_are_read_as_they_were_written() -> None:
    job = Job("f", {"x": "*bf16"}, {"A": 1, "B": 0.5, "C": 'a "word"', "D": None, "E": True}, 8, 3, {"maxnreg": 128})
    (read,) = read_jobs(jobs_text([job]), "f")
    assert read == {
        "kernel": "f", "signature": job.signature, "constants": job.constants, "num_warps": 8, "num_stages": 3, "options": job.options
    }  # fmt: skip
    assert labels([{"kernel": "f"}, {"kernel": "g"}, {"kernel": "f"}]) == ["f_1", "g", "f_2"]


@pytest.mark.parametrize(("size", "tile"), [(1, 16), (16, 16), (17, 32), (96, 128), (128, 128)])
def test_padded(size: int, tile: int) -> None:
    assert padded(size) == tile


def test_versions_name_the_compilers() -> None:
    assert set(TritonBackend().versions(target("sm_90"))) == {"triton", "ptxas"}
    with pytest.raises(ToolchainError, match="cpu"):
        TritonBackend().versions(target("cpu"))


def fake_gpu(monkeypatch: pytest.MonkeyPatch, version: str, origin: str = "wheel") -> None:
    # Known to monkeypatch, so that what the code under test sets is gone after the test.
    monkeypatch.setenv("TRITON_PTXAS_PATH", "unset below")
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    ptxas = Ptxas(Path("/opt/ptxas"), version, "x", origin)  # type: ignore[arg-type]
    monkeypatch.setattr(jit, "find_toolchain", lambda arch: Toolchain("3.7.1", ptxas, arch))


def test_an_assembler_that_is_known_bad_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "12.8.93", "bundled")
    with pytest.raises(ToolchainError, match=r"12\.8\.93") as caught:
        jit.prepare_jit()
    assert caught.value.help is not None
    assert "nvidia-cuda-nvcc" in caught.value.help
    assert any("error" in line for line in jit.prepare_jit(strict=False))


def test_the_wheels_assembler_is_given_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "13.5.37")
    jit.prepare_jit()
    assert os.environ["TRITON_PTXAS_PATH"] == "/opt/ptxas"


def test_an_edited_file_without_launch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gpu(monkeypatch, "13.5.37")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(CodegenError, match="no function launch"):
        TritonBackend().launcher(tmp_path / "empty.py", "empty")


def test_two_emissions_give_the_same_bytes() -> None:
    assert emit(sorter(40)).text == emit(sorter(40)).text


def test_running_needs_nothing_of_the_compiler() -> None:
    code = "import sys; import ringc.runtime.triton_backend; print(sorted({'sympy', 'networkx', 'pydantic', 'triton'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # torch itself may import sympy; what ringc adds must not.
    bare = [sys.executable, "-c", code.replace("ringc.runtime.triton_backend", "torch")]
    assert said == subprocess.run(bare, capture_output=True, text=True, check=True).stdout
