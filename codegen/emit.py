"""Kernel files: a header that says what the kernel is, the template's body, and a main block that checks and times it."""

from __future__ import annotations

from ringc.codegen.kernel import Kernel, Source, emitter
from ringc.codegen.triton.overlap import FIRST_ARCH, overlapping
from ringc.ir.core import Function
from ringc.ir.symbols import dim_text
from ringc.ir.text_print import print_function
from ringc.passes.target import Target


def emit(kernel: Kernel, target: Target | None = None) -> Source:
    """The file of a kernel. Equal kernels give equal bytes.

    Args:
        kernel: what to write.
        target: what it is for, where its launches depend on that.

    Raises:
        CodegenError: the template can't implement the function; the message says why.
    """
    body = emitter(kernel.implementation.template)(kernel)
    text = f'{header(kernel)}\n{body.strip()}\n\n\nif __name__ == "__main__":\n{_MAIN}'
    backend = kernel.implementation.backend
    if backend == "triton" and target is not None and (target.arch or 0) >= FIRST_ARCH:
        text = overlapping(text, kernel.name)
    return Source(kernel.name, backend, text)


_MAIN = """    from ringc.codegen.standalone import main

    main(__file__)
"""


def header(kernel: Kernel) -> str:
    """The docstring of a kernel file: the IR that it implements, its work, its traffic, how it is called."""
    function = kernel.function
    # What the choice was made by is in the module's text; here it would hide the IR.
    told = {name: note for name, note in function.notes.items() if name not in ("seconds", "lost", "measured")}
    flops, moved = cost_of(kernel)
    takes = ", ".join(a.name or f"in{i}" for i, a in enumerate(function.body.args))
    lines = [
        f'"""{kernel.family} kernel @{kernel.name}, made by {kernel.implementation}.',
        "",
        *print_function(Function(function.name, function.body, **told)).rstrip().splitlines(),
        "",
        f"FLOPs: {flops}    bytes: {moved}",
        f"Takes: {takes}; then one tensor for each result that is no state, and the workspaces. States are updated in place.",
        "Run this file to check the kernel against its reference and to time it.",
        '"""',
        "",
        "from __future__ import annotations" if kernel.implementation.backend != "triton" else "",
    ]
    return "\n".join(lines).rstrip() + "\n"


def cost_of(kernel: Kernel) -> tuple[str, str]:
    """FLOPs and bytes of a kernel as expressions of its sizes."""
    from ringc.ir.ops.cost import region_bytes

    flops = sum((op.flops() for op in kernel.function.body.ops), start=0)
    return dim_text(flops), dim_text(region_bytes(kernel.function.body))
