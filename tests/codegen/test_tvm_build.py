"""Building TVM kernels and running what was built: the same bytes each time, and no compiler where they run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

import ringc
from ringc.codegen import cpu
from ringc.codegen.backend import Built, backend
from ringc.codegen.cache import Cache
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Source
from ringc.codegen.tvm.build import (
    Processor,
    TvmBackend,
    canonical_ll,
    compile_kernel,
    compile_many,
    module_of,
    processor,
)
from ringc.codegen.tvm.threads import set_environment
from ringc.errors import ArtifactError, CodegenError, ToolchainError
from ringc.passes.target import target
from ringc.runtime.tvm_backend import bound, converted, load, set_threads, threads
from tests.codegen.test_tvm_route import sort

TEXT = """
import tvm
from tvm.script import tirx as T


@T.prim_func(s_tir=True)
def main(x_: T.handle, y_: T.handle):
    T.func_attr({"tirx.noalias": True})
    N = T.int64()
    x = T.match_buffer(x_, (N, 16), "float32", align=4)
    y = T.match_buffer(y_, (N, 16), "float32", align=4)
    for n in T.parallel(N):
        scratch = T.alloc_buffer((1024,), "float32", scope="global")
        for i in T.serial(T.int64(1024)):
            scratch[i] = x[n, i % T.int64(16)] * T.float32(2)
        for l in T.vectorized(16):
            y[n, l] = scratch[l + 512] + T.float32(1)


def kernel() -> tvm.IRModule:
    return tvm.IRModule({"main": main})
"""


@pytest.fixture(scope="module")
def built() -> Built:
    return compile_kernel(TEXT, "doubled", assembly=True)


@pytest.fixture(scope="module")
def file(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "doubled.ll"
    path.write_bytes(built.files[".ll"])
    return path


def test_what_is_built(built: Built) -> None:
    assert set(built.files) == {".ll", ".s"}
    assert b"define" in built.files[".ll"] and b".text" in built.files[".s"]
    assert built.resources["ll_bytes"] == len(built.files[".ll"])
    assert built.resources["heap_workspaces"] == 1
    assert built.resources["parallel_loops"] == 1


def test_equal_bytes_in_every_process(built: Built) -> None:
    """Host pointers, hash seeds and what was compiled before leave no trace."""
    sorting = emit(sort(16)).text
    many = compile_many({"sort": sorting, "doubled": TEXT, "again": TEXT, "more": TEXT}, workers=2)
    assert list(many) == ["sort", "doubled", "again", "more"]
    assert len({many[name].files[".ll"] for name in ("doubled", "again", "more")}) == 1
    assert many["doubled"].files[".ll"] == built.files[".ll"]
    assert many["sort"].files[".ll"] == compile_kernel(sorting, "sort").files[".ll"]
    assert str(Path.cwd()).encode() not in built.files[".ll"]


def test_host_pointers_are_numbered() -> None:
    text = '!1 = !{!"0x55aa33cc11.w4.b0", !2}\n!2 = !{!"0x55aa33cc11", !3}\n!3 = !{!"0x7f01020304"}\nstore i32 0x1F\n'
    assert canonical_ll(text) == '!1 = !{!"b0.w4.b0", !2}\n!2 = !{!"b0", !3}\n!3 = !{!"b1"}\nstore i32 0x1F\n'


SCRIPT = """
import json, sys
import torch
from pathlib import Path
from ringc.runtime.tvm_backend import bound, load, threads
kernel = load(Path(sys.argv[1]))
x, y = torch.randn(5, 16), torch.full((5, 16), float("nan"))
kernel(x, y)
right = torch.equal(y, 2 * x + 1)
call = bound(kernel, [x, y])
x.fill_(3.0)
call()
import shutil
parts = ("ringc.codegen", "ringc.passes", "ringc.ir", "ringc.model_defs", "sympy")
light = {"ringc.codegen", "ringc.codegen.tvm", "ringc.codegen.tvm.threads"}
compiler = [m for m in sys.modules if m == "tvm" or m.startswith(parts) and m not in light]
found = [shutil.which(c) for c in ("cc", "gcc", "c++", "clang")]
print(json.dumps([right, torch.equal(y, torch.full((5, 16), 7.0)), compiler, found, threads()]))
"""


def test_runs_without_a_compiler(file: Path) -> None:
    """With no compiler on the PATH, and without importing ringc's or TVM's compiler halves."""
    assert ringc.__file__ is not None
    environment = {
        "PATH": "/nonexistent",
        "PYTHONPATH": str(Path(ringc.__file__).parent.parent),
        "TVM_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [True, True, [], [None] * 4, 2]


def test_bound_call_follows_the_memory(file: Path) -> None:
    kernel = load(file)
    x, y = torch.zeros(3, 16), torch.full((3, 16), float("nan"))
    call = bound(kernel, [x, y])
    for value in (1.0, 4.0):
        x.fill_(value)
        call()
        assert torch.equal(y, torch.full((3, 16), 2 * value + 1))
    kernel(converted(x), y)


def test_wrong_tensors_are_refused(file: Path) -> None:
    kernel = load(file)
    x, y = torch.zeros(3, 16), torch.zeros(3, 16)
    for wrong in ((x.double(), y), (x, y[:2]), (torch.zeros(3, 32)[:, ::2], y), (x,)):
        with pytest.raises((TypeError, ValueError)):
            kernel(*wrong)


def test_damaged_and_missing_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such kernel"):
        load(tmp_path / "nothing.ll")
    damaged = tmp_path / "damaged.ll"
    damaged.write_bytes(file.read_bytes()[:-2000] + b"define what")
    with pytest.raises(ArtifactError, match="LLVM can't load"):
        load(damaged)


def test_threads(file: Path) -> None:
    load(file)
    before = threads()
    set_threads(1)
    assert threads() == 1
    set_threads(before)
    assert threads() == before


def test_settings_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "7")
    monkeypatch.delenv("TVM_BIND_THREADS", raising=False)
    set_environment()
    assert os.environ["TVM_NUM_THREADS"] == "7" and os.environ["TVM_BIND_THREADS"] == "0"


def test_processors() -> None:
    own, common = processor(), processor("x86-64-v3")
    assert not cpu.missing_features(own.features)
    assert "avx2" in common.features and "avx512f" not in common.features
    with pytest.raises(ToolchainError, match="znver44"):
        processor("znver44")


def test_features_that_a_machine_lacks_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor may hide what the processor's name promises."""
    if "avx512f" not in processor().features:
        pytest.skip("this processor has none that could be hidden")
    monkeypatch.setattr(cpu, "features", lambda: tuple(f for f in processor("x86-64-v3").features))
    hidden = processor.__wrapped__()
    assert "avx512f" in hidden.without and "avx512f" not in hidden.features and "avx2" in hidden.features
    made = compile_kernel(TEXT, "doubled", hidden, assembly=True)
    assert b"zmm" not in made.files[".s"] and b"ymm" in made.files[".s"]


