"""JSON files from outside, read with errors that say where. Imports errors alone, so that every layer may use it."""

from __future__ import annotations

import json
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
