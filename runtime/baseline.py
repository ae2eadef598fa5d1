"""Measures the same model in plain PyTorch, beside which an artifact's times are shown: eagerly or under torch.compile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ringc.errors import RunError, ToolchainError, UsageError
from ringc.runtime.bench import SEED, Plan, clock_times
from ringc.runtime.cache import draw_state
from ringc.runtime.graphs import Graphs
from ringc.runtime.memory import check_memory
from ringc.runtime.peer.experts import MoeForm, why_not
from ringc.runtime.peer.model import Cache, TorchModel
from ringc.runtime.rates import event_times

if TYPE_CHECKING:
    from ringc.model_defs.spec import Spec
    from ringc.runtime.weights import PublishedTensors

MODES = ("eager", "compile")

COMPILED: Mapping[str, str | None] = {"cuda": "max-autotune-no-cudagraphs", "cpu": None}
"""Mode of torch.compile, by device; the CUDA graphs are ours, as ringc's are."""


@dataclass(frozen=True)
class Baseline:
    """What was measured of the plain model.

    Attributes:
        mode: eager or compile.
        how: what it is made of, in words. Compiled on a GPU, each layer is a graph, and layers of a kind share their code.
        seconds: of a step, the median; on a GPU by events, as ringc's. `shortest` of all rounds.
        peak: most bytes that were taken of a GPU's memory; 0 on a CPU.
        log_probabilities: [B, V] behind the last tokens, in f32 on the CPU.
    """

    mode: str
    how: str
    seconds: float
    shortest: float
    peak: int
    log_probabilities: torch.Tensor

    def off(self, log_probabilities: torch.Tensor) -> tuple[float, float]:
        """Of the differences from these, the largest and the median."""
        differences = (self.log_probabilities - log_probabilities).abs()
        return float(differences.max()), float(differences.median())


def check_baseline(mode: str, spec: Spec) -> None:
    """Raise unless the plain model can be run for a spec.

    Raises:
        UsageError: it can't.
    """
    if mode not in MODES:
        raise UsageError(f"there is no baseline '{mode}'", help=f"choose from {' and '.join(MODES)}")
    if spec.fp8 is not None:
        raise UsageError(
            f"{spec.name} has FP8 products, which the plain PyTorch model doesn't have", help="leave --baseline out"
        )


@torch.inference_mode()
def measure_baseline(
    mode: str,
    spec: Spec,
    weights: PublishedTensors,
    states: Mapping[str, Mapping[str, Any]],
    dtype: torch.dtype,
    device: torch.device,
    plan: Plan,
) -> Baseline:
    """Measure a step of the plain model, on the inputs, weights and cache contents that ringc's is measured on.

    Args:
        mode, spec: checked.
        weights: by published name.
        states: the manifest's.
        dtype: of weights and activations.
        device: the artifact's.
        plan: what to measure.

    Raises:
        RunError: there isn't enough memory.
        ToolchainError: torch.compile can't.
    """
    on_gpu = device.type == "cuda"
    check_memory(
        weights.elements * dtype.itemsize,
        device,
        "the plain model's weights",
        "leave --baseline out, or use a larger machine",
    )
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    form: MoeForm = "loop" if why_not("grouped_mm", device.type, dtype) else "grouped_mm"
    try:
        model = TorchModel(spec, weights, form, dtype=dtype, device=device)
        cache = _drawn_cache(model, states, plan)
        ids = plan.ids(spec.vocabulary.size).to(device)
        step = _step(model, cache, plan, ids)
        found = step().log_softmax(-1).cpu()
        if mode == "compile":
            model.compile_steps(COMPILED[device.type], by_layer=on_gpu)
        # An expert after the other needs their numbers of rows on the host.
        captured = on_gpu and plan.entry == "decode" and form == "grouped_mm"
        times = _times(step, plan.rounds, on_gpu=on_gpu, captured=captured)
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(
            "there isn't enough GPU memory for the plain model", help="ask for fewer sequences or tokens"
        ) from error
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        raise ToolchainError(
            f"torch.compile can't compile the plain model: {str(error).strip().splitlines()[0][:200]}",
            help="use --baseline eager",
        ) from error
    how = _how(model, form, captured=captured, apart=on_gpu and mode == "compile")
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Baseline(mode, how, statistics.median(times), min(times), peak, found)


def _drawn_cache(model: TorchModel, states: Mapping[str, Mapping[str, Any]], plan: Plan) -> Cache:
    """A cache of the numbers that `ringc.runtime.cache.Cache.draw` gives ringc's, whose rows of keys and values lie in another order."""
    from ringc.runtime.backends import DTYPES

    cache = model.new_cache(plan.batch, plan.length)
    for i, layer in enumerate(cache.layers):
        for name, mine in zip(("state",) if len(layer) == 1 else ("keys", "values"), layer, strict=True):
            key = f"layers.{i}.{name}"
            shape = [plan.length if d == "S" else d for d in states[key]["shape"]]
            drawn = torch.empty((plan.batch, *shape), dtype=DTYPES[states[key]["dtype"]], device=mine.device)
            draw_state(key, drawn, SEED)
            mine.copy_(drawn if name == "state" else drawn.transpose(1, 2))
    return cache


def _step(model: TorchModel, cache: Cache, plan: Plan, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A step behind the context, as often as it is called: logits [B, V]."""
    if plan.entry == "decode":
        cache.rewind(plan.context)
        token = ids[:, 0].contiguous()
        return lambda: model.decode_again(token, cache)

    def prompt() -> torch.Tensor:
        cache.rewind(plan.context)
        made = torch.empty(0)
        for start, stop in plan.chunks:
            made = model.prefill(ids[:, start:stop], cache)
        return made

    return prompt


def _times(step: Callable[[], torch.Tensor], rounds: int, *, on_gpu: bool, captured: bool) -> list[float]:
    """Seconds of each round, after two that compile and warm up."""
    for _ in range(2):
        step()
    if not on_gpu:
        return clock_times(step, rounds)
    if captured:
        return event_times(Graphs().captured(step).replay, rounds)
    return event_times(step, rounds)


def _how(model: TorchModel, form: MoeForm, *, captured: bool, apart: bool) -> str:
    parts = [str(model.embedding.dtype).removeprefix("torch."), *(["layers compiled apart"] if apart else [])]
    if model.spec.linear_layers:
        parts.append(
            "linear attention of prompts by fla" if model.uses_fla else "linear attention in blocks of products"
        )
    if model.spec.softmax_layers:
        parts.append("SDPA")
    if model.spec.moe_layers:
        parts.append({"grouped_mm": "grouped_mm", "loop": "experts in a loop", "bmm": "bmm"}[form])
    return ", ".join([*parts, "CUDA graph"] if captured else parts)
