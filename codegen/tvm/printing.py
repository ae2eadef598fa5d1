"""Expressions as TVM script."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ringc.codegen.tvm.elements import Expr

_INFIX = {
    "lt": ("<", 1), "le": ("<=", 1), "gt": (">", 1), "ge": (">=", 1), "eq": ("==", 1),
    "add": ("+", 2), "sub": ("-", 2), "mul": ("*", 3), "div": ("/", 3), "floordiv": ("//", 3), "mod": ("%", 3),
}  # fmt: skip


def text(e: Expr, named: Mapping[Expr, str] | None = None) -> str:
    """An expression as TVM script; `named` are expressions that have a name."""
    return _Printer(named or {}).text(e, 0)


class _Printer:
    def __init__(self, named: Mapping[Expr, str]) -> None:
        self.named = named

    def text(self, e: Expr, level: int) -> str:
        """The text, in parentheses if it binds more loosely than `level`."""
        if e in self.named:
            return self.named[e]
        if e.op in _INFIX:
            sign, own = _INFIX[e.op]
            right = own + (sign in "-/" or own == 3 or own == 1)
            both = all(a.op == "const" for a in e.args)  # Python would compute with two bare numbers itself
            left = number_text(e.args[0], bare=False) if both else self.text(e.args[0], own + (own == 1))
            made = f"{left} {sign} {self.text(e.args[1], right)}"
            return f"({made})" if own < level else made
        match e.op:
            case "const":
                return number_text(e, bare=level > 0)
            case "var":
                return str(e.what)
            case "load":
                return f"{e.what}[{', '.join(self.text(a, 1) for a in e.args) or '()'}]"
            case "neg":
                made = f"-{self.text(e.args[0], 4)}"
                return f"({made})" if level > 2 else made
            case "cast":
                return f'T.Cast("{e.dtype}", {self.argument(e.args[0])})'
            case "where":
                name = "T.Select" if e.args[0].data else "T.if_then_else"
            case "maximum" | "minimum":
                name = f"T.{e.op[:3]}"
            case "and" | "or" | "not":
                name = f"T.{e.op.capitalize()}"
            case _:
                name = str(e.what)
        return f"{name}({', '.join(map(self.argument, e.args))})"

    def argument(self, e: Expr) -> str:
        """A number as an argument of a function has its type written."""
        return self.text(e, 0)


def number_text(e: Expr, bare: bool) -> str:
    """A constant; bare where an operator gives it its type."""
    value = e.what
    if isinstance(value, bool):
        return f"T.bool({value})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'T.{e.dtype}("{value}")'
    if bare or e.dtype == "int32":
        return repr(value) if not (isinstance(value, int | float) and value < 0) else f"({value!r})"
    return f"T.{e.dtype}({value!r})"
