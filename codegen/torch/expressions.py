"""Operations that are one torch expression each: operation name -> the text of its result, given the texts of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ringc.ir.symbols import Dim
from ringc.ir.types import DType


class Sizes(Protocol):
    """What an expression may ask of the file that it stands in."""

    def size(self, dim: Dim) -> str:
        """A size as text."""

    def sizes(self, shape: Sequence[Dim]) -> str:
        """Sizes as text, separated by commas."""


Expression = Callable[[Sizes, Any, list[str]], str]


def dtype_text(dtype: DType) -> str:
    """`torch.float32` for f32."""
    return str(dtype.torch)


def literal_text(value: float | int | bool) -> str:
    """A number as Python text, infinities and NaN included."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _is_number(text: str) -> bool:
    return text.startswith(("float(", "-")) or text[0].isdigit() or text in ("True", "False")


def _binary(symbol: str) -> Expression:
    return lambda _w, _op, x: f"{x[0]} {symbol} {x[1]}"


def _method(name: str) -> Expression:
    return lambda _w, _op, x: f"{x[0]}.{name}()"


def _extremum(name: str) -> Expression:
    """`torch.maximum` takes tensors only; a number on either side is a clamp."""
    bound = "min" if name == "maximum" else "max"

    def text(_w: Sizes, _op: Any, x: list[str]) -> str:
        numbers = [a for a in x if _is_number(a)]
        tensors = [a for a in x if not _is_number(a)]
        return f"{tensors[0]}.clamp({bound}={numbers[0]})" if numbers else f"torch.{name}({x[0]}, {x[1]})"

    return text


def _reduction(name: str) -> Expression:
    def text(_w: Sizes, op: Any, x: list[str]) -> str:
        keep = ", keepdim=True" if op.keep else ""
        axes = f"({', '.join(map(str, op.axes))}{',' if len(op.axes) == 1 else ''})"
        # A sum of integers would become 64-bit.
        dtype = (
            f", dtype={dtype_text(op.result.tensor.dtype)}" if name == "sum" and not op.x.tensor.dtype.is_float else ""
        )
        return f"{x[0]}.{name}({axes}{keep}{dtype})"

    return text


def _matmul(_w: Sizes, op: Any, x: list[str]) -> str:
    a, b = _widened(op, x)
    if op.transpose_b:
        b = f"{b}.T" if op.b.tensor.rank == 2 else f"{b}.mT"
    return _narrowed(op, f"{a} @ {b}")


def _gather_matmul(_w: Sizes, op: Any, x: list[str]) -> str:
    rows, w, ids = x
    rows = f"{rows}[..., None]" if op.x.tensor.rank == 3 else f"{rows}[:, None, :, None]"
    rows, weights = _widened(op, [rows, f"{w}[{ids}]"])
    return _narrowed(op, f"({weights} @ {rows})[..., 0]")


def _widened(op: Any, operands: list[str]) -> list[str]:
    """A product's operands, in f32 at least, in which it is summed."""
    narrow = op.inputs()[0].tensor.dtype.bytes < 4
    return [f"{x}.float()" for x in operands] if narrow else operands


def _narrowed(op: Any, made: str) -> str:
    """A product of widened operands in its own type."""
    out = op.result.tensor.dtype
    same = out == op.inputs()[0].tensor.dtype and out.bytes >= 4
    return made if same else f"({made}).to({dtype_text(out)})"


def _slice(_w: Sizes, op: Any, x: list[str]) -> str:
    step = f":{op.step}" if op.step != 1 else ""
    return f"{x[0]}[{':, ' * op.axis}{op.start}:{op.stop}{step}]"


def _constant(_w: Sizes, op: Any, _x: list[str]) -> str:
    numbers = ", ".join(map(literal_text, op.value))
    return f"torch.tensor([{numbers}], dtype={dtype_text(op.dtype)}).reshape({', '.join(map(str, op.shape))})"


def _where(_w: Sizes, op: Any, x: list[str]) -> str:
    if all(map(_is_number, x[1:])):
        dtype = dtype_text(op.result.tensor.dtype)
        x = [x[0], f"torch.tensor({x[1]}, dtype={dtype})", f"torch.tensor({x[2]}, dtype={dtype})"]
    return f"torch.where({', '.join(x)})"


def _rms_norm(_w: Sizes, op: Any, x: list[str]) -> str:
    weight = x[1] if op.weight is not None else "None"
    return f"F.rms_norm({x[0]}, ({op.x.shape[-1]},), {weight}, {op.eps!r})"


EXPRESSIONS: dict[str, Expression] = {
    **{name: _method(name) for name in ("abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "cos", "sin")},
    "neg": lambda _w, _op, x: f"-{x[0]}",
    "not": lambda _w, _op, x: f"~{x[0]}",
    **{
        name: _binary(s)
        for name, s in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/"), ("floordiv", "//"), ("mod", "%"))
    },
    **{
        name: _binary(s)
        for name, s in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("and", "&"), ("or", "|"))
    },
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "where": _where,
    "cast": lambda _w, op, x: f"{x[0]}.to({dtype_text(op.dtype)})",
    "sum": _reduction("sum"),
    "max": _reduction("amax"),
    "mean": _reduction("mean"),
    "matmul": _matmul,
    "gather_matmul": _gather_matmul,
    "reshape": lambda w, op, x: f"{x[0]}.reshape({w.sizes(op.shape) or '()'})",
    "broadcast": lambda w, op, x: f"{x[0]}.expand({w.sizes(op.shape)})",
    "transpose": lambda _w, op, x: f"{x[0]}.permute({', '.join(map(str, op.axes))})",
    "slice": _slice,
    "concat": lambda _w, op, x: f"torch.cat([{', '.join(x)}], {op.axis})",
    "gather": lambda _w, _op, x: f"{x[0]}[{x[1]}]",
    "take_along": lambda _w, _op, x: f"{x[0]}.gather(-1, {x[1]}.long())",
    "scatter": lambda _w, _op, x: f"{x[0]}.scatter(-1, {x[1]}.long(), {x[2]})",
    "scatter_add": lambda w, op, x: (
        f"{x[0]}.new_zeros({w.sizes((op.length, *op.x.shape[1:]))}).index_add(0, {x[1]}, {x[0]})"
    ),
    "constant": _constant,
    "iota": lambda w, op, _x: f"torch.arange({w.size(op.length)}, dtype=torch.int32)",
    "silu": lambda _w, _op, x: f"F.silu({x[0]})",
    "softmax": lambda _w, _op, x: f"torch.softmax({x[0]}, -1)",
    "rms_norm": _rms_norm,
}
"""Operation name -> text."""
