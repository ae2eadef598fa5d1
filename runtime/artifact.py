"""Opens an artifact and makes sure that it is whole, unedited and for this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringc.codegen import cpu
from ringc.codegen.artifact import FORMAT_VERSION, MANIFEST, digest, manifest_digest
from ringc.errors import ArtifactError, Place

_REMEDY = "compile it again with `ringc compile`"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "sha256": str, "spec": dict, "facts": dict, "vocabulary": dict, "max_positions": int, "target": dict, "tools": dict,
    "entries": dict, "states": dict, "prepare": dict, "kernels": dict, "files": dict, "input": str, "module": str,
    "ignored_tensors": list,
}  # fmt: skip


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
    manifest = _read_manifest(folder)
    edited = _check_files(folder, manifest)
    if edited and not allow_edited:
        names = ", ".join(sorted(edited)[:3]) + (f" and {len(edited) - 3} more" if len(edited) > 3 else "")
        what = "kernel was" if all(n.startswith("kernels/") for n in edited) and len(edited) == 1 else "files were"
        raise ArtifactError(
            f"{len(edited)} {what} edited since the compile: {names}",
            place=Place(folder / min(edited)),
            help="allow it with --allow-edited (Python: allow_edited=True), or compile again",
        )
    if not any_machine:
        _check_machine(folder, manifest["target"])
    return Artifact(folder, manifest, frozenset(edited))


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    place = Place(path)
    if not folder.is_dir():
        raise ArtifactError(
            "there is no such folder", place=Place(folder), help="make one with `ringc compile SPEC -o DIR`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            "the folder holds no artifact: manifest.json is missing", place=Place(folder), help=_REMEDY
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"the manifest can't be read: {error}", place=place, help=_REMEDY) from error
    except json.JSONDecodeError as error:
        place = Place(path, error.lineno, error.colno)
        raise ArtifactError(f"the manifest is no JSON: {error.msg.lower()}", place=place, help=_REMEDY) from error
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise ArtifactError("the manifest says no format_version", place=place, help=_REMEDY)
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"the artifact has format version {version}, and this ringc reads {FORMAT_VERSION}",
            place=place,
            help=_REMEDY,
        )
    for key, kind in _KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise ArtifactError(f"the manifest's '{key}' is missing or of the wrong type", place=place, help=_REMEDY)
    if manifest["sha256"] != manifest_digest(manifest):
        raise ArtifactError("the manifest was changed since the compile: its hash differs", place=place, help=_REMEDY)
    return manifest


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
            reason = (error.strerror or str(error)).lower()
            raise ArtifactError(
                f"a file of the artifact can't be read: {reason}", place=Place(path), help=_REMEDY
            ) from error
        if digest(data) == expected:
            continue
        if not name.endswith(".py"):
            raise ArtifactError(f"{name} is damaged: its hash differs", place=Place(path), help=_REMEDY)
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
                help=_REMEDY,
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
