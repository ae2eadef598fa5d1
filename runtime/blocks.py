"""Memory for many tensors in one block."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from math import prod

import torch

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""

LARGE_PAGE = 2 << 20
"""Bytes of a large page."""


def zeros(shapes: Mapping[str, tuple[Sequence[int], torch.dtype]], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors full of zeros in one block of memory, each at the beginning of a cache line.

    On a CPU the block asks for large pages: weights are streamed from memory, and pages of 2 MB let a product with one row read 34 GB/s
    where pages of 4 kB let it read 28.

    Args:
        shapes: shape and type by name.
        device: where they go.
    """
    starts, top = {}, 0
    for name, (shape, dtype) in shapes.items():
        starts[name] = top
        top += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    block = _large_pages(top) if device.type == "cpu" else torch.zeros(top, dtype=torch.uint8, device=device)
    return {
        name: block[starts[name] : starts[name] + prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))
        for name, (shape, dtype) in shapes.items()
    }


def _large_pages(size: int) -> torch.Tensor:
    """Zeros, uint8[size], in memory of its own; with large pages where the system has them."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < LARGE_PAGE:
        return torch.zeros(size, dtype=torch.uint8)
    # Private: the default, memory shared with child processes, has no large pages.
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    block = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory alive
    start = -block.data_ptr() % LARGE_PAGE
    return block[start : start + size]
