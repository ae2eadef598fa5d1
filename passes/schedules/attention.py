"""Softmax attention on a GPU: how it is split, and the memory that it wants for that."""

from __future__ import annotations

from ringc.ir.core import Block
from ringc.ir.ops.mixers import Attention
from ringc.ir.symbols import least, mul
from ringc.ir.types import DType, TensorType
from ringc.passes.target import Target

BLOCKS = 128
"""Blocks of threads that one token is given."""


def few_tokens(shared: int, target: Target) -> int:
    """The most tokens that leave processors idle with a block for each token and each head of the keys.

    Up to there the keys of a token are split among blocks, so that a single sequence is no matter of a few processors.
    """
    return -(-target.width // shared) - 1


def implementation(body: Block, few: int) -> tuple[str, tuple[TensorType, ...]]:
    """The template, which splits the keys of up to `few` tokens, and its workspaces: partial outputs, and their statistics."""
    (op,) = (o for o in body.ops if isinstance(o, Attention))
    splits = max(2, min(64, BLOCKS // int(op.cache.shape[1])))
    splits = 1 << (splits.bit_length() - 1)
    tokens, heads, d = op.q.shape
    parts = mul(mul(least(tokens, few), heads), splits)
    workspace = (TensorType(DType.F32, (parts, d)), TensorType(DType.F32, (parts, 2)))
    return f"triton.attention{{splits={splits},few={few}}}", workspace
