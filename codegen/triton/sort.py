"""Stable grouping of rows by a small key on GPUs: order, offsets and places, without atomics and without a word from the host.

Up to one block of rows take one launch; more take three. Every step counts or ranks by comparing a few rows with all keys at once, in
the order of the rows, so that equal keys keep their order and two runs give the same bits.
"""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import Job, jobs_text, padded
from ringc.codegen.triton.signature import RESERVED
from ringc.errors import CodegenError
from ringc.ir.ops.index import SortByKey
from ringc.passes.schedules.routing import SORT_BLOCK

_RESERVED = (
    *RESERVED, "pinned", "order", "offsets", "places", "counts", "rows", "blocks", "BLOCK", "count", "scan", "place", "sort_block",
)  # fmt: skip


def emit(kernel: Kernel) -> str:
    """`triton.sort`: one sort_by_key. The workspace i32[ceil(R / SORT_BLOCK), keys] holds what stands before each block of rows.

    Raises:
        CodegenError: the region is more than a sort_by_key.
    """
    body = kernel.function.body
    if len(body.ops) != 1 or not isinstance(body.ops[0], SortByKey) or list(body.ops[0].results) != list(body.outputs):
        raise CodegenError(f"@{kernel.name}: this template takes sort_by_key alone")
    op = body.ops[0]
    (keys,) = argument_names(body, Names(_RESERVED))
    size, tile = op.num_keys, padded(op.num_keys)
    # A step's comparisons are a tile of rows by keys: 8192 elements for up to 256 keys, as few rows as 16 beyond; sums along more than 256
    # rows take more registers than there are.
    step = max(16, min(SORT_BLOCK, 256, 8192 // tile))
    pointers = {"keys": "*i32", "order": "*i32", "offsets": "*i32", "places": "*i32", "counts": "*i32"}

    def job(name: str, wanted: str, constants: dict[str, int], warps: int) -> Job:
        signature = {n: pointers.get(n, "i32") for n in wanted.split()}
        return Job(name, signature, {"KEYS": size, "TILE": tile, **constants}, num_warps=warps, num_stages=1)

    jobs = [
        job("sort_block", "keys order offsets places rows", {"STEP": step}, 8),
        job("count", "keys places counts rows", {"BLOCK": SORT_BLOCK, "STEP": step}, 4),
        job("scan", "counts offsets rows blocks", {"STEP": step}, 8),
        job("place", "keys order offsets places counts rows", {"BLOCK": SORT_BLOCK}, 4),
    ]
    return f'''import triton
import triton.language as tl

{jobs_text(jobs)}


@triton.jit(do_not_specialize=["rows"])
def sort_block(keys, order, offsets, places, rows, KEYS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """All of it by one program, for as many rows as one ranks."""
    key = tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.int32)
    for start in range(0, rows, STEP):
        row = start + tl.arange(0, STEP)
        hit = (tl.load(keys + row, mask=row < rows, other=-1)[:, None] == key[None, :]).to(tl.int32)
        total += tl.sum(hit, 0)
    begin = tl.cumsum(total, 0) - total
    tl.store(offsets + key, begin, mask=key < KEYS)
    tl.store(offsets + KEYS, rows)
    for start in range(0, rows, STEP):
        row = start + tl.arange(0, STEP)
        hit = (tl.load(keys + row, mask=row < rows, other=-1)[:, None] == key[None, :]).to(tl.int32)
        # Of each row: the first place of its key, and the rows before it that have the same one.
        at = tl.sum((tl.cumsum(hit, 0) - hit + begin[None, :]) * hit, 1)
        tl.store(places + row, at, mask=row < rows)
        tl.store(order + at, row, mask=row < rows)
        begin += tl.sum(hit, 0)


@triton.jit(do_not_specialize=["rows"])
def count(keys, places, counts, rows, KEYS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Of each block of rows: how many have each key, and how many before each row have its key (in `places`, for the time being)."""
    block = tl.program_id(0)
    key = tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.int32)
    for start in range(0, BLOCK, STEP):
        row = block * BLOCK + start + tl.arange(0, STEP)
        hit = (tl.load(keys + row, mask=row < rows, other=-1)[:, None] == key[None, :]).to(tl.int32)
        tl.store(places + row, tl.sum((tl.cumsum(hit, 0) - hit + total[None, :]) * hit, 1), mask=row < rows)
        total += tl.sum(hit, 0)
    tl.store(counts + block.to(tl.int64) * KEYS + key, total, mask=key < KEYS)


@triton.jit(do_not_specialize=["rows", "blocks"])
def scan(counts, offsets, rows, blocks, KEYS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """One program: the blocks' counts become what stands before each block, and their sums the offsets."""
    key = tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.int32)
    for start in range(0, blocks, STEP):
        block = start + tl.arange(0, STEP)
        at = block[:, None].to(tl.int64) * KEYS + key[None, :]
        inside = (block < blocks)[:, None] & (key < KEYS)[None, :]
        number = tl.load(counts + at, mask=inside, other=0)
        tl.store(counts + at, tl.cumsum(number, 0) - number + total[None, :], mask=inside)
        total += tl.sum(number, 0)
    tl.store(offsets + key, tl.cumsum(total, 0) - total, mask=key < KEYS)
    tl.store(offsets + KEYS, rows)


@triton.jit(do_not_specialize=["rows"])
def place(keys, order, offsets, places, counts, rows, KEYS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Each row's place: its key's first, the blocks before, the rows before in its block."""
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    key = tl.load(keys + row, mask=inside, other=0)
    at = tl.load(offsets + key, mask=inside, other=0) + tl.load(places + row, mask=inside, other=0)
    at += tl.load(counts + block.to(tl.int64) * KEYS + key, mask=inside, other=0)
    tl.store(places + row, at, mask=inside)
    tl.store(order + at, row, mask=inside)


BLOCK = {SORT_BLOCK}
"""Rows that one program sorts; the workspace has a row for each block."""


def launch({keys}, order, offsets, places, counts):
    rows = {keys}.shape[0]
    blocks = -(-rows // BLOCK)
    if blocks <= 1:
        sort_block[(1,)]({keys}, order, offsets, places, rows, **pinned(JOBS[0]))
        return
    count[(blocks,)]({keys}, places, counts, rows, **pinned(JOBS[1]))
    scan[(1,)](counts, offsets, rows, blocks, **pinned(JOBS[2]))
    place[(blocks,)]({keys}, order, offsets, places, counts, rows, **pinned(JOBS[3]))
'''
