"""Reads graphs from the text that `ringc.ir.text_print` writes. Mistakes are reported with line, column and the line itself."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import MISSING
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn

import ringc.ir.ops  # noqa: F401  (registers the operations)
from ringc.errors import IRError, Place, did_you_mean
from ringc.ir.core import OPS, Block, Function, Level, Module, Op, Value, attributes, operand_fields
from ringc.ir.symbols import Bound, parse_dim, symbol
from ringc.ir.text_print import literal
from ringc.ir.types import DType, Layout, Quant, StateType, TensorType, Type

_SPACE = re.compile(r"(?:\s+|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_VALUE = re.compile(r"%([\w.\-]+)")
_DTYPES = {str(d) for d in DType}
_TYPE = re.compile(rf"(state<|({'|'.join(_DTYPES)})[\[<])")


@cache
def _field_types(opcode: str) -> dict[str, Any]:
    """Types of an operation's fields."""
    return typing.get_type_hints(OPS[opcode])


def _fits(value: Any, hint: Any) -> bool:
    """Whether an attribute read from text is of its field's type. A number without a point may stand for a float."""
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(v, item) for v in value)
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, float | int)
    if hint is str:
        return isinstance(value, str) and not isinstance(value, DType)
    return isinstance(value, hint)


def _hint_text(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint).replace("ringc.ir.types.", "")
    )


def parse_module(text: str, file: str | Path = "<text>") -> Module:
    """The module that a text describes.

    Raises:
        IRError: with the place of the first mistake.
    """
    return _Parser(text, file).module()


