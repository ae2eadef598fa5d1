"""The scalar arithmetic of the TVM back end: expressions that simplify as they are made and print as TVM script.

Element rules (`ringc.ir.elements`) compute indices and values with the same functions. Index arithmetic is kept as linear forms of loop
variables whose ranges are known, so that `(h * 64 + d) // 64` becomes `h` and `d + 8 < 16` becomes a constant where a loop's range decides
it; `ringc.codegen.tvm.cuts` asks for the ranges that decide. `ringc.codegen.tvm.printing` writes expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy

from ringc.errors import CodegenError
from ringc.ir.symbols import Dim
from ringc.ir.types import DType

COMPUTE = {
    DType.F64: "float64", DType.F32: "float32", DType.BF16: "float32", DType.F16: "float32",
    DType.I64: "int64", DType.I32: "int32", DType.I8: "int32", DType.BOOL: "bool",
}  # fmt: skip
"""IR type -> the type that its elements are computed in."""

STORED = {**COMPUTE, DType.BF16: "bfloat16", DType.F16: "float16", DType.I8: "int8"}
"""IR type -> the type that its elements have in memory."""

Range = tuple[int | None, int | None]
"""Least and greatest value; None where it isn't known."""


@dataclass(frozen=True, eq=False)
class Expr:
    """A scalar. Equal expressions of one `Arithmetic` are the same object.

    `op` is a function's name, or "const", "var", "load" (of `what`, at the arguments), "cast" or "call" (of `what`).
    """

    op: str
    args: tuple[Expr, ...]
    dtype: str
    what: str | int | float | bool = ""
    range: Range = (None, None)
    data: bool = False
    """Whether the value depends on the contents of a tensor."""

    @property
    def is_index(self) -> bool:
        return self.dtype in ("int32", "int64")

    @property
    def const(self) -> int | float | bool | None:
        return self.what if self.op == "const" else None  # type: ignore[return-value]


def walk(e: Expr) -> Iterator[Expr]:
    """Every expression below one, each once."""
    seen: set[Expr] = set()
    pending = [e]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending += current.args
            yield current


Linear = tuple[dict[Expr, int], int]
"""Factors of the parts that are no sums, and the constant."""


