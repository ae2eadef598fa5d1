"""What a measurement was made on, in words: without it a number means nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ringc.codegen import cpu
from ringc.codegen.tvm.threads import usable_cores

UNKNOWN = "unknown"

FIELDS = {
    "driver": "driver_version", "SM clock": "clocks.sm", "memory clock": "clocks.mem", "power": "power.draw",
    "power limit": "power.limit",
}  # fmt: skip
"""What is shown of a GPU -> what `nvidia-smi` calls it."""

PATIENCE = 30.0
"""Seconds that `nvidia-smi` may take."""


def machine(device: torch.device, tools: Mapping[str, str], busy: Callable[[], object]) -> dict[str, str]:
    """The device, its clocks and power, and the versions of what runs on it and of what built the artifact.

    Args:
        device: that was measured.
        tools: the manifest's.
        busy: keeps a GPU at work, for an idle one has other clocks; called again and again, each time for less than a second.
    """
    if device.type == "cuda":
        found = {"GPU": str(torch.cuda.get_device_name(device)), **gpu_state(device, busy)}
        found["CUDA"] = str(torch.version.cuda)
    else:
        found = {"processor": cpu.name(), "cores": str(usable_cores())}
    found["torch"] = str(torch.__version__)
    names = {"triton": "Triton", "ptxas": "ptxas", "tvm": "TVM", "ringc": "ringc"}
    return found | {shown: str(tools[name]) for name, shown in names.items() if name in tools}


def gpu_state(device: torch.device, busy: Callable[[], object]) -> dict[str, str]:
    """Driver, clocks and power of a GPU at work; "unknown" where it doesn't say."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = [f"--id=GPU-{uuid}"] if uuid is not None else []  # its number may be another than torch's
    command = ["nvidia-smi", *which, f"--query-gpu={','.join(FIELDS.values())}", "--format=csv,noheader"]
    end = time.monotonic() + PATIENCE
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            while process.poll() is None and time.monotonic() < end:
                busy()
                torch.cuda.synchronize()
            process.kill()  # nothing, where it has ended
            text = process.stdout.read() if process.stdout is not None else ""
    except OSError:  # there is no nvidia-smi
        text = ""
    return parsed_state(text)


def parsed_state(text: str) -> dict[str, str]:
    """What `nvidia-smi` printed of `FIELDS`, by the names that are shown."""
    cells: list[Any] = [cell.strip() for cell in text.strip().split("\n")[0].split(",")]
    if len(cells) != len(FIELDS):
        return dict.fromkeys(FIELDS, UNKNOWN)
    # What a card doesn't know it gives in brackets: [N/A], [Not Supported].
    return {
        name: UNKNOWN if cell.startswith("[") or not cell else cell for name, cell in zip(FIELDS, cells, strict=True)
    }
