"""`ringc doctor`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringc.codegen.triton.toolchain import KnownBad

PACKAGES = (
    "torch", "triton", "apache-tvm", "apache-tvm-ffi", "nvidia-cuda-nvcc", "numpy", "safetensors", "tokenizers", "sympy", "networkx",
    "pydantic", "ruamel.yaml", "typer", "rich", "psutil",
)  # fmt: skip


def doctor() -> None:
    """Say what works here, and which versions are known bad."""
    from ringc.cli.console import bar, table

    with bar():
        machine = _machine()
        packages = [(p, _installed(p)) for p in PACKAGES]
        targets = _targets()
        problems = _problems()
    table("this machine", ("", ""), machine, left=2)
    table("packages", ("package", "version"), packages, left=2)
    table("targets", ("target", "compiles", "runs", ""), targets, left=4)
    _report(problems)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _machine() -> list[tuple[str, str]]:
    """What this machine is, and what of it matters here."""
    import platform
    import shutil

    import psutil

    from ringc import __version__
    from ringc.codegen import cpu
    from ringc.codegen.cache import default_cache_dir
    from ringc.units import size

    memory = psutil.virtual_memory()
    return [
        ("ringc", __version__),
        ("python", platform.python_version()),
        ("processor", f"{cpu.architecture()}, {psutil.cpu_count(logical=False) or '?'} cores"),
        ("extensions", ", ".join(cpu.features()) or "unknown"),
        ("memory", f"{size(memory.available)} of {size(memory.total)} free"),
        ("GPU", _gpu_name()),
        ("C++ compiler", shutil.which("c++") or shutil.which("g++") or "none (none is needed)"),
        ("kernel cache", str(default_cache_dir())),
    ]


def _report(problems: list[tuple[KnownBad, list[int]]]) -> None:
    """What is known to go wrong, errors first."""
    from ringc.cli.console import out

    for bad, architectures in problems:
        where = ", ".join(f"sm_{arch}" for arch in architectures) or bad.stage
        out(f"{bad.severity} ({where}): {bad.what}\n  = help: {bad.remedy}")
    errors = sum(bad.severity == "error" for bad, _ in problems)
    if errors:
        out(f"{errors} combination{'s' * (errors > 1)} of these versions known to be bad")
    else:
        out(
            "no combination of these versions is known to be bad"
            + "; the warnings are for who edits kernels" * bool(problems)
        )


def _problems() -> list[tuple[KnownBad, list[int]]]:
    """What is known to be bad about the installed versions, and for which GPUs (none: for all that it concerns)."""
    from ringc.codegen.triton.toolchain import (
        ARCHITECTURES,
        find_toolchain,
        installed_versions,
        known_problems,
        toolchain_problems,
    )
    from ringc.errors import ToolchainError

    found = {bad.name: (bad, list(bad.architectures)) for bad in known_problems(installed_versions())}
    for arch in ARCHITECTURES:
        try:
            problems = toolchain_problems(find_toolchain(arch))
        except ToolchainError:
            continue  # the table of targets says what is missing
        for bad in problems:
            found.setdefault(bad.name, (bad, [arch]))
    return sorted(found.values(), key=lambda item: item[0].severity)


def _targets() -> list[tuple[str, str, str, str]]:
    """Target, whether it compiles here, whether it runs here, and what is missing."""
    from ringc.codegen.triton.toolchain import find_toolchain, toolchain_problems
    from ringc.errors import ToolchainError
    from ringc.passes.target import TARGETS

    gpu = _gpu()
    rows: list[tuple[str, str, str, str]] = []
    for name, target in TARGETS.items():
        if target.backend == "torch":
            rows.append((name, "yes", "yes", "with PyTorch's own operators"))
        elif target.backend == "tvm":
            works, note = _tvm()
            rows.append((name, works, works, note))
        elif target.arch is not None:
            try:
                toolchain = find_toolchain(target.arch)
                # The interpreter is another matter: what it gets wrong says nothing about compiled kernels.
                problems = [p for p in toolchain_problems(toolchain) if p.stage != "interpreter"]
                bad = any(p.severity == "error" for p in problems)
                note = f"Triton {toolchain.triton}, ptxas {toolchain.ptxas.version} ({toolchain.ptxas.origin})"
                compiles = "badly" if bad else "yes"
            except ToolchainError as error:
                compiles, note = "no", error.message
            rows.append((name, compiles, "yes" if gpu == target.arch else "no", note))
    return rows


def _tvm() -> tuple[str, str]:
    """Whether TVM works, tried by loading it and its LLVM, and what there is to say."""
    from ringc.codegen.tvm.build import processor
    from ringc.errors import ToolchainError

    try:
        return "yes", f"TVM {version('apache-tvm')}, whose LLVM calls this processor {processor().name}"
    except PackageNotFoundError as error:
        return "no", f"{error.name} isn't installed: pip install 'ringc[cpu]'"
    except ToolchainError as error:
        return "no", f"{error.message}: {error.help}"
    except (OSError, RuntimeError) as error:  # a library that doesn't load
        return "no", f"TVM can't be loaded: {error}"


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "none (kernels for GPUs compile without)"


def _gpu() -> int | None:
    """The architecture of this machine's GPU, as in 90; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor
