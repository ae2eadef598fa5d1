"""Measures a device into its description: the numbers that the cost model goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from ringc.codegen.backend import backend
from ringc.codegen.tvm.threads import usable_cores
from ringc.passes.device import Device
from ringc.passes.target import Target
from ringc.runtime import generated
from ringc.runtime.here import device_name
from ringc.runtime.machine import gpu_state
from ringc.runtime.rates import copy_bandwidth, read_bandwidth, square_rate

Progress = Callable[[str, int, int], None]

HOW = {
    "cpu": {
        "bandwidth": "150 MB read",
        "matrix_rate": "the generated product of 2048 x 512 x 1536, f32",
        "vector_rate": "the generated recurrence of linear attention",
        "launch": "one more parallel call",
        "width": "usable cores",
    },
    "gpu": {
        "bandwidth": "a copy of 1 GiB, read and written",
        "matrix_rate": "cuBLAS, 8192^3, bf16",
        "vector_rate": "4096 multiplications and additions in a row, f32",
        "launch": "one more tiny kernel in a CUDA graph",
        "width": "processors",
    },
}
"""How each number is measured, for people."""


def how(target: Target) -> Mapping[str, str]:
    """How each number of a target is measured."""
    return HOW["cpu" if target.arch is None else "gpu"]


def measure_device(target: Target, progress: Progress = lambda _what, _done, _total: None) -> Device:
    """The description of this machine's device; rates have four digits, as the rest is noise.

    Args:
        target: that runs here; its constants aren't looked at.
        progress: told how far it is.

    Raises:
        CodegenError: a kernel doesn't compile.
        ToolchainError: a tool of the target is missing.
    """
    width = usable_cores() if target.arch is None else _processors()
    parts = _on_cpu(target, width) if target.arch is None else _on_gpu(target, width)
    found: dict[str, float] = {}
    for done, (name, measure) in enumerate(parts.items()):
        progress("measuring", done, len(parts))
        found[name] = float(f"{measure():.4g}")
        if target.arch is not None:
            torch.cuda.empty_cache()
    progress("measuring", len(parts), len(parts))
    return Device(
        target.name,
        device_name(target),
        bandwidth=found["bandwidth"],
        matrix_rate=found["matrix_rate"],
        vector_rate=found["vector_rate"],
        launch=found["launch"],
        width=width,
        measured_with=tuple(_versions(target)),
    )


def _on_cpu(target: Target, width: int) -> dict[str, Callable[[], float]]:
    return {
        "bandwidth": read_bandwidth,
        "matrix_rate": lambda: generated.product_rate(target),
        "vector_rate": lambda: generated.recurrence_rate(target, width),
        "launch": lambda: generated.launch_seconds(target),
    }


def _on_gpu(target: Target, width: int) -> dict[str, Callable[[], float]]:
    from ringc.runtime.arithmetic import multiply_add_rate

    return {
        "bandwidth": copy_bandwidth,
        "matrix_rate": square_rate,
        "vector_rate": lambda: multiply_add_rate(width),
        "launch": lambda: generated.launch_seconds(target),
    }


def _processors() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def _versions(target: Target) -> list[tuple[str, str]]:
    """What measured: the driver of a GPU, PyTorch, and the tools of the back end."""
    found = {"torch": str(torch.__version__), **backend(target.backend).versions(target)}
    if target.arch is not None:
        here = torch.device("cuda", torch.cuda.current_device())
        # Nothing has to keep the GPU busy: of its state, the driver's version is wanted alone.
        found |= {"driver": gpu_state(here, lambda: time.sleep(0.01))["driver"], "CUDA": str(torch.version.cuda)}
    return sorted(found.items())
