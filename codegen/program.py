"""The host program of an artifact: which kernel runs when, on what, in which memory. Readable, straight-line Python.

One function for each function of the module: entry points test the guards of their versions in order, versions call layers, layers launch
kernels. A function takes the runtime `rt`, its arguments, then memory for each tensor that it gives back; a state is updated in place.

The program runs once for given sizes, with tensors that stay where they are: `rt.launch` records what is to run, `rt.frame` gives numbered
buffers of one arena (a callee's behind its caller's, sizes in bytes), `x.view` is another view of the same memory. What was recorded is
then replayed any number of times, without a line of this program and without an allocation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ringc.codegen.kernel import kernel_of
from ringc.codegen.names import Names
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Block, Function, Module, Op, Value
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.shape import Reshape, storage_of
from ringc.ir.ops.source import Weight
from ringc.ir.symbols import Dim, dim_text, symbols_of
from ringc.ir.types import StateType, TensorType, Type
from ringc.passes.memory import joins

WIDTH = 118
"""Columns of the file."""

SIZES = ("N", "B", "R", "P", "S")
"""Tokens, sequences, wanted rows, slots of a pool, rows of a cache: what a program may ask of `rt`."""


def function_name(name: str) -> str:
    """The Python name of a module's function."""
    return name.replace(".", "_").replace("-", "_")


def entry_versions(module: Module) -> dict[str, list[Function]]:
    """Versions of each entry point but `prepare`, in the order in which their guards are tested."""
    found: dict[str, list[Function]] = {}
    for function in module.functions.values():
        entry = function.notes.get("entry")
        if entry is not None and entry != "prepare":
            found.setdefault(str(entry), []).append(function)
    return found


def emit_program(module: Module, target: str) -> str:
    """The text of `program.py`.

    Raises:
        CodegenError: the module isn't fully lowered.
    """
    return _Program(module, target).text()


