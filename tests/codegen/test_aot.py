"""Ahead-of-time compilation without a GPU: stages, resources, cache, worker processes, errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from ringc.codegen.cache import Cache
from ringc.codegen.triton import aot
from ringc.codegen.triton.aot import Progress, compile_many, compile_source
from ringc.codegen.triton.compile_job import STAGES, CompiledKernel, CompileJob
from ringc.codegen.triton.compiler import build
from ringc.codegen.triton.toolchain import (
    KNOWN_BAD,
    Range,
    find_ptxas,
    find_toolchain,
    installed_versions,
    known_problems,
    triton_tool,
    version_tuple,
)
from ringc.errors import CodegenError, ToolchainError

KERNELS = Path(__file__).parent / "kernels"


def rms_norm_job(arch: int = 90, width: int = 2048, **changes: Any) -> CompileJob:
    job = CompileJob(
        source=(KERNELS / "rms_norm.py").read_text(),
        kernel="rms_norm",
        signature={"x": "*bf16", "w": "*bf16", "y": "*bf16", "stride_x": "i32", "stride_y": "i32", "eps": "fp32"},
        constants={"D": width, "BLOCK": 2 ** (width - 1).bit_length()},
        arch=arch,
    )
    return replace(job, **changes)


def matmul_job(arch: int = 90) -> CompileJob:
    return CompileJob(
        source=(KERNELS / "matmul.py").read_text(),
        kernel="matmul",
        signature={"x": "*bf16", "w": "*bf16", "y": "*bf16", "T": "i32", "stride_x": "i32", "stride_y": "i32"},
        constants={"M": 2048, "K": 2048, "BLOCK_T": 64, "BLOCK_M": 64, "BLOCK_K": 64},
        arch=arch,
    )


def lightning_job(arch: int = 90) -> CompileJob:
    pointers = dict.fromkeys("qkvo", "*bf16")
    return CompileJob(
        source=(KERNELS / "lightning.py").read_text(),
        kernel="lightning_chunk",
        signature={**pointers, "log2_decay": "*fp32", "state": "*fp32", "T": "i32"},
        constants={"H": 16, "D": 64, "CHUNK": 64},
        arch=arch,
        num_warps=8,
        num_stages=2,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_cold_then_warm_on_three_architectures(cache: Cache) -> None:
    jobs = [make(arch) for make in (rms_norm_job, matmul_job, lightning_job) for arch in (80, 90, 100)]
    seen: list[Progress] = []
    started = time.perf_counter()
    cold = compile_many(jobs, workers=2, cache=cache, progress=seen.append)
    between = time.perf_counter()
    warm = compile_many(jobs, workers=2, cache=cache)
    print(f"\n{len(jobs)} kernels: cold {between - started:.1f} s, warm {time.perf_counter() - between:.3f} s")
    for kernel in cold:
        print(f"  {kernel.name} sm_{kernel.arch} {kernel.seconds:.2f} s {kernel.resources}")

    assert [progress.done for progress in seen] == list(range(1, 10))
    assert {progress.error for progress in seen} == {None}
    assert not any(kernel.cached for kernel in cold) and all(kernel.cached for kernel in warm)
    for job, made, found in zip(jobs, cold, warm, strict=True):
        assert (made.name, made.arch) == (job.kernel, job.arch)
        assert replace(found, cached=False) == made
        assert list(made.files) == list(STAGES)
        assert f".target sm_{job.arch}" in made.text("ptx")
        assert made.files["cubin"].startswith(b"\x7fELF")
        # On sm_80 a state of 64 x 64 with two tiles of scores doesn't fit in the registers that mma.sync leaves.
        assert made.resources.spills == (job.arch == 80 and job.kernel == "lightning_chunk")
        assert 0 < made.resources.registers <= 255
        assert made.resources.num_warps == job.num_warps
    row, product, attention = cold[0:3], cold[3:6], cold[6:9]
    assert all(kernel.resources.hmma == kernel.resources.hgmma == kernel.resources.tcgen == 0 for kernel in row)
    for a100, h100, b200 in (product, attention):
        assert a100.resources.hmma > 0 and h100.resources.hgmma > 0
        assert a100.resources.hgmma == 0 and h100.resources.tcgen == 0
        assert b200.resources.tcgen + b200.resources.hmma > 0
    # Line information points into the artifact and at no path of this machine.
    assert '"kernels/rms_norm.py", line' in row[1].text("sass")
    assert b"triton/language/standard.py" in row[1].files["ttir"]
    for here in (cache.folder, sys.prefix):
        assert not any(str(here).encode() in contents for contents in row[1].files.values())


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    toolchain = find_toolchain(90)
    first = build(rms_norm_job(), toolchain)
    program = (
        "import sys; from pathlib import Path; from tests.codegen.test_aot import *\n"
        "made = build(rms_norm_job(), find_toolchain(90)); out = Path(sys.argv[1])\n"
        "[(out / stage).write_bytes(body) for stage, body in made.files.items()]"
    )
    root = Path(__file__).parents[2]
    search = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=tmp_path, env=environment)
    for stage, body in first.files.items():
        assert (tmp_path / stage).read_bytes() == body, stage


def test_a_warm_hit_imports_no_triton_and_starts_no_process(cache: Cache) -> None:
    compile_many([rms_norm_job()], workers=1, cache=cache)
    program = (
        "import sys, importlib.util, types\n"
        "sys.modules['pytest'] = types.ModuleType('pytest')\n"
        "from ringc.codegen.cache import Cache; from ringc.codegen.triton.aot import *\n"
        "import ringc.codegen.triton.aot as aot\n"
        "def never(*a): raise AssertionError('a worker was started')\n"
        "aot._compiler_process = never\n"
        f"job = CompileJob(**{vars(rms_norm_job())!r})\n"
        f"kernel, = compile_many([job], cache=Cache({str(cache.folder)!r}))\n"
        "print(kernel.cached, [m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


def test_equal_jobs_are_compiled_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    original = aot._compile_in

    def counted(worker: object, key: str, *rest: object) -> object:
        requests.append(key)
        return original(worker, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(aot, "_compile_in", counted)
    kernels = compile_many([rms_norm_job(), rms_norm_job()], cache=cache)
    assert len(requests) == 1 and kernels[0] == kernels[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_warps": 8},
        {"num_stages": 2},
        {"arch": 80},
        {"constants": {"D": 2047, "BLOCK": 2048}},
        {"options": {"maxnreg": 64}},
        {"options": {"enable_fp_fusion": False}},
        {"divisible": []},
        {"file_name": "kernels/other.py"},
        {"source": (KERNELS / "rms_norm.py").read_text() + "\n"},
    ],
)
def test_the_key_covers_whatever_decides_the_result(changed: dict[str, Any]) -> None:
    job = rms_norm_job()
    toolchain = find_toolchain(90)
    assert replace(job, **changed).key(toolchain) != job.key(toolchain)


def test_the_key_covers_the_compilers_but_not_the_cost() -> None:
    job = rms_norm_job()
    toolchain = find_toolchain(90)
    newer = replace(toolchain, ptxas=replace(toolchain.ptxas, version="99.0.0"))
    assert job.key(newer) != job.key(toolchain)
    assert replace(job, cost=3.0).key(toolchain) == job.key(toolchain)
    # An option that says what holds anyway is the same kernel.
    assert replace(job, options={"enable_fp_fusion": True}).key(toolchain) == job.key(toolchain)


def test_alignment_is_that_of_a_launch() -> None:
    aligned = build(rms_norm_job(), find_toolchain(90))
    unaligned = build(rms_norm_job(divisible=()), find_toolchain(90))
    assert "LDG.E.128" in aligned.text("sass") and "LDG.E.128" not in unaligned.text("sass")
    assert aligned.text("ttir").count("tt.divisibility = 16") == 5
    # A sequence length is no multiple of 16, whatever its value.
    assert re.search(r"%T: i32(?! \{)", build(lightning_job(), find_toolchain(90)).text("ttir"))


def test_fp_fusion_is_explicit_and_obeyed() -> None:
    source = (KERNELS / "rms_norm.py").read_text().replace("value * scale * weight", "value * scale + weight")
    fused = build(rms_norm_job(source=source), find_toolchain(90))
    apart = build(rms_norm_job(source=source, options={"enable_fp_fusion": False}), find_toolchain(90))
    assert fused.text("sass").count("FFMA") > apart.text("sass").count("FFMA")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "import triton\ndef f(:\n"}, "no Python.*line 2"),
        ({"kernel": "layer_norm"}, "no @triton.jit function layer_norm"),
        ({"source": "import numpy\n" + (KERNELS / "rms_norm.py").read_text()}, "imports numpy at its top, line 1"),
        ({"constants": {"D": 2048}}, "'BLOCK' is given neither"),
        ({"constants": {"D": 2048, "BLOCK": 2048, "BLOK": 1}}, "(?s)no parameter 'BLOK'.*did you mean 'BLOCK'"),
        ({"constants": {"D": 2048, "BLOCK": 2048, "eps": 1.0}}, "'eps' is given both"),
        ({"options": {"max_reg": 3}}, "(?s)no option 'max_reg'.*did you mean 'maxnreg'"),
        ({"constants": {"D": 2048, "BLOCK": 2000}}, "(?s)doesn't compile for sm_90.*power of 2"),
        ({"source": (KERNELS / "rms_norm.py").read_text().replace("tl.rsqrt", "tl.rsqr")}, "doesn't compile for sm_90"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CodegenError, match=message):
        build(rms_norm_job(**changed), find_toolchain(90))


def test_an_unknown_type_is_named() -> None:
    job = rms_norm_job()
    with pytest.raises(CodegenError, match="unknown type '\\*bfloat'"):
        build(replace(job, signature={**job.signature, "x": "*bfloat"}), find_toolchain(90))


def test_one_bad_kernel_among_good_ones(cache: Cache) -> None:
    bad = rms_norm_job(constants={"D": 2048, "BLOCK": 2000}, file_name="kernels/bad.py")
    good = rms_norm_job()
    returned = compile_many([bad, good], workers=1, cache=cache, errors="return")
    assert isinstance(returned[0], CodegenError) and isinstance(returned[1], CompiledKernel)
    with pytest.raises(CodegenError, match=r"kernels/bad.py"):
        compile_many([bad, good], workers=1, cache=cache)
    assert cache.size().entries == 1


def test_a_compiler_that_dies_is_named_and_the_others_go_on(cache: Cache) -> None:
    fatal = rms_norm_job(
        source="import os\nos.abort()\n" + (KERNELS / "rms_norm.py").read_text(), file_name="kernels/fatal.py"
    )
    returned = compile_many([fatal, rms_norm_job()], workers=1, cache=cache, errors="return")
    assert isinstance(returned[0], ToolchainError)
    assert "SIGABRT" in str(returned[0]) and "kernels/fatal.py" in str(returned[0])
    assert isinstance(returned[1], CompiledKernel)


def test_an_unwritable_cache_is_reported_from_the_worker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match=r"(?s)can't write the kernel cache.*RINGC_CACHE_DIR"):
        compile_many([rms_norm_job()], workers=1, cache=Cache(tmp_path / "file"))


def test_interpreter_mode_is_refused_here_but_not_in_workers(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ToolchainError, match="interpreter"):
        compile_source(KERNELS / "rms_norm.py", "rms_norm", {}, {}, arch=90)
    assert compile_many([rms_norm_job()], workers=1, cache=cache)[0].name == "rms_norm"


def test_compile_source_uses_the_cache(cache: Cache) -> None:
    job = rms_norm_job()
    made = compile_source(KERNELS / "rms_norm.py", job.kernel, job.signature, job.constants, arch=90, cache=cache)
    again = compile_source(job.source, job.kernel, job.signature, job.constants, arch=90, cache=cache)
    assert not made.cached and again == replace(made, cached=True)
    assert compile_many([job], cache=cache) == [again]


@pytest.mark.parametrize("stage", ["cubin", "sas"])
def test_a_stage_without_text_is_named(stage: str) -> None:
    with pytest.raises(CodegenError, match=f"no text of stage '{stage}'"):
        build(rms_norm_job(), find_toolchain(90)).text(stage)


# The toolchain.


def test_the_toolchain_is_read_without_importing_triton() -> None:
    program = (
        "import sys; from ringc.codegen.triton.toolchain import *\n"
        "for arch in ARCHITECTURES: toolchain_problems(find_toolchain(arch))\n"
        "print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_the_environment_names_the_assembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(triton_tool("ptxas-blackwell")))
    chosen = find_ptxas(90)
    assert (chosen.origin, chosen.path) == ("environment", triton_tool("ptxas-blackwell"))
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    assert build(rms_norm_job(), find_toolchain(90)).toolchain["ptxas"] == find_ptxas(90).identity


@pytest.mark.parametrize("value", ["", "/no/such/ptxas"])
def test_a_wrong_path_of_the_assembler_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", value)
    with pytest.raises(ToolchainError, match="TRITON_PTXAS_PATH"):
        find_ptxas(90)


def test_something_else_than_ptxas_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "ptxas"
    fake.write_text("#!/bin/sh\necho hello\n")
    fake.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(fake))
    with pytest.raises(ToolchainError, match="is no ptxas"):
        find_ptxas(90)


def test_an_unsupported_architecture_is_named() -> None:
    with pytest.raises(ToolchainError, match=r"(?s)sm_70.*sm_80, sm_90, sm_100"):
        find_toolchain(70)


@pytest.mark.parametrize(
    ("versions", "arch", "expected"),
    [
        ({"ptxas": "12.8.93"}, 90, {"ptxas-12-hopper"}),
        ({"ptxas": "12.8.93"}, 80, set()),
        ({"ptxas": "13.0.88"}, 90, {"ptxas-13.0-hopper"}),
        ({"ptxas": "13.5.37"}, 90, set()),
        ({"triton": "3.6.0"}, 80, {"interpreter-low-precision"}),
        ({"triton": "3.6.0", "numpy": "2.4.0"}, 80, {"interpreter-numpy-loop-bounds", "interpreter-low-precision"}),
        ({"triton": "3.6.0", "numpy": "2.3.5"}, 80, {"interpreter-low-precision"}),
        ({"triton": "3.7.1", "numpy": "2.4.6"}, 80, {"interpreter-low-precision"}),
        ({"apache-tvm-ffi": "0.1.15.post1"}, None, {"tvm-ffi-json"}),
        ({"apache-tvm-ffi": "0.1.14.post1"}, None, set()),
    ],
)
def test_known_bad_combinations(versions: dict[str, str], arch: int | None, expected: set[str]) -> None:
    assert {problem.name for problem in known_problems(versions, arch=arch)} == expected


def test_the_transposed_dot_result_is_bad_from_3_4_to_below_3_7_1() -> None:
    concerned = {
        version
        for version in ("3.3.1", "3.4.0", "3.6.0", "3.7.0", "3.7.1", "3.9.0")
        if "transposed-dot-result" in {problem.name for problem in known_problems({"triton": version}, arch=90)}
    }
    assert concerned == {"3.4.0", "3.6.0", "3.7.0"}


def test_every_known_problem_has_a_name_and_a_remedy() -> None:
    assert len({problem.name for problem in KNOWN_BAD}) == len(KNOWN_BAD)
    assert all(problem.remedy and problem.what and problem.versions for problem in KNOWN_BAD)


def test_versions_compare_as_numbers() -> None:
    assert version_tuple("3.10") > version_tuple("3.9.1")
    assert version_tuple("3.7.0") == version_tuple("3.7")
    assert version_tuple("2.11.0+cu130") == (2, 11)
    assert Range("3.4", "3.7.1").holds("3.7.0") and not Range("3.4", "3.7.1").holds("3.7.1")
    assert str(Range("3.4", "3.7.1")) == ">= 3.4, < 3.7.1" and str(Range()) == "any"
    assert installed_versions(["no-such-package-here"]).keys() == {"python"}