class Arithmetic:
    """`Elements` of the TVM back end: makes expressions.

    `symbols` collects the names of the sizes that were asked for; `functions` those of the library's functions.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Expr] = {}
        self.symbols: set[str] = set()
        self.functions: set[str] = set()

    # -- leaves

    def _make(
        self,
        op: str,
        args: Sequence[Expr],
        dtype: str,
        what: str | float = "",
        range: Range = (None, None),
        data: bool = False,
    ) -> Expr:
        # repr tells 1, 1.0 and True apart, and -0.0 from 0.0.
        key = (op, *map(id, args), dtype, repr(what), range)
        if key not in self._made:
            self._made[key] = Expr(op, tuple(args), dtype, what, range, data or any(a.data for a in args))
        return self._made[key]

    def number(self, value: float, dtype: str = "int32") -> Expr:
        """A constant of a TVM type."""
        if dtype.startswith("int"):
            value = int(value)
            if not -(2**31) <= value < 2**31:
                dtype = "int64"
            return self._make("const", (), dtype, value, (value, value))
        return self._make("const", (), dtype, bool(value) if dtype == "bool" else float(value))

    def literal(self, value: float, dtype: DType) -> Expr:
        return self.number(value, COMPUTE[dtype])

    def variable(self, name: str, low: int | None = None, high: int | None = None, dtype: str = "int32") -> Expr:
        """A loop variable or a scalar; `high` is the greatest value."""
        return self._make("var", (), dtype, name, (low, high))

    def scalar(self, name: str, dtype: str) -> Expr:
        """A name that holds a value computed from data."""
        return self._make("var", (), dtype, name, data=True)

    def load(self, buffer: str, index: Sequence[Expr], dtype: DType) -> Expr:
        """An element of a buffer, in the type to compute in."""
        stored, computed = STORED[dtype], COMPUTE[dtype]
        made = self._make("load", index, stored, buffer, data=True)
        return made if stored == computed else self.convert(made, computed)

    def size(self, dim: Dim) -> Expr:
        if isinstance(dim, int):
            return self.number(dim)
        if isinstance(dim, sympy.Symbol):
            self.symbols.add(dim.name)
            return self.variable(dim.name, 0, None, "int64")
        if isinstance(dim, sympy.Integer):
            return self.number(int(dim))
        parts = dim.args
        match dim:
            case sympy.Add() | sympy.Mul():
                made = self.size(parts[0])
                for part in parts[1:]:
                    made = self.apply("add" if isinstance(dim, sympy.Add) else "mul", made, self.size(part))
                return made
            case sympy.floor():
                over, under = sympy.fraction(sympy.together(parts[0]))
                return self.apply("floordiv", self.size(over), self.size(under))
            case sympy.Pow() if parts[1].is_Integer and parts[1] > 0:
                return self.size(sympy.Mul(*[parts[0]] * int(parts[1]), evaluate=False))
            case _:
                raise CodegenError(f"a TVM kernel can't compute the size {dim}")

    # -- functions

    def apply(self, function: str, *arguments: Expr) -> Expr:
        if function == "where":
            return self._where(*arguments)
        if function in _UNARY:
            return self._unary(function, arguments[0])
        a, b = self._same(*arguments)
        if function in COMPARISONS:
            return self._compare(function, a, b)
        if function in ("and", "or"):
            return self._logical(function, a, b)
        if a.is_index:
            return self._integer(function, a, b)
        return self._float(function, a, b)

    def cast(self, value: Expr, dtype: DType) -> Expr:
        return self.convert(value, COMPUTE[dtype])

    def convert(self, value: Expr, dtype: str) -> Expr:
        """A value in another TVM type."""
        if value.dtype == dtype:
            return value
        if value.op == "const" and not (dtype.startswith("int") and not value.is_index):
            return self.number(value.what, dtype)  # type: ignore[arg-type]
        if dtype == "bool":
            zero = self.number(0, value.dtype)
            return self._unary("not", self.apply("eq", value, zero))
        keeps = value.range if value.is_index and dtype == "int64" else (None, None)
        return self._make("cast", (value,), dtype, dtype, keeps)

    def call(self, function: str, arguments: Sequence[Expr], dtype: str) -> Expr:
        """A call of a function by its name in the file."""
        return self._make("call", arguments, dtype, function)

    def _same(self, a: Expr, b: Expr) -> tuple[Expr, Expr]:
        """Both as the wider of two integer types."""
        if a.dtype != b.dtype and a.is_index and b.is_index:
            return self.convert(a, "int64"), self.convert(b, "int64")
        return a, b

    def _unary(self, function: str, x: Expr) -> Expr:
        if function == "not":
            return self.number(not x.what, "bool") if x.op == "const" else self._make("not", (x,), "bool")
        if function == "neg":
            if x.op == "const":
                return self.number(-x.what, x.dtype)  # type: ignore[operator]
            return self._make("neg", (x,), x.dtype)
        if x.dtype == "float32" and function in ("exp", "sigmoid"):
            self.functions.add(function)
            return self.call(function, (x,), x.dtype)
        return self.call(f"T.{function}", (x,), x.dtype)

    def _logical(self, function: str, a: Expr, b: Expr) -> Expr:
        for known, other in ((a, b), (b, a)):
            if known.op == "const":
                return other if bool(known.what) == (function == "and") else known
        return self._make(function, (a, b), "bool")

    def _compare(self, function: str, a: Expr, b: Expr) -> Expr:
        if a.is_index:
            low, high = self.range_of(self.minus(self.linear(a), self.linear(b)))
            known = {
                "lt": _decided(high is not None and high < 0, low is not None and low >= 0),
                "le": _decided(high is not None and high <= 0, low is not None and low > 0),
                "gt": _decided(low is not None and low > 0, high is not None and high <= 0),
                "ge": _decided(low is not None and low >= 0, high is not None and high < 0),
                "eq": _decided(low == high == 0, (low is not None and low > 0) or (high is not None and high < 0)),
            }[function]
            if known is not None:
                return self.number(known, "bool")
        elif a.op == b.op == "const":
            return self.number(COMPARISONS[function](a.what, b.what), "bool")
        return self._make(function, (a, b), "bool")

    def _where(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        if condition.op == "const":
            return a if condition.what else b
        a, b = self._same(a, b)
        if a is b:
            return a
        bounds = (_least(a.range[0], b.range[0]), _greatest(a.range[1], b.range[1]))
        return self._make("where", (condition, a, b), a.dtype, range=bounds)

    def _float(self, function: str, a: Expr, b: Expr) -> Expr:
        if function == "mul":
            for known, other in ((a, b), (b, a)):
                if known.const == 1.0:
                    return other
        if function == "div" and b.const == 1.0:
            return a
        if function in ("add", "sub") and b.const == 0.0:
            return a
        return self._make(function, (a, b), a.dtype)

    def _integer(self, function: str, a: Expr, b: Expr) -> Expr:
        dtype = a.dtype
        match function:
            case "add":
                return self.sum(self.plus(self.linear(a), self.linear(b)), dtype)
            case "sub":
                return self.sum(self.minus(self.linear(a), self.linear(b)), dtype)
            case "mul":
                for known, other in ((a, b), (b, a)):
                    if isinstance(known.const, int):
                        return self.sum(scaled(self.linear(other), known.const), dtype)
                positive = all(x.range[0] is not None and x.range[0] >= 0 for x in (a, b))
                return self._make("mul", (a, b), dtype, range=(0, None) if positive else (None, None))
            case "floordiv" | "mod":
                return self._divide(function, a, b)
            case "maximum" | "minimum":
                low, high = self.range_of(self.minus(self.linear(a), self.linear(b)))
                if (low is not None and low >= 0) or (high is not None and high <= 0):
                    larger = a if low is not None and low >= 0 else b
                    smaller = b if larger is a else a
                    return larger if function == "maximum" else smaller
                return self._make(function, (a, b), dtype)
            case _:
                raise CodegenError(f"a TVM kernel has no integer function {function}")

    def _divide(self, function: str, a: Expr, b: Expr) -> Expr:
        """floor(a / b), or what is left: multiples of a constant b leave the division."""
        by = b.const
        if not isinstance(by, int) or by <= 0:
            positive = all(x.range[0] is not None and x.range[0] >= 0 for x in (a, b))
            return self._make(function, (a, b), a.dtype, range=(0, None) if positive else (None, None))
        parts, constant = self.linear(a)
        whole: Linear = ({p: f // by for p, f in parts.items() if f % by == 0}, constant // by)
        rest: Linear = ({p: f for p, f in parts.items() if f % by}, constant % by)
        low, high = self.range_of(rest)
        fits = low is not None and high is not None and low // by == high // by
        if function == "mod":
            if fits:
                assert low is not None
                return self.sum(self.plus(rest, ({}, -(low // by) * by)), a.dtype)
            return self._make("mod", (self.sum(rest, a.dtype), b), a.dtype, range=(0, by - 1))
        if fits:
            assert low is not None
            return self.sum(self.plus(whole, ({}, low // by)), a.dtype)
        bounds = (low // by if low is not None else None, high // by if high is not None else None)
        part = self._make("floordiv", (self.sum(rest, a.dtype), b), a.dtype, range=bounds)
        return self.sum(self.plus(whole, ({part: 1}, 0)), a.dtype)

    # -- linear forms

    def linear(self, e: Expr) -> Linear:
        """An integer expression as a sum."""
        match e.op:
            case "const":
                return {}, int(e.what)
            case "add":
                return self.plus(self.linear(e.args[0]), self.linear(e.args[1]))
            case "sub":
                return self.minus(self.linear(e.args[0]), self.linear(e.args[1]))
            case "mul" if isinstance(e.args[1].const, int):
                return scaled(self.linear(e.args[0]), e.args[1].const)
            case "cast" if e.args[0].is_index and e.dtype == "int64" and not e.args[0].data:
                return self.linear(e.args[0])
            case _:
                return {e: 1}, 0

    @staticmethod
    def plus(a: Linear, b: Linear) -> Linear:
        parts = dict(a[0])
        for part, factor in b[0].items():
            parts[part] = parts.get(part, 0) + factor
        return {p: f for p, f in parts.items() if f}, a[1] + b[1]

    def minus(self, a: Linear, b: Linear) -> Linear:
        return self.plus(a, scaled(b, -1))

    def sum(self, form: Linear, dtype: str) -> Expr:
        """The expression of a linear form."""
        parts, constant = form
        total: Expr | None = None
        for part, factor in sorted(parts.items(), key=lambda item: item[1] < 0):
            term = part
            if abs(factor) != 1:
                term = self._make(
                    "mul", (part, self.number(abs(factor))), part.dtype, range=self.range_of(({part: abs(factor)}, 0))
                )
            if total is None:
                total = (
                    self._make("neg", (term,), term.dtype, range=self.range_of(({part: factor}, 0)))
                    if factor < 0
                    else term
                )
            else:
                total = self._sum(total, term, factor > 0)
        if total is None:
            return self.number(constant, dtype)
        if constant:
            total = self._sum(total, self.number(abs(constant)), constant > 0)
        return total  # maybe narrower than asked for: where that matters, `_same` widens it

    def _sum(self, a: Expr, b: Expr, plus: bool) -> Expr:
        low, high = a.range[0], a.range[1]
        other = b.range if plus else (_negated(b.range[1]), _negated(b.range[0]))
        bounds = (_added(low, other[0]), _added(high, other[1]))
        dtype = "int64" if "int64" in (a.dtype, b.dtype) else "int32"
        return self._make("add" if plus else "sub", (a, b), dtype, range=bounds)

    @staticmethod
    def range_of(form: Linear) -> Range:
        """Least and greatest value of a linear form."""
        low: int | None = form[1]
        high: int | None = form[1]
        for part, factor in form[0].items():
            least, greatest = part.range if factor > 0 else (part.range[1], part.range[0])
            low = _added(low, None if least is None else factor * least)
            high = _added(high, None if greatest is None else factor * greatest)
        return low, high

    def replace(self, e: Expr, by: Mapping[Expr, Expr]) -> Expr:
        """An index expression with variables replaced."""
        if e in by:
            return by[e]
        if not e.args:
            return e
        args = [self.replace(a, by) for a in e.args]
        if e.op == "neg":
            return self.apply("sub", self.number(0), args[0])
        if e.op == "cast":
            return self.convert(args[0], e.dtype)
        return self.apply(e.op, *args)


def scaled(a: Linear, factor: int) -> Linear:
    """A linear form times a constant."""
    return ({p: f * factor for p, f in a[0].items()} if factor else {}), a[1] * factor


_UNARY = frozenset({"neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "cos", "sin", "not"})
COMPARISONS: dict[str, Callable[..., bool]] = {
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b,
}  # fmt: skip


def _decided(yes: bool, no: bool) -> bool | None:
    return True if yes else False if no else None


def _added(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _negated(a: int | None) -> int | None:
    return None if a is None else -a


def _least(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)


def _greatest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)
