"""Time on a GPU as a model meets it: replays of a CUDA graph, with what the caches held gone; and what GPU it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime

import torch
import triton
import triton.language as tl

from benchmarks.common import package
from ringc.runtime.timing import replayed

REPLAYS = 40


def microseconds(call: Callable[[], object]) -> float:
    """The median time of a call, of replays of a CUDA graph, the second-level cache overwritten before each."""
    return 1e6 * replayed(call, REPLAYS)


@triton.jit  # type: ignore[untyped-decorator] # triton's
def _read(x, out):  # type: ignore[no-untyped-def] # Triton reads annotations as types of its own
    """Reads 4096 whole numbers of x, and writes what depends on all of them."""
    words = tl.load(x + tl.program_id(0).to(tl.int64) * 4096 + tl.arange(0, 4096))
    tl.store(out + tl.program_id(0), tl.xor_sum(words, 0))


def read_microseconds(nbytes: int) -> float:
    """What one kernel takes that does nothing but read so many bytes, timed as `microseconds` does: no layer that needs them takes less."""
    programs = -(-nbytes // (4096 * 4))
    x = torch.empty(programs * 4096, dtype=torch.int32, device="cuda")
    out = torch.empty(programs, dtype=torch.int32, device="cuda")
    return microseconds(lambda: _read[(programs,)](x, out))


def gpu_line() -> str:
    """Date, GPU, driver and versions, as a sentence: what a number means nothing without."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    name, _, driver = said.partition(", ")
    return f"{date}; {name}, driver {driver}; torch {torch.__version__}, Triton {package('triton')}."
