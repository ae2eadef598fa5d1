"""Every pass by name. A new pass is a file and a line here."""

from __future__ import annotations

from importlib import import_module

from ringc.errors import PassError, did_you_mean
from ringc.passes.framework import Pass

PASSES = {
    "canonicalize": "ringc.passes.canonicalize:Canonicalize",
    "cse": "ringc.passes.cse:CommonSubexpressions",
    "dce": "ringc.passes.dce:DeadCode",
    "outline": "ringc.passes.outline:OutlineLayers",
    "raise": "ringc.passes.raising:Raise",
    "versions": "ringc.passes.versions:Versions",
    "unrotated": "ringc.passes.unrotated:Unrotated",
    "unsorted": "ringc.passes.unsorted:Unsorted",
    "fuse": "ringc.passes.fuse:Fuse",
    "prologues": "ringc.passes.prologues:Prologues",
    "library": "ringc.passes.library:Library",
    "select": "ringc.passes.select:Select",
    "layout": "ringc.passes.layout:WeightLayout",
    "kernels": "ringc.passes.kernels:OutlineKernels",
    "beside": "ringc.passes.beside:Beside",
    "early": "ringc.passes.early:Early",
    "memory": "ringc.passes.memory:MemoryPlan",
}
"""Name -> where the class is; imported when asked for."""


def pass_class(name: str) -> type[Pass]:
    """The pass of a name.

    Raises:
        PassError: there is none.
    """
    if name not in PASSES:
        raise PassError(
            f"there is no pass '{name}'", help=did_you_mean(name, PASSES) or f"choose from {', '.join(PASSES)}"
        )
    module, _, cls = PASSES[name].partition(":")
    found: type[Pass] = getattr(import_module(module), cls)
    return found
