"""Symbolic sizes: the integers of a shape, known now (`int`) or at run time (a sympy expression over named symbols).

sympy is slow when it is asked to be clever, so arithmetic goes through the memoised helpers below and nothing ever calls `simplify`:
sympy's automatic canonical form is enough to compare sizes such as `8*N` and `N*8`.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from typing import TypeAlias

import sympy
from sympy.printing.str import StrPrinter

from ringc.errors import IRError

Dim: TypeAlias = int | sympy.Expr
"""A size: a Python int, or a sympy expression over symbols made by `symbol`."""

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Bound:
    """What is known of a symbol: `minimum <= value <= maximum` (None: no limit), and that `multiple_of` divides it."""

    minimum: int = 1
    maximum: int | None = None
    multiple_of: int = 1

    def __contains__(self, value: int) -> bool:
        below = self.maximum is None or value <= self.maximum
        return self.minimum <= value and below and value % self.multiple_of == 0


_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = re.compile(r"none|true|false|inf|nan|max|min|bool|(f|bf|i)\d+|f8e\dm\d")
"""Words that mean something else in IR text."""


@cache
def symbol(name: str) -> sympy.Symbol:
    """The one symbol of this name: a non-negative integer."""
    if not _SYMBOL.fullmatch(name) or keyword.iskeyword(name) or _RESERVED.fullmatch(name):
        raise IRError(f"'{name}' can't name a size", help="use letters, digits and underscores, as in `N` or `max_len`")
    return sympy.Symbol(name, integer=True, nonnegative=True)


def _as_dim(value: Dim) -> Dim:
    return int(value) if isinstance(value, sympy.Integer) else value


@lru_cache(maxsize=65536)
def mul(a: Dim, b: Dim) -> Dim:
    """a * b"""
    return _as_dim(sympy.expand(a * b))


@lru_cache(maxsize=65536)
def add(a: Dim, b: Dim) -> Dim:
    """a + b"""
    return _as_dim(sympy.sympify(a + b))


@lru_cache(maxsize=65536)
def floordiv(a: Dim, b: Dim) -> Dim:
    """a // b, exact where b divides every term of a."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return _as_dim(sympy.floor(sympy.sympify(a) / b))


@lru_cache(maxsize=65536)
def ceildiv(a: Dim, b: Dim) -> Dim:
    """The least integer that is at least a / b, as `-(-a // b)`: the one form of it, so that equal sizes compare equal."""
    return mul(-1, floordiv(mul(-1, a), b))


@lru_cache(maxsize=65536)
def least(a: Dim, b: Dim) -> Dim:
    """min(a, b)"""
    return _as_dim(sympy.Min(a, b))


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of a shape."""
    return reduce(mul, dims, 1)


def symbols_of(dims: Iterable[Dim]) -> set[str]:
    """Names of the symbols that occur in a shape."""
    return {name for d in dims if not isinstance(d, int) for name in _names(d)}


@lru_cache(maxsize=65536)
def _names(dim: sympy.Expr) -> tuple[str, ...]:
    return tuple(sorted(s.name for s in dim.free_symbols if isinstance(s, sympy.Symbol)))


@lru_cache(maxsize=65536)
def _compiled(dim: sympy.Expr) -> tuple[tuple[str, ...], Callable[..., int]]:
    names = _names(dim)
    # Printed as Python's `//`: sympy's own floor(a/b) goes through floats, which is wrong for some sizes.
    return names, sympy.lambdify([symbol(n) for n in names], dim, modules=["math"], printer=_DimPrinter)


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The value of a size when each symbol has the value given.

    Raises:
        IRError: a symbol of `dim` has no value.
    """
    if isinstance(dim, int):
        return dim
    names, function = _compiled(dim)
    missing = [n for n in names if n not in values]
    if missing:
        raise IRError(f"the size {dim_text(dim)} depends on {', '.join(missing)}, which has no value here")
    return math.floor(function(*(values[n] for n in names)))


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced by other sizes."""
    if isinstance(dim, int):
        return dim
    return _as_dim(dim.subs({symbol(k): v for k, v in values.items()}, simultaneous=True))


def bind(dim: Dim, value: int, values: dict[str, int]) -> bool:
    """Make `dim == value` true by giving a value to its one unknown symbol; False when that can't be.

    Sizes in signatures are linear in each symbol (`N`, `B + 1`, `8*N`), so one division finds it.
    """
    if isinstance(dim, int):
        return dim == value
    known = {k: v for k, v in values.items() if symbol(k) in dim.free_symbols}
    rest = substitute(dim, known)
    if isinstance(rest, int):
        return rest == value
    line = _line(rest)
    if line is None:
        return False
    name, slope, offset = line
    found, left = divmod(value - offset, slope)
    if left or found < 0:
        return False
    values[name] = found
    return True


@lru_cache(maxsize=65536)
def _line(dim: sympy.Expr) -> tuple[str, int, int] | None:
    """(name, slope, offset) when the size is `slope * name + offset`, else None."""
    if len(dim.free_symbols) != 1 or not dim.is_polynomial():
        return None
    (x,) = dim.free_symbols
    coefficients = sympy.Poly(dim, x).all_coeffs()
    if len(coefficients) != 2 or not all(c.is_Integer for c in coefficients):
        return None
    return str(x), int(coefficients[0]), int(coefficients[1])


class _DimPrinter(StrPrinter):
    """Prints floor(a/b) the way Python writes it, so that a size reads the same in IR text and in generated code."""

    def _print_floor(self, expr: sympy.Expr) -> str:
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"(({self._print(numerator)})//({self._print(denominator)}))"

    def _print_ceiling(self, expr: sympy.Expr) -> str:
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"(-(-({self._print(numerator)})//({self._print(denominator)})))"

    def _print_Max(self, expr: sympy.Expr) -> str:
        return f"max({', '.join(sorted(self._print(a) for a in expr.args))})"

    def _print_Min(self, expr: sympy.Expr) -> str:
        return f"min({', '.join(sorted(self._print(a) for a in expr.args))})"


@lru_cache(maxsize=65536)
def dim_text(dim: Dim) -> str:
    """A size as a Python expression over its symbols."""
    return str(dim) if isinstance(dim, int) else _DimPrinter().doprint(dim)


def shape_text(shape: Iterable[Dim]) -> str:
    """A shape as it stands in IR text: `N, 4, 32`."""
    return ", ".join(dim_text(d) for d in shape)


_BINARY: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: add,
    ast.Sub: lambda a, b: add(a, mul(-1, b)),
    ast.Mult: mul,
    ast.FloorDiv: floordiv,
}


@lru_cache(maxsize=65536)
def parse_dim(text: str) -> Dim:
    """The inverse of `dim_text`.

    Raises:
        IRError: the text is no integer expression of names, numbers, + - * // max min.
    """

    def visit(node: ast.AST) -> Dim:
        match node:
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return value
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return mul(-1, visit(operand))
            case ast.BinOp(op=ast.FloorDiv(), right=ast.Constant(value=0)):
                raise IRError(f"'{text}' divides by zero")
            case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int(power))) if 1 <= power <= 16:
                return product([visit(left)] * power)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](visit(left), visit(right))
            case ast.Call(func=ast.Name(id="max" | "min" as name), args=[_, *_] as args):
                return _as_dim((sympy.Max if name == "max" else sympy.Min)(*(visit(a) for a in args)))
            case _:
                raise IRError(f"'{text[:40]}' is no size", help="write integers and names combined with + - * //")

    try:
        return visit(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise IRError(f"'{text[:40]}' is no size", help="write integers and names combined with + - * //") from None
