"""A layer's experts in a decode step on a GPU: everything from the router on, with a norm, as it stands in the program, beside a peer.

    RINGC_PEERS=FOLDER python -m benchmarks.moe_layer ARTIFACT [--batches 1,16,64,256] [--write]

What is timed are the launches of one layer of the bound program, in a CUDA graph: routing, sorting, the experts' products, their sum, the
shared expert beside them, the residual and the next norm; of one token the norm in front of them in the place of the next one, which the
next product makes. Ids of tokens are random, and so is what they choose. Beside it stands a plain read of the bytes that the layer can't do
without (the matrices of the chosen experts and of the shared one, the router's), by one kernel that is timed the same way.

Where RINGC_PEERS names a folder with `sglang_moe.py`, its `moe_layer(x, gate, up, down, ids, weights, by_torch)` is timed on the same
weights and the same choice of experts: the experts alone, their rows sorted beforehand, activation and sum by its kernels or PyTorch's.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import ringc
from benchmarks.common import command_line, deliver, options, table, verdict
from benchmarks.gpu import gpu_line, microseconds, part_microseconds
from benchmarks.part import part_of
from benchmarks.plain_read import read_microseconds
from ringc.runtime.cache import Key
from ringc.runtime.execute import Bound, Step

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


@dataclass(frozen=True)
class Layer:
    """A layer's experts as measured: microseconds, the experts that each token chose, i32 [T, k], how many different ones those are, and
    the bytes of all weights read.
    """

    us: float
    chosen: torch.Tensor
    experts: int
    nbytes: int


def read_bytes(steps: Sequence[Step], weights: Mapping[str, torch.Tensor], experts: int) -> int:
    """Bytes of the weights that some steps read, once each, and of experts' matrices those of so many experts."""
    keys = {key for step in steps for key in step.weights}
    return sum(weights[key][: experts if ".experts.all." in key else None].nbytes for key in keys)


def timed(model: ringc.Model, batch: int) -> Layer:
    """A layer's experts for so many tokens, the first of their sequences."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(model.vocabulary["size"], (batch,), generator=generator).tolist()
    inputs = {"ids": ids, "positions": [0] * batch, "slots": range(batch), "offsets": range(batch + 1)}

    def part(*, record: bool) -> Bound:
        key = Key("decode", batch, batch, batch, record)
        return part_of(model, key, 8, inputs, lambda bound: layer_steps(bound, LAYER))

    chosen = part(record=True).experts[LAYER].clone()
    layer = part(record=False)
    experts = len(chosen.unique())  # type: ignore[no-untyped-call] # torch's
    return Layer(part_microseconds(layer), chosen, experts, read_bytes(layer.steps, model.prepared, experts))


def peers(model: ringc.Model, chosen: torch.Tensor, folder: Path) -> tuple[float, float]:
    """Microseconds of the peer's experts for the same choice, on the layer's weights: with its own activation and sum, and with PyTorch's.

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
    weights = torch.rand(chosen.shape, device=gate.device)
    own, by_torch = (chain(x, gate, up, down, chosen, weights, way) for way in (False, True))
    return microseconds(own), microseconds(by_torch)


def main() -> None:
    parser = options("moe_layer", __doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--batches", default=",".join(map(str, GOALS)), help="comma-separated numbers of tokens")
    given = parser.parse_args()

    folder = os.environ.get("RINGC_PEERS")
    model = ringc.load(given.artifact, "random:0")
    rows, results = [], []
    for batch in (int(b) for b in given.batches.split(",")):
        layer = timed(model, batch)
        read = read_microseconds(layer.nbytes)
        row = [str(batch), str(layer.experts), f"{layer.us:.1f}", f"{read:.1f}", f"{layer.us / read:.2f}"]
        result = {"batch": batch, "experts": layer.experts, "us": layer.us, "bytes": layer.nbytes, "read": read}
        if folder:
            own, by_torch = peers(model, layer.chosen, Path(folder))
            least, aim = GOALS.get(batch, (1.0, 1.0))
            ratio = by_torch / layer.us
            said = f"at least {least}x: {verdict(ratio, least, higher=True)}, aim {aim}x"
            row += [f"{by_torch:.1f}", f"{ratio:.2f}x ({said})", f"{own:.1f}", f"{own / layer.us:.2f}x"]
            result |= {"by_torch": by_torch, "own": own}
        rows.append(row)
        results.append(result)
        print(" | ".join(row), file=sys.stderr, flush=True)
    beside = ["SGLang's products, PyTorch's rest, us", "ringc is faster by", "all SGLang's, us", "by"]
    header = ["tokens", "experts", "ringc, us", "a read of its bytes, us", "ringc / read", *(beside if folder else [])]
    text = f"{gpu_line()} `{command_line('moe_layer')}`\n\n{table(header, rows)}"
    deliver("moe_layer", text, results, given)


if __name__ == "__main__":
    main()
