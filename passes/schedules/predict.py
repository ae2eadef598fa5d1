"""Predicted time of a whole entry point: the sum over its kernels, each as often as it runs."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from ringc.ir.core import Function, Module
from ringc.ir.ops.call import Call, Launch
from ringc.ir.symbols import symbol
from ringc.passes.schedules.candidates import service, typical_sizes
from ringc.passes.schedules.model import at

_FUNCTIONS = {"Max": sympy.Max, "Min": sympy.Min, "floor": sympy.floor, "ceiling": sympy.ceiling, "exp": sympy.exp}


def predicted_seconds(module: Module, version: Function, sizes: Mapping[str, int] | None = None) -> float:
    """Seconds that the cost model gives for one run of a version, or of a layer of one, at its typical sizes unless others are given."""
    return _of(module, version, sizes or typical_sizes(*service(version)), {})


def _of(module: Module, function: Function, sizes: Mapping[str, int], known: dict[tuple[str, int], float]) -> float:
    """The sum for a function; `known`: what was found for kernels and functions, by name and rows."""
    total = 0.0
    for op in function.body.ops:
        if isinstance(op, Launch):
            key = op.kernel, sizes["N"]
            if key not in known:
                known[key] = seconds_at(str(module.functions[op.kernel].notes.get("seconds", "0")), sizes)
            total += known[key]
        elif isinstance(op, Call):
            inside = op.inside(sizes)
            key = op.callee, inside["N"]
            if key not in known:
                known[key] = _of(module, module.functions[op.callee], inside, known)
            total += known[key]
    return total


def seconds_at(text: str, sizes: Mapping[str, int]) -> float:
    """The value of a cost, as the passes note it down, for these sizes."""
    return at(sympy.parse_expr(text, local_dict={n: symbol(n) for n in sizes} | _FUNCTIONS), sizes)
