"""What a call of PyTorch costs, beside which generated kernels have to be faster."""

from __future__ import annotations

import sympy

from ringc.ir.core import Block, Op
from ringc.ir.ops.mixers import Attention
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.types import DType
from ringc.passes.schedules.model import Candidate, Rows, roofline, tokens_of
from ringc.passes.schedules.products import flops_of, touched_bytes
from ringc.passes.target import TARGETS, Target

LONG_PROMPT = 2048
"""Tokens of each sequence, on average, from which a prompt's softmax attention may be PyTorch's call on a GPU.

The call wants lengths on the host, so that a program with it can't be a CUDA graph, and it sets itself up anew for each length: both are
small beside a long prompt.
"""

EXPERTS_RATE = 0.6
"""Share of a large product's rate that `torch._grouped_mm` reaches. It gives back a tensor of its own, which is copied.

H100, 256 experts of ring-mini, us against the generated kernels': 512 -> 2048 of 512 tokens 230, with the copy 240 (197), of 8192 tokens
390 and 573 (412), of 32768 tokens 1185 and 1986 (1262); gate and up alone 430 (394 with gather and SwiGLU), 714 (675), 1848 (2008).
"""

GROUPED_ARCH = 90
"""Compute capability times ten from which PyTorch has it as one kernel."""

WIDEST_HEAD = 128
"""Numbers of a head that cuDNN's attention takes at most on every GPU in question."""

SLOW_ROWS = 16
"""Rows up to which MKL runs far below its rate. Measured for 8; where it ends was not."""


def call(body: Block, rows: Rows, target: Target) -> Candidate:
    """PyTorch's call for the one operation of a region."""
    (op,) = body.ops
    flops = sympy.sympify(flops_of(body))
    if target.backend == "triton":
        # cuBLAS reaches the rate that a target's `matrix_rate` is measured with. cuDNN's attention: 569 of 700 TFLOP/s for 8192 tokens.
        rate, bandwidth = {Attention: (0.8, 0.85), SegmentMatMul: (EXPERTS_RATE, 0.75)}.get(type(op), (1.0, 0.85))
        seconds = roofline(target, flops, touched_bytes(body), rate=rate * target.matrix_rate, bandwidth=bandwidth)
        if isinstance(op, SegmentMatMul):  # what it makes is copied to where it is wanted
            seconds += roofline(target, 0, 2 * op.result.type.bytes, rate=1.0, bandwidth=0.85)
        return Candidate("torch.library", seconds, _on_gpu(op, rows, target))
    # MKL, 512 -> 1536: 77 us for one row, 336 us for 8, 18.6 ms for 2048: few rows run at a quarter of its rate.
    host = target.library or TARGETS["torch"]
    slow = rows[1] > 1 and tokens_of(rows) <= SLOW_ROWS
    rate, calls = host.matrix_rate / (4 if slow else 1), sympy.Integer(1)
    match op:
        case SegmentMatMul():
            calls = sympy.Min(int(op.w.shape[0]), op.x.shape[0], evaluate=False)  # one for each expert that has rows
        case Attention():
            rate, calls = 0.3 * rate, 8 * op.slots.shape[0]  # for each sequence
        case _:
            pass
    seconds = roofline(host, flops, touched_bytes(body), rate=rate, launches=0) + calls * sympy.Float(host.launch)
    return Candidate("torch.library", seconds)


def _on_gpu(op: Op, rows: Rows, target: Target) -> str:
    """Why a call can't stand in an entry point on a GPU, if so."""
    if isinstance(op, Attention) and rows[0] >= LONG_PROMPT:
        width = int(op.q.shape[2])
        fits = op.q.type.dtype.bytes == 2 and width % 8 == 0 and width <= WIDEST_HEAD
        return "" if fits else f"cuDNN takes heads of up to {WIDEST_HEAD} numbers of two bytes, a multiple of 8"
    if isinstance(op, SegmentMatMul):
        fits = op.x.type.dtype is DType.BF16 and op.result.type.dtype is DType.BF16
        fits = fits and all(int(d) % 8 == 0 for d in op.w.shape[1:])
        if (target.arch or 0) < GROUPED_ARCH or not fits:
            return f"torch._grouped_mm takes bf16 in rows of a multiple of 8 and gives bf16, from sm_{GROUPED_ARCH} on"
        return ""
    if not isinstance(op, MatMul):
        return "PyTorch's call needs the segments' sizes on the host, which would wait for the GPU"
    given, made = op.a.type.dtype, op.result.type.dtype
    if made is not given and not (given.bytes == 2 and made is DType.F32):
        return f"PyTorch's call gives back {given} or f32, and {made} is wanted"
    return ""
