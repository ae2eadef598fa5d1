"""Which Triton and which ptxas compile for NVIDIA GPUs here, and which combinations are known to go wrong.

Everything is read from package metadata and from `ptxas --version`: no GPU, no driver and no import of Triton is
needed, so that `ringc doctor` and a warm compile stay fast. Triton runs `ptxas` for architectures below sm_100 and
`ptxas-blackwell` from there on; a newer ptxas replaces both.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from ringc.errors import ToolchainError

#: Architectures that kernels are compiled for: compute capability times ten.
ARCHITECTURES = (80, 90, 100)

#: The ptxas that the tested set pins (extra `cuda`).
PINNED_PTXAS = "13.5.37"

_PTXAS_WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu13", "nvidia-cuda-nvcc-cu12")
_INSTALL_PTXAS = f"pip install nvidia-cuda-nvcc=={PINNED_PTXAS}"

Origin = Literal["environment", "wheel", "bundled"]
Stage = Literal["compile", "interpreter", "run"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Ptxas:
    """An assembler: where it is, `version` as in "13.5.37", its build line, and how it was found."""

    path: Path
    version: str
    build: str
    origin: Origin

    @property
    def identity(self) -> str:
        """What a cache key and a manifest record: two assemblers of one identity make the same code."""
        return f"{self.version} ({self.build})"


@dataclass(frozen=True)
class Toolchain:
    """What compiles one kernel: Triton's version and the assembler for the architecture."""

    triton: str
    ptxas: Ptxas
    arch: int

    @property
    def identity(self) -> dict[str, str]:
        """The part of a cache key and of a manifest that names the compilers."""
        return {"triton": self.triton, "ptxas": self.ptxas.identity}


@dataclass(frozen=True)
class Range:
    """Versions from `since` on and below `below`; None leaves a side open."""

    since: str | None = None
    below: str | None = None

    def holds(self, version: str) -> bool:
        found = version_tuple(version)
        after = self.since is None or found >= version_tuple(self.since)
        return after and (self.below is None or found < version_tuple(self.below))

    def __str__(self) -> str:
        parts = [f">= {self.since}"] * (self.since is not None) + [f"< {self.below}"] * (self.below is not None)
        return ", ".join(parts) or "any"


@dataclass(frozen=True)
class KnownBad:
    """A combination of versions that is known to fail.

    Attributes:
        name: short and stable, for messages and tests.
        versions: component ("triton", "ptxas", "numpy", "apache-tvm-ffi", ...) to the bad range; all must hold.
        architectures: compute capabilities it concerns; empty for all.
        stage: where it bites: compiling, the interpreter, or running the compiled code.
        severity: "error" where the result is wrong or nothing works, "warning" where ringc's own kernels avoid it.
        what: what goes wrong.
        remedy: what to do.
    """

    name: str
    versions: Mapping[str, Range]
    stage: Stage
    severity: Severity
    what: str
    remedy: str
    architectures: tuple[int, ...] = ()

    def applies(self, versions: Mapping[str, str], arch: int | None) -> bool:
        """Whether it concerns an environment; an unknown component doesn't match, `arch` None stands for any."""
        if arch is not None and self.architectures and arch not in self.architectures:
            return False
        return all(name in versions and range_.holds(versions[name]) for name, range_ in self.versions.items())


KNOWN_BAD: tuple[KnownBad, ...] = (
    KnownBad(
        name="ptxas-12-hopper",
        versions={"ptxas": Range(below="13.0")},
        architectures=(90,),
        stage="run",
        severity="error",
        what="this ptxas reuses registers of an asynchronous wgmma too early and drops immediates: kernels give wrong numbers",
        remedy=_INSTALL_PTXAS,
    ),
    KnownBad(
        name="ptxas-13.0-hopper",
        versions={"ptxas": Range(since="13.0", below="13.1")},
        architectures=(90,),
        stage="run",
        severity="error",
        what="this ptxas still emits invalid shared-memory writes in some kernels with wgmma",
        remedy=_INSTALL_PTXAS,
    ),
    KnownBad(
        name="wgmma-register-operand-wait",
        versions={"triton": Range(below="3.9")},
        architectures=(90,),
        stage="run",
        severity="warning",
        what="a pipelined wgmma whose left operand is in registers may wait too little (more likely above 4 warps)",
        remedy="keep such products out of pipelined loops; every tuned configuration is checked against the reference before use",
    ),
    KnownBad(
        name="transposed-dot-result",
        versions={"triton": Range(since="3.4", below="3.7.1")},
        architectures=(90,),
        stage="run",
        severity="warning",
        what="tl.dot(tl.trans(x), y) with x the result of a dot is wrong for some tiles",
        remedy="ringc emits no such product; in an edited kernel compute the transposed product afresh, or install triton>=3.7.1",
    ),
    KnownBad(
        name="fp8-accumulation",
        versions={"triton": Range()},
        architectures=(90,),
        stage="run",
        severity="warning",
        what="fp8 dots accumulate in about 14 bits unless max_num_imprecise_acc is set",
        remedy="ringc sets it; set it in an edited kernel too",
    ),
    KnownBad(
        name="interpreter-numpy-loop-bounds",
        versions={"triton": Range(below="3.7"), "numpy": Range(since="2.4")},
        stage="interpreter",
        severity="error",
        what="Triton's interpreter can't run a loop whose bound is known only at run time",
        remedy='pip install "numpy<2.4", or triton>=3.7.1',
    ),
    KnownBad(
        name="interpreter-low-precision",
        versions={"triton": Range()},
        stage="interpreter",
        severity="warning",
        what="Triton's interpreter multiplies the bit patterns of bf16 and rounds bf16 and fp8 casts wrongly",
        remedy="check kernels at fp32 in the interpreter, and bf16 and fp8 on a GPU",
    ),
    KnownBad(
        name="tvm-ffi-json",
        versions={"apache-tvm-ffi": Range(since="0.1.15")},
        stage="compile",
        severity="warning",
        what="save_json of TVM crashes the process",
        remedy='pip install "apache-tvm-ffi==0.1.14.post1"',
    ),
)


