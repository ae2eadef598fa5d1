"""Inputs of the CPU benchmark, the logits that are right for them, and how many bytes of weights they touch.

Routing makes whole-model comparison delicate: where two experts' scores are nearly equal, a rounding error chooses the other one, and the
logits of that token differ by far more than rounding does. So more sequences are drawn than are used, and those stay whose
closest decision, in the fp64 reference, is the widest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import ROOT, WORK
from ringc.model_defs.parameters import checkpoint_parameters
from ringc.model_defs.spec import Spec
from ringc.runtime.drawn import random_parameter
from tests.reference.ring_linear import Output, RingConfig, forward
from tests.runtime.models import reference_config

CONTEXT = 512
BATCH = 8
PROMPT = 2048
CHECKED = 4
"""Decoding steps whose logits are compared."""

SEED = 0
DRAWS = {"decode": 16, "prefill": 4}

TOLERANCE = 2e-4
"""Largest difference of a logit from the fp64 reference's; their standard deviation is near 1."""


@dataclass(frozen=True)
class Reference:
    """What contenders get and what they must give.

    Attributes:
        decode_ids: [8, 512 + 4].
        decode_logits: [8, 1 + 4, V], after the prompt of 512 and after each further token.
        prompt_ids: [1, 2048].
        prompt_logits: [1, V], of the last token.
        margin: the closest routing decision in any of them.
        experts: mean number of expert matrices (of all layers together) that a decoding step reads, by batch size.
    """

    decode_ids: Tensor
    decode_logits: Tensor
    prompt_ids: Tensor
    prompt_logits: Tensor
    margin: float
    experts: dict[int, float]


def weights_of(spec: Spec) -> dict[str, Tensor]:
    """What `random:0` means, by published name, fp32."""
    return {p.name: random_parameter(p.name, p.shape, SEED) for p in checkpoint_parameters(spec)}


def reference_file(spec: Spec) -> Path:
    """Where the reference of a spec is kept; its name depends on all that it depends on."""
    makers = (Path(__file__), ROOT / "tests" / "reference" / "ring_linear.py")
    said = spec.model_dump_json() + "".join(p.read_text(encoding="utf-8") for p in makers)
    return WORK / f"reference-{spec.name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.safetensors"


def make_reference(spec: Spec) -> None:
    """Draw inputs, run the fp64 reference, and write both."""
    config = reference_config(spec)
    weights = {name: w.double() for name, w in weights_of(spec).items()}
    rows = _widest(config, weights, CONTEXT + CHECKED, DRAWS["decode"], BATCH)
    prompts = _widest(config, weights, PROMPT, DRAWS["prefill"], 1)
    margin = min(out.margin for _, out in rows + prompts)
    steps = range(CONTEXT, CONTEXT + CHECKED)
    experts = {batch: _experts_used([out for _, out in rows[:batch]], steps) for batch in (1, BATCH)}
    tensors = {
        "decode_ids": torch.stack([ids for ids, _ in rows]),
        "decode_logits": torch.stack([out.logits[CONTEXT - 1 :] for _, out in rows]),
        "prompt_ids": torch.stack([ids for ids, _ in prompts]),
        "prompt_logits": torch.stack([out.logits[-1] for _, out in prompts]),
    }
    file = reference_file(spec)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"margin": repr(margin), "experts": json.dumps(experts)})


def _experts_used(outputs: Sequence[Output], steps: Sequence[int]) -> float:
    """Mean number of experts, of all layers together, that the sequences use at a step."""
    used = {
        (t, layer, e) for out in outputs for layer, r in out.routing.items() for t in steps for e in r.ids[t].tolist()
    }
    return len(used) / len(steps)


def read_reference(spec: Spec) -> Reference:
    """What `make_reference` wrote."""
    with safe_open(str(reference_file(spec)), framework="pt") as file:
        said = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    experts = {int(batch): n for batch, n in json.loads(said["experts"]).items()}
    return Reference(**tensors, margin=float(said["margin"]), experts=experts)


def _widest(
    config: RingConfig, weights: dict[str, Tensor], tokens: int, draws: int, keep: int
) -> list[tuple[Tensor, Output]]:
    generator = torch.Generator().manual_seed(SEED)
    drawn = []
    for _ in range(draws):
        ids = torch.randint(min(256, config.vocab_size), (tokens,), generator=generator)
        drawn.append((ids, forward(config, weights, ids, chunk=64)))
    return sorted(drawn, key=lambda d: -d[1].margin)[:keep]


def touched_bytes(spec: Spec, batch: int, experts: float) -> float:
    """Bytes in fp32 that a decoding step must move: matrices it uses, states in and out, keys and values of the context.

    Args:
        spec: the model.
        batch: sequences.
        experts: experts used, of all layers together.
    """
    used = 0.0
    for p in checkpoint_parameters(spec):
        if p.kind == "embedding":
            used += p.size if spec.head.tied else batch * spec.hidden
        elif p.expert is None:
            used += p.size
    if spec.moe is not None:
        used += experts * 3 * spec.moe.width * spec.hidden
    states = 2 * len(spec.linear_layers) * spec.heads * spec.head_dim**2
    rows = 2 * CONTEXT * spec.head_dim * sum(spec.kv_heads(i) for i in spec.softmax_layers)
    return 4 * (used + batch * (states + rows))


BEFORE_WANTED = ("attention_norm", "qkv", "query_norm", "key_norm", "linear_norm", "linear_gate")
"""What all tokens need of the last layer's parameters: the rest is for the last token alone, whose logits are wanted."""


def prefill_flops(spec: Spec, tokens: int) -> float:
    """Operations of a prompt whose last logits are wanted: products of the active parameters, causal softmax attention, linear attention's
    recurrence.
    """
    last = spec.layers.count - 1
    every, one = 0.0, 0.0
    for p in checkpoint_parameters(spec):
        share = spec.moe.top_k / spec.moe.experts if p.expert is not None and spec.moe is not None else 1.0
        if p.kind in ("embedding", "head"):
            continue
        if p.kind == "final_norm" or (p.layer == last and p.kind not in BEFORE_WANTED):
            one += share * p.size
        else:
            every += share * p.size
    whole = [i for i in spec.softmax_layers if i != last]
    softmax = 2 * tokens * spec.attention_width * (tokens * len(whole) + 2 * (last in spec.softmax_layers))
    linear = 5 * tokens * spec.attention_width * spec.head_dim * len(spec.linear_layers)
    return 2 * tokens * every + 2 * one + softmax + linear
