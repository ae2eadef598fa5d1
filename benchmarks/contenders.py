"""The contenders of the CPU benchmark, each a process of its own: thread pools of two libraries in one process disturb each other.

A contender is told what to do by lines of JSON on its standard input and answers each with one line: `check` sets a job up and compares
its logits with the reference's, `time` measures it. In between it sleeps, so that all of them can be measured in turns.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from benchmarks.common import WORK, timed
from benchmarks.cpu_reference import BATCH, CHECKED, CONTEXT, PROMPT, TOLERANCE, Reference, read_reference, weights_of
from ringc.errors import RingcError
from ringc.model_defs import load_spec
from ringc.model_defs.spec import Spec
from ringc.runtime.peer.experts import MOE_FORMS, MoeForm, why_not

JOBS = {
    "decode-1": "decode, batch 1",
    f"decode-{BATCH}": f"decode, batch {BATCH}",
    f"prefill-{PROMPT}": f"prefill of {PROMPT}",
}

WARM = 3
MAX_LEN = 1024
"""Longest sequence that caches are made for; what a run may not exceed."""


_FROZEN = ("freezing", "cpp_wrapper")
"""torch.compile packs the weights for its products; its host program is C++, which saves microseconds at every kernel."""


@dataclass(frozen=True)
class Contender:
    """Who it is.

    Attributes:
        name: as `--contender` takes it.
        title: as tables show it.
        form: how a PyTorch contender runs experts.
        mode: of torch.compile; None is eager, "" its default.
        options: settings of torch.compile's back end.
    """

    name: str
    title: str
    form: MoeForm | None = None
    mode: str | None = None
    options: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[str]:
        """What it takes part in: gathering every token's experts' matrices for a long prompt would copy gigabytes."""
        return [j for j in JOBS if not (self.form == "bmm" and j.startswith("prefill"))]


def contenders() -> dict[str, Contender]:
    """All of them by name."""
    found = [Contender("ringc", "ringc")]
    for form in MOE_FORMS:
        found.append(Contender(f"eager-{form}", f"eager, {form}", form))
        found.append(Contender(f"compile-{form}", f"torch.compile, {form}", form, ""))
        found.append(Contender(f"wrapped-{form}", f"torch.compile, frozen, C++ wrapper, {form}", form, "", _FROZEN))
        found.append(
            Contender(
                f"tuned-{form}", f"torch.compile, frozen, max-autotune, {form}", form, "max-autotune", _FROZEN[:1]
            )
        )
    return {c.name: c for c in found}


class Running(Protocol):
    """A model that is ready to run."""

    def new_cache(self, batch: int, max_len: int) -> Any:
        """Memory for sequences."""

    def prefill(self, ids: Tensor, cache: Any) -> Tensor:
        """ids [B, T] -> logits [B, V] of the last tokens. Not measured where it fills the cache for decoding."""

    def decode(self, ids: Tensor, cache: Any) -> Tensor:
        """ids [B] -> logits [B, V]."""


class _Torch:
    """PyTorch; caches for decoding are filled eagerly, so that nothing is compiled that isn't measured."""

    def __init__(self, spec: Spec, contender: Contender) -> None:
        from ringc.runtime.peer.model import TorchModel

        assert contender.form is not None
        weights = weights_of(spec)
        self.eager = self.model = TorchModel(spec, weights, contender.form)
        if contender.mode is not None:
            import torch._inductor.config as inductor

            for option in contender.options:
                setattr(inductor, option, True)
            self.eager = TorchModel(spec, weights, "grouped_mm" if not why_not("grouped_mm") else "loop")
            self.model.compile_steps(contender.mode or None)

    def new_cache(self, batch: int, max_len: int) -> Any:
        self.model.new_cache(1, max_len)  # its rotary tables
        return self.eager.new_cache(batch, max_len)

    def prefill(self, ids: Tensor, cache: Any) -> Tensor:
        model = self.model if ids.shape[1] == PROMPT else self.eager
        return model.prefill(ids, cache)

    def decode(self, ids: Tensor, cache: Any) -> Tensor:
        return self.model.decode(ids, cache)


