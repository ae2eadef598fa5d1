"""`ringc doctor`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch", "triton", "apache-tvm", "apache-tvm-ffi", "nvidia-cuda-nvcc", "numpy", "safetensors", "tokenizers", "sympy", "networkx",
    "pydantic", "ruamel.yaml", "typer", "rich", "psutil",
)  # fmt: skip


def doctor() -> None:
    """Say what works on this machine, and which of its versions are known to be bad together."""
    import platform
    import shutil

    from ringc import __version__
    from ringc.cli.console import out, size, table
    from ringc.codegen import cpu
    from ringc.codegen.cache import default_cache_dir
    from ringc.codegen.triton.toolchain import installed_versions, known_problems

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "-"

    import psutil

    memory = psutil.virtual_memory()
    machine = [
        ("ringc", __version__),
        ("python", platform.python_version()),
        ("processor", f"{cpu.architecture()}, {psutil.cpu_count(logical=False) or '?'} cores"),
        ("extensions", ", ".join(cpu.features()) or "unknown"),
        ("memory", f"{size(memory.available)} of {size(memory.total)} free"),
        ("C++ compiler", shutil.which("c++") or shutil.which("g++") or "none (none is needed)"),
        ("kernel cache", str(default_cache_dir())),
    ]
    table("this machine", ("", ""), machine, left=2)
    table("packages", ("package", "version"), [(p, installed(p)) for p in PACKAGES], left=2)
    table("targets", ("target", "compiles", "runs", ""), _targets(), left=4)
    problems = known_problems(installed_versions())
    for bad in problems:
        out(f"{bad.severity}: {bad.what}\n  = help: {bad.remedy}")
    if not problems:
        out("no combination of these versions is known to be bad")


def _targets() -> list[tuple[str, str, str, str]]:
    """Target, whether it compiles here, whether it runs here, and what is missing."""
    from ringc.codegen.triton.toolchain import find_toolchain
    from ringc.errors import ToolchainError
    from ringc.passes.target import TARGETS

    gpu = _gpu()
    rows: list[tuple[str, str, str, str]] = []
    for name, target in TARGETS.items():
        if target.backend == "torch":
            rows.append((name, "yes", "yes", "with PyTorch's own operators"))
        elif target.backend == "tvm":
            missing = _missing_tvm()
            rows.append((name, "no" if missing else "yes", "no" if missing else "yes", missing))
        elif target.arch is not None:
            try:
                toolchain = find_toolchain(target.arch)
                compiles, note = "yes", f"Triton {toolchain.triton}, ptxas {toolchain.ptxas.version}"
            except ToolchainError as error:
                compiles, note = "no", error.message
            rows.append((name, compiles, "yes" if gpu == target.arch else "no", note))
    return rows


def _missing_tvm() -> str:
    try:
        version("apache-tvm")
        version("apache-tvm-ffi")
    except PackageNotFoundError as error:
        return f"{error.name} isn't installed: pip install 'ringc[cpu]'"
    return ""


def _gpu() -> int | None:
    """The architecture of this machine's GPU, as in 90; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor
