"""Dense and expert products: one row streams the weight, many rows are tiled."""

from __future__ import annotations

import sympy

from ringc.ir.core import Block
from ringc.ir.ops.cost import region_bytes
from ringc.ir.ops.products import SegmentMatMul
from ringc.ir.symbols import Dim, add
from ringc.passes.schedules.model import Candidate, N, roofline
from ringc.passes.target import Target


def dense(body: Block, target: Target) -> list[Candidate]:
    """Candidates of a product with a weight."""
    flops, moved = flops_of(body), region_bytes(body)
    if target.backend == "triton":
        return [
            Candidate("triton.matmul", roofline(target, flops, moved, rate=0.8 * target.matrix_rate, bandwidth=0.85))
        ]
    if target.backend == "torch":
        return [Candidate("torch.eager", roofline(target, flops, moved, rate=target.matrix_rate))]
    # 150 MB of weights: one row at a time 52 GB/s, but the weight again for each row; tiles of 8 rows 30 GB/s, and the full rate.
    once = sympy.sympify(moved).subs(N, 1)
    single = N * once / sympy.Float(target.bandwidth) + target.launch
    tiled = roofline(target, flops, moved, rate=target.matrix_rate, bandwidth=0.6)
    return [Candidate("tvm.matmul{rows=1,block=32}", single), Candidate("tvm.matmul{rows=8,block=32}", tiled)]


def grouped(body: Block, target: Target) -> list[Candidate]:
    """Candidates of an expert product."""
    flops, moved = flops_of(body), touched_bytes(body)
    if target.backend == "triton":
        return [
            Candidate("triton.grouped", roofline(target, flops, moved, rate=0.6 * target.matrix_rate, bandwidth=0.8))
        ]
    if target.backend == "torch":
        return [Candidate("torch.eager", roofline(target, flops, moved, rate=0.3 * target.matrix_rate, launches=64))]
    # Row by row, each reads its expert's weight: 4 bytes for 2 operations. Tiled, every expert is read once, and tiles are part empty.
    by_row = sympy.sympify(flops) * 2 / sympy.Float(target.bandwidth) + target.launch
    tiled = roofline(target, flops, moved, rate=0.85 * target.matrix_rate, bandwidth=0.6) + 2 * target.launch
    return [Candidate("tvm.grouped_few{block=32}", by_row), Candidate("tvm.grouped_tiled{rows=8,block=32}", tiled)]


def touched_bytes(body: Block) -> Dim:
    """The bytes that a region moves, of the experts' weights only those that its rows can touch."""
    moved = region_bytes(body)
    for op in body.ops:
        if isinstance(op, SegmentMatMul):
            rows, experts = op.x.shape[0], op.w.shape[0]
            moved += op.w.type.bytes * (sympy.Min(1, rows / sympy.Integer(experts), evaluate=False) - 1)
    return moved


def flops_of(body: Block) -> Dim:
    """All floating-point operations of a region."""
    total: Dim = 0
    for op in body.ops:
        total = add(total, op.flops())
    return total
