"""Prints graphs. `ringc.ir.text_parse` reads them back; the two together are the identity, names included."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import sympy

from ringc.ir.core import Block, Function, Module, Op, Value, attributes, operand_fields
from ringc.ir.symbols import Bound, dim_text
from ringc.ir.types import DType, StateType, TensorType

_UNPRINTABLE = re.compile(r"[^\w.\-]")


def print_module(module: Module) -> str:
    """The whole module as text."""
    lines = [f"module @{module.name} level {module.level}"]
    lines += [f"symbol {name}{_bound(bound)}" for name, bound in sorted(module.bounds.items())]
    return "\n".join(lines) + "\n" + "".join("\n" + print_function(f) for f in module.functions.values())


def print_function(function: Function) -> str:
    """One function as text, ending in a newline."""
    names = _Names(function.body)
    notes = f" with {_attributes(function.notes)}" if function.notes else ""
    head = f"func @{function.name}({_arguments(function.body, names)}){notes} {{"
    return "\n".join([head, *_body(function.body, names, "  "), "}", ""])


def literal(value: Any) -> str:
    """An attribute's value as text."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case DType():
            return str(value)
        case int() | sympy.Expr():
            return dim_text(value)
        case float():
            return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
        case TensorType() | StateType():
            return str(value)
        case str():
            return json.dumps(str(value), ensure_ascii=False)
        case tuple() | list():
            return f"[{', '.join(map(literal, value))}]"
    raise TypeError(f"an attribute can't hold a {type(value).__name__}")


def _bound(bound: Bound) -> str:
    top = "" if bound.maximum is None else f" <= {bound.maximum}"
    multiple = "" if bound.multiple_of == 1 else f" % {bound.multiple_of}"
    return f" >= {bound.minimum}{top}{multiple}"


class _Names:
    """Gives each value of a block a name of its own: its hint, with a number behind it where the hint is taken."""

    def __init__(self, block: Block) -> None:
        self._of: dict[Value, str] = {}
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        hinted = [*block.args, *(r for op in block.ops for r in op.results)]
        # Plain numbers are given out last, so that they count up in the order of the text.
        for value in hinted:
            self._of[value] = self._fresh(value.name) if value.name and not value.name.isdigit() else ""
        number = 0
        for value in hinted:
            if not self._of[value]:
                self._of[value] = str(number)
                number += 1

    def _fresh(self, hint: str) -> str:
        hint = name = _UNPRINTABLE.sub("_", hint)
        while name in self._taken:
            self._next[hint] = self._next.get(hint, 0) + 1
            name = f"{hint}_{self._next[hint]}"
        self._taken.add(name)
        return name

    def __getitem__(self, value: Value) -> str:
        return f"%{self._of[value]}" if value in self._of else f"%<{value.name or 'foreign'}>"


def _arguments(block: Block, names: _Names) -> str:
    return ", ".join(f"{names[a]}: {a.type}" for a in block.args)


def _attributes(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{k} = {literal(v)}" for k, v in values.items()) + "}"


def _is_default(value: Any, default: Any) -> bool:
    """Whether an attribute may be left out. Equal numbers that read differently (1 and 1.0, 0.0 and -0.0) are not the same."""
    return default is not dataclasses.MISSING and literal(value) == literal(default)


def _body(block: Block, names: _Names, indent: str) -> list[str]:
    lines = [line for op in block.ops for line in _operation(op, names, indent)]
    outputs = ", ".join(names[v] for v in block.outputs)
    return [*lines, f"{indent}return {outputs}".rstrip()]


def _operation(op: Op, names: _Names, indent: str) -> list[str]:
    taken: list[str] = []
    for f in operand_fields(type(op)):
        value = getattr(op, f.name)
        if f.metadata["kind"] == "operands":
            taken.append(f"[{', '.join(names[v] for v in value)}]")
        else:
            taken.append("_" if value is None else names[value])
    shown = {f.name: value for f in attributes(type(op)) if not _is_default(value := getattr(op, f.name), f.default)}
    head = ", ".join(names[r] for r in op.results)
    head = f"{indent}{head} = " if head else indent
    head += f"{op.name}({', '.join(taken)})" + (f" {_attributes(shown)}" if shown else "")
    types = ", ".join(str(r.type) for r in op.results)
    tail = (f" : {types}" if types else "") + (f" in {op.scope}" if op.scope else "")
    lines = [head]
    for body in op.regions():
        inner = _Names(body)
        lines[-1] += f" ^({_arguments(body, inner)}) {{"
        lines += [*_body(body, inner, indent + "  "), f"{indent}}}"]
    lines[-1] += tail
    return lines
