"""Which sizes each kernel meets: read off the versions that launch it, and noted with the kernel for its checks."""

from __future__ import annotations

from ringc.ir.core import Module
from ringc.ir.ops.call import Launch
from ringc.passes.kernels import host_functions
from ringc.passes.schedules.candidates import service


def note_service(module: Module) -> None:
    """Give every kernel's function the notes `rows` (least and greatest number of tokens, 0 for no limit) and `serves` (entry points).

    And `each`, the most tokens of a sequence, where all versions that launch it note one.
    """
    limits: dict[str, list[int]] = {}
    for function in host_functions(module):
        for name in dict.fromkeys(op.kernel for op in function.body.ops if isinstance(op, Launch)):
            kernel = module.functions[name]
            rows, entry, each = service(function)
            known = kernel.notes.get("rows")
            kernel.notes["rows"] = rows if known is None else _union(known, rows)
            limits.setdefault(name, []).append(each)
            serves = set(str(kernel.notes.get("serves", entry)).split("+")) | {entry}
            kernel.notes["serves"] = "+".join(sorted(serves))
    for name, found in limits.items():
        if all(found):
            module.functions[name].notes["each"] = max(found)


def _union(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """The range that holds both; a greatest number of 0 is no limit."""
    return min(a[0], b[0]), 0 if 0 in (a[1], b[1]) else max(a[1], b[1])
