"""A `Spec` as YAML text that reads back to an equal spec."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ringc.model_defs.spec import Section, Spec

_WIDTH = 110
_PLAIN = re.compile(r"-inf|[A-Za-z][A-Za-z0-9._-]*")
_RESERVED = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})

Comments = Mapping[tuple[str, ...], str]


def spec_yaml(spec: Spec, *, header: Sequence[str] = (), comments: Comments | None = None) -> str:
    """The spec as YAML, every field written out.

    Args:
        spec: what to write.
        header: lines of a comment at the top.
        comments: comments behind single keys, by the key's path.
    """
    lines = [f"# {line}".rstrip() for line in header]
    lines += _section(spec, (), comments or {})
    return "\n".join(lines) + "\n"


def _section(section: Section, path: tuple[str, ...], comments: Comments) -> list[str]:
    indent = "  " * len(path)
    lines = []
    for name in _names(section):
        value, here = getattr(section, name), (*path, name)
        comment = f" # {comments[here]}" if here in comments else ""
        if isinstance(value, Section):
            flow = f"{indent}{name}: {_flow(value)}"
            inside = any(p[: len(here)] == here and p != here for p in comments)
            if inside or len(flow) > _WIDTH:
                lines.append(f"{indent}{name}:{comment}")
                lines += _section(value, here, comments)
                continue
            lines.append(flow + comment)
        else:
            lines.append(f"{indent}{name}: {_flow(value)}{comment}")
    return lines


def _names(section: Section) -> list[str]:
    """A section's keys in the order of its class, with `kind` first: it decides what the others may be."""
    return sorted(type(section).model_fields, key=lambda name: name != "kind")


def _flow(value: Any) -> str:
    if isinstance(value, Section):
        return "{" + ", ".join(f"{name}: {_flow(getattr(value, name))}" for name in _names(value)) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _float(value)
    return _string(value) if isinstance(value, str) else str(value)


def _float(value: float) -> str:
    """The shortest text that reads back to the same number: `1e6`, `1e-5`, `0.5`."""
    short = f"{value:g}"
    text = short if float(short) == value else repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def _string(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(escaped)}"'
