"""Grouping rows by a key on a GPU: how much one program sorts, and the memory that more than one need."""

from __future__ import annotations

from ringc.ir.ops.index import SortByKey
from ringc.ir.symbols import ceildiv
from ringc.ir.types import DType, TensorType

BLOCK = 512
"""Rows that one program ranks: the rows of a decode step take one launch, and 8192 tokens with 8 experts each keep 128 programs busy."""


def workspace(op: SortByKey) -> tuple[TensorType, ...]:
    """i32[ceil(R / BLOCK), keys]: what stands before each block of rows."""
    return (TensorType(DType.I32, (ceildiv(op.keys.shape[0], BLOCK), op.num_keys)),)
