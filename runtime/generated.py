"""What the compiler's own kernels reach on this machine: a chain of tiny launches, and on a CPU a large product and the recurrence.

The cost model takes a CPU's rates as those of its kernels, and PyTorch's apart (`ringc.passes.target`), so they are measured with such
kernels. A kernel is looked up as `select` would find it, built, and timed on random inputs; whether it is right is not asked here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from ringc.codegen.alone import kernel_alone
from ringc.codegen.check import call_tensors
from ringc.codegen.inputs import TypicalInputs
from ringc.codegen.kernel import Kernel
from ringc.ir.core import Function
from ringc.ir.text_parse import parse_module
from ringc.passes.choices import Region
from ringc.passes.schedules.candidates import candidates
from ringc.passes.schedules.model import Candidate, Rows
from ringc.passes.target import Target
from ringc.runtime.alone import load_alone
from ringc.runtime.rates import event_times
from ringc.runtime.timing import timer

SECONDS = 0.5
"""Time that a kernel is launched for."""

CHAIN = 200
"""Launches in a chain, each of which reads what the one before has written."""

CALLS, ROUNDS = 20, 20
"""Calls that are timed together, and how often; the shortest time counts, as what disturbs a CPU only makes it slower."""

ROWS = 32
"""Rows of a tiny kernel: on a CPU more than one thread does by itself."""

TOKENS, INNER, COLUMNS = 2048, 512, 1536
"""Of a CPU's product, as in `ringc.runtime.rates.product_rate`."""

STEPS, DIM = 64, 64
"""Tokens and head size of a CPU's recurrence, which stays in caches: the cost model counts its traffic apart."""

STEP = """func @step(%x: f32[N / B, 64]) with {family = "row"} {
  %y = sigmoid(%x) : f32[N / B, 64]
  return %y
}"""

PRODUCT = f"""func @product(%x: f32[N / B, {INNER}], %w: f32[{COLUMNS}, {INNER}]) with {{family = "matmul"}} {{
  %y = matmul(%x, %w) {{transpose_b = true}} : f32[N / B, {COLUMNS}]
  return %y
}}"""


def kernel_of_text(text: str, implementation: str, rows: Rows, target: Target) -> Kernel:
    """The kernel of the one function of a text, as `kernel_by` finds it."""
    head = "module @alone level kernel\nsymbol B >= 0\nsymbol N >= 0\nsymbol P >= 0\n\n"
    (function,) = parse_module(head + text).functions.values()
    return kernel_by(function, implementation, rows, target)[0]


def kernel_by(function: Function, implementation: str, rows: Rows, target: Target) -> tuple[Kernel, Candidate]:
    """The kernel of a function, by the candidate whose name begins like this, for so many rows; and that candidate.

    Args:
        function: its body is the kernel's; its notes name the family.
        implementation: as in `triton.gemv`.
        rows: that candidates are asked for; an illegal one will do.
        target: what the kernel is for.

    Raises:
        LookupError: there is no such candidate.
    """
    family = str(function.notes["family"])
    found = candidates(family, function.body, rows, target)
    chosen = next((c for c in found if c.implementation.startswith(implementation)), None)
    if chosen is None:
        raise LookupError(f"{family} has no {implementation}, but {', '.join(c.implementation for c in found)}")
    region = Region(function.name, family, function.body, rows, "prefill", 0, (), tuple(found))
    return kernel_alone(region, chosen, function.name, target), chosen


def product_rate(target: Target) -> float:
    """Operations a second of a large product on a CPU, by tiles of rows."""
    kernel = kernel_of_text(PRODUCT, "tvm.matmul{rows=8", (TOKENS, 0), target)
    return 2 * TOKENS * INNER * COLUMNS / _seconds(kernel, {"N": TOKENS, "B": 1, "P": 1}, target)


def recurrence_rate(target: Target, cores: int) -> float:
    """Operations a second of linear attention token by token on a CPU, five to an element of the state: what `vector_rate` is taken for."""
    heads = 4 * cores
    rows, pool = f"f32[N / B, {heads}, {DIM}]", f"state<f32[P; {heads}, {DIM}, {DIM}]>"
    text = f"""func @mixer(%q: {rows}, %k: {rows}, %v: {rows}, %slopes: f32[{heads}], %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]) with {{family = "linear_attention"}} {{
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {{scale = 0.125, form = "recurrent", steepest = 0.7}} : {rows}, {pool}
  return %o, %after
}}"""  # noqa: E501 - the text form has no line breaks inside of an operation
    kernel = kernel_of_text(text, "tvm.linear_recurrent", (STEPS, 0), target)
    sizes = {"N": STEPS, "B": 1, "P": 1}
    with tempfile.TemporaryDirectory(prefix="ringc-calibrate-") as folder:
        kernels = load_alone([kernel], target, Path(folder))
        given = call_tensors(kernel, TypicalInputs(kernel.function, sizes).all(), sizes)
        again = [kernels.bind(kernel.name, given)] * CALLS
        seconds = min(_wall(again) for _ in range(ROUNDS)) / CALLS
    return 5 * STEPS * heads * DIM * DIM / seconds


def launch_seconds(target: Target) -> float:
    """Seconds of one more launch of a tiny row kernel behind others: from a CUDA graph on a GPU, from the host on a CPU.

    Chains of two lengths are compared on a GPU, so that what a graph takes to begin doesn't count.
    """
    template = "tvm.row{parallel=1}" if target.backend == "tvm" else "triton.row"
    kernel = kernel_of_text(STEP, template, (2 * ROWS, 2 * ROWS), target)
    with tempfile.TemporaryDirectory(prefix="ringc-calibrate-") as folder:
        kernels = load_alone([kernel], target, Path(folder))
        x = torch.zeros(ROWS, 64, device=kernels.device)
        y = torch.full_like(x, torch.nan)
        there, back = kernels.bind(kernel.name, [x, y]), kernels.bind(kernel.name, [y, x])
        chain = [there, back] * (CHAIN // 2)
        if target.backend == "tvm":
            return min(_wall(chain) for _ in range(ROUNDS)) / CHAIN
        short, long = (statistics.median(event_times(_graph(chain * n), 40)) for n in (1, 2))
        return (long - short) / CHAIN


def _wall(calls: Sequence[Callable[[], None]]) -> float:
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def _graph(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """The replay of a CUDA graph of these calls."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _seconds(kernel: Kernel, sizes: Mapping[str, int], target: Target) -> float:
    """The median of a kernel's launches."""
    with tempfile.TemporaryDirectory(prefix="ringc-calibrate-") as folder:
        kernels = load_alone([kernel], target, Path(folder))
        inputs = TypicalInputs(kernel.function, dict(sizes)).all()
        made = timer(partial(kernels.bind, kernel.name), call_tensors(kernel, inputs, sizes, str(kernels.device)))
        made.spend(SECONDS)
        return made.median
