"""Weights in memory: how a tensor with a blocked layout is stored, and how a part of it is written and read.

A layout of one `(axis, size)` cuts that axis into blocks and puts the inside of a block behind all other axes: `[M, K]` with `(0, 32)` is
stored as `[ceil(M / 32), K, 32]`, filled up with zeros. This module needs torch alone: an artifact's loader uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

Blocks = Sequence[Sequence[int]]
Region = Sequence[tuple[int, int]]
"""Start and stop on each axis."""


def storage_shape(shape: Sequence[int], blocks: Blocks) -> tuple[int, ...]:
    """The shape of the storage of a tensor."""
    sizes = {block[0]: block[1] for block in blocks}
    outer = tuple(-(-n // sizes.get(i, 1)) for i, n in enumerate(shape))
    return outer + tuple(size for _, size in blocks)


def write_part(storage: torch.Tensor, blocks: Blocks, region: Region, part: torch.Tensor) -> None:
    """Store `part`, which is the region of the logical tensor; types are converted."""
    for there, here in _pieces(storage, part, blocks, region):
        there.copy_(here)


def read_part(storage: torch.Tensor, blocks: Blocks, region: Region) -> torch.Tensor:
    """The region of the logical tensor, in row-major order."""
    part = storage.new_empty([stop - start for start, stop in region])
    for there, here in _pieces(storage, part, blocks, region):
        here.copy_(there)
    return part


def pack(x: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """The storage of a whole tensor."""
    storage = x.new_zeros(storage_shape(x.shape, blocks))
    write_part(storage, blocks, [(0, n) for n in x.shape], x)
    return storage


def unpack(storage: torch.Tensor, shape: Sequence[int], blocks: Blocks) -> torch.Tensor:
    """The whole tensor of a storage."""
    return read_part(storage, blocks, [(0, n) for n in shape])


def _pieces(
    storage: torch.Tensor, part: torch.Tensor, blocks: Blocks, region: Region
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of the storage and of the part that hold the same elements in the same order."""
    if not blocks:
        yield storage[tuple(slice(a, b) for a, b in region)], part
        return
    if len(blocks) > 1:
        raise ValueError(f"a layout of several blocked axes can't be written in parts: {blocks}")
    ((axis, size),) = blocks
    logical = storage.movedim(-1, axis + 1)  # [..., outer, inside of the block, ...]
    before = tuple(slice(a, b) for a, b in region[:axis])
    behind = tuple(slice(a, b) for a, b in region[axis + 1 :])
    at, stop = region[axis]
    done = 0
    while at < stop:
        block, inside = divmod(at, size)
        whole = (stop - at) // size if inside == 0 else 0
        if whole:
            here = torch.unflatten(part.narrow(axis, done, whole * size), axis, (whole, size))  # type: ignore[no-untyped-call]
            yield logical[(*before, slice(block, block + whole), slice(None), *behind)], here
            count = whole * size
        else:
            count = min(size - inside, stop - at)
            at_block: tuple[int | slice, ...] = (*before, block, slice(inside, inside + count), *behind)
            yield logical[at_block], part.narrow(axis, done, count)
        at, done = at + count, done + count
