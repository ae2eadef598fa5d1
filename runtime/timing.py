"""How long a launch takes: repeated on this machine's CPU or GPU, with weights that come from memory as they do in a model.

Between two launches of a kernel a model reads the weights of its other layers. So a CPU takes turns at several copies of the tensors, as
many as a model has layers, or fewer where they are large; on a GPU the second-level cache is overwritten before each launch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ringc.runtime.blocks import zeros

COPIES = 16
"""Copies of a kernel's tensors that a CPU takes turns at, at most."""

COPIED = 64 << 20
"""Bytes of all copies, at most, unless one has more: what caches of a CPU don't hold."""

FLUSHED = 256 << 20
"""Bytes that are written to empty a GPU's second-level cache."""

UNSTEADY = 1.5
"""How many times the shortest launch the median may take on a machine that does nothing else; on a quiet one it is below 1.2."""

Bind = Callable[[Sequence[torch.Tensor]], Callable[[], None]]
"""Makes a launch on tensors that stay where they are."""


class Timer:
    """Times a launch again and again; the first one warms up, and counts only where there is no time for another.

    Args:
        once: launches, and says how many seconds that took.
    """

    def __init__(self, once: Callable[[], float]) -> None:
        self._once = once
        self._first = once()
        self._times: list[float] = []
        self._spent = self._first

    def spend(self, seconds: float) -> None:
        """Launch until so much time has been spent in all."""
        while self._spent < seconds:
            start = time.perf_counter()
            self._times.append(self._once())
            self._spent += time.perf_counter() - start

    @property
    def median(self) -> float:
        """Seconds of a launch."""
        return statistics.median(self._times or [self._first])

    @property
    def unsteady(self) -> bool:
        """Whether the machine was busy with something else: launches took far longer than the shortest, most of the time."""
        return bool(self._times) and self.median > UNSTEADY * min(self._times)


def timer(bind: Bind, tensors: Sequence[torch.Tensor], *, reads_host: bool = False) -> Timer:
    """The timer of a kernel, for where its tensors live; of one that reads lengths on the host, which is given them, without a graph."""
    if not any(t.is_cuda for t in tensors):
        return Timer(_on_cpu(bind, tensors))
    if not reads_host:
        return Timer(_cold(_captured(bind(tensors))))
    for t in tensors:
        if not t.dtype.is_floating_point:
            t.ringc_host = t.cpu().numpy()  # type: ignore[attr-defined]
    call = bind(tensors)
    call()
    return Timer(_cold(call))


def replayed(call: Callable[[], object], replays: int = 40) -> float:
    """Seconds of a call on a GPU: the median over replays of a CUDA graph, the second-level cache overwritten before each."""
    return cold_seconds(_captured(call), replays)


def cold_seconds(call: Callable[[], object], repetitions: int) -> float:
    """Seconds that a GPU works on a call, the median: the second-level cache is overwritten before each, and the first isn't counted."""
    once = _cold(call)
    once()
    return statistics.median(once() for _ in range(repetitions))


def _on_cpu(bind: Bind, tensors: Sequence[torch.Tensor]) -> Callable[[], float]:
    """By the wall clock."""
    count = min(COPIES, COPIED // max(1, sum(t.nbytes for t in tensors)))
    copies = [tensors]
    if count > 1:
        shapes = {f"{i} {k}": (t.shape, t.dtype) for i in range(count) for k, t in enumerate(tensors)}
        memory = iter(zeros(shapes, torch.device("cpu")).values())
        copies = [[next(memory).copy_(t) for t in tensors] for _ in range(count)]
    calls = [bind(copy) for copy in copies]
    done = 0

    def once() -> float:
        nonlocal done
        call = calls[done % len(calls)]
        done += 1
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return once


def _captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph, so that what the host takes for a launch doesn't count."""
    call()  # libraries set themselves up, and a kernel that isn't built yet is compiled
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return partial(_replay, graph, call)


def _replay(graph: Any, _launch: Callable[[], object]) -> None:
    """Replay; whoever holds the graph has to hold the launch, and with it the tensors that the graph works on."""
    graph.replay()


def _cold(call: Callable[[], object]) -> Callable[[], float]:
    """What runs a call on a GPU with nothing of it in the second-level cache, and says how many seconds that took."""
    return partial(_between_events, call, torch.empty(FLUSHED, dtype=torch.uint8, device="cuda"))


def _between_events(call: Callable[[], object], flushed: torch.Tensor) -> float:
    """Seconds that the GPU works on a call, with what its second-level cache held overwritten before."""
    event: Callable[..., Any] = torch.cuda.Event
    flushed.zero_()
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
