"""What the machine can do at best: bytes a second of a large stream, and operations a second of a large product.

The floors under times are made of these. On a CPU the stream is only read, by the best of PyTorch's reductions and, where TVM is
installed, of a generated loop like the one that a product with one row is: PyTorch's own get two thirds of it on some machines. On a GPU
it is copied.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ringc.errors import ToolchainError

STREAM_BYTES = 150 * 10**6
"""Far more than a cache holds, and about the size of a small model's weights."""

COPIED_BYTES = 1 << 30
"""Of a GPU's stream, which is read and written."""

SQUARE = 8192
"""Rows, inner size and columns of a GPU's product."""

_LANES, _LENGTH = 32, 4096


@dataclass(frozen=True)
class Rates:
    """What a device reaches.

    Attributes:
        bytes_per_second: of its memory.
        flops_per_second: of products.
        source: how they were measured.
    """

    bytes_per_second: float
    flops_per_second: float
    source: str

    def seconds(self, moved: float, flops: float) -> float:
        """The least time of so many bytes and operations: the longer of the two."""
        return max(moved / self.bytes_per_second, flops / self.flops_per_second)


def measured_rates(device: torch.device) -> Rates:
    """The rates of a device, measured now."""
    if device.type == "cuda":
        return Rates(
            copy_bandwidth(),
            square_rate(),
            f"a copy of {COPIED_BYTES >> 30} GiB, read and written, and a bf16 product of {SQUARE}^3",
        )
    source = f"{STREAM_BYTES // 10**6} MB read, and an f32 product of 2048 x 512 x 1536"
    return Rates(read_bandwidth(), product_rate(), source)


def _tvm_sums() -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """Sums over the middle of [P, 4096, 32], by TVM with all threads; None without TVM."""
    from ringc.codegen.tvm.build import import_tvm, processor

    try:
        tvm = import_tvm()
    except ToolchainError:
        return None
    from tvm import s_tir, te

    panels = te.var("P", "int64")
    x = te.placeholder((panels, _LENGTH, _LANES), "float32", "x")
    k = te.reduce_axis((0, _LENGTH), "k")
    sums = te.compute((panels, _LANES), lambda p, lane: te.sum(x[p, k, lane], axis=k), "sums")
    schedule = s_tir.Schedule(te.create_prim_func([x, sums]))
    block = schedule.get_sblock("sums")
    panel, lane, along = schedule.get_loops(block)
    schedule.reorder(panel, along, lane)
    schedule.parallel(panel)
    schedule.vectorize(lane)
    schedule.decompose_reduction(block, along)
    made: Callable[[torch.Tensor, torch.Tensor], Any] = tvm.compile(schedule.mod, target=processor().tvm_target())[
        "main"
    ]
    return made


def read_bandwidth(repetitions: int = 9) -> float:
    """Bytes a second of the fastest way found to read `STREAM_BYTES` once."""
    panels = STREAM_BYTES // (4 * _LANES * _LENGTH)
    x = torch.rand(panels, _LENGTH, _LANES)
    flat = x.view(-1)
    ways: list[Callable[[], object]] = [
        x.sum,
        x.amax,
        lambda: torch.dot(flat[: flat.numel() // 2], flat[flat.numel() // 2 :]),
    ]
    sums = _tvm_sums()
    if sums is not None:
        out = torch.full((panels, _LANES), torch.nan)
        sums(x, out)
        torch.testing.assert_close(out, x.sum(1), rtol=1e-3, atol=0)
        ways.append(lambda: sums(x, out))
    for way in ways:
        way()
    return x.numel() * 4 / min(min(_timed(way, repetitions)) for way in ways)


def product_rate(repetitions: int = 7) -> float:
    """Operations a second of PyTorch's product of [2048, 512] and [512, 1536]."""
    a, b = torch.randn(2048, 512), torch.randn(512, 1536)
    out = a @ b
    return 2 * out.numel() * 512 / min(_timed(lambda: torch.mm(a, b, out=out), repetitions))


def _timed(run: Callable[[], object], repetitions: int) -> list[float]:
    """Seconds of each repetition, by the wall clock."""
    found = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return found


def copy_bandwidth(repetitions: int = 21) -> float:
    """Bytes a second that a GPU reads and writes, together, when it copies: the median."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / statistics.median(event_times(lambda: target.copy_(source), repetitions))


def square_rate(repetitions: int = 21) -> float:
    """Operations a second of PyTorch's bf16 product on a GPU: the median."""
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * SQUARE**3 / statistics.median(event_times(lambda: torch.mm(a, b, out=out), repetitions))


def event_times(
    run: Callable[[], object], repetitions: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each repetition on a GPU, by events around it; the first run warms up. `before` runs ahead of each, uncounted."""
    event: Callable[..., Any] = torch.cuda.Event
    before()
    run()
    marks = []
    for _ in range(repetitions):
        before()
        start, stop = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        stop.record()
        marks.append((start, stop))
    torch.cuda.synchronize()
    return [float(start.elapsed_time(stop)) / 1e3 for start, stop in marks]
