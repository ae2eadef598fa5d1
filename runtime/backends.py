"""What runs kernels: each back end loads its own, found by name when first used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol

import torch

from ringc.codegen.artifact import MANIFEST
from ringc.errors import ArtifactError, Place
from ringc.runtime.artifact import Artifact
from ringc.runtime.manifest import contradiction
from ringc.runtime.names import TORCH_NAMES
from ringc.runtime.signature import read_signature

Launcher = Callable[..., None]
"""`launch(*inputs, *outputs, *workspaces)` on tensors."""


DTYPES: dict[str, torch.dtype] = {name: getattr(torch, known) for name, known in TORCH_NAMES.items()}
"""Element types by the names that manifests and programs use."""

Shape = tuple[tuple[int, ...], torch.dtype]
"""Shape and element type of a tensor in memory."""


class Loader(Protocol):
    """Loads and binds the kernels of one back end."""

    device: torch.device
    """Where the tensors of its kernels live."""

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Launcher:
        """A kernel of an artifact, ready to run.

        Raises:
            ArtifactError: the kernel's files can't be loaded.
            ToolchainError: the back end isn't installed.
        """

    def bind(self, launch: Launcher, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """A launch on tensors that stay where they are, as cheap to call as the back end allows; it keeps them alive."""


_EDITED = "mend the edited file, or compile the artifact again"

LOADERS = {
    "torch": "ringc.runtime.backends:TorchLoader",
    "tvm": "ringc.runtime.tvm_backend:TvmLoader",
    "triton": "ringc.runtime.triton_backend:TritonLoader",
}
"""Name -> where its class is."""


BUILT_AHEAD = frozenset({"tvm", "triton"})
"""Back ends that run what the compiler built; the others run the source."""


def loader(name: str) -> Loader:
    """The loader of a back end.

    Raises:
        ArtifactError: there is none of this name.
    """
    if name not in LOADERS:
        raise ArtifactError(
            f"the artifact has kernels of an unknown back end '{name}'", help=f"known are {', '.join(LOADERS)}"
        )
    module, _, cls = LOADERS[name].partition(":")
    found: Loader = getattr(import_module(module), cls)()
    return found


class TorchLoader:
    """Kernels that are Python functions on torch tensors."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Launcher:
        names = run_file(artifact, entry["source"], defines=("launch",))
        launch: Launcher = names["launch"]
        if names.get("READS_HOST", False):
            launch.reads_host = True  # type: ignore[attr-defined]
        return launch

    def bind(self, launch: Launcher, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        return functools.partial(launch, *tensors)


def run_file(artifact: Artifact, name: str, *, defines: Iterable[str] = ()) -> dict[str, Any]:
    """The names that a Python file of an artifact defines, `defines` among them.

    Raises:
        ArtifactError: it is no valid Python, or lacks one of the names, as an edited file may.
    """
    path = artifact.path(name)
    names: dict[str, Any] = {"__name__": f"ringc_artifact_{path.stem}", "__file__": str(path)}
    try:
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        exec(code, names)  # noqa: S102 - an artifact holds code, and its hashes were checked
    except Exception as error:
        raise ArtifactError(
            f"{name} can't be loaded: {error!r}", place=Place(path, _line_of(error, path)), help=_EDITED
        ) from error
    lost = [wanted for wanted in defines if wanted not in names]
    if lost:
        raise ArtifactError(f"{name} doesn't define {lost[0]}", place=Place(path), help=_EDITED)
    return names


def _line_of(error: BaseException, path: Path) -> int | None:
    """The line of a file in which an error arose, if it did in this file."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


class Kernels:
    """All kernels of an artifact, each loaded when it is first used."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._loaders: dict[str, Loader] = {}
        self._launchers: dict[str, Launcher] = {}

    @property
    def device(self) -> torch.device:
        """Where the artifact's tensors live."""
        return self.loader(str(self.artifact.target["backend"])).device

    def loader(self, name: str) -> Loader:
        if name not in self._loaders:
            self._loaders[name] = loader(name)
        return self._loaders[name]

    def __getitem__(self, name: str) -> Launcher:
        if name not in self._launchers:
            entry = self.artifact.kernels[name]
            if str(entry["backend"]) in BUILT_AHEAD and self.artifact.is_edited(name):
                # What was built is of the source as it was: an edited one is built again, which needs the compiler.
                from ringc.codegen.backend import backend

                self._launchers[name] = backend(str(entry["backend"])).launcher(
                    self.artifact.path(entry["source"]), name
                )
            else:
                self._launchers[name] = self.loader(str(entry["backend"])).load(self.artifact, name, entry)
        return self._launchers[name]

    def wanted(self, name: str, sizes: Mapping[str, int]) -> list[Shape]:
        """What a launch of a kernel takes, where the symbols have these values: inputs, outputs, workspaces.

        Raises:
            ArtifactError: there is no such kernel.
        """
        if name not in self.artifact.kernels:
            raise self.contradiction(f"the program launches the kernel {name}, which there isn't")
        entry = self.artifact.kernels[name]
        types = [read_signature(t) for t in (*entry["inputs"], *entry["outputs"], *entry["workspace"])]
        return [(t.shape(sizes), DTYPES[t.dtype]) for t in types if t is not None]

    def contradiction(self, what: str) -> ArtifactError:
        """The error about an artifact whose manifest says something else than its program."""
        return contradiction(what, Place(self.artifact.path(MANIFEST)))

    def experts(self, name: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensor of a launch in which a routing kernel puts the experts: the first of its results. None of another kernel."""
        entry = self.artifact.kernels[name]
        return [tensors[len(entry["inputs"])]] if entry["family"] == "route" else []

    def reads_host(self, name: str) -> bool:
        """Whether a launch of a kernel reads memory of the host, so that it can't be repeated by a device alone."""
        return bool(getattr(self[name], "reads_host", False))

    def bind(self, name: str, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """A launch of a kernel on these tensors."""
        return self.loader(str(self.artifact.kernels[name]["backend"])).bind(self[name], tensors)