class _Program:
    def __init__(self, module: Module, target: str) -> None:
        self.module = module
        self.target = target
        self.out = Writer()
        self.states: dict[str, dict[int, int]] = {}
        self.copies: list[tuple[Value, str]] = []

    def text(self) -> str:
        out = self.out
        out(
            f'"""Host program of {self.module.name} for target {self.target}: which kernel runs when, on what, in which memory.'
        )
        out()
        out(
            "`rt` binds it: N tokens, B sequences, R wanted rows, P slots of a pool, S rows of a cache. `rt.launch(kernel, *tensors)`"
        )
        out(
            "records a launch, `rt.frame(*bytes)` gives numbered buffers of the arena, `rt.weight(key)` a prepared weight. What is launched"
        )
        out(
            "in `rt.beside()` may run beside the launches that follow, up to `rt.join()`; in `rt.rows(R)` N is R: a layer's wanted rows."
        )
        out('"""')
        out()
        out("from __future__ import annotations")
        for entry, versions in entry_versions(self.module).items():
            self.entry(entry, versions)
        for function in self.module.functions.values():
            if "family" not in function.notes and function.name != "prepare":
                self.function(function)
        return out.text() + "\n"

    def entry(self, name: str, versions: Sequence[Function]) -> None:
        """The choice of a version, by guards."""
        out, names = self.out, Names({"rt", *SIZES})
        arguments = ["rt", *(names[a] for a in versions[0].body.args), "logits"]
        out()
        out()
        self.head(f"def {function_name(name)}", arguments)
        with self.indented():
            tested = [f.notes.get("guard", "") for f in versions]
            self.sizes(s for g in tested for s in symbols_in(str(g)))
            for function, guard in zip(versions, tested, strict=True):
                if guard:
                    with out.block(f"if {guard}:"):
                        self.call(f"return {function_name(function.name)}", arguments)
                else:
                    self.call(f"return {function_name(function.name)}", arguments)
                    return
            raise CodegenError(f"no version of {name} takes what all guards refuse")

    def function(self, function: Function) -> None:
        body, names = function.body, Names({"rt", "buffer", *SIZES})
        arguments = ["rt", *(names[a] for a in body.args)]
        given = self.given_back(body, names)
        arguments += given.values()
        self.out()
        self.out()
        self.head(f"def {function_name(function.name)}", arguments)
        with self.indented():
            buffers = [str(b) for b in function.notes.get("buffers", ())]
            self.sizes(self.used_sizes(body, buffers))
            if buffers:
                self.call("with rt.frame", buffers, " as buffer:")
                with self.indented():
                    self.body(body, names)
            else:
                self.body(body, names)

    def given_back(self, body: Block, names: Names) -> dict[int, str]:
        """Result number -> the parameter that its memory comes in by. Several results may be views of one memory, or an argument."""
        given: dict[int, str] = {}
        homes: set[Value] = set()
        self.copies = []
        for i, value in enumerate(body.outputs):
            if isinstance(value.type, StateType):
                continue
            home = storage_of(value)
            hint = value.name if value.name and not value.name.isdigit() else "out"
            if home.op is None or home in homes:
                given[i] = names.fresh(f"{hint}_copy")
                self.copies.append((value, given[i]))
                continue
            homes.add(home)
            if home is value:
                names[home] = given[i] = names.fresh(hint)
            else:
                given[i] = names.fresh(hint)
                names[home] = f"{given[i]}.view({self.shape(home.type)})"
        return given

    def body(self, body: Block, names: Names) -> None:
        ends = joins(body)
        at = 0
        while at < len(body.ops):
            if at in ends.values():
                self.out("rt.join()")
            if body.ops[at] not in ends:
                self.operation(body.ops[at], names)
                at += 1
                continue
            with self.out.block("with rt.beside():"):
                while at < len(body.ops) and (body.ops[at] in ends or isinstance(body.ops[at], Reshape)):
                    self.operation(body.ops[at], names)
                    at += 1
        if len(body.ops) in ends.values():
            self.out("rt.join()")
        for value, name in self.copies:
            self.out(f"rt.copy({names[value]}, {name})")
        if not body.ops and not self.copies:
            self.out("pass")

    def operation(self, op: Op, names: Names) -> None:
        match op:
            case Weight():
                self.out(f'{names[op.result]} = rt.weight("{op.key}")')
            case Reshape():
                if op.result not in names:
                    self.out(f"{names[op.result]} = {names[op.x]}.view({self.shape(op.result.type)})")
            case Launch():
                kernel = self.module.functions[op.kernel]
                made = self.results(op, kernel, names)
                for number, type in zip(op.scratch, kernel.notes.get("workspace", ()), strict=True):
                    made.append(names.fresh("scratch"))
                    self.out(f"{made[-1]} = {self.buffer(number, type)}")
                self.call("rt.launch", [f'"{op.kernel}"', *(names[v] for v in op.arguments), *made])
            case Call():
                made = self.results(op, self.module.functions[op.callee], names)
                arguments = ["rt", *(names[v] for v in op.arguments), *made]
                with nullcontext() if op.rows is None else self.out.block(f"with rt.rows({dim_text(op.rows)}):"):
                    self.call(function_name(op.callee), arguments)
            case _:
                raise CodegenError(f"the host program can't run {op.name}", help="run the pass `kernels` first")

    def results(self, op: Launch | Call, callee: Function, names: Names) -> list[str]:
        """Memory for the results of a launch or a call; a state's result is its argument."""
        made: list[str] = []
        origin = self.state_arguments(callee)
        for i, value in enumerate(op.results):
            if isinstance(value.type, StateType):
                names[value] = names[op.arguments[origin[i]]]
                continue
            if value not in names:
                if op.buffers[i] < 0:
                    raise CodegenError(f"{op} has no memory for %{value.name}", help="run the pass `memory` first")
                self.out(f"{names[value]} = {self.buffer(op.buffers[i], value.type)}")
            made.append(names[value])
        return made

    def state_arguments(self, function: Function) -> dict[int, int]:
        """Result number -> argument number, for each state that a kernel or a layer gives back."""
        if "family" in function.notes:
            return kernel_of(function).in_place
        if function.name not in self.states:
            found: dict[int, int] = {}
            for i, value in enumerate(function.body.outputs):
                if isinstance(value.type, StateType):
                    while value.op is not None:
                        op = value.op
                        assert isinstance(op, Launch | Call)
                        callee = self.module.functions[op.kernel if isinstance(op, Launch) else op.callee]
                        value = op.arguments[self.state_arguments(callee)[value.index]]
                    found[i] = value.index
            self.states[function.name] = found
        return self.states[function.name]

    # -- pieces of text

    def buffer(self, number: int, type: Type) -> str:
        comma = "," if len(type.shape) == 1 else ""
        return f'buffer({number}, ({self.shape(type)}{comma}), "{type.dtype}")'

    def shape(self, type: Type) -> str:
        assert isinstance(type, TensorType)
        return ", ".join(dim_text(d) for d in type.shape)

    def sizes(self, used: Iterable[str]) -> None:
        wanted = set(used)
        names = [s for s in SIZES if s in wanted]
        if names:
            self.out(f"{', '.join(names)} = {', '.join(f'rt.{n}' for n in names)}")

    def used_sizes(self, body: Block, buffers: Sequence[str]) -> set[str]:
        dims: list[Dim] = []
        for op in body.ops:
            for value in op.results:
                if isinstance(value.type, TensorType) and not isinstance(op, Weight):
                    dims += value.type.shape
            if isinstance(op, Launch):
                dims += [d for t in self.module.functions[op.kernel].notes.get("workspace", ()) for d in t.shape]
        return symbols_of(dims).union(*(symbols_in(b) for b in buffers))

    def head(self, name: str, arguments: Sequence[str]) -> None:
        self.call(name, arguments, ":")

    def call(self, head: str, arguments: Sequence[str], tail: str = "") -> None:
        """One line, or as many as the width asks for."""
        line = f"{head}({', '.join(arguments)}){tail}"
        if self.out.depth * 4 + len(line) <= WIDTH:
            self.out(line)
            return
        self.out(f"{head}(")
        with self.indented():
            row = ""
            for argument in arguments:
                if row and self.out.depth * 4 + len(row) + len(argument) + 2 > WIDTH:
                    self.out(row)
                    row = ""
                row += f"{' ' if row else ''}{argument},"
            self.out(row)
        self.out(f"){tail}")

    def indented(self) -> AbstractContextManager[None]:
        return self.out.indented()


def symbols_in(text: str) -> set[str]:
    """The sizes that an expression names."""
    return set(re.findall(r"[A-Za-z_]\w*", text)) & set(SIZES)
