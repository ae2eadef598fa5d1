"""CUDA graphs: work recorded once, replayed without the host launching each kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Graphs:
    """Makes graphs that share one pool of memory: no two of them run at a time.

    Attributes:
        capturing: whether what is launched now goes into a graph.
        second: the stream of what stands beside the rest in a graph.
    """

    def __init__(self) -> None:
        self.capturing = False
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's
        self.second = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None
        # A pool dies with the last graph that uses it, and can't be used again: this graph lives as long as the pool is wanted.
        self._keeper = self.captured(lambda: torch.zeros(1, device="cuda"))
        self._pool = self._keeper.pool()

    def captured(self, work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        """A graph of what `work` launches, which isn't run.

        Args:
            work: launches on the current stream; must not wait for the GPU, and must have run once before.
        """
        graph = torch.cuda.CUDAGraph()
        # `torch.cuda.graph` would collect garbage and empty the allocator's cache first, tens of milliseconds each time.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            self.capturing = True
            try:
                work()
            finally:
                self.capturing = False
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph
