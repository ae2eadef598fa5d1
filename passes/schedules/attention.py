"""Softmax attention on a GPU: which template serves which row counts, and the memory of the split one."""

from __future__ import annotations

from ringc.ir.core import Block
from ringc.ir.ops.mixers import Attention
from ringc.ir.symbols import mul
from ringc.ir.types import DType, TensorType
from ringc.passes.schedules.model import FEW, Rows

BLOCKS = 128
"""Blocks of threads that one token is given."""


def implementation(body: Block, rows: Rows) -> tuple[str, tuple[TensorType, ...]]:
    """The template with its configuration, and its workspaces: f32[N * H * splits, D] partial outputs, f32[..., 2] their statistics."""
    (op,) = (o for o in body.ops if isinstance(o, Attention))
    # For few tokens the keys are split, so that a single sequence keeps all processors busy.
    if not 0 < rows[1] <= FEW:
        return "triton.attention_prefill", ()
    tokens, heads, d = op.q.shape
    splits = max(2, min(64, BLOCKS // int(op.cache.shape[1])))
    splits = 1 << (splits.bit_length() - 1)
    parts = mul(mul(tokens, heads), splits)
    workspace = (TensorType(DType.F32, (parts, d)), TensorType(DType.F32, (parts, 2)))
    return f"triton.attention_decode{{splits={splits}}}", workspace
