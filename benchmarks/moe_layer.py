"""A layer's experts in a decode step on a GPU: everything from the router on, with a norm, as it stands in the program, beside a peer.

    RINGC_PEERS=FOLDER python -m benchmarks.moe_layer ARTIFACT [--batches 1,16,64,256] [--write]

What is timed are the launches of one layer of the bound program, in a CUDA graph: routing, sorting, the experts' products, their sum, the
shared expert beside them, the residual and the next norm; of one token the norm in front of them in the place of the next one, which the
next product makes. Where RINGC_PEERS names a folder with `sglang_moe.py`, its
`moe_layer(x, gate, up, down, ids, weights)` is timed on the same weights and the same choice of experts: the experts alone, their rows
sorted beforehand. Ids of tokens are random, and so is what they choose; the floor is the bytes of the chosen experts' matrices.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

import ringc
from benchmarks.common import command_line, deliver, options, table, verdict
from benchmarks.gpu import gpu_line, microseconds
from ringc.runtime.cache import Key
from ringc.runtime.execute import Bound
from ringc.runtime.rates import measured_rates

LAYER = 5
"""The layer that is timed, counted among those with experts: neither the first nor the last."""

GOALS = {1: (1.5, 2.0), 16: (1.05, 1.15), 64: (1.0, 1.08), 256: (1.0, 1.08)}
"""By batch: how many times as fast as the peer at least, and what is aimed at."""


def layer_steps(bound: Bound, number: int) -> tuple[int, int]:
    """The steps of a layer's experts: all that read their weights, and what stands between those and behind them up to the next product.

    Args:
        bound: a decode program.
        number: of the layer, among those with experts.
    """
    keys = [key for step in bound.steps for key in step.weights if ".mlp.experts." in key]
    layer = sorted({int(key.split(".")[1]) for key in keys})[number]
    mine = [
        i for i, step in enumerate(bound.steps) if any(key.startswith(f"layers.{layer}.mlp.") for key in step.weights)
    ]
    end = mine[-1] + 1
    while all("norm" in key for key in bound.steps[end].weights):
        end += 1  # the sum, where it is apart, and the next norm, where it isn't made in a product
    return mine[0], end


def timed(model: ringc.Model, batch: int) -> tuple[float, torch.Tensor]:
    """Microseconds of a layer's experts for so many tokens, and the experts that they chose, i32 [T, k]."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(model.vocabulary["size"], (batch,), generator=generator).tolist()
    cache = model.new_cache(batch, 8)
    inputs = {"ids": ids, "positions": [0] * batch, "slots": range(batch), "offsets": range(batch + 1)}

    def run_to_layer(*, record: bool) -> tuple[Bound, int, int]:
        bound = model.bound(Key("decode", batch, batch, batch, record), cache)
        start, end = layer_steps(bound, LAYER)
        bound.inputs.write(inputs)
        for step in bound.steps[:end]:
            step.run()
        return bound, start, end

    chosen = run_to_layer(record=True)[0].experts[LAYER].clone()
    bound, start, end = run_to_layer(record=False)
    part = replace(bound, steps=bound.steps[start:end])
    return microseconds(part.launch), chosen


def peer(model: ringc.Model, chosen: torch.Tensor, folder: Path) -> float:
    """Microseconds of the peer's chain for the same choice, on the layer's weights.

    Raises:
        ImportError: the folder has no `sglang_moe.py`.
    """
    sys.path.insert(0, str(folder))
    chain = importlib.import_module("sglang_moe").moe_layer
    keys = [k for k in model.prepared if k.endswith("mlp.experts.all.gate_proj.weight")]
    gate, up, down = (
        model.prepared[keys[LAYER].replace("gate_proj", f"{part}_proj")] for part in ("gate", "up", "down")
    )
    x = torch.randn(len(chosen), gate.shape[-1], device=gate.device, dtype=gate.dtype)
    run = chain(x, gate, up, down, chosen, torch.rand(chosen.shape, device=gate.device))
    return microseconds(run)


def main() -> None:
    parser = options("moe_layer", __doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--batches", default=",".join(map(str, GOALS)), help="comma-separated numbers of tokens")
    given = parser.parse_args()

    peers = os.environ.get("RINGC_PEERS")
    bandwidth = measured_rates(torch.device("cuda")).bytes_per_second
    model = ringc.load(given.artifact, "random:0")
    rows, results = [], []
    for batch in (int(b) for b in given.batches.split(",")):
        us, chosen = timed(model, batch)
        experts = len(chosen.unique())  # type: ignore[no-untyped-call] # torch's
        matrices = next(w for k, w in model.prepared.items() if k.endswith("experts.all.gate_proj.weight"))
        floor = experts * 3 * matrices[0].numel() * matrices.element_size() / bandwidth * 1e6
        theirs = peer(model, chosen, Path(peers)) if peers else None
        row = [str(batch), str(experts), f"{us:.1f}", f"{us / floor:.2f}"]
        if theirs is not None:
            ratio = theirs / us
            least, aim = GOALS.get(batch, (1.0, 1.0))
            row += [
                f"{theirs:.1f}",
                f"{ratio:.2f}x (at least {least}x: {verdict(ratio, least, higher=True)}, aim {aim}x)",
            ]
        rows.append(row)
        results.append({"batch": batch, "experts": experts, "us": us, "floor": floor, "peer": theirs})
        print(" | ".join(row), file=sys.stderr, flush=True)
    header = [
        "tokens",
        "experts",
        "ringc, us",
        "/ floor",
        *(["SGLang's experts alone, us", "times as fast"] if peers else []),
    ]
    text = f"{gpu_line()} `{command_line('moe_layer')}`\n\n{table(header, rows)}"
    deliver("moe_layer", text, results, given)


if __name__ == "__main__":
    main()
