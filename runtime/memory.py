"""How much memory there is, asked before it is taken: one clear message in place of the system killing the process."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from ringc.errors import RunError
from ringc.units import size

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
_DETAILS = Path("/sys/fs/cgroup/memory.stat")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device; in a container, within its limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps of freed tensors is used by others of this process alone.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    try:
        limit = _LIMIT.read_text(encoding="ascii").strip()
        if limit != "max":
            # Pages of files that were read, as of a checkpoint, count as used and are given up when they are needed.
            kept = dict(line.split() for line in _DETAILS.read_text(encoding="ascii").splitlines())
            files = int(kept["inactive_file"]) + int(kept["active_file"])
            free = min(free, int(limit) - int(_USED.read_text(encoding="ascii")) + files)
    except (OSError, ValueError, KeyError):
        pass  # no container, or none that says
    return free


def check_memory(needed: int, device: torch.device, what: str, help: str) -> None:
    """Raise unless so many bytes can be had.

    Raises:
        RunError: they can't; the message says how many are needed and how many there are.
    """
    free = available_bytes(device)
    if needed > free:
        raise RunError(f"{what} need {size(needed)} of memory, and {size(free)} are available", help=help)
