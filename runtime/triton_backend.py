"""Runs kernels written in Triton: on a GPU what was compiled ahead of time, launched as the artifact's files say.

A kernel's file is run as it stands, but for its `@triton.jit` functions, in whose place stand the binaries of their configurations. So
its `launch` decides on grids and configurations, once, when a program is bound; Triton compiles nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ringc.codegen.triton.labels import labels
from ringc.codegen.triton.toolchain import known_problems
from ringc.errors import ArtifactError, Place, RunError, ToolchainError
from ringc.runtime.cuda_driver import Binary, Launch

if TYPE_CHECKING:
    from ringc.runtime.artifact import Artifact

Launcher = Callable[..., None]
"""`launch(*inputs, *outputs, *workspaces)` on tensors."""

ALIGNED = 16
"""Bytes: what compiled kernels take for granted of every pointer."""

_NUMBERS: Mapping[str, Callable[[Any], Any]] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
"""Triton's types of numbers among a kernel's arguments."""


class TritonLoader:
    """See `ringc.runtime.backends.Loader`.

    Raises:
        ToolchainError: there is no GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ToolchainError(
                "there is no CUDA GPU here to run Triton kernels", help="compile for this machine with `--target cpu`"
            )
        self.device = torch.device("cuda")

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Launcher:
        """A kernel of an artifact, ready to run.

        Raises:
            ArtifactError: its file can't be loaded, or has no `launch`, or what was built of it isn't there.
            ToolchainError: it was built by a Triton or an assembler that are known to give wrong numbers.
        """
        from ringc.runtime.backends import run_file

        _check_tools(artifact)
        return BuiltKernel(artifact, name, entry, run_file(artifact, entry["source"], defines=("launch", "JOBS")))

    def bind(self, launch: Launcher, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """A launch on tensors that stay where they are. What isn't built ahead is a kernel that was edited."""
        return launch.bind(*tensors) if isinstance(launch, BuiltKernel) else functools.partial(launch, *tensors)


def _check_tools(artifact: Artifact) -> None:
    """Raise if the artifact was built by tools that are known to give wrong numbers."""
    tools = artifact.manifest["tools"]
    versions = {name: str(tools[name]).partition(" ")[0] for name in ("triton", "ptxas") if name in tools}
    for bad in known_problems(versions, arch=artifact.target["arch"], stage="run"):
        if bad.severity == "error":
            raise ToolchainError(
                f"the artifact was built with Triton {versions.get('triton')} and ptxas {versions.get('ptxas')}: {bad.what}",
                place=Place(artifact.folder),
                help=f"{bad.remedy}, and compile it again",
            )


@dataclass
class Configuration:
    """One way in which a kernel's file launches a function: what it pins, and the binary, which is loaded when first used."""

    name: str
    pinned: Mapping[str, Any]
    signature: Mapping[str, str]
    load: Callable[[], Binary]
    _binary: Binary | None = None
    _sizes: Sequence[int] = ()

    def prepared(self, grid: Sequence[int], arguments: Sequence[Any], names: Sequence[str]) -> Launch:
        """A launch of it.

        Args:
            grid: numbers of programs.
            arguments: tensors and numbers, as the file gives them.
            names: of all parameters of the function.

        Raises:
            ValueError: these aren't the arguments that the binary takes.
        """
        given = dict(zip(names, arguments, strict=False))
        if set(given) != set(self.signature):
            raise ValueError(f"{self.name} is given {', '.join(given)}, and takes {', '.join(self.signature)}")
        values = [_argument(given[name], self.signature[name], name) for name in names if name in given]
        if self._binary is None:
            self._binary = self.load()
            self._sizes = self._binary.parameters()
        if [ctypes.sizeof(v) for v in values] != list(self._sizes[: len(values)]):
            raise ValueError(f"{self.name} is given {len(values)} arguments, and the binary takes others")
        # Behind them Triton's compiler puts pointers to scratch memory, of which these kernels use none.
        values += [ctypes.c_void_p(0) for _ in self._sizes[len(values) :]]
        return self._binary.prepared(grid, values)


def _argument(value: Any, type: str, name: str) -> Any:
    if not type.startswith("*"):
        return _NUMBERS[type](value)
    address = value.data_ptr()
    if address % ALIGNED:
        raise RunError(f"{name} isn't at a multiple of {ALIGNED} bytes", help="give tensors whose memory begins there")
    return ctypes.c_void_p(address)


@dataclass
class Prebuilt:
    """Stands for a `@triton.jit` function: `function[grid](*arguments, **pinned)` notes a launch of the binary with these constants."""

    names: Sequence[str]
    configurations: list[Configuration] = field(default_factory=list)
    noted: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        return functools.partial(self._note, grid)

    def _note(self, grid: Sequence[int], *arguments: Any, **pinned: Any) -> None:
        found = next((c for c in self.configurations if c.pinned == pinned), None)
        if found is None:
            raise ValueError(f"no configuration of JOBS pins {pinned}")
        if all(grid):
            self.noted.append(found.prepared(grid, arguments, self.names))


class BuiltKernel:
    """A kernel whose file was compiled ahead of time. Call it on tensors, or bind it to some.

    Args:
        artifact, name, entry: whose kernel.
        names: what its file defines; its functions are replaced there.

    Raises:
        ArtifactError: the manifest names no binary of a configuration, or it can't be read.
    """

    def __init__(self, artifact: Artifact, name: str, entry: Mapping[str, Any], names: dict[str, Any]) -> None:
        self._launch: Launcher = names["launch"]
        self._place = Place(artifact.path(entry["source"]))
        self._name = name
        self._noted: list[Launch] = []
        for job, label in zip(names["JOBS"], labels(names["JOBS"]), strict=True):
            function = names[job["kernel"]]
            if not isinstance(function, Prebuilt):
                function = names[job["kernel"]] = Prebuilt(function.arg_names, noted=self._noted)
            pinned = names["pinned"](job)
            overlaps = bool(pinned.get("launch_pdl", False))
            load = functools.partial(_load, artifact, entry, label, job["kernel"], overlaps=overlaps)
            function.configurations.append(Configuration(label, pinned, job["signature"], load))

    def bind(self, *tensors: torch.Tensor) -> Callable[[], None]:
        """The launches on these tensors, which stay alive with what is returned: a launch itself knows addresses alone.

        Raises:
            ArtifactError: the file and its binaries don't fit.
        """
        self._noted.clear()
        try:
            self._launch(*tensors)
        except ValueError as error:
            raise ArtifactError(
                f"kernel {self._name} can't be launched: {error}", place=self._place, help="compile the artifact again"
            ) from error
        return functools.partial(_run, tuple(self._noted), tensors)

    def __call__(self, *tensors: torch.Tensor) -> None:
        self.bind(*tensors)()


def _run(launches: Sequence[Launch], _kept: Sequence[torch.Tensor]) -> None:
    for launch in launches:
        launch()


def _load(artifact: Artifact, entry: Mapping[str, Any], label: str, kernel: str, *, overlaps: bool) -> Binary:
    file, shape = entry["built"].get(f".{label}.cubin"), entry["launch"].get("configurations", {}).get(label)
    if file is None or shape is None:
        raise ArtifactError(
            f"there is no binary of {label}",
            place=Place(artifact.path(entry["source"])),
            help="compile the artifact again",
        )
    if shape["global_scratch_size"]:
        raise ArtifactError(
            f"{label} wants scratch memory, which no kernel of this compiler does",
            place=Place(artifact.path(file)),
            help="compile the artifact again",
        )
    cubin = artifact.path(file).read_bytes()
    return Binary(cubin, kernel, shape["num_warps"], shape["shared"], overlaps=overlaps)
