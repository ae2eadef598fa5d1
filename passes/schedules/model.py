"""The cost model: seconds of a region as an expression of the sizes.

A kernel takes the longer of its arithmetic and its traffic, plus the cost of one more launch (the roofline; Williams et al. 2009). What a
template reaches of the target's rates is one number in its scheduler, measured, with the measurement named beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy

from ringc.ir.symbols import Dim, symbol
from ringc.ir.types import TensorType
from ringc.passes.target import Target

Rows = tuple[int, int]
"""Least and greatest number of tokens `N` that a version serves; 0 for no limit."""

N, B = symbol("N"), symbol("B")


@dataclass(frozen=True)
class Candidate:
    """One implementation of a region.

    `seconds` is its predicted time as an expression of the sizes; `illegal` says why it may not be used here, if so: a form that is
    numerically unsafe is illegal, not merely slow. `workspace` is the memory that its kernel wants beside the outputs. `limit`: the rows up
    to which it goes a way of its own inside, if it has two; no cost tells them apart, so the limit is stated.
    """

    implementation: str
    seconds: sympy.Expr
    illegal: str = ""
    workspace: tuple[TensorType, ...] = ()
    limit: int = 0


def tokens_of(rows: Rows) -> int:
    """The number of tokens that stands for a version when costs are compared."""
    return (rows[1] // 2 or 1) if rows[1] else max(512, rows[0])


def at(seconds: sympy.Expr, sizes: Mapping[str, float]) -> float:
    """Predicted seconds for these sizes.

    Raises:
        KeyError: a symbol has no value.
    """
    # `subs` would order the operands of every Max, at milliseconds a cost.
    if isinstance(seconds, sympy.Symbol):
        return float(sizes[seconds.name])
    if not seconds.args:
        return float(seconds)
    values = [at(a, sizes) for a in seconds.args]
    function = _NUMERIC.get(seconds.func)
    return function(values) if function else float(seconds.func(*values))


_NUMERIC: dict[type, Callable[[list[float]], float]] = {
    sympy.Add: sum,
    sympy.Mul: math.prod,
    sympy.Max: max,
    sympy.Min: min,
    sympy.Pow: lambda v: v[0] ** v[1],
}
"""What sympy's functions are on numbers; others are asked of sympy."""


# Layers and versions are alike: the same few costs are written again and again.
@lru_cache(maxsize=1 << 12)
def cost_text(seconds: sympy.Expr) -> str:
    """A cost as the passes note it down; `seconds_at` reads it."""
    return str(seconds)


def roofline(
    target: Target, flops: Dim, moved: Dim, *, rate: float, bandwidth: float = 1.0, launches: int = 1
) -> sympy.Expr:
    """Seconds for so much work and traffic at `rate` operations per second and this share of the target's bandwidth."""
    work = sympy.sympify(flops) / sympy.Float(rate)
    traffic = sympy.sympify(moved) / sympy.Float(target.bandwidth * bandwidth)
    return (longer(work, traffic) if work else traffic) + sympy.Float(launches * target.launch)


def longer(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """max(a, b), unevaluated: sympy would try to prove which is larger, at milliseconds a try."""
    return sympy.Max(a, b, evaluate=False)


def crossover(
    first: sympy.Expr, second: sympy.Expr, variable: str, sizes: Mapping[str, int], limit: int = 1 << 20
) -> int | None:
    """The least value of a size from which `second` costs less than `first`, the other sizes being given.

    Costs are piecewise linear and cross at most once in the range that matters, so doubling and then halving finds the place. None when
    `second` costs more up to `limit`.
    """
    gain = (first - second).subs({symbol(k): v for k, v in sizes.items()})
    difference = sympy.lambdify([symbol(variable)], gain, modules=["math", {"Max": max, "Min": min}])

    high = 1
    while difference(high) <= 0:
        high *= 2
        if high > limit:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if difference(middle) > 0 else (middle, high)
    return high


def parse_config(implementation: str) -> list[tuple[str, int]]:
    """The numbers of an implementation's configuration: `tvm.matmul{rows=1,block=32}` has rows and block."""
    return [(k, int(v)) for k, v in re.findall(r"(\w+)=(\d+)", implementation)]
