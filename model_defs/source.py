"""YAML text to plain values that remember where they stood.

YAML 1.2 with what a spec has no use for taken away: anchors, aliases and tags (so no alias bombs and no constructed objects), merge keys,
directives, several documents, keys that are not plain words. Built on the events of ruamel.yaml's pure parser, without recursion.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ringc.errors import Place, SpecError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
_MAX_TEXT = 160

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Span:
    """A run of characters on one line; line and column count from 0."""

    line: int
    column: int
    width: int


@dataclass
class Source:
    """A parsed file.

    Attributes:
        file: the name that messages give it.
        lines: its text.
        value: the root mapping, of dicts, lists, strings, numbers, booleans and None.
        keys: where the key of each entry stands, by path from the root.
        values: where the value of each entry stands.
    """

    file: str
    lines: list[str]
    value: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Span] = field(default_factory=dict)
    values: dict[KeyPath, Span] = field(default_factory=dict)

    def place(self, span: Span | None) -> Place:
        """A span as the place of an error, with the text of its line."""
        if span is None:
            return Place(self.file)
        text = self.lines[span.line] if span.line < len(self.lines) else ""
        # One screen column for each character, or the carets would point elsewhere; a line of a minified file is not worth showing.
        shown = "".join("→" if c == "\t" else c if c.isprintable() else "?" for c in text)
        visible = span.column + span.width <= _MAX_TEXT
        width = max(1, min(span.width, len(text) - span.column))
        return Place(self.file, span.line + 1, span.column + 1, shown[:_MAX_TEXT] if visible else None, width)


def read_text(path: Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: it is missing, a folder, unreadable, too large or not UTF-8 text.
    """
    try:
        if path.is_dir():
            raise SpecError(
                f"'{path}' is a folder, not a spec file",
                place=Place(path),
                help="give a .yaml file or the name of a preset",
            )
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "can't be read").lower()
        raise SpecError(
            f"spec file '{path}': {reason}", place=Place(path), help="check the path and its permissions"
        ) from None
    except ValueError:  # a NUL character in the path
        raise SpecError(
            "the path of the spec file is not valid", help="give a .yaml file or the name of a preset"
        ) from None
    if len(data) > MAX_BYTES:
        raise SpecError(
            f"spec file is larger than {MAX_BYTES // 1024} KiB",
            place=Place(path),
            help="a spec has about 60 lines; is this another file?",
        )
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError("spec file is not UTF-8 text", place=Place(path, line), help="save it as UTF-8 YAML") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SpecError(
            "spec file is binary, not text", place=Place(path, line), help="give a .yaml file or the name of a preset"
        )
    return text


def parse(text: str, file: str) -> Source:
    """YAML text to values with their places.

    Raises:
        SpecError: the text is not YAML, or uses parts of YAML that specs don't have.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    source = Source(file, text.splitlines() or [""])
    for number, line in enumerate(source.lines):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent:
            raise SpecError(
                "the indentation has a tab",
                place=source.place(Span(number, indent.index("\t"), 1)),
                help="indent with spaces",
            )
    yaml = YAML(typ="safe", pure=True)
    try:
        _Reader(source, yaml.resolver.resolve).read(yaml.parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        span = None if mark is None else Span(mark.line, mark.column, 1)
        problem = " ".join(part for part in (error.problem, error.context) if part) or "malformed"
        if "'\\t'" in problem:
            raise SpecError(
                "a tab stands where YAML wants a space", place=source.place(span), help="use spaces"
            ) from None
        raise SpecError(
            f"not valid YAML: {problem}",
            place=source.place(span),
            help="the form is `key: value`, indented with spaces",
        ) from None
    except (ValueError, OverflowError):  # from the scanner: an escape beyond the last character
        found = next(
            (m for m in re.finditer(r"\\U([0-9A-Fa-f]{8})", text) if int(m.group(1), 16) > sys.maxunicode), None
        )
        before = "" if found is None else text[: found.start()]
        span = None if found is None else Span(before.count("\n"), len(before) - (before.rfind("\n") + 1), 10)
        raise SpecError(
            "an escape stands for no character", place=source.place(span), help="write the character itself"
        ) from None
    except YAMLError as error:
        raise SpecError(
            f"not valid YAML: {str(error).splitlines()[0]}", place=Place(file), help="give a text file of YAML"
        ) from None
    return source


@dataclass
class _Open:
    """A mapping or sequence that is being read."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


