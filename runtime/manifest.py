"""Reads an artifact's manifest: what it must hold for the runtime to work with it, and how it is said when it doesn't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

from ringc.codegen.artifact import FORMAT_VERSION, MANIFEST, manifest_digest
from ringc.errors import ArtifactError, Place
from ringc.json_file import read_json
from ringc.runtime.consistency import ENDS, contradictions
from ringc.runtime.names import TORCH_NAMES

REMEDY = "compile it again with `ringc compile`"


def contradiction(what: str, place: Place) -> ArtifactError:
    """The error about an artifact whose parts don't fit together, though each of them is as it was signed."""
    return ArtifactError(f"the artifact contradicts itself: {what}", place=place, help=REMEDY)


@dataclass(frozen=True)
class Each:
    """An object whose values all have one shape."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """What may be left out: if it is there, it has this shape."""

    shape: Any


_BACKEND = frozenset({"torch", "tvm", "triton"})
_KERNEL = {
    "family": str, "source": str, "backend": _BACKEND, "implementation": str, "built": Each(str), "inputs": [str], "outputs": [str],
    "workspace": [str], "flops": str, "bytes": str, "resources": dict, "launch": dict,
}  # fmt: skip
_VERSION = {
    "name": str, "guard": str, "form": str, "predicted": (int, float), "typical": {"N": int, "B": int, "R": int, "P": int, "S": int},
    "inputs": [[str]],
}  # fmt: skip
_DTYPE = frozenset(TORCH_NAMES)
_PART = {"source": str, "shape": [int], "region": [[int]], "stack": Maybe(int), "steps": Maybe([list])}
_TENSOR = {
    "shape": [int], "dtype": _DTYPE, "blocks": Maybe([[int]]), "parts": Maybe([_PART]), "table": Maybe([(int, float)]),
    "gathered": Maybe(bool),
}  # fmt: skip
_TARGET = {
    "name": str, "backend": _BACKEND, "storage": frozenset({"f32", "bf16"}), "arch": Maybe(int),
    "cpu": Maybe({"architecture": str, "features": [str]}),
}  # fmt: skip
_SHAPE = {
    "name": str, "sha256": str, "spec": dict, "facts": {"parameters": int}, "max_positions": int, "tools": dict, "input": str,
    "module": str, "ignored_tensors": [str], "files": Each(str), "target": _TARGET,
    "vocabulary": {"size": int, "tokenizer": str, **dict.fromkeys(ENDS, Maybe((int, NoneType)))},
    "entries": {"prefill": [_VERSION], "decode": [_VERSION]},
    "kernels": Each(_KERNEL), "states": Each({"shape": [(int, str)], "dtype": _DTYPE}), "prepare": Each(_TENSOR),
}  # fmt: skip
"""What must be there, and of which type: a type or several, one of some words, a list of one shape, an object with these keys, an
object of `Each`."""


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of an artifact, whole and unchanged, with the entries that the runtime reads.

    Raises:
        ArtifactError: there is none, it is damaged, changed, or of another format version.
    """
    path = folder / MANIFEST
    place = Place(path)
    if not folder.is_dir():
        what = "the artifact is a file, not a folder" if folder.exists() else "there is no such folder"
        raise ArtifactError(what, place=Place(folder), help="make one with `ringc compile SPEC -o DIR`")
    try:
        _, manifest = read_json(path, "the manifest", ArtifactError, REMEDY)
    except ArtifactError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        missing = f"the folder holds no artifact: {MANIFEST} is missing"
        raise ArtifactError(missing, place=Place(folder), help=REMEDY) from None
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise ArtifactError("the manifest says no format_version", place=place, help=REMEDY)
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"the artifact has format version {str(version)[:40]}, and this ringc reads {FORMAT_VERSION}",
            place=place,
            help=REMEDY,
        )
    wrong = next(_misfits(manifest, _SHAPE, ""), None)
    if wrong is not None:
        raise ArtifactError(f"the manifest's '{wrong}' is missing or of the wrong type", place=place, help=REMEDY)
    if manifest["sha256"] != manifest_digest(manifest):
        raise ArtifactError("the manifest was changed since the compile: its hash differs", place=place, help=REMEDY)
    _check_contents(manifest, place)
    return manifest


def _misfits(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Paths at which a value isn't as its shape says."""
    match shape:
        case Each(inner):
            yield from _misfits(value, dict, path)
            if isinstance(value, dict):
                for key, item in value.items():
                    yield from _misfits(item, inner, f"{path}.{key}")
        case dict():
            for key, inner in shape.items():
                below = f"{path}.{key}" if path else key
                if isinstance(value, dict) and key in value:
                    yield from _misfits(value[key], inner.shape if isinstance(inner, Maybe) else inner, below)
                elif not (isinstance(value, dict) and isinstance(inner, Maybe)):
                    yield below
        case [inner]:
            yield from _misfits(value, list, path)
            if isinstance(value, list):
                for i, item in enumerate(value):
                    yield from _misfits(item, inner, f"{path}[{i}]")
        case frozenset():
            if not isinstance(value, str) or value not in shape:
                yield path
        case _:
            # In Python, true is a number.
            if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
                yield path


def _check_contents(manifest: Mapping[str, Any], place: Place) -> None:
    """Raise unless each entry point is there, and every file that is spoken of lies in the artifact and has a hash."""
    for name in manifest["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ArtifactError(f"the manifest names a file outside the artifact: {name!r}", place=place, help=REMEDY)
    kernels = manifest["kernels"].values()
    needed = ["program.py", manifest["input"], manifest["module"]]
    needed += [name for kernel in kernels for name in (kernel["source"], *kernel["built"].values())]
    odd = sorted(set(manifest["entries"]) - {"prefill", "decode"})
    if odd:
        raise ArtifactError(f"the manifest has an unknown entry point: {odd[0]!r}", place=place, help=REMEDY)
    lost = [entry for entry, versions in manifest["entries"].items() if not versions]
    if lost:
        raise ArtifactError(f"the manifest has no version of {lost[0]}", place=place, help=REMEDY)
    unknown = [name for name in needed if name not in manifest["files"]]
    if unknown:
        raise ArtifactError(f"the manifest uses a file that it doesn't list: {unknown[0]!r}", place=place, help=REMEDY)
    wrong = next(contradictions(manifest), None)
    if wrong is not None:
        raise contradiction(wrong, place)
