"""The head of a generated function in TVM script: its parameters, its sizes, and how arguments are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.tvm.elements import STORED, Arithmetic, Expr
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.stages import Place
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.symbols import Dim, Shape, substitute, symbols_of
from ringc.ir.types import DType, StateType, Type

RESERVED = ("T", "tvm", "main", "kernel", "range", "exp", "sigmoid", "lanes_sum", "lanes_max", "N", "B", "P", "S", "R")
"""Identifiers that mean something in every file."""


def memory_shape(type: Type) -> Shape:
    """The row-major shape of the tensor that stands for a value."""
    if isinstance(type, StateType):
        return (type.slots, *type.shape)
    return type.layout.memory_shape(type.shape)


@dataclass(frozen=True)
class Parameter:
    """A tensor that a function takes: what it is called, what its handle is called, its row-major shape as text, its element type."""

    name: str
    handle: str
    shape: Sequence[str]
    dtype: DType


def write_signature(w: Writer, parameters: Sequence[Parameter], sizes: Sequence[str]) -> None:
    """`def main(...)`, and the first lines of its body: variables for the sizes, then the tensors, from which TVM reads the sizes off."""
    w("@T.prim_func(s_tir=True)")
    with w.block("def main("):
        for p in parameters:
            w(f"{p.handle}: T.handle,")
    w(") -> None:")
    with w.indented():
        w('T.func_attr({"tirx.noalias": True})')
        for size in sizes:
            w(f"{size} = T.int64()")
        for p in parameters:
            axes = ", ".join(p.shape) + ("," if len(p.shape) == 1 else "")
            # Tensors may begin anywhere: without `align`, TVM takes them to be aligned to 64 bytes.
            w(f'{p.name} = T.match_buffer({p.handle}, ({axes}), "{STORED[p.dtype]}", align={p.dtype.bytes})')


def write_module(w: Writer) -> None:
    """`kernel()`, which gives the function of the file in a module."""
    w("\n")
    with w.block("def kernel() -> tvm.IRModule:"):
        w('return tvm.IRModule({"main": main})')


@dataclass
class Head:
    """Names and places of a kernel's parameters.

    Attributes:
        arguments: name of each argument.
        outputs: result number -> name, for the results that are no state.
    """

    kernel: Kernel
    names: Names
    math: Arithmetic
    arguments: list[str] = field(default_factory=list)
    outputs: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        body = self.kernel.function.body
        self.arguments = argument_names(body, self.names)
        for i, value in enumerate(body.outputs):
            if not isinstance(value.type, StateType):
                self.outputs[i] = self.names.fresh(value.name if value.name and not value.name.isdigit() else "out")

    def write(self, w: Writer) -> None:
        """The parameters and sizes; what follows is the function's body."""
        body = self.kernel.function.body
        parameters: list[tuple[str, DType, Shape]] = [
            (name, arg.type.dtype, memory_shape(arg.type)) for name, arg in zip(self.arguments, body.args, strict=True)
        ]
        parameters += [
            (name, body.outputs[i].type.dtype, memory_shape(body.outputs[i].type)) for i, name in self.outputs.items()
        ]
        handles = {name: self.names.fresh(f"{name}_handle") for name, _, _ in parameters}
        sizes, plain, derived = self._sizes(parameters)
        given = [Parameter(name, handles[name], sizes[name], dtype) for name, dtype, _ in parameters]
        write_signature(w, given, [*plain, *derived])
        with w.indented():
            for line in self._solved(plain, derived):
                w(line)

    def _sizes(
        self, parameters: Sequence[tuple[str, DType, Shape]]
    ) -> tuple[dict[str, list[str]], list[str], dict[str, Dim]]:
        """Each parameter's sizes as text, the symbols that are sizes themselves, and names for sizes that are made of symbols."""
        plain = sorted({d.name for _, _, shape in parameters for d in shape if isinstance(d, sympy.Symbol)})
        bound: set[str] = set()
        derived: dict[str, Dim] = {}
        sizes: dict[str, list[str]] = {}
        for name, _, shape in parameters:
            sizes[name] = []
            bound |= {d.name for d in shape if isinstance(d, sympy.Symbol)}
            for dim in shape:
                if symbols_of([dim]) <= bound:
                    sizes[name].append(text(self.math.size(dim)))
                    continue
                # TVM reads off a size only where it stands alone.
                known = next((n for n, d in derived.items() if d == dim), None)
                if known is None:
                    known = self.names.fresh(f"{name}_rows")
                    derived[known] = dim
                sizes[name].append(known)
        return sizes, plain, derived

    def _solved(self, plain: Sequence[str], derived: dict[str, Dim]) -> list[str]:
        """Statements that compute the symbols which are no size by themselves."""
        lines: list[str] = []
        solved = set(plain)
        for name, dim in derived.items():
            left = symbols_of([dim]) - solved
            if len(left) != 1:
                continue
            (unknown,) = left
            offset, one, two = (substitute(dim, {unknown: i}) for i in (0, 1, 2))
            if (
                not (isinstance(offset, int) and isinstance(one, int) and isinstance(two, int))
                or two - one != one - offset
            ):
                continue
            self.math.variable(unknown, 0, None, "int64")
            made = self.math.variable(name, 0, None, "int64")
            made = self.math.apply("sub", made, self.math.number(offset))
            lines.append(
                f"{unknown}: T.let = {text(self.math.apply('floordiv', made, self.math.number(one - offset)))}"
            )
            solved.add(unknown)
        return lines

    def places(self) -> dict[Value, Place]:
        """How the arguments are read."""
        return {
            arg: argument_place(self.math, name, arg.type)
            for name, arg in zip(self.arguments, self.kernel.function.body.args, strict=True)
        }

    def check(self, sizes: set[str]) -> None:
        """Every size that the body uses can be read off a parameter."""
        shapes = [memory_shape(a.type) for a in self.kernel.function.body.args]
        known = {s for shape in shapes for s in symbols_of(shape)}
        missing = (
            sizes
            - known
            - {s for i in self.outputs for s in symbols_of(self.kernel.function.body.outputs[i].type.shape)}
        )
        if missing:
            raise CodegenError(f"@{self.kernel.name}: no argument says how large {', '.join(sorted(missing))} is")


def argument_place(math: Arithmetic, name: str, type: Type) -> Place:
    """Reads a tensor in memory; blocks of its layout are index arithmetic."""
    blocks = () if isinstance(type, StateType) else type.layout.blocks

    def read(index: Sequence[Expr]) -> Expr:
        at = list(index)
        inner: list[Expr] = []
        for axis, size in blocks:
            inner.append(math.apply("mod", at[axis], math.number(size)))
            at[axis] = math.apply("floordiv", at[axis], math.number(size))
        return math.load(name, [*at, *inner], type.dtype)

    return read
