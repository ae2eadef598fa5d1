"""Which step of a program a GPU worked on when: what ran on the device, attributed to steps by a marker that runs behind each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringc.errors import ToolchainError

MARKER = "spin_kernel"
"""In the name of the kernel behind `torch.cuda._sleep`, which nothing else runs."""


@dataclass(frozen=True)
class Event:
    """A kernel or a copy as it ran on the device; seconds."""

    name: str
    start: float
    end: float


def attributed(events: Iterable[Event], steps: int) -> list[float]:
    """Seconds of device work of each step: of what ran before its marker, and behind the marker of the step before.

    Args:
        events: in any order; each step has left one marker, behind its own work.
        steps: how many there are.

    Raises:
        ToolchainError: there aren't as many markers, so that nothing can be attributed.
    """
    totals = [0.0]
    for event in sorted(events, key=lambda e: e.start):
        if MARKER in event.name:
            totals.append(0.0)
        else:
            totals[-1] += event.end - event.start
    if len(totals) != steps + 1:
        raise ToolchainError(
            f"the profiler saw {len(totals) - 1} of {steps} steps, so that no time can be given to kernels",
            help="end other profilers of this GPU, and try again",
        )
    return totals[:-1]


def device_seconds(steps: Sequence[Callable[[], Any]], passes: int) -> list[list[float]]:
    """Seconds that the GPU works on each step, for each pass over all of them. One more pass, before them, isn't counted."""
    return [attributed(_profiled(steps), len(steps)) for _ in range(passes + 1)][1:]


def _profiled(steps: Sequence[Callable[[], Any]]) -> list[Event]:
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    sleep: Callable[[int], None] = torch.cuda._sleep
    torch.cuda.synchronize()
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        # There is one cycle, so that nothing is lost.
        warnings.filterwarnings("ignore", message=".*clears events at the end of each cycle")
        for step in steps:
            step()
            sleep(1)
        torch.cuda.synchronize()
    events: Any = profiler.events()
    return [
        Event(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in events
        if event.device_type == DeviceType.CUDA
    ]
