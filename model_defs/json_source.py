"""A JSON file of a checkpoint, with the places of its top-level keys."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringc.errors import CheckpointError, Place

MAX_BYTES = 4 * 1024 * 1024
_MAX_TEXT = 160
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


@dataclass
class JsonFile:
    """A JSON object as read, and where its keys stand."""

    path: Path
    lines: list[str]
    values: dict[str, Any]
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)  # key -> line and column, from 0

    def place(self, key: str | None) -> Place:
        """Where a key stands; the file alone if it isn't there."""
        if key is None or key not in self.keys:
            return Place(self.path)
        line, column = self.keys[key]
        text = self.lines[line].rstrip()
        shown = text.replace("\t", " ") if len(text) <= _MAX_TEXT and text.replace("\t", " ").isprintable() else None
        return Place(self.path, line + 1, column + 1, shown, len(key) + 2)


class _GivenTwice(ValueError):
    """An object has two entries of one key: which of them is meant can't be known."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _GivenTwice(key)
        made[key] = value
    return made


def read_json(path: Path) -> JsonFile:
    """Reads a JSON file that holds one object.

    Raises:
        CheckpointError: it is missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no '{path.name}' in '{path.parent}'", place=Place(path), help="give the folder of a checkpoint"
        ) from None
    except OSError as error:
        reason = (error.strerror or "can't be read").lower()
        raise CheckpointError(
            f"'{path}': {reason}", place=Place(path), help="check the path and its permissions"
        ) from None
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"'{path.name}' is larger than {MAX_BYTES >> 20} MiB", place=Place(path), help="is this another file?"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CheckpointError(
            f"'{path.name}' is not UTF-8 text", place=Place(path), help="fetch the checkpoint again"
        ) from None
    try:
        values = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].rstrip()
        shown = line.replace("\t", " ") if len(line) <= _MAX_TEXT and line.replace("\t", " ").isprintable() else None
        place = Place(path, error.lineno, error.colno, shown)
        raise CheckpointError(
            f"'{path.name}' is not valid JSON: {error.msg}", place=place, help="fetch the checkpoint again"
        ) from None
    except _GivenTwice as error:
        lines = text.split("\n")
        found = JsonFile(path, lines, {}, _top_keys(text))
        raise CheckpointError(
            f"'{path.name}' gives the key {error.args[0]!r} twice",
            place=found.place(error.args[0]),
            help="keep one of them",
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"'{path.name}' has a number or a nesting that is out of reason",
            place=Place(path),
            help="fetch the checkpoint again",
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"'{path.name}' is not a JSON object", place=Place(path, 1), help="fetch the checkpoint again"
        )
    return JsonFile(path, text.split("\n"), values, _top_keys(text))


def _top_keys(text: str) -> dict[str, tuple[int, int]]:
    """Line and column, from 0, of the keys of the outermost object of valid JSON."""
    keys: dict[str, tuple[int, int]] = {}
    depth, last = 0, None
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        if symbol == ":":
            if depth == 1 and last is not None:
                start = last.start()
                line = text.count("\n", 0, start)
                keys[json.loads(last.group())] = (line, start - (text.rfind("\n", 0, start) + 1))
        elif symbol in "{[":
            depth += 1
        elif symbol in "}]":
            depth -= 1
        last = token if symbol[0] == '"' else None
    return keys
