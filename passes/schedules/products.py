"""Dense and expert products: one row streams the weight, many rows are tiled."""

from __future__ import annotations

from dataclasses import replace

import sympy

from ringc.ir.core import Block
from ringc.ir.ops.cost import region_bytes
from ringc.ir.ops.products import ExpertProduct, GatherMatMul, MatMul
from ringc.ir.symbols import Dim, add
from ringc.passes.front import before_product, parted
from ringc.passes.schedules.model import Candidate, Rows, roofline
from ringc.passes.target import Target

TENSOR_CORE_ROWS = 16
"""Rows up to which `triton.matmul` streams the weight, in a function beside that of the tiles: the height of a tensor core's tile."""

STREAMED, TILED = 0.85, 0.65
"""Shares of a GPU's bandwidth that a product reaches which streams the weight, and one of tiles with few of them.

H100, 2048 -> 8192, us of `triton.matmul` and of cuBLAS: 16 rows 20.0 and 20.7, 64 rows 25.1 and 20.8, 512 rows 35.6 and 31.1.
"""

ROWS_OF_EXPERTS = 16
"""Tokens up to which a GPU takes experts' weights row by row, and doesn't sort its rows: few of them share an expert.

H100, ring-mini: sorted and in tiles a step of 4, 8 and 16 sequences took 2.43, 3.48 and 5.09 ms; sorted and row by row 2.34, 3.40 and 5.14;
unsorted 2.29 and 5.15 for 4 and 16.
"""

MAKING = 0.6e-6
"""Seconds by which a GPU's product of one row takes longer when it makes its left operand itself.

H100: a gate and 2048 -> 2048 5.4 us, of which reading the weight at the rate of a copy takes 2.8 and a launch 1.8.
"""

ONE_ROW = "it is for one row, or a few of experts: with each further one all of its weight is read once more"