class _Reader:
    """Builds a source's values from parser events."""

    def __init__(self, source: Source, resolve: Any) -> None:
        self.source = source
        self.resolve = resolve
        self.stack: list[_Open] = []
        self.documents = 0

    def fail(self, event: Any, message: str, help_: str) -> NoReturn:
        raise SpecError(message, place=self.source.place(self.span(event)), help=help_)

    def span(self, event: Any) -> Span:
        start, end = event.start_mark, event.end_mark
        top = self.stack[-1] if self.stack else None
        if top is not None and top.key is not None and getattr(event, "value", None) == "" and event.style is None:
            # An absent value has no place of its own: the parser puts it at the next token. It belongs behind its key.
            key = self.source.keys[(*top.path, top.key)]
            return Span(key.line, key.column + key.width + 1, 1)
        width = end.column - start.column if end.line == start.line else 1
        return Span(start.line, start.column, max(1, width))

    def read(self, events: Iterator[Any]) -> None:
        from ruamel.yaml import events as kinds

        root_seen = False
        for event in events:
            if isinstance(event, kinds.DocumentStartEvent):
                self.document(event)
            elif isinstance(event, kinds.AliasEvent):
                self.fail(
                    event,
                    f"the alias '*{event.anchor}' is not allowed",
                    "write the value out: specs have no anchors and aliases",
                )
            elif isinstance(event, kinds.ScalarEvent):
                self.plain(event)
                root_seen |= not self.stack
                self.scalar(event)
            elif isinstance(event, (kinds.MappingStartEvent, kinds.SequenceStartEvent)):
                self.plain(event)
                root_seen |= not self.stack
                self.open(event, {} if isinstance(event, kinds.MappingStartEvent) else [])
            elif isinstance(event, (kinds.MappingEndEvent, kinds.SequenceEndEvent)):
                self.stack.pop()
        if not root_seen:
            raise SpecError(
                "the spec is empty",
                place=Place(self.source.file, 1),
                help="`ringc presets ring-tiny` prints one to start from",
            )

    def document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            self.fail(event, "the file holds more than one YAML document", "keep one spec in a file")
        if event.version is not None or event.tags:
            self.fail(event, "YAML directives are not allowed", "remove the lines that begin with %")

    def plain(self, event: Any) -> None:
        if event.anchor is not None:
            self.fail(
                event,
                f"the anchor '&{event.anchor}' is not allowed",
                "write the value out: specs have no anchors and aliases",
            )
        tag = event.ctag if hasattr(event, "ctag") else event.tag
        if tag is not None and str(tag) not in ("None", "!"):
            self.fail(event, f"the tag '{tag}' is not allowed", "remove it: plain values are enough")

    def entry(self, event: Any, value: Any) -> KeyPath:
        """Puts a value into the innermost open container; returns its path."""
        if not self.stack:
            if not isinstance(value, dict):
                kind = "a list" if isinstance(value, list) else "a single value"
                self.fail(
                    event,
                    f"the spec is {kind}, not a mapping of keys to values",
                    "`ringc presets ring-tiny` prints an example",
                )
            self.source.value = value
            return ()
        top = self.stack[-1]
        if isinstance(top.value, list):
            path: KeyPath = (*top.path, len(top.value))
            top.value.append(value)
        else:
            if top.key is None:
                self.fail(event, "a key must be a plain word", "write `key: value`")
            path = (*top.path, top.key)
            top.value[top.key] = value
        self.source.values[path] = self.span(event)
        top.key = None
        return path

    def open(self, event: Any, value: dict[str, Any] | list[Any]) -> None:
        path = self.entry(event, value)
        if len(self.stack) == MAX_DEPTH:
            self.fail(
                event, f"values are nested more than {MAX_DEPTH} deep", "the deepest part of a spec has four levels"
            )
        self.stack.append(_Open(value, path))

    def scalar(self, event: Any) -> None:
        if any("\ud800" <= c <= "\udfff" for c in event.value):
            self.fail(event, "an escape stands for half of a character", "write the character itself")
        top = self.stack[-1] if self.stack else None
        if top is None or isinstance(top.value, list) or top.key is not None:
            self.entry(event, self.convert(event))
            return
        key = event.value
        if key == "<<":
            self.fail(event, "merge keys are not allowed", "write the values out")
        path = (*top.path, key)
        if key in top.value:
            first = self.source.keys[path].line + 1
            self.fail(event, f"the key '{key}' is given twice, first in line {first}", "keep one of them")
        self.source.keys[path] = self.span(event)
        top.key = key

    def convert(self, event: Any) -> str | int | float | bool | None:
        """A scalar as YAML 1.2's core schema reads it; dates stay text."""
        from ruamel.yaml.nodes import ScalarNode

        text: str = event.value
        tag = str(self.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return text.lower() == "true"
            if tag == "int":
                return _integer(text)
            if tag == "float":
                return _float(text)
        except (ValueError, OverflowError):
            self.fail(event, f"'{text[:40]}' is not a number", "write it in decimal")
        return text


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    bare = digits.lstrip("+-").lower()
    base = {"0x": 16, "0o": 8, "0b": 2}.get(bare[:2], 10)
    return int(digits, base)


def _float(text: str) -> float:
    word = text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
    return float(word)


def at(value: Mapping[str, Any], path: KeyPath) -> Any:
    """The value at a path of keys and indices."""
    here: Any = value
    for step in path:
        here = here[step]
    return here
