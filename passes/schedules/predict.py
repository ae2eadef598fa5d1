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
    """Seconds that the cost model gives for one run of a version, at its typical sizes unless others are given."""
    given = sizes or typical_sizes(*service(version))
    known: dict[str, float] = {}

    def of(function: Function) -> float:
        total = 0.0
        for op in function.body.ops:
            if isinstance(op, Launch):
                total += kernel(op.kernel)
            elif isinstance(op, Call):
                if op.callee not in known:
                    known[op.callee] = of(module.functions[op.callee])
                total += known[op.callee]
        return total

    def kernel(name: str) -> float:
        if name not in known:
            known[name] = seconds_at(str(module.functions[name].notes.get("seconds", "0")), given)
        return known[name]

    return of(version)


def seconds_at(text: str, sizes: Mapping[str, int]) -> float:
    """The value of a cost, as the passes note it down, for these sizes."""
    return at(sympy.parse_expr(text, local_dict={n: symbol(n) for n in sizes} | _FUNCTIONS), sizes)
