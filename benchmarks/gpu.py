"""Time on a GPU as a model meets it: replays of a CUDA graph, with what the caches held gone; and what GPU it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from benchmarks.common import package
from ringc.runtime.execute import Bound
from ringc.runtime.timing import cold_seconds, replayed

REPLAYS = 40


def microseconds(call: Callable[[], object]) -> float:
    """The median time of a call, of replays of a CUDA graph, the second-level cache overwritten before each."""
    return 1e6 * replayed(call, REPLAYS)


def part_microseconds(part: Bound) -> float:
    """The same of some steps of a program, as the model replays them: what may run beside others does."""
    for _ in range(2):  # the second makes the graph
        part.run()
    return 1e6 * cold_seconds(part.run, REPLAYS)


def gpu_line() -> str:
    """Date, GPU, driver and versions, as a sentence: what a number means nothing without."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    name, _, driver = said.partition(", ")
    return f"{date}; {name}, driver {driver}; torch {torch.__version__}, Triton {package('triton')}."
