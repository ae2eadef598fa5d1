"""Template `torch.library`: one operation as PyTorch's own call, writing straight into the kernel's output."""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.torch.eager import emit as emit_eager
from ringc.ir.ops.products import MatMul


def emit(kernel: Kernel) -> str:
    """The file's body. What PyTorch has no single call for, as the experts' products, is a loop of its calls.

    Raises:
        CodegenError: the operation has no torch form.
    """
    body = kernel.function.body
    (op,) = body.ops
    if not isinstance(op, MatMul):
        return emit_eager(kernel)
    names = Names({"torch", "launch", "out"})
    arguments = argument_names(body, names)
    right = names[op.b] + (".T" if op.transpose_b else "")
    return f"""import torch


def launch({", ".join(arguments)}, out):
    torch.mm({names[op.a]}, {right}, out=out)
"""
