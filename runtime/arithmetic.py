"""What a GPU's processors reach outside products: a kernel that does nothing but multiply and add. Needs Triton, and a GPU to run."""

import statistics

import torch
import triton
import triton.language as tl

from ringc.codegen.triton.jit import prepare_jit
from ringc.runtime.rates import event_times

STEPS = 4096
"""Multiplications with an addition that a chain has; each waits for the one before."""

UNROLLED = 64
"""Of them in one round of the loop, so that counting takes no time beside them."""

BLOCK = 1024
"""Chains of a program: four to a thread, which hide each other's latency."""

WARPS = 8

WAVES = 32
"""Programs to a processor: each holds eight at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def multiply_add(x, out, BLOCK: tl.constexpr, STEPS: tl.constexpr, UNROLLED: tl.constexpr):  # type: ignore[no-untyped-def]
    """`value = value * x + x`, `STEPS` times over."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(x + at)  # read, so that the compiler knows nothing of it
    value = factor
    for _round in range(STEPS // UNROLLED):
        for _step in tl.static_range(UNROLLED):
            value = tl.fma(value, factor, factor)
    tl.store(out + at, value)


def multiply_add_rate(processors: int, repetitions: int = 21) -> float:
    """Operations a second of f32 multiplications and additions, two to a step: the median.

    Raises:
        ToolchainError: there is no GPU.
        ValueError: the kernel's results are wrong.
    """
    prepare_jit(strict=False)
    programs = processors * WAVES
    x = torch.rand(programs * BLOCK, device="cuda") / 2  # below one: the sum x + x^2 + ... ends at x / (1 - x)
    out = torch.full_like(x, torch.nan)

    def run() -> None:
        multiply_add[(programs,)](x, out, BLOCK, STEPS, UNROLLED, num_warps=WARPS)

    times = event_times(run, repetitions)
    if not torch.allclose(out, x / (1 - x), rtol=1e-4):
        raise ValueError("multiplications and additions give wrong results")
    return 2 * STEPS * x.numel() / statistics.median(times)
