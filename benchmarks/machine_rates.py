"""What the machine can do at best: bytes a second of a stream that is only read, and operations a second of a large product.

Both floors under a model's times are made of these. The stream is read by the best of PyTorch's reductions and, where TVM is installed, of
a generated loop like the one that a product with one row is: PyTorch's own get two thirds of it on some machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import timed

STREAM_BYTES = 150 * 10**6
"""Far more than a cache holds, and about the size of a small model's weights."""

_LANES, _LENGTH = 32, 4096


def _tvm_sums() -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """Sums over the middle of [P, 4096, 32], by TVM with all threads; None without TVM."""
    from ringc.codegen.tvm.build import import_tvm, processor
    from ringc.errors import ToolchainError

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
    return x.numel() * 4 / min(min(timed(way, repetitions)) for way in ways)


def product_rate(repetitions: int = 7) -> float:
    """Operations a second of PyTorch's product of [2048, 512] and [512, 1536]."""
    a, b = torch.randn(2048, 512), torch.randn(512, 1536)
    out = a @ b
    return 2 * out.numel() * 512 / min(timed(lambda: torch.mm(a, b, out=out), repetitions))
