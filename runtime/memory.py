"""How much memory there is, asked before it is taken: one clear message in place of the system killing the process."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from ringc.errors import RunError

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device; in a container, within its limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    free = int(psutil.virtual_memory().available)
    try:
        limit = _LIMIT.read_text(encoding="ascii").strip()
        if limit != "max":
            free = min(free, int(limit) - int(_USED.read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no container, or none that says
    return free


def check_memory(needed: int, device: torch.device, what: str, help: str) -> None:
    """Raise unless so many bytes can be had.

    Raises:
        RunError: they can't; the message says how many are needed and how many there are.
    """
    free = available_bytes(device)
    if needed > free:
        raise RunError(f"{what} need {readable(needed)} of memory, and {readable(free)} are available", help=help)


def readable(count: int) -> str:
    """Bytes for people: `1.5 GB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