class _Parser:
    def __init__(self, text: str, file: str | Path) -> None:
        self.text = text
        self.file = file
        self.at = 0

    # -- reading characters

    def fail(self, message: str, *, at: int | None = None, help: str | None = None) -> NoReturn:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        start = self.text.rfind("\n", 0, at) + 1
        shown = self.text[start:].split("\n", 1)[0]
        place = Place(self.file, line, at - start + 1, shown)
        raise IRError(message, place=place, help=help or "docs/ir.md shows the text form by example")

    def skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def peek(self, token: str) -> bool:
        self.skip()
        return self.text.startswith(token, self.at)

    def accept(self, token: str) -> bool:
        if self.peek(token):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            found = self.text[self.at : self.at + 12].split("\n")[0] or "the end"
            self.fail(f"expected '{token}', found '{found}'")

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            self.fail(f"expected {what}")
        self.at = found.end()
        return found

    def name(self, what: str) -> str:
        return self.match(_NAME, what)[0]

    def keyword(self, word: str) -> bool:
        """Take a whole word, if it stands here."""
        self.skip()
        found = _NAME.match(self.text, self.at)
        if found is None or found[0] != word:
            return False
        self.at = found.end()
        return True

    def until(self, stops: str) -> str:
        """The text up to the next of these characters outside parentheses."""
        self.skip()
        start, depth = self.at, 0
        while self.at < len(self.text):
            c = self.text[self.at]
            if depth == 0 and c in stops:
                break
            depth += (c == "(") - (c == ")")
            self.at += 1
        return self.text[start : self.at].strip()

    # -- module, functions, blocks

    def module(self) -> Module:
        module = Module("module")
        if self.keyword("module"):
            self.expect("@")
            module.name = self.name("the module's name")
            if self.keyword("level"):
                at, word = self.at, self.name("a level")
                if word not in set(Level):
                    self.fail(f"there is no level {word}", at=at + 1, help=did_you_mean(word, list(Level)))
                module.level = Level(word)
        while self.keyword("symbol"):
            self.skip()
            at, name = self.at, self.name("a symbol's name")
            if name in module.bounds:
                self.fail(f"the symbol {name} is declared twice", at=at)
            try:
                symbol(name)
            except IRError as error:
                self.fail(error.message, at=at, help=error.help)
            minimum = int(self.number()) if self.accept(">=") else 1
            maximum = int(self.number()) if self.accept("<=") else None
            multiple = int(self.number()) if self.accept("%") else 1
            module.bounds[name] = Bound(minimum, maximum, multiple)
        while self.keyword("func"):
            at = self.at
            function = self.function()
            if function.name in module.functions:
                self.fail(f"the module has two functions called {function.name}", at=at)
            module.add(function)
        self.skip()
        if self.at < len(self.text):
            self.fail("expected 'func'")
        return module

    def number(self) -> str:
        return self.match(re.compile(r"\d+"), "a number")[0]

    def function(self) -> Function:
        self.expect("@")
        name = self.name("the function's name")
        block, names = self.arguments()
        function = Function(name, block)
        if self.keyword("with"):
            # Notes are whatever a literal can be: the passes write ranges, buffer sizes and predicted times beside names.
            function.notes.update(self.attributes())
        self.body(block, names)
        return function

    def arguments(self) -> tuple[Block, dict[str, Value]]:
        block, names = Block(), dict[str, Value]()
        self.expect("(")
        while not self.accept(")"):
            self.skip()
            at, name = self.at, self.match(_VALUE, "an argument, as in %x: f32[N]")[1]
            if name in names:
                self.fail(f"%{name} is defined twice", at=at)
            self.expect(":")
            names[name] = block.add_arg(self.type(), "" if name.isdigit() else name)
            if not self.peek(")"):
                self.expect(",")
        return block, names

    def body(self, block: Block, names: dict[str, Value]) -> None:
        self.expect("{")
        while not self.keyword("return"):
            self.operation(block, names)
        outputs: list[Value] = []
        if self.peek("%"):
            outputs.append(self.value(names))
            while self.accept(","):
                outputs.append(self.value(names))
        block.set_outputs(outputs)
        self.expect("}")

    def inner_block(self) -> Block:
        self.expect("^")
        block, names = self.arguments()
        self.body(block, names)
        return block

    def value(self, names: dict[str, Value]) -> Value:
        self.skip()
        at, name = self.at, self.match(_VALUE, "a value, as in %x")[1]
        if name not in names:
            self.fail(f"%{name} is not defined here", at=at, help=did_you_mean(name, names))
        return names[name]

    # -- operations

    def operation(self, block: Block, names: dict[str, Value]) -> None:
        results: list[str] = []
        if self.peek("%"):
            results.append(self.match(_VALUE, "a result")[1])
            while self.accept(","):
                results.append(self.match(_VALUE, "a result")[1])
            self.expect("=")
        self.skip()
        at, opcode = self.at, self.name("an operation")
        if opcode not in OPS:
            self.fail(f"there is no operation {opcode}", at=at, help=did_you_mean(opcode, OPS))
        cls = OPS[opcode]
        fields: dict[str, Any] = self.operands(cls, names)
        if self.peek("{"):
            fields |= self.checked_attributes(cls, at)
        for f in cls.__dataclass_fields__.values():  # regions stand in field order
            if f.metadata.get("kind") == "region":
                fields[f.name] = self.inner_block()
            elif f.metadata.get("kind") == "regions":
                bodies: list[Block] = []
                while self.peek("^"):
                    bodies.append(self.inner_block())
                fields[f.name] = tuple(bodies)
        missing = [f.name for f in attributes(cls) if f.name not in fields and f.default is MISSING]
        if missing:
            self.fail(f"{opcode} lacks its attribute {', '.join(missing)}", at=at)
        try:
            op = cls(**fields)
        except IRError as error:
            self.fail(error.message, at=at, help=error.help)
        self.result_types(op, results, at)
        if self.keyword("in"):
            op.scope = self.name("a scope")
        block.insert(op)
        for name, value in zip(results, op.results, strict=True):
            if name in names:
                self.fail(f"%{name} is defined twice", at=at)
            value.name = "" if name.isdigit() else name
            names[name] = value

    def operands(self, cls: type[Op], names: dict[str, Value]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.expect("(")
        fields = operand_fields(cls)
        for i, f in enumerate(fields):
            if f.metadata["kind"] == "operands":
                self.expect("[")
                many: list[Value] = []
                while not self.accept("]"):
                    many.append(self.value(names))
                    if not self.peek("]"):
                        self.expect(",")
                found[f.name] = tuple(many)
            elif f.metadata.get("optional") and self.accept("_"):
                found[f.name] = None
            else:
                found[f.name] = self.value(names)
            if i + 1 < len(fields):
                self.expect(",")
        self.expect(")")
        return found

    def checked_attributes(self, cls: type[Op], at: int) -> dict[str, Any]:
        given = self.attributes()
        known = [f.name for f in attributes(cls)]
        for name in given:
            if name not in known:
                self.fail(f"{cls.name} has no attribute {name}", at=at, help=did_you_mean(name, known))
            hint = _field_types(cls.name)[name]
            if not _fits(given[name], hint):
                self.fail(
                    f"{name} of {cls.name} can't be {literal(given[name])}",
                    at=at,
                    help=f"it is of type {_hint_text(hint)}",
                )
        return given

    def result_types(self, op: Op, names: list[str], at: int) -> None:
        if len(names) != len(op.results):
            self.fail(f"{op.name} has {len(op.results)} results, but {len(names)} names are given", at=at)
        if not op.results or not self.accept(":"):
            return
        for i, value in enumerate(op.results):
            if i:
                self.expect(",")
            self.skip()
            place, said = self.at, self.type()
            if said != value.type:
                self.fail(f"%{names[i]} is said to be a {said}, but {op.name} makes a {value.type}", at=place)

    # -- attributes and types

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.expect("{")
        while not self.accept("}"):
            self.skip()
            at, name = self.at, self.name("an attribute's name")
            if name in found:
                self.fail(f"{name} is given twice", at=at)
            self.expect("=")
            found[name] = self.literal()
            if not self.peek("}"):
                self.expect(",")
        return found

    def literal(self) -> Any:
        if self.accept("["):
            items: list[Any] = []
            while not self.accept("]"):
                items.append(self.literal())
                if not self.peek("]"):
                    self.expect(",")
            return tuple(items)
        if self.peek('"'):
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                self.fail(f"unreadable text: {error.msg}")
            self.at = end
            return value
        if _TYPE.match(self.text, self.at):
            return self.type()
        at, word = self.at, self.until(",]}\n")
        fixed = {"none": None, "true": True, "false": False}
        if word in fixed:
            return fixed[word]
        if word in _DTYPES:
            return DType(word)
        if re.fullmatch(r"-?(inf|nan|\d+\.\d*(e[+-]?\d+)?|\d+e[+-]?\d+)", word):
            return float(word)
        try:
            return parse_dim(word)
        except IRError as error:
            self.fail(error.message, at=at, help=error.help)

    def type(self) -> Type:
        if self.keyword("state"):
            self.expect("<")
            dtype = self.dtype()
            self.expect("[")
            slots = self.dim(self.until(";,]"))
            self.expect(";")
            shape = self.dims(self.until("]"))
            self.expect("]")
            self.expect(">")
            return StateType(dtype, slots, shape)
        dtype = self.dtype()
        quant = None
        if self.accept("<"):
            block = self.match(re.compile(r"[1-9]\d*(x[1-9]\d*)*"), "a block such as 1x128")[0]
            self.expect(",")
            quant = Quant(tuple(map(int, block.split("x"))), self.dtype())
            self.expect(">")
        self.expect("[")
        segments = None
        first = self.until(",/]")
        if self.text.startswith("//", self.at):
            self.fail(f"a division stands in parentheses: ({first} // ...)")
        if self.accept("/"):
            segments = self.dim(self.until(",]"))
            rest = self.until("]")
            shape = (self.dim(first), *self.dims(rest.removeprefix(",")))
        else:
            shape = self.dims(first + self.until("]"))
        self.expect("]")
        if quant is not None and len(quant.block) > len(shape):
            self.fail(f"blocks of rank {len(quant.block)} in a tensor of rank {len(shape)}")
        blocks: list[tuple[int, int]] = []
        while self.text.startswith("@", self.at):
            found = self.match(re.compile(r"@(\d+)x([1-9]\d*)"), "a layout such as @0x16")
            blocks.append((int(found[1]), int(found[2])))
            if blocks[-1][0] >= len(shape):
                self.fail(f"there is no axis {found[1]} to cut into blocks", at=found.start())
        return TensorType(dtype, shape, segments, quant, Layout(tuple(blocks)))

    def dtype(self) -> DType:
        self.skip()
        at, word = self.at, self.name("a type")
        if word not in _DTYPES:
            self.fail(f"there is no element type {word}", at=at, help=did_you_mean(word, _DTYPES))
        return DType(word)

    def dim(self, text: str) -> Any:
        try:
            return parse_dim(text)
        except IRError as error:
            self.fail(error.message, at=self.text.rfind(text, 0, self.at) if text else None, help=error.help)

    def dims(self, text: str) -> tuple[Any, ...]:
        parts, depth, start = list[str](), 0, 0
        for i, c in enumerate(text + ","):
            depth += (c == "(") - (c == ")")
            if c == "," and depth == 0:
                parts.append(text[start:i])
                start = i + 1
        return tuple(self.dim(p.strip()) for p in parts if p.strip())
