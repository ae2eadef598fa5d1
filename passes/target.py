"""What the compiler knows of the machine that it compiles for. Costs and schedules ask here, never the machine at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ringc.errors import UsageError, did_you_mean
from ringc.ir.types import DType
from ringc.passes.device import Device, load_device


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Rates are per second and measured, not from a data sheet: `bandwidth` in bytes of a kernel that streams memory, `matrix_rate` of a
    large product and `vector_rate` of arithmetic outside products in floating-point operations, `launch` the seconds that one more
    kernel costs. `width` is how many pieces of work run side by side. `device` is the description that the numbers were taken from, None
    where they are the constants of this file; `library` is what PyTorch's calls reach on the machine, where that is known apart.
    """

    name: str
    backend: str
    storage: DType
    bandwidth: float
    matrix_rate: float
    vector_rate: float
    launch: float
    width: int
    arch: int | None = None
    device: Device | None = None
    library: Target | None = None


TARGETS = {
    t.name: t
    for t in (
        # Two cores with AVX-512: 150 MB of weights streamed at 52 GB/s, 2047 x 512 x 1536 at 190 GFLOP/s, 1.5 us for a parallel call.
        Target("cpu", "tvm", DType.F32, 50e9, 190e9, 180e9, 2e-6, 2),
        # The same machine through eager PyTorch, a call as dear as a small product: 2048 x 512 x 1536 at 173 GFLOP/s, one row at 47 GB/s.
        Target("torch", "torch", DType.F32, 47e9, 173e9, 20e9, 10e-6, 2),
        Target("sm_80", "triton", DType.BF16, 1.7e12, 250e12, 15e12, 2.5e-6, 108, arch=80),
        # H100: copy 3.0 TB/s and cuBLAS bf16 about 700 TFLOP/s as measured; 1.8 us for a dependent kernel in a CUDA graph.
        Target("sm_90", "triton", DType.BF16, 3.0e12, 700e12, 50e12, 1.8e-6, 132, arch=90),
        Target("sm_100", "triton", DType.BF16, 6.5e12, 1500e12, 60e12, 1.8e-6, 148, arch=100),
    )
}


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(
            f"there is no target '{name}'", help=did_you_mean(name, TARGETS) or f"choose from {', '.join(TARGETS)}"
        )
    return TARGETS[name]


def described(target: Target, device: Device) -> Target:
    """A target with the numbers of a device in the place of its constants.

    A CPU's library calls have constants of their own (target `torch`), which are scaled as the generated kernels' are: both run on the same
    cores and memory. What a call costs on the host stays.

    Raises:
        ValueError: the device is of another target.
    """
    if device.target != target.name:
        raise ValueError(f"a device of target {device.target} described as {target.name}")
    library = None
    if target.backend == "tvm":
        host = TARGETS["torch"]
        library = replace(
            host,
            bandwidth=host.bandwidth * device.bandwidth / target.bandwidth,
            matrix_rate=host.matrix_rate * device.matrix_rate / target.matrix_rate,
            vector_rate=host.vector_rate * device.vector_rate / target.vector_rate,
            width=device.width,
        )
    return replace(
        target,
        bandwidth=device.bandwidth,
        matrix_rate=device.matrix_rate,
        vector_rate=device.vector_rate,
        launch=device.launch,
        width=device.width,
        device=device,
        library=library,
    )


def target_of(name: str, device: str | Path | None = None) -> Target:
    """The target of a name, with the numbers of a device description where a file is given.

    Raises:
        UsageError: there is no such target.
        DeviceError: the file can't be used.
    """
    found = target(name)
    return found if device is None else described(found, load_device(device, found.name))
