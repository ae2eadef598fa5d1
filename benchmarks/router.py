"""The router of a prompt on a GPU: its product and the choice of experts, as they stand in the program, beside linghe's two kernels.

    RINGC_PEERS=FOLDER python -m benchmarks.router ARTIFACT [--tokens 1,64,512,2048,8192] [--write]

What is timed are the launches of one layer of the bound program from the one that reads the router's weight to the one that chooses; of one
row the norm is made in the first of them. Where RINGC_PEERS names a folder that holds linghe (https://github.com/inclusionAI/linghe), its
product with fp32 sums and its choice are timed on the same sizes, each alone and both in one graph.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import ringc
from benchmarks.common import command_line, deliver, options, table, verdict
from benchmarks.gpu import gpu_line, microseconds, part_microseconds
from benchmarks.moe_layer import LAYER
from benchmarks.part import part_of
from ringc.runtime.cache import Key
from ringc.runtime.execute import Bound

GOALS = {8192: (3.0, 5.0)}
"""By tokens: how many times as fast as the peer's two kernels, each timed alone, at least, and what is aimed at."""

PEER_ROWS = 32
"""linghe's product takes multiples of so many rows."""


class PeerTimes(NamedTuple):
    """Microseconds."""

    product: float
    choice: float
    both: float


def router_steps(bound: Bound, number: int) -> tuple[int, int]:
    """The steps of a layer's router: from the one that reads its weight to the one that chooses.

    Args:
        bound: a program.
        number: of the layer, among those with experts.
    """
    steps = bound.steps
    start = [i for i, step in enumerate(steps) if any(key.endswith(".mlp.gate.weight") for key in step.weights)][number]
    return start, next(i for i in range(start, len(steps)) if steps[i].kernel.startswith("route")) + 1


def timed(model: ringc.Model, tokens: int) -> tuple[float, str]:
    """Microseconds of a layer's router in a prompt of so many tokens, and the kernels that it is made of."""
    ids = torch.randint(model.vocabulary["size"], (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    inputs = {
        "ids": ids,
        "positions": range(tokens),
        "slots": [0],
        "offsets": [0, tokens],
        "rows": [tokens - 1],
        "row_offsets": [0, 1],
    }
    part = part_of(model, Key("prefill", tokens, 1, 1), tokens, inputs, lambda bound: router_steps(bound, LAYER))
    return part_microseconds(part), ", ".join(step.kernel for step in part.steps)


def peer(model: ringc.Model, tokens: int) -> PeerTimes:
    """linghe's kernels for a model's router, on random activations.

    Raises:
        ImportError: linghe isn't there.
    """
    from linghe.gemm.fp32_gemm import triton_fp32_gemm  # type: ignore[import-not-found,unused-ignore]
    from linghe.utils.topk import triton_group_topk_score_forward  # type: ignore[import-not-found,unused-ignore]

    spec = model.artifact.manifest["spec"]
    moe, inner = spec["moe"], spec["hidden"]
    x = torch.randn(tokens, inner, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(moe["experts"], inner, device="cuda", dtype=torch.bfloat16) * inner**-0.5
    choose = partial(
        triton_group_topk_score_forward,
        k=moe["top_k"],
        expert_bias=torch.randn(moe["experts"], device="cuda") * 0.1,
        num_groups=moe["groups"]["count"],
        group_topk=moe["groups"]["keep"],
        scaling_factor=moe["router"]["scale"],
    )
    logits = triton_fp32_gemm(x, w)
    return PeerTimes(
        microseconds(lambda: triton_fp32_gemm(x, w)),
        microseconds(lambda: choose(logits)),
        microseconds(lambda: choose(triton_fp32_gemm(x, w))),
    )


def main() -> None:
    parser = options("router", __doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument(
        "--tokens", default="1,4,16,64,256,512,1024,2048,8192", help="comma-separated numbers of tokens"
    )
    given = parser.parse_args()

    peers = os.environ.get("RINGC_PEERS")
    sys.path += [peers] if peers else []
    model = ringc.load(given.artifact, "random:0")
    rows, results = [], []
    for tokens in (int(n) for n in given.tokens.split(",")):
        us, kernels = timed(model, tokens)
        row, result = [str(tokens), kernels, f"{us:.1f}"], {"tokens": tokens, "kernels": kernels, "us": us}
        theirs = peer(model, tokens) if peers and tokens % PEER_ROWS == 0 else None
        if theirs is not None:
            apart, together = (theirs.product + theirs.choice) / us, theirs.both / us
            said = ""
            if tokens in GOALS:
                least, aim = GOALS[tokens]
                said = f" (at least {least}x: {verdict(apart, least, higher=True)}, aim {aim}x)"
            row += [
                f"{theirs.product:.1f} + {theirs.choice:.1f}", f"{theirs.both:.1f}", f"{apart:.2f}x; {together:.2f}x{said}"
            ]  # fmt: skip
            result["peer"] = theirs._asdict()
        elif peers:
            row += ["", "", ""]
        rows.append(row)
        results.append(result)
        print(" | ".join(row), file=sys.stderr, flush=True)
    header = ["tokens", "kernels", "ringc, us", *(["linghe, us", "in one graph", "times as fast"] if peers else [])]
    deliver("router", f"{gpu_line()} `{command_line('router')}`\n\n{table(header, rows)}", results, given)


if __name__ == "__main__":
    main()
