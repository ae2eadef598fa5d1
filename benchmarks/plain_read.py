"""What a GPU takes to read: the time that kernels bound by reading weights are held against."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks.gpu import microseconds

WORDS = 4096
"""Whole numbers of four bytes that a program reads."""


@triton.jit  # type: ignore[untyped-decorator] # triton's
def _read(x, out, WORDS: tl.constexpr):  # type: ignore[no-untyped-def] # Triton reads annotations as types of its own
    """Reads some whole numbers of x, and writes what depends on all of them."""
    words = tl.load(x + tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS))
    tl.store(out + tl.program_id(0), tl.xor_sum(words, 0))


def read_microseconds(nbytes: int) -> float:
    """What one kernel takes that does nothing but read so many bytes, timed as `microseconds` does.

    That is how long a simple read takes, with a graph's start and what the second-level cache has to write back, and no lower bound: of
    hundreds of megabytes the best products read some per cent more in a second.
    """
    programs = -(-nbytes // (4 * WORDS))
    x = torch.empty(programs * WORDS, dtype=torch.int32, device="cuda")
    out = torch.empty(programs, dtype=torch.int32, device="cuda")
    return microseconds(lambda: _read[(programs,)](x, out, WORDS))
