"""Times kernels on a GPU: `python -m tests.device.timing`. Peers are timed beside them where RINGC_PEERS names the folder of proto_*.py.

Each time is the median over replays of a CUDA graph, with the level-2 cache overwritten before each. A row that fails says why, and the
next one goes on. RINGC_DEADLINE, in seconds since the epoch, is when no further row is begun.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import REPLAYS, microseconds
from ringc.codegen.kernel import Kernel
from ringc.ir.core import Env
from ringc.ir.ops.cost import region_bytes
from ringc.passes.schedules.products import flops_of
from tests.device.cases import DeviceInputs, binaries, build, call_tensors, cases

Change = Callable[[Kernel, list[torch.Tensor]], None]
"""Puts what a row wants into inputs that were drawn."""


def row(what: str, who: str, run: Callable[[], tuple[float, str]]) -> None:
    """One line of the table."""
    deadline = float(os.environ.get("RINGC_DEADLINE", "inf"))
    if time.time() > deadline:
        print(f"{what:<44} {who:<24} not run: no time left", flush=True)
        return
    try:
        us, note = run()
        print(f"{what:<44} {who:<24} {us:9.1f} us  {note}", flush=True)
    except Exception as error:  # noqa: BLE001 - the table shows whatever a kernel or a peer raises
        said = (str(error).strip().splitlines() or [""])[-1]
        print(f"{what:<44} {who:<24} FAILED {type(error).__name__}: {said[:160]}", flush=True)


def find(function: str, template: str) -> Kernel:
    """The kernel of a function of the file by a template."""
    for found in cases():
        if found.name.rpartition("_")[0] == function and str(found.kernel.implementation).startswith(template):
            return found.kernel
    raise LookupError(f"no case of {function} by {template}")


def ours(function: str, template: str, sizes: dict[str, int], change: Change | None = None) -> tuple[float, str]:
    """Time of a kernel, with what it reaches of bandwidth and arithmetic."""
    kernel = find(function, template)
    inputs = DeviceInputs(kernel.function, sizes, 0, integers_only=False).all()
    if change is not None:
        change(kernel, inputs)
    given = call_tensors(kernel, inputs, sizes)
    with tempfile.TemporaryDirectory() as folder:
        launch, names = build(kernel, Path(folder))
        us = microseconds(lambda: launch(*given))
    env, body = Env(sizes), kernel.function.body
    moved, flops = env.size(region_bytes(body)), env.size(flops_of(body))
    return us, f"{moved / us / 1e6:5.2f} TB/s {flops / us / 1e6:6.1f} TFLOP/s  {binaries(names)}"


def both(first: tuple[str, str], second: tuple[str, str], sizes: dict[str, int]) -> tuple[float, str]:
    """Time of two kernels, `(function, template)` each, of which the second's first argument is what the first makes."""
    makes, takes = find(*first), find(*second)
    given = [DeviceInputs(k.function, sizes, 0, integers_only=False).all() for k in (makes, takes)]
    made = call_tensors(makes, given[0], sizes)
    then = call_tensors(takes, given[1], sizes)
    then[0] = made[len(given[0])]
    with tempfile.TemporaryDirectory() as folder:
        launches = [build(k, Path(folder))[0] for k in (makes, takes)]

        def run() -> None:
            launches[0](*made)
            launches[1](*then)

        return microseconds(run), ""


def one_sequence(kernel: Kernel, inputs: list[torch.Tensor]) -> None:
    """All rows in slot 0, whatever was drawn."""
    for arg, x in zip(kernel.function.body.args, inputs, strict=True):
        if arg.name == "slots":
            x.zero_()


def decode_step(past: int) -> Change:
    """One token of each sequence, at one position."""

    def change(kernel: Kernel, inputs: list[torch.Tensor]) -> None:
        for arg, x in zip(kernel.function.body.args, inputs, strict=True):
            match arg.name:
                case "slots":
                    x.copy_(torch.arange(len(x), device=x.device))
                case "offsets":
                    x.copy_(torch.arange(len(x), device=x.device))
                case "positions":
                    x.fill_(past)

    return change


def prompt(kernel: Kernel, inputs: list[torch.Tensor]) -> None:
    """One sequence from its beginning."""
    one_sequence(kernel, inputs)
    for arg, x in zip(kernel.function.body.args, inputs, strict=True):
        if arg.name == "positions":
            x.copy_(torch.arange(len(x), device=x.device))


