"""Kernels: equal fused regions become one kernel function; each `fused` becomes a `launch` of it.

What a kernel is called says what it is for: its family and a number in the order of first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ringc.ir.builder import Builder
from ringc.ir.core import Function, Level, Module
from ringc.ir.ops.call import Fused, Launch
from ringc.passes.framework import Pass
from ringc.passes.target import Target


def host_functions(module: Module) -> Iterator[Function]:
    """The functions of the host program, once kernels are made: neither kernels nor `prepare`."""
    return (f for f in module.functions.values() if "family" not in f.notes and f.name != "prepare")


@dataclass(frozen=True)
class OutlineKernels(Pass):
    """Make kernels of fused regions, each once."""

    name = "kernels"

    def apply(self, module: Module, target: Target) -> None:
        known: dict[str, str] = {}
        count: Counter[str] = Counter()
        for function in list(module.functions.values()):
            for op in list(function.body.ops):
                if not isinstance(op, Fused):
                    continue
                key = op.family + op.implementation + op.body.structural_hash()
                if key not in known:
                    count[op.family] += 1
                    known[key] = f"{op.family}_{count[op.family]}"
                    chosen = {n: getattr(op, n) for n in ("implementation", "seconds", "workspace", "lost", "measured")}
                    notes = {"family": op.family} | {k: v for k, v in chosen.items() if v}
                    module.add(Function(known[key], op.body.clone(), **notes))
                elif op.measured:  # at the sizes of another version
                    notes = module.functions[known[key]].notes
                    notes["measured"] = tuple(dict.fromkeys((*notes.get("measured", ()), *op.measured)))
                launch = Launch(op.arguments, known[key], tuple(r.type for r in op.results))
                Builder(function.body, before=op, scope=op.scope).insert(launch)
                for old, new in zip(op.results, launch.results, strict=True):
                    new.name = old.name
                    function.body.replace_uses(old, new)
                function.body.erase(op)
        module.level = Level.KERNEL
