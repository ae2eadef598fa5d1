"""Time on a GPU as a model meets it: replays of a CUDA graph, with what the caches held gone; and what GPU it was."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from benchmarks.common import package

REPLAYS = 40
FLUSHED = 256 << 20
"""Bytes that are written to empty the second-level cache."""


def microseconds(run: Callable[[], object]) -> float:
    """The median time of a call, of replays of a CUDA graph, the second-level cache overwritten before each."""
    run()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    for _ in range(REPLAYS):
        flushed.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)


def gpu_line() -> str:
    """Date, GPU, driver and versions, as a sentence: what a number means nothing without."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    name, _, driver = said.partition(", ")
    return f"{date}; {name}, driver {driver}; torch {torch.__version__}, Triton {package('triton')}."
