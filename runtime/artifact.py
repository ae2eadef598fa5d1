"""Opens an artifact and makes sure that it is whole, unedited and for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringc.codegen import cpu
from ringc.codegen.artifact import MANIFEST, digest
from ringc.errors import ArtifactError, Place, reason
from ringc.runtime.manifest import REMEDY, read_manifest


@dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        folder: where it lies.
        manifest: what its manifest says.
        edited: files that differ from what the compiler wrote, allowed by the caller.
    """

    folder: Path
    manifest: Mapping[str, Any]
    edited: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        """Kernel name -> its entry."""
        found: Mapping[str, Mapping[str, Any]] = self.manifest["kernels"]
        return found

    @property
    def target(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.manifest["target"]
        return found

    def path(self, name: str) -> Path:
        """A file of the artifact."""
        return self.folder / name

    def is_edited(self, kernel: str) -> bool:
        """Whether a kernel's source differs from what the compiler wrote."""
        return self.kernels[kernel]["source"] in self.edited


def open_artifact(folder: str | Path, *, allow_edited: bool = False, any_machine: bool = False) -> Artifact:
    """Open a folder that `ringc compile` wrote.

    Hashes detect damage and edits, not attackers: an artifact holds code, so load only those that you trust.

    Args:
        folder: the artifact's.
        allow_edited: run files that were edited since they were compiled.
        any_machine: don't check that it can run here, for looking at it.

    Raises:
        ArtifactError: there is none, it is damaged or edited, of another format version, or for another machine.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    edited = _check_files(folder, manifest)
    if edited and not allow_edited:
        names = ", ".join(sorted(edited)[:3]) + (f" and {len(edited) - 3} more" if len(edited) > 3 else "")
        thing = "kernel" if all(n.startswith("kernels/") for n in edited) else "file"
        what = f"{thing} was" if len(edited) == 1 else f"{thing}s were"
        raise ArtifactError(
            f"{len(edited)} {what} edited since the compile: {names}",
            place=Place(folder / min(edited)),
            help="allow it with --allow-edited (Python: allow_edited=True), or compile again",
        )
    if not any_machine:
        _check_machine(folder, manifest["target"])
    return Artifact(folder, manifest, frozenset(edited))


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> set[str]:
    """Names of the Python sources that were edited.

    Raises:
        ArtifactError: a file is missing, or one that no one edits by hand differs.
    """
    edited: set[str] = set()
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"a file of the artifact can't be read: {reason(error)}", place=Place(path), help=REMEDY
            ) from error
        if digest(data) == expected:
            continue
        if not name.endswith(".py"):
            raise ArtifactError(f"{name} is damaged: its hash differs", place=Place(path), help=REMEDY)
        edited.add(name)
    return edited


def _check_machine(folder: Path, target: Mapping[str, Any]) -> None:
    place = Place(folder / MANIFEST)
    needs = target.get("cpu")
    if needs is not None:
        here = cpu.architecture()
        if needs["architecture"] != here:
            raise ArtifactError(
                f"the artifact is for {needs['architecture']} processors, and this one is {here}",
                place=place,
                help=REMEDY,
            )
        missing = cpu.missing_features(tuple(needs["features"]))
        if missing:
            raise ArtifactError(
                f"the artifact uses {', '.join(missing)}, which this processor lacks",
                place=place,
                help="compile it again on this machine",
            )
    if "arch" in target:
        import torch

        name = target["name"]
        if not torch.cuda.is_available():
            raise ArtifactError(
                f"the artifact is for target {name}, and there is no CUDA GPU here",
                place=place,
                help="compile for this machine with `--target cpu`",
            )
        major, minor = torch.cuda.get_device_capability()
        if major * 10 + minor != target["arch"]:
            raise ArtifactError(
                f"the artifact is for target {name}, and this GPU is sm_{major}{minor}",
                place=place,
                help=f"compile it again with `--target sm_{major}{minor}`",
            )
