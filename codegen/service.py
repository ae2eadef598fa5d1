"""Which sizes each kernel meets: read off the versions that launch it, and noted with the kernel for its checks."""

from __future__ import annotations

from ringc.ir.core import Function, Module
from ringc.ir.ops.call import Call, Launch


def note_service(module: Module) -> None:
    """Give every kernel's function the notes `rows` (least and greatest number of tokens, 0 for no limit) and `serves` (entry points).

    And `each`, the most tokens of a sequence, where all versions that launch it note one.
    """
    limits: dict[str, list[int]] = {}
    for version in list(module.functions.values()):
        entry = version.notes.get("entry")
        if entry is None or entry == "prepare":
            continue
        rows = tuple(version.notes.get("rows", (1, 0)))
        for kernel in _kernels(module, version):
            known = kernel.notes.get("rows")
            kernel.notes["rows"] = rows if known is None else _union(known, rows)
            limits.setdefault(kernel.name, []).append(version.notes.get("each", 0))
            serves = set(str(kernel.notes.get("serves", entry)).split("+")) | {str(entry)}
            kernel.notes["serves"] = "+".join(sorted(serves))
    for name, each in limits.items():
        if all(each):
            module.functions[name].notes["each"] = max(each)


def _kernels(module: Module, function: Function) -> list[Function]:
    """The kernels that a function and its callees launch, each once."""
    found: dict[str, Function] = {}
    for op in function.body.ops:
        if isinstance(op, Launch):
            found[op.kernel] = module.functions[op.kernel]
        elif isinstance(op, Call):
            found |= {k.name: k for k in _kernels(module, module.functions[op.callee])}
    return list(found.values())


def _union(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """The range that holds both; a greatest number of 0 is no limit."""
    return min(a[0], b[0]), 0 if 0 in (a[1], b[1]) else max(a[1], b[1])
