"""Softmax attention on a GPU: which template serves which row counts, and the memory of the split one."""

from __future__ import annotations

from ringc.ir.core import Block
from ringc.ir.ops.mixers import Attention
from ringc.ir.symbols import mul
from ringc.ir.types import DType, TensorType
from ringc.passes.schedules.model import Rows, tokens_of
from ringc.passes.target import Target

BLOCKS = 128
"""Blocks of threads that one token is given."""


def few_tokens(shared: int, target: Target) -> int:
    """The least number of tokens that keep all processors busy with a block for each token and each head of the keys.

    Below it the keys of a token are split among blocks, so that a single sequence is no matter of a few processors.
    """
    return -(-target.width // shared)


def implementation(body: Block, rows: Rows, target: Target) -> tuple[str, tuple[TensorType, ...]]:
    """The template with its configuration, and its workspaces: f32[N * H * splits, D] partial outputs, f32[..., 2] their statistics."""
    (op,) = (o for o in body.ops if isinstance(o, Attention))
    shared = int(op.cache.shape[1])
    if tokens_of(rows) >= few_tokens(shared, target):
        return "triton.attention_prefill", ()
    tokens, heads, d = op.q.shape
    splits = max(2, min(64, BLOCKS // shared))
    splits = 1 << (splits.bit_length() - 1)
    parts = mul(mul(tokens, heads), splits)
    workspace = (TensorType(DType.F32, (parts, d)), TensorType(DType.F32, (parts, 2)))
    return f"triton.attention_decode{{splits={splits}}}", workspace