def even_experts(kernel: Kernel, inputs: list[torch.Tensor]) -> None:
    """Rows shared out among experts as independent choices would."""
    rows = inputs[0].shape[0]
    experts = inputs[3].shape[0] - 1
    choices = torch.rand(rows // 8, experts, device="cuda").topk(8, 1).indices.flatten()
    inputs[0].copy_(choices.argsort(stable=True))
    inputs[3].copy_(
        torch.cat(
            [torch.zeros(1, device="cuda", dtype=torch.long), torch.bincount(choices, minlength=experts).cumsum(0)]
        )
    )


def peer(name: str) -> Any:
    """A module of the peers' folder."""
    folder = os.environ.get("RINGC_PEERS")
    if not folder:
        raise LookupError("RINGC_PEERS isn't set")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def peer_lightning(tokens: int, config: dict[str, int]) -> tuple[float, str]:
    module = peer("proto_lightning")
    q, k, v = (torch.randn(1, tokens, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    slopes = torch.exp2(-8.0 * torch.arange(1, 17, device="cuda") / 16).float()
    return microseconds(lambda: module.fwd(q, k, v, slopes, 128**-0.5, config)), ""


def fla(tokens: int) -> tuple[float, str]:
    """flash-linear-attention's kernel for constant decays, with the state given back."""
    from fla.ops.simple_gla import chunk_simple_gla  # type: ignore[import-not-found,unused-ignore]

    q, k, v = (torch.randn(1, tokens, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    slopes = torch.exp2(-8.0 * torch.arange(1, 17, device="cuda") / 16).float()
    call = partial(chunk_simple_gla, q, k, v, g_gamma=-slopes, scale=128**-0.5, output_final_state=True)
    return microseconds(call), ""


def peer_experts_up(tokens: int, block: int, warps: int, stages: int) -> tuple[float, str]:
    """proto_moe's gather + product + SwiGLU at bf16. It multiplies by the routing weights too."""
    module = peer("proto_moe")
    experts, inner, wide = 256, 2048, 512
    choices = torch.rand(tokens, experts, device="cuda").topk(8, 1).indices.flatten()
    order = (choices.argsort(stable=True) // 8).int()
    maps = module.tile_map(torch.bincount(choices, minlength=experts), block)
    x = torch.randn(tokens, inner, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(experts, 2 * wide, inner, device="cuda", dtype=torch.bfloat16) * 0.02
    rows = tokens * 8
    h = torch.empty(rows, wide, device="cuda", dtype=torch.bfloat16)
    scale, none = torch.ones(rows, device="cuda"), torch.zeros(1, device="cuda")

    def run() -> None:
        # In the order of its parameters; the empty tensors belong to fp8 and to what training keeps.
        sizes = (tokens, rows, inner, wide, block, 128, 64)
        tensors = (x, none, order, scale, w, none, *maps, h, none, none, none, none)
        module.up_fused[(wide // 128, maps[0].numel())](*tensors, *sizes, False, False, False, stages, num_warps=warps)

    return microseconds(run), ""


def device_copy() -> tuple[float, str]:
    """What the others are to be seen against: bytes read and written."""
    x = torch.empty(1 << 28, device="cuda").normal_()
    y = torch.empty_like(x)
    us = microseconds(lambda: torch.neg(x, out=y))  # a kernel: graphs hand plain copies to a slower engine
    return us, f"{2 * x.nbytes / us / 1e6:5.2f} TB/s"


def library_product(rows: int, inner: int, columns: int) -> tuple[float, str]:
    """PyTorch's own product with a weight [columns, inner]."""
    x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(columns, inner, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    us = microseconds(lambda: torch.mm(x, w.T, out=out))
    return us, f"{2e-6 * rows * inner * columns / us:19.1f} TFLOP/s"


def flash(tokens: int) -> tuple[float, str]:
    """PyTorch's own attention on one prompt."""
    q = torch.randn(1, 16, tokens, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 4, tokens, 128, device="cuda", dtype=torch.bfloat16)
    call = torch.nn.functional.scaled_dot_product_attention
    return microseconds(lambda: call(q, k, v, is_causal=True, enable_gqa=True)), ""


def main() -> None:
    print(f"{torch.cuda.get_device_name(0)}, CUDA-graph medians of {REPLAYS}, level-2 cache flushed", flush=True)
    row("copy of 1 GiB", "torch", device_copy)
    one = {"B": 1, "P": 1, "S": 1, "R": 1}
    for tokens in (8192, 65536):
        what = f"linear attention T={tokens} H=16 D=128"
        timed = partial(ours, "linear_chunked", "triton.linear_chunked", one | {"N": tokens}, one_sequence)
        row(what, "ringc linear_chunked", timed)
        row(what, "fla chunk_simple_gla", partial(fla, tokens))
        for v, warps, first, second in ((64, 4, 3, 2), (64, 4, 3, 3), (128, 8, 3, 2)):
            config = {"C": 64, "BV": v, "warps": warps, "st1": first, "st2": second}
            row(what, f"peer BV{v} w{warps} st{second}", partial(peer_lightning, tokens, config))
    what, many = "experts up T=8192 E=256 2048->512", one | {"N": 8192, "S": 8192}
    row(what, "ringc grouped", partial(ours, "experts_up", "triton.grouped", many, even_experts))
    for block, warps, stages in ((64, 8, 3), (64, 8, 4), (128, 8, 3)):
        row(what, f"peer BM{block} w{warps} st{stages}", partial(peer_experts_up, 8192, block, warps, stages))
    row("route T=8192 E=256", "ringc route", partial(ours, "route", "triton.route", many))
    row("sort R=65536 E=256", "ringc sort", partial(ours, "sort", "triton.sort", many))
    what, template = "attention prompt T=8192 H=16/4 D=128", "triton.attention"
    row(what, "ringc attention", partial(ours, "attention", template, many, prompt))
    row(what, "torch sdpa", partial(flash, 8192))
    for n in (1, 64):
        sizes = {"N": n, "B": n, "P": n, "S": 8192, "R": n}
        timed = partial(ours, "attention", template, sizes, decode_step(8191))
        row(f"attention decode B={n} S=8192", "ringc attention", timed)
    for n in (1, 64, 256):
        sizes = {"N": n, "B": n, "P": n, "S": 1, "R": n}
        timed = partial(ours, "linear_recurrent", "triton.linear_recurrent", sizes, decode_step(0))
        row(f"linear attention decode B={n}", "ringc linear_recurrent", timed)
        timed = partial(ours, "split_norm_rope", "triton.row", sizes)
        row(f"split, norms, rope decode B={n}", "ringc row", timed)
        timed = partial(ours, "linear_front", "triton.linear_recurrent", sizes, decode_step(0))
        row(f"both in one decode B={n}", "ringc linear_recurrent", timed)
    for n in (1, 16):
        row(f"route T={n} E=256", "ringc route", partial(ours, "route", "triton.route", one | {"N": n}))
    for n in (1, 16, 512, 8192):
        what = f"project T={n} 2048->8192"
        row(what, "ringc matmul", partial(ours, "project", "triton.matmul", one | {"N": n}))
        row(what, "torch mm", partial(library_product, n, 2048, 8192))
    pairs = {
        "norm_project": ("norm", "project"),
        "norm_swiglu": ("norm", "swiglu"),
        "gate_add_project": ("gate", "add_project"),
    }
    for function, (front, product) in pairs.items():
        sizes = one | {"N": 1}
        row(f"{function} T=1", "ringc gemv", partial(ours, function, "triton.gemv", sizes))
        apart = partial(both, (front, "triton.row"), (product, "triton.matmul"), sizes)
        row(f"{function} T=1", "ringc row, then matmul", apart)
    for n in (1, 16):
        for function in ("norm", "combine", "combine_norm"):
            row(f"{function} T={n}", "ringc row", partial(ours, function, "triton.row", one | {"N": n}))
        for function in ("few_up", "few_down"):
            row(f"{function} T={n}", "ringc gemv", partial(ours, function, "triton.gemv", one | {"N": n}))
    for function in ("norm", "split_norm_rope", "gate", "combine", "combine_norm", "swiglu", "experts_down"):
        family = {"swiglu": "matmul", "experts_down": "grouped"}.get(function, "row")
        row(f"{function} T=8192", f"ringc {family}", partial(ours, function, f"triton.{family}", one | {"N": 8192}))


if __name__ == "__main__":
    main()
