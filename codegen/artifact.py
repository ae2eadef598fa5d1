"""Writes an artifact: a folder that holds everything that runs, readable, with a manifest that says what each file is.

```
manifest.json          the spec, the target, versions with their guards, kernels, states, the map of weights, hashes of all files
program.py             the host program
kernels/NAME.py        one file for each kernel, and what the back end built from it
graph/NN_PASS.ring     the module before the first pass and behind the last (behind every pass with --dump all)
events.jsonl           what the compiler did, one event a line
```

The same input gives the same bytes: no times, no paths. The folder is written beside its final name and renamed at the end, so there is a
whole artifact or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringc.errors import ArtifactError, Place, reason

FORMAT_VERSION = 2
"""Raised when an older runtime could misread what a newer compiler writes."""

MANIFEST = "manifest.json"


def to_json(value: object) -> str:
    """JSON with sorted keys, indented; equal values give equal text. Infinities are `Infinity`, as Python reads them."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The hash of everything in a manifest but its own hash."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return digest(to_json(rest).encode("utf-8", "surrogatepass"))


def write_artifact(
    folder: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], *, force: bool = False
) -> int:
    """Write all files and the manifest, to which the files' hashes and its own are added; gives back the bytes written.

    Args:
        folder: made; replaced if it holds an artifact and `force` is set, or an artifact of the same model.
        manifest: without hashes.
        files: contents by path in the folder.
        force: replace whatever artifact is there.

    Raises:
        ArtifactError: the folder holds something else, can't be written, or the disk is full. Nothing is left half-written.
    """
    _check_target(folder, str(manifest["name"]), force)
    whole = {**manifest, "files": {name: digest(data) for name, data in sorted(files.items())}}
    whole["sha256"] = manifest_digest(whole)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
        total = 0
        for name, data in {**files, MANIFEST: to_json(whole).encode()}.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            total += len(data)
        temporary.chmod(0o777 & ~_umask())
        _replace(temporary, folder)
        temporary = None
    except OSError as error:
        raise _explain(error, folder) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return total


def check_target(folder: Path, name: str, *, force: bool = False) -> None:
    """Raise now, before any work, what `write_artifact` would raise about the folder at the end."""
    try:
        _check_target(folder, name, force)
        above = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    except OSError as error:  # a name too long, a folder that can't be read
        raise _explain(error, folder) from error
    if not above.is_dir():
        raise ArtifactError(f"{above} is not a folder", place=Place(folder), help="choose another folder with -o")
    if not os.access(above if above != folder else folder.parent, os.W_OK):
        raise ArtifactError(
            "the folder can't be written: permission denied", place=Place(folder), help="choose another with -o"
        )


def _check_target(folder: Path, name: str, force: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise ArtifactError(
            "a file of this name is in the way", place=Place(folder), help="choose another folder with -o"
        )
    if not any(folder.iterdir()):
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there = manifest["name"] if "format_version" in manifest else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        there = None
    if there is None:
        raise ArtifactError(
            "the folder holds something that is no artifact",
            place=Place(folder),
            help="choose an empty or new folder with -o",
        )
    if there != name and not force:
        raise ArtifactError(
            f"the folder holds an artifact of '{there}'",
            place=Place(folder),
            help="choose another with -o, or replace it with --force",
        )


def _replace(made: Path, folder: Path) -> None:
    """Put the new folder where the old one may be; the old one is there until the new one is complete."""
    for tries_left in (3, 2, 1, 0):
        try:
            if folder.exists():
                _swap(made, folder)
            else:
                made.rename(folder)
            return
        except OSError as error:
            # Another compile into this folder was quicker: its artifact is now the old one.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not tries_left:
                raise


def _swap(made: Path, folder: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        made.rename(folder)
    except OSError:
        (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _explain(error: OSError, folder: Path) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            "no space left on the disk", place=Place(folder), help="free some, or choose another folder with -o"
        )
    return ArtifactError(
        f"can't write the artifact: {reason(error)}", place=Place(folder), help="choose another folder with -o"
    )
