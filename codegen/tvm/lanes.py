"""Sums across the lanes of vectors, for generated kernels, as shuffles that every instruction set has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

Expr = Any
"""A TVM expression, scalar or vector."""

LANES = 16


def load(buffer: Any, *index: Expr) -> Expr:
    """The first 16 elements of a buffer, or of its row at an index."""
    return buffer[(*index, tirx.Ramp(0, 1, LANES))]


def folded(a: Expr, b: Expr, half: int) -> Expr:
    """Two vectors of 16 lanes as one: runs of `2 half` lanes of both, each run folded to `half` lanes.

    Folded so with `half` = 8, 4, 2, 1, always two neighbours, 16 vectors end as one that holds their sums in order: 45 instructions
    where 16 separate sums take 128.
    """
    low = [run + lane for run in range(0, 2 * LANES, 2 * half) for lane in range(half)]
    return tirx.Shuffle([a, b], low) + tirx.Shuffle([a, b], [lane + half for lane in low])


def sums(vectors: Sequence[Expr]) -> Expr:
    """The sum of each of 16 vectors of 16 lanes, as one vector."""
    half = LANES // 2
    while len(vectors) > 1:
        vectors = [folded(a, b, half) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        half //= 2
    return vectors[0]
