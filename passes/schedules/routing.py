"""Routing and grouping by expert on a GPU: how the work is cut, and the memory that it takes."""

from __future__ import annotations

import sympy

from ringc.ir.core import Block
from ringc.ir.ops.index import SortByKey
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.routing import Route
from ringc.ir.symbols import Dim, ceildiv
from ringc.ir.types import DType, TensorType

SORT_BLOCK = 512
"""Rows that one program counts: 8192 tokens with 8 experts each keep 128 programs busy."""

PRODUCT_RATE = 0.3
"""Share of a large product's rate that the router's product reaches. cuBLAS and a choice apart are faster from a thousand rows on.

H100, 2048 -> 256, in us against apart: 64 rows 9.4 (11.1), 512 rows 11.3 (12.3), 1024 rows 13.8 (13.4), 2048 rows 19.8 (15.7).
"""

ROUTE_ROWS = 4096
"""Rows of partial logits: as many parts as fit are made of a product with few rows, to read the router's weight with all processors."""


def sort_workspace(op: SortByKey) -> tuple[TensorType, ...]:
    """i32[ceil(R / SORT_BLOCK), keys]: what stands before each block of rows."""
    return (TensorType(DType.I32, (ceildiv(op.keys.shape[0], SORT_BLOCK), op.num_keys)),)


def route_workspace(body: Block) -> tuple[TensorType, ...]:
    """f32[max(N, ROUTE_ROWS), E]: the logits, in parts; none where the region takes logits."""
    (op,) = (o for o in body.ops if isinstance(o, Route))
    if not any(isinstance(o, MatMul) for o in body.ops):
        return ()
    rows: Dim = op.logits.shape[0]
    most: Dim = max(rows, ROUTE_ROWS) if isinstance(rows, int) else sympy.Max(rows, ROUTE_ROWS)
    return (TensorType(DType.F32, (most, op.experts)),)
