"""JSON files, read with errors that say where, and files written whole or not at all. Imports errors alone, for every layer's use."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringc.errors import Place, RingcError, reason


def read_json(path: Path, what: str, wrong: type[RingcError], help: str) -> tuple[bytes, Any]:
    """A file's bytes, and the value that they spell.

    Args:
        path: the file.
        what: it should be, for messages: "the manifest".
        wrong: the class of error to raise.
        help: the remedy.

    Raises:
        RingcError: of the class `wrong`: the file can't be read, or is no JSON.
    """
    try:
        data = path.read_bytes()
        return data, json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        place = Place(path, error.lineno, error.colno, error.doc.split("\n")[error.lineno - 1])
        raise wrong(f"{what} is no JSON: {error.msg.lower()}", place=place, help=help) from error
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"{what} can't be read: {reason(error)}", place=Place(path), help=help) from error


def check_version(
    found: dict[str, Any], known: int, what: str, wrong: type[RingcError], place: Place, help: str
) -> None:
    """Take an object's `format_version` out of it, and raise unless it is the one that is known.

    Args:
        found: has a `format_version`.
        known: the one that this ringc reads.
        what: it is, for messages: "the tuning record".
        wrong: the class of error to raise.
        place: the file.
        help: the remedy.

    Raises:
        RingcError: of the class `wrong`: it is another one.
    """
    version = found.pop("format_version")
    if version != known or isinstance(version, bool):
        shown = str(version)[:40]
        raise wrong(f"{what} has format version {shown}, and this ringc reads {known}", place=place, help=help)


def misfit(value: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """Which key of an object is missing, of another type than the shape says, or unknown; nothing where all is right."""
    for key, type in shape.items():
        if key not in value:
            return f"lacks '{key}'"
        if not isinstance(value[key], type):
            return f"has a '{key}' of the wrong type"
    unknown = next((key for key in value if key not in shape), None)
    return "" if unknown is None else f"has an unknown key '{unknown[:40]}'"


def write_whole(path: Path, data: bytes, what: str, wrong: type[RingcError], help: str) -> None:
    """Write a file beside its name and rename it: there is the old one or the new one, whole.

    Args:
        path: the file.
        data: what it shall hold.
        what: it is, for messages: "the tuning record".
        wrong: the class of error to raise.
        help: the remedy.

    Raises:
        RingcError: of the class `wrong`: it can't be written.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.writing-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise wrong(f"{what} can't be written: {reason(error)}", place=Place(path), help=help) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