def _ringc(spec: Spec) -> Running:
    import ringc

    folder = WORK / f"artifact-{spec.name}"
    ringc.compile(spec, folder, target="cpu", force=True)
    return ringc.load(folder, weights="random:0")


class _Decode:
    """Steps of a batch, in each turn from the same context on."""

    def __init__(self, model: Running, batch: int, reference: Reference) -> None:
        self.model, self.batch = model, batch
        self.ids = reference.decode_ids[:batch]
        cache, logits = self._filled()
        made = [logits, *(model.decode(self.ids[:, t], cache) for t in range(CONTEXT, CONTEXT + CHECKED))]
        self.error = _difference(torch.stack(made, 1), reference.decode_logits[:batch])

    def _filled(self) -> tuple[Any, Tensor]:
        """A cache that holds the context, and the logits behind it."""
        cache = self.model.new_cache(self.batch, MAX_LEN)
        return cache, self.model.prefill(self.ids[:, :CONTEXT], cache)

    def time(self, repetitions: int) -> list[float]:
        (cache, _), last = self._filled(), self.ids[:, -1].clone()
        step = partial(self.model.decode, last, cache)
        timed(step, WARM)
        return timed(step, repetitions)


class _Prefill:
    """A prompt into an empty cache."""

    def __init__(self, model: Running, reference: Reference) -> None:
        self.model, self.ids = model, reference.prompt_ids
        self._empty()
        self.error = _difference(self._run(), reference.prompt_logits)

    def _empty(self) -> None:
        self.cache = self.model.new_cache(1, PROMPT)

    def _run(self) -> Tensor:
        return self.model.prefill(self.ids, self.cache)

    def time(self, repetitions: int) -> list[float]:
        timed(self._run, 1, before=self._empty)
        return timed(self._run, repetitions, before=self._empty)


def _job(model: Running, name: str, reference: Reference) -> _Decode | _Prefill:
    """A job of a model, checked: its `error`, and `time` for seconds of each repetition."""
    kind, _, size = name.partition("-")
    return _Decode(model, int(size), reference) if kind == "decode" else _Prefill(model, reference)


def _difference(got: Tensor, right: Tensor) -> float:
    """Largest difference; infinite when a number is none, which a maximum might hide."""
    difference = (got.double() - right).abs().max().item()
    return float("inf") if math.isnan(difference) else difference


def _missing(contender: Contender) -> str:
    """Why a contender can't take part, or nothing."""
    if contender.form is not None:
        return why_not(contender.form)
    try:
        import ringc

        ringc.compile, ringc.load  # noqa: B018 - are they there?
    except (ImportError, AttributeError) as error:
        return f"ringc can't run models here: {error}"
    return ""


def serve(name: str, preset: str) -> None:
    """Be a contender: answer commands from standard input until it ends."""
    answers = _own_output()
    contender = contenders()[name]
    spec = load_spec(preset)
    jobs: dict[str, _Decode | _Prefill] = {}

    def answer(**said: object) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    model: Running | None = None
    for line in sys.stdin:
        command = json.loads(line)
        job = command["job"]
        if command["do"] == "time":
            answer(seconds=jobs[job].time(command["repetitions"]))
            continue
        if reason := _missing(contender):
            answer(missing=reason)
            continue
        try:
            model = model or (_ringc(spec) if contender.form is None else _Torch(spec, contender))
            jobs[job] = _job(model, job, read_reference(spec))
        except RingcError as error:
            answer(missing=error.message)
            continue
        answer(error=jobs[job].error, right=jobs[job].error <= TOLERANCE)


def _own_output() -> TextIO:
    """Standard output for answers alone: what libraries print goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept
