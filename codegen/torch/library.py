"""Template `torch.library`: one operation as PyTorch's own call, writing straight into the kernel's output."""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.torch.eager import emit as emit_eager
from ringc.ir.ops.mixers import Attention
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.types import DType


def emit(kernel: Kernel) -> str:
    """The file's body. What PyTorch has no single call for, as the experts' products in f32, is a loop of its calls.

    Raises:
        CodegenError: the operation has no torch form.
    """
    body = kernel.function.body
    (op,) = body.ops
    if isinstance(op, Attention) and op.q.type.dtype.bytes == 2:
        return _attention(op, argument_names(body, Names({"torch", "launch", "attend", "host", "READS_HOST", "out"})))
    names = Names({"torch", "launch", "out"})
    arguments = argument_names(body, names)
    if isinstance(op, SegmentMatMul) and op.x.type.dtype is op.result.type.dtype is DType.BF16:
        # It has no form that writes into a given tensor.
        call = f"out.copy_(torch._grouped_mm({names[op.x]}, {names[op.w]}.mT, offs={names[op.offsets]}[1:]))"
    elif isinstance(op, MatMul):
        right = names[op.b] + (".T" if op.transpose_b else "")
        wide = "" if op.result.type.dtype is op.a.type.dtype else ", out_dtype=out.dtype"
        call = f"torch.mm({names[op.a]}, {right}{wide}, out=out)"
    else:
        return emit_eager(kernel)
    return f"""import torch


def launch({", ".join(arguments)}, out):
    {call}
"""


def _attention(op: Attention, arguments: list[str]) -> str:
    """Softmax attention on a GPU: cuDNN's kernels, sequence by sequence, with lengths from the host.

    cuDNN's causal mask begins at the first key, so that a later part of a prompt is two calls, over what the cache held before and over the
    part itself, which are put together by their sums of exponentials.
    """
    q, keys, values, slots, offsets, positions = arguments
    return f'''import torch

READS_HOST = True
"""The lengths of sequences are read on the host, each time: it can't be captured into a CUDA graph."""

SCALE = {op.scale!r}


def host(numbers):
    """What the host knows of whole numbers on the device, as a list; asked of the device where it knows nothing."""
    return getattr(numbers, "ringc_host", numbers).tolist()


def attend(q, k, v, causal):
    """q [T, H, D] over k and v [S, G, D] of H / G heads each: results [T, H, D], and log-sum-exps of the scores [T, H, 1]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    if q.is_cuda:
        call = torch.ops.aten._scaled_dot_product_cudnn_attention
        made, sums, *_ = call(q, k, v, None, True, 0.0, causal, False, scale=SCALE)
        return made[0].transpose(0, 1), sums.reshape(q.shape[1], q.shape[2], 1).transpose(0, 1)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).float() for x in (k, v))
    scores = q.float() @ k.mT * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    sums = scores.logsumexp(-1, keepdim=True)
    return ((scores - sums).exp() @ v)[0].transpose(0, 1), sums[0].transpose(0, 1)


def launch({", ".join(arguments)}, out):
    ends, starts = host({offsets}), host({positions})
    for sequence, slot in enumerate(host({slots})):
        begin, end = ends[sequence], ends[sequence + 1]
        if begin == end:
            continue
        if slot < 0:
            out[begin:end] = 0
            continue
        before, after = starts[begin], starts[begin] + end - begin
        made, sums = attend({q}[begin:end], {keys}[slot, before:after], {values}[slot, before:after], True)
        if before:
            old, old_sums = attend({q}[begin:end], {keys}[slot, :before], {values}[slot, :before], False)
            share = torch.sigmoid(sums - old_sums)
            made = torch.lerp(old.float(), made.float(), share)
        out[begin:end] = made
'''