def dense(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    """Candidates of a product with a weight, which may have row work in front of its left operand."""
    front, product = parted(body)
    if front is None:
        return alone(body, rows, target)
    if target.backend == "triton":
        return [_making(body, rows, target)]
    # What it saves is a launch; eager PyTorch saves none. TVM keeps the left operand in memory, which stays in the cache.
    launches = 1 if target.backend == "torch" else 0
    flops, moved = flops_of(front), region_bytes(front)
    row_work = roofline(target, flops, moved, rate=target.vector_rate, bandwidth=0.8, launches=launches)
    return [replace(c, seconds=c.seconds + row_work) for c in alone(product, rows, target)]


def gemv(body: Block, rows: Rows, target: Target) -> Candidate:
    """A GPU's product of one row, or of rows that have an expert each."""
    once = roofline(target, flops_of(body), touched_bytes(body), rate=0.3 * target.vector_rate)
    most = ROWS_OF_EXPERTS if any(isinstance(op, GatherMatMul) for op in body.ops) else 1
    return Candidate("triton.gemv", once + _again(body, target), "" if 1 <= rows[1] <= most else ONE_ROW)


def _making(body: Block, rows: Rows, target: Target) -> Candidate:
    """A GPU's product that makes its left operand itself."""
    made = gemv(body, rows, target)
    return replace(made, seconds=made.seconds + sympy.Float(MAKING), illegal=before_product(body) or made.illegal)


def alone(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    """Candidates of a product with nothing in front."""
    flops, moved = flops_of(body), region_bytes(body)
    if target.backend == "triton":
        bandwidth = STREAMED if 1 <= rows[1] <= TENSOR_CORE_ROWS else TILED
        seconds = roofline(target, flops, moved, rate=0.8 * target.matrix_rate, bandwidth=bandwidth)
        tiled = Candidate("triton.matmul", seconds, limit=TENSOR_CORE_ROWS)
        return [gemv(body, rows, target), tiled] if rows[1] == 1 else [tiled]
    if target.backend == "torch":
        return [Candidate("torch.eager", roofline(target, flops, moved, rate=target.matrix_rate))]
    # 150 MB of weights: one row at a time 52 GB/s, but the weight again for each row; tiles of 8 rows 30 GB/s, and the full rate.
    # Their crossover, 512 -> 2048, 36 weights in turn, on a busy machine: alike for one row, tiles faster from 2 rows on, as predicted.
    count = next(op.result.shape[0] for op in body.ops if isinstance(op, MatMul))
    once = sympy.sympify(moved).subs(count, 1)
    single = count * once / sympy.Float(target.bandwidth) + target.launch
    tiled = roofline(target, flops, moved, rate=target.matrix_rate, bandwidth=0.6)
    block = _block(body)
    return [
        Candidate(f"tvm.matmul{{rows=1,block={block}}}", single),
        Candidate(f"tvm.matmul{{rows=8,block={block}}}", tiled),
    ]


def grouped(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    """Candidates of an expert product."""
    flops, moved = flops_of(body), touched_bytes(body)
    if target.backend == "triton":
        # H100, 256 experts of ring-mini, 512 tokens: up 390 us, down 202, 92 and 89 % of a copy's rate.
        seconds = roofline(target, flops, moved, rate=0.6 * target.matrix_rate, bandwidth=0.9)
        if not any(isinstance(op, GatherMatMul) for op in body.ops):
            # A processor of an A100 has 163 KiB of shared memory, and a wide tile takes 168 there.
            narrow = (target.arch or 0) < 90
            return [Candidate("triton.grouped{columns=128}" if narrow else "triton.grouped", seconds)]
        alone = all(op.inputs()[0].op is None for op in body.ops if isinstance(op, GatherMatMul | MatMul))
        return [gemv(body, rows, target) if alone else _making(body, rows, target)]
    if target.backend == "torch":
        return [Candidate("torch.eager", roofline(target, flops, moved, rate=0.3 * target.matrix_rate, launches=64))]
    # 18 or 36 weights in turn, 4 experts for each token, both products together. 32 experts, 512 -> 48: 1 token takes 10.9 us row by row
    # and 11.8 tiled, 3 tokens 51 and 48, 8 tokens 137 and 119, 32 tokens 352 and 222. 16 experts, 128 -> 16: 4 tokens 5.0 and 5.3, 8 tokens
    # 6.8 and 6.0, 32 tokens 15.5 and 9.3. So tiles win from 3 and from about 6 tokens on; 3 and 7 are predicted.
    by_row = roofline(target, 0, moved, rate=1.0, bandwidth=0.6) + _again(body, target)
    tiled = roofline(target, flops, moved, rate=0.85 * target.matrix_rate, bandwidth=0.6) + sympy.Float(0.5e-6)
    return [Candidate("tvm.grouped_few{block=16}", by_row), Candidate("tvm.grouped_tiled{rows=8,block=16}", tiled)]


def _block(body: Block) -> int:
    """Columns of a dense weight's panels: 32, or 16 where the last panel would be filling for the most part.

    Few rows stream wide panels faster (8 rows, 512 -> 3072: 304 us, with 16 columns 403); 48 columns in panels of 32 cost a third more.
    """
    width = next(int(op.result.shape[1]) for op in body.ops if isinstance(op, MatMul))
    return 32 if 10 * (-width % 32) <= width else 16


def touched_bytes(body: Block) -> Dim:
    """The bytes that a region moves, of the experts' weights as many as its rows touch on average."""
    moved = region_bytes(body)
    for op in body.ops:
        if isinstance(op, ExpertProduct):
            # Rows choose independently: an expert is left out by all of them with probability (1 - 1/E)^rows.
            touched = 1 - sympy.exp(-op.rows / sympy.Integer(op.w.shape[0]))
            moved += op.w.type.bytes * touched - op.weight_bytes()
    return moved


def _again(body: Block, target: Target) -> sympy.Expr:
    """Seconds in which a kernel of single rows reads weights again for the second and later rows of each expert: from a cache, which is
    taken for four times as fast as memory.
    """
    total = sympy.Integer(0)
    for op in body.ops:
        if isinstance(op, ExpertProduct):
            rows, count = op.rows, sympy.Integer(op.w.shape[0])
            total += (rows - count * (1 - sympy.exp(-rows / count))) * op.w.type.bytes / count
    return total / sympy.Float(4 * target.bandwidth)


def flops_of(body: Block) -> Dim:
    """All floating-point operations of a region."""
    total: Dim = 0
    for op in body.ops:
        total = add(total, op.flops())
    return total
