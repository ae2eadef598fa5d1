"""Stable grouping of rows by a small key on GPUs: order, offsets and places, without atomics and without a word from the host.

Up to `RANKED` rows take one launch, in which each row is compared with all others; more take three, which count the rows of each key block
by block. Equal keys keep the order of their rows, and two runs give the same bits.
"""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import Job, jobs_text, padded
from ringc.codegen.triton.signature import RESERVED
from ringc.errors import CodegenError
from ringc.ir.ops.index import SortByKey
from ringc.passes.schedules.routing import SORT_BLOCK

RANKED = 8192
"""Rows up to which all pairs are compared: 67 million comparisons, 5 us on an H100, where counting takes 25."""

_RESERVED = (
    *RESERVED, "pinned", "order", "offsets", "places", "counts", "rows", "blocks", "BLOCK", "count", "scan", "place", "rank", "RANKED",
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
    pointers = dict.fromkeys(("keys", "order", "offsets", "places"), "*i32")

    def job(name: str, wanted: str, constants: dict[str, int], warps: int) -> Job:
        signature = {n: "*i32" if n in pointers or n == "counts" else "i32" for n in wanted.split()}
        return Job(name, signature, {"KEYS": size, "TILE": tile, **constants}, num_warps=warps, num_stages=1)

    jobs = [
        Job("rank", {**pointers, "rows": "i32"}, {"KEYS": size, "ITEMS": 16, "STEP": 512}, num_warps=4, num_stages=1),
        job("count", "keys places counts rows", {"BLOCK": SORT_BLOCK, "STEP": step}, 4),
        job("scan", "counts offsets rows blocks", {"STEP": step}, 8),
        job("place", "keys order offsets places counts rows", {"BLOCK": SORT_BLOCK}, 4),
    ]
    return f'''import triton
import triton.language as tl

{jobs_text(jobs)}


@triton.jit(do_not_specialize=["rows"])
def rank(keys, order, offsets, places, rows, KEYS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr):
    """The place of each row, then the first place of each key: as many rows as have a lower key, or the same and a lower number."""
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    is_row = item < rows
    key = tl.load(keys + item, mask=is_row, other=0)
    mine = tl.where(is_row, key * rows + item, (item - rows) * rows)
    at = tl.zeros([ITEMS], dtype=tl.int32)
    for start in range(0, rows, STEP):
        row = start + tl.arange(0, STEP)
        other = tl.load(keys + row, mask=row < rows, other=KEYS) * rows + row
        at += tl.sum((other[None, :] < mine[:, None]).to(tl.int32), 1)
    tl.store(places + item, at, mask=is_row)
    tl.store(order + at, item, mask=is_row)
    tl.store(offsets + (item - rows), at, mask=(item >= rows) & (item <= rows + KEYS))


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


RANKED = {RANKED}
"""Rows up to which comparing all pairs of them is faster than counting."""

BLOCK = {SORT_BLOCK}
"""Rows that one program sorts; the workspace has a row for each block."""


def launch({keys}, order, offsets, places, counts):
    rows = {keys}.shape[0]
    if rows <= RANKED:
        rank[(-(-(rows + {size} + 1) // 16),)]({keys}, order, offsets, places, rows, **pinned(JOBS[0]))
        return
    blocks = -(-rows // BLOCK)
    count[(blocks,)]({keys}, places, counts, rows, **pinned(JOBS[1]))
    scan[(1,)](counts, offsets, rows, blocks, **pinned(JOBS[2]))
    place[(blocks,)]({keys}, order, offsets, places, counts, rows, **pinned(JOBS[3]))
'''
