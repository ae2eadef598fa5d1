"""The roofline: how fast a computation can be on a device, and whether arithmetic or memory bounds it (Williams 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ringc.errors import ToolchainError


@dataclass(frozen=True)
class DeviceLimits:
    """What a device reaches.

    Attributes:
        name: the device.
        bytes_per_second: device memory, read and written together.
        flops_per_second: dense products by operand dtype ("fp32", "tf32", "bf16", "fp8").
        source: where the numbers come from.
    """

    name: str
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    source: str


#: One device an architecture, the one its name stands for. A100 and B200: peaks of the data sheets. H100: copy and bf16
#: as measured with large copies and an 8192^3 product, the rest data-sheet peaks scaled by the same ratio of bf16 (798
#: of 989 TFLOP/s).
DEVICES: dict[int, DeviceLimits] = {
    80: DeviceLimits("A100 80GB SXM", 2.04e12, {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12}, "data sheet"),
    90: DeviceLimits(
        "H100 80GB SXM",
        3.0e12,
        {"fp32": 54e12, "tf32": 399e12, "bf16": 798e12, "fp8": 1597e12},
        "measured copy and bf16",
    ),
    100: DeviceLimits(
        "B200 SXM", 8.0e12, {"fp32": 75e12, "tf32": 1.1e15, "bf16": 2.25e15, "fp8": 4.5e15}, "data sheet"
    ),
}


@dataclass(frozen=True)
class Roofline:
    """Bounds of one computation on one device.

    Attributes:
        seconds: the least time: the larger of the two below.
        compute_seconds, memory_seconds: at the device's full arithmetic and memory rates.
        bound: which of them is larger.
        intensity: FLOPs a byte of the computation.
        ridge: FLOPs a byte at which the device's two rates balance.
    """

    seconds: float
    compute_seconds: float
    memory_seconds: float
    bound: Literal["compute", "memory"]
    intensity: float
    ridge: float

    def fraction(self, measured_seconds: float) -> float:
        """How much of the bound a measured time reaches: 1 is the roof."""
        return self.seconds / measured_seconds


def roofline(flops: float, bytes_moved: float, device: DeviceLimits, dtype: str = "bf16") -> Roofline:
    """The least time of `flops` operations in `dtype` that move `bytes_moved` bytes of device memory.

    Raises:
        ToolchainError: the device's rate for the dtype isn't known.
    """
    rate = device.flops_per_second.get(dtype)
    if rate is None:
        known = ", ".join(device.flops_per_second)
        raise ToolchainError(f"the rate of {device.name} for {dtype} products isn't known", help=f"known: {known}")
    compute, memory = flops / rate, bytes_moved / device.bytes_per_second
    return Roofline(
        seconds=max(compute, memory),
        compute_seconds=compute,
        memory_seconds=memory,
        bound="compute" if compute >= memory else "memory",
        intensity=flops / bytes_moved if bytes_moved else float("inf"),
        ridge=rate / device.bytes_per_second,
    )