def test_code_for_another_processor() -> None:
    made = compile_kernel(TEXT, "doubled", processor("x86-64-v3"), assembly=True)
    assert b"zmm" not in made.files[".s"]
    assert re.search(rb'"target-cpu"="x86-64-v3"', made.files[".ll"])
    assert isinstance(processor("x86-64-v3"), Processor)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("y[n, l] =", "z[n, l] =", "Undefined variable"),
        ("def kernel()", "def colonel()", "kernel"),
        ("import tvm\n", "import tvm,\n", "SyntaxError"),
    ],
)
def test_broken_kernels_name_themselves(old: str, new: str, message: str) -> None:
    with pytest.raises(CodegenError, match=f"(?s)@broken.*{message}"):
        module_of(TEXT.replace(old, new), "broken")


def test_a_broken_kernel_stops_all_workers() -> None:
    with pytest.raises(CodegenError, match="@b2"):
        compile_many({"b1": TEXT, "b2": TEXT.replace("y[n, l] =", "z[n, l] ="), "b3": TEXT}, workers=2)


def test_backend_builds_and_remembers(tmp_path: Path) -> None:
    cache, cpu_target = Cache(tmp_path), target("cpu")
    sources = [Source(name, "tvm", TEXT) for name in ("one", "two")]
    told: list[str] = []
    made = backend("tvm").build(sources[:1], cpu_target, cache, told.append)
    assert told == ["one"] and not made["one"].cached
    again = backend("tvm").build(sources, cpu_target, cache, told.append)
    assert sorted(told[1:]) == ["one", "two"]
    assert again["one"].cached and again["two"].cached, "the cache goes by content, not by name"
    assert again["one"].files == made["one"].files and again["one"].resources == made["one"].resources
    other = TvmBackend("x86-64-v3").build(sources[:1], cpu_target, cache, told.append)
    assert not other["one"].cached and other["one"].files != made["one"].files


def test_versions_need_no_import() -> None:
    assert ringc.__file__ is not None
    script = """
import sys
from ringc.codegen.tvm.build import TvmBackend
from ringc.passes.target import target
print(sorted(TvmBackend().versions(target("cpu"))), "tvm" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ringc.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "['processor', 'tvm'] False"


def test_launcher_runs_a_file(tmp_path: Path) -> None:
    path = tmp_path / "doubled.py"
    path.write_text(TEXT)
    x, y = torch.randn(4, 16), torch.full((4, 16), float("nan"))
    TvmBackend().launcher(path, "doubled")(x, y)
    assert torch.equal(y, 2 * x + 1)
