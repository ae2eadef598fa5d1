"""The threads of TVM's kernels. Imports nothing of the compiler: running an artifact needs this module."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_environment(threads: int | None = None) -> None:
    """Settings of TVM's thread pool, which it reads once when it is loaded: call this before. Variables that are set stay.

    One thread on each core that this process may use; threads aren't bound to cores, where torch's may sit already; an idle thread spins
    for about 1 ms, so that the next kernel of a step doesn't have to wake it (60 us).
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(threads or usable_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")