def version_tuple(text: str) -> tuple[int, ...]:
    """The release numbers, as in "3.7.1+git1" -> (3, 7, 1), without trailing zeros; tuples compare as versions."""
    numbers = [int(part) for part in re.match(r"\d*(?:\.\d+)*", text)[0].split(".") if part]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def known_problems(
    versions: Mapping[str, str], *, arch: int | None = None, stage: Stage | None = None
) -> list[KnownBad]:
    """The rows of `KNOWN_BAD` that concern an environment, errors first."""
    found = [bad for bad in KNOWN_BAD if (stage is None or bad.stage == stage) and bad.applies(versions, arch)]
    return sorted(found, key=lambda bad: bad.severity)


def installed_version(package: str) -> str | None:
    """A distribution's version from its metadata, without importing it; None where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(
    packages: Iterable[str] = ("triton", "torch", "numpy", "apache-tvm", "apache-tvm-ffi"),
) -> dict[str, str]:
    """Versions of those of `packages` that are installed, and of Python."""
    found = {package: version for package in packages if (version := installed_version(package)) is not None}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


def triton_version() -> str:
    """Triton's version.

    Raises:
        ToolchainError: Triton isn't installed.
    """
    version = installed_version("triton")
    if version is None:
        raise ToolchainError("Triton isn't installed: no kernel can be made for GPUs", help='pip install "triton>=3.6"')
    return version


def triton_tool(name: str) -> Path:
    """Path of a tool in Triton's wheel: "ptxas", "ptxas-blackwell", "cuobjdump" or "nvdisasm".

    `TRITON_CUOBJDUMP_PATH` and `TRITON_NVDISASM_PATH` replace the disassemblers, as in Triton.

    Raises:
        ToolchainError: Triton isn't installed, or its build doesn't ship the tool.
    """
    named = os.environ.get(f"TRITON_{name.upper().replace('-', '_')}_PATH")
    if named and not name.startswith("ptxas"):
        return Path(named)
    triton_version()
    # find_spec of a top-level package reads its location and doesn't run it.
    spec = util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / name
        if path.is_file():
            return path
    raise ToolchainError(f"this build of Triton ships no {name}", help="install Triton from its wheel on PyPI")


def find_ptxas(arch: int) -> Ptxas:
    """The assembler for an architecture: the environment's, else the newest of the installed wheels and Triton's own.

    `TRITON_PTXAS_PATH` names it below sm_100, `TRITON_PTXAS_BLACKWELL_PATH` from there on.

    Raises:
        ToolchainError: the variable names no ptxas, or there is none.
    """
    variable = ptxas_variable(arch)
    if variable in os.environ:
        path = os.environ[variable]
        # Triton falls back silently where the path is wrong; here that would put a wrong version into manifests.
        if not path or not Path(path).is_file():
            raise ToolchainError(
                f"{variable} is set to {path!r}, which is no file", help=f"unset it, or {_INSTALL_PTXAS}"
            )
        return _read_ptxas(path, Path(path).stat().st_mtime_ns, "environment")
    candidates: list[tuple[Path, Origin]] = [(path, "wheel") for path in _wheel_ptxas()]
    candidates.append((triton_tool("ptxas-blackwell" if arch >= 100 else "ptxas"), "bundled"))
    known = [_read_ptxas(str(path), path.stat().st_mtime_ns, origin) for path, origin in candidates]
    return max(known, key=lambda ptxas: version_tuple(ptxas.version))


def ptxas_variable(arch: int) -> str:
    """The environment variable that names Triton's assembler for an architecture."""
    return "TRITON_PTXAS_BLACKWELL_PATH" if arch >= 100 else "TRITON_PTXAS_PATH"


def find_toolchain(arch: int) -> Toolchain:
    """Triton and the assembler for `arch` (80, 90 or 100).

    Raises:
        ToolchainError: one of them is missing, or the architecture isn't supported.
    """
    if arch not in ARCHITECTURES:
        known = ", ".join(f"sm_{known}" for known in ARCHITECTURES)
        raise ToolchainError(f"no kernels can be compiled for sm_{arch}", help=f"supported: {known}")
    return Toolchain(triton_version(), find_ptxas(arch), arch)


def toolchain_problems(toolchain: Toolchain, stage: Stage | None = None) -> list[KnownBad]:
    """What is known to be bad about a toolchain on its architecture, errors first."""
    versions = {**installed_versions(), "triton": toolchain.triton, "ptxas": toolchain.ptxas.version}
    return known_problems(versions, arch=toolchain.arch, stage=stage)


def _wheel_ptxas() -> list[Path]:
    paths = []
    for wheel in _PTXAS_WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        paths += [Path(str(file.locate())) for file in files if file.name == "ptxas"]
    return [path for path in paths if path.is_file()]


@lru_cache
def _read_ptxas(path: str, _modified: int, origin: Origin) -> Ptxas:
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"can't run ptxas at {path}: {error}", help=_INSTALL_PTXAS) from error
    version = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    build = re.search(r"^Build (\S+)", text, re.MULTILINE)
    if version is None or build is None:
        raise ToolchainError(f"{path} is no ptxas: it answers --version with {text[:80]!r}", help=_INSTALL_PTXAS)
    return Ptxas(Path(path), version[1], build[1], origin)
