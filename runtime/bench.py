"""Measures a model on this machine: how long a step takes, what its kernels take of it, and how far that is from the floor.

A step is one token of each sequence (decode) or a prompt of each (prefill, in one call or several). Its time is that of its bound
programs replayed: on a GPU the CUDA graphs, by events; on a CPU the launches, by the clock. The time of the public call is measured beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from ringc.errors import UsageError
from ringc.runtime.cache import Cache, Key
from ringc.runtime.execute import Bound, Numbers
from ringc.runtime.floors import Run, Work, necessary_work, step_works
from ringc.runtime.machine import machine
from ringc.runtime.model import Model
from ringc.runtime.rates import Rates, event_times
from ringc.runtime.routing import NONE
from ringc.runtime.timeline import device_seconds

PASSES = 5
"""Passes over the steps of a program, from whose times the table of kernels takes the median."""

SEED = 0
"""Of ids, and of what caches hold."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        entry: prefill or decode.
        batch: sequences.
        context: tokens that each of them has before; they aren't computed.
        tokens: new tokens of each.
        chunk: tokens of each that a call takes; None for all of them.
        rounds: so many times.
    """

    entry: str
    batch: int
    context: int
    tokens: int = 1
    chunk: int | None = None
    rounds: int = 20

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """For each call of a step the first of its new tokens, and the one behind its last."""
        each = self.chunk or self.tokens
        return [(start, min(start + each, self.tokens)) for start in range(0, self.tokens, each)]

    @property
    def length(self) -> int:
        """Tokens that a sequence has in the end."""
        return self.context + self.tokens

    @property
    def new_tokens(self) -> int:
        """Of all sequences together."""
        return self.batch * self.tokens

    def ids(self, vocabulary: int) -> torch.Tensor:
        """Random ids [B, T]."""
        return torch.randint(vocabulary, (self.batch, self.tokens), generator=torch.Generator().manual_seed(SEED))

    def check(self, positions: int) -> None:
        """Raise unless it can be measured with a model of so many positions.

        Raises:
            UsageError: it can't.
        """
        if self.entry not in ("prefill", "decode"):
            raise UsageError(f"there is no entry point '{self.entry}'", help="choose from prefill and decode")
        least = {"batch": 1, "context": 0, "tokens": 1, "chunk": 1, "rounds": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name} is {value}", help=f"ask for at least {low}")
        if self.entry == "decode" and (self.tokens != 1 or self.chunk is not None):
            raise UsageError(
                "a decode step takes one token of each sequence",
                help="leave --tokens and --chunk out, or use --entry prefill",
            )
        if self.length > positions:
            raise UsageError(
                f"{self.context} tokens and {self.tokens} more are more than the model's {positions} positions",
                help=f"ask for at most {positions} together, or compile with a larger max_positions",
            )


@dataclass(frozen=True)
class KernelTime:
    """A kernel in a step.

    Attributes:
        count: launches.
        seconds: of all of them.
        share: of the sum over all kernels.
        floor: seconds of all launches, at the machine's rates; 0 of a copy.
        of_floor: how much of its floor it reaches, 1 being all; None of a copy.
    """

    kernel: str
    implementation: str
    count: int
    seconds: float
    share: float
    floor: float
    of_floor: float | None


@dataclass(frozen=True)
class Floor:
    """The least that a step can take.

    Attributes:
        bytes, flops: what no program of the model could leave out.
        seconds: their time at the machine's rates.
        kernels_seconds: the sum of the kernels' own floors, what passes between them included.
    """

    bytes: float
    flops: float
    seconds: float
    kernels_seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights, the cache and the intermediate results; `peak`: the most that was taken of a GPU's memory, or on a CPU what the
    process holds in the end.
    """

    weights: int
    cache: int
    intermediates: int
    peak: int


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        artifact, target: of what.
        plan: under which conditions.
        seconds: of a step, the median; `shortest` of all rounds.
        call_seconds: of the public call, the host's work included; median.
        floor: see `Floor`.
        experts: that have tokens in a layer, on average over layers and calls; None without experts.
        kernels: the one that takes most first.
        rates: this machine's.
        memory: see `Memory`.
        machine: what it is, in words.
        log_probabilities: [B, V] behind the last tokens, in f32 on the CPU.
    """

    artifact: str
    target: str
    plan: Plan
    seconds: float
    shortest: float
    call_seconds: float
    floor: Floor
    experts: float | None
    kernels: Sequence[KernelTime]
    rates: Rates
    memory: Memory
    machine: Mapping[str, str]
    log_probabilities: torch.Tensor

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences."""
        return self.plan.new_tokens / self.seconds

    @property
    def ratio(self) -> float:
        """How many times the floor a step takes."""
        return self.seconds / self.floor.seconds

    def as_data(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        plain = {name: asdict(getattr(self, name)) for name in ("plan", "floor", "rates", "memory")}
        return {
            "artifact": self.artifact,
            "target": self.target,
            **plain,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "shortest_seconds": self.shortest,
            "call_seconds": self.call_seconds,
            "ratio_to_floor": self.ratio,
            "experts_touched": self.experts,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "machine": dict(self.machine),
        }


@dataclass(frozen=True)
class _Call:
    """One call of a step: what its program is bound for, what it is given, and what its floor follows from."""

    key: Key
    inputs: Mapping[str, Numbers]
    run: Run


def measure(model: Model, plan: Plan, rates: Rates, progress: Progress = lambda _what, _done, _total: None) -> Report:
    """Measure a step of a model.

    Args:
        model: any.
        plan: what to measure; checked.
        rates: what floors are made of. A GPU's are best measured before the model takes its memory.
        progress: told how far it is.

    Raises:
        UsageError: the plan doesn't go with the model.
        RunError: there isn't enough memory.
        ToolchainError: another profiler is at work on this GPU.
    """
    manifest = model.artifact.manifest
    plan.check(manifest["max_positions"])
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    cache = model.new_cache(plan.batch, plan.length)
    ids = plan.ids(model.vocabulary["size"])
    cache.draw(SEED)
    with model.record_routing() as routing:
        logits = public_step(model, plan, cache, ids)
    log_probabilities = logits.float().log_softmax(-1).cpu()
    cache.bound.clear()  # they record
    experts = [[len(set(taken.flatten().tolist()) - {NONE}) for taken in layers] for layers in routing]
    calls = [_call(plan, ids, *chunk, found) for chunk, found in zip(plan.chunks, experts, strict=True)]

    measured = _Measured(model, cache)
    cache.draw(SEED)
    for done, call in enumerate(calls):
        progress("steps", done, len(calls))
        measured.time(call, plan.rounds)
    progress("calls", 0, 1)
    call_seconds = statistics.median(_walls(model, plan, cache, ids))
    # A GPU's profiler, once it was there, makes each launch slower for the host.
    cache.draw(SEED)
    for done, call in enumerate(calls):
        progress("kernels", done, len(calls))
        measured.profile(call, plan.rounds)
    memory = Memory(model.weight_bytes, cache.bytes, model.intermediate_bytes, _peak(on_gpu))
    progress("machine", 0, 1)
    words = machine(model.device, manifest["tools"], measured.last.run)
    if on_gpu:
        graphs = measured.last.graphs is not None
        words["programs"] = "CUDA graphs" if graphs else "launched one by one: lengths are read on the host"

    kernels, works = measured.kernels(rates), measured.necessary
    floor = Floor(
        sum(work.bytes for work in works),
        sum(work.flops for work in works),
        sum(rates.seconds(work.bytes, work.flops) for work in works),
        sum(kernel.floor for kernel in kernels),
    )
    touched = [count for layers in experts for count in layers]
    return Report(
        model.artifact.name,
        str(manifest["target"]["name"]),
        plan,
        sum(statistics.median(times) for times in measured.times),
        sum(min(times) for times in measured.times),
        call_seconds,
        floor,
        statistics.mean(touched) if touched else None,
        kernels,
        rates,
        memory,
        words,
        log_probabilities,
    )


def public_step(model: Model, plan: Plan, cache: Cache, ids: torch.Tensor) -> torch.Tensor:
    """A step by the public calls, behind a context that the cache is told to hold: logits [B, V] of the last tokens."""
    cache.pretend(plan.context)
    if plan.entry == "decode":
        return model.decode(ids[:, 0], cache)
    made = torch.empty(0)
    for start, stop in plan.chunks:
        made = model.prefill(ids[:, start:stop], cache)
    return made


def _call(plan: Plan, ids: torch.Tensor, start: int, stop: int, experts: Sequence[int]) -> _Call:
    """A call for the new tokens `start .. stop - 1` of each sequence."""
    new = ids[:, start:stop]
    batch, count = new.shape
    first = plan.context + start
    offsets = torch.arange(batch + 1) * count
    inputs: dict[str, Numbers] = {
        "ids": new.flatten().numpy(),
        "positions": (first + torch.arange(count)).repeat(batch).numpy(),
        "slots": range(batch),
        "offsets": offsets.numpy(),
    }
    takes_rows = plan.entry == "prefill"
    if takes_rows:
        inputs["rows"] = (offsets[1:] - 1).numpy()
        inputs["row_offsets"] = range(batch + 1)
    run = Run(batch, count, first, batch, takes_rows, len(set(new.flatten().tolist())), experts)
    return _Call(Key(plan.entry, batch * count, batch, batch), inputs, run)


class _Measured:
    """Times of a step's calls as they come in, and the work of each.

    Attributes:
        times: for each call, seconds of each round.
        necessary: for each call, what it must do.
        last: the program bound last.
    """

    last: Bound

    def __init__(self, model: Model, cache: Cache) -> None:
        self._model, self._cache = model, cache
        self._on_gpu = model.device.type == "cuda"
        self._manifest = model.artifact.manifest
        self.times: list[list[float]] = []
        self.necessary: list[Work] = []
        self._launches: list[tuple[str, float, Work]] = []

    @torch.no_grad()
    def time(self, call: _Call, rounds: int) -> None:
        """Replay a call's program. The cache goes on: it holds the tokens of the calls before."""
        bound = self._given(call)
        for _ in range(2):  # on a GPU the second makes the graph
            bound.run()
        self.times.append(event_times(bound.run, rounds) if self._on_gpu else clock_times(bound.run, rounds))
        self._cache.keep(call.key, bound)

    @torch.no_grad()
    def profile(self, call: _Call, rounds: int) -> None:
        """Run a call's steps one by one. The cache goes on, as above."""
        bound = self._given(call)
        steps = [step for step in bound.steps if step.kernel != "join"]
        runs = [step.run for step in steps]
        passes = device_seconds(runs, PASSES) if self._on_gpu else [_clocked(runs) for _ in range(max(PASSES, rounds))]
        works = step_works(self._manifest, steps, call.run)
        for step, work, *seconds in zip(steps, works, *passes, strict=True):
            self._launches.append((step.kernel, statistics.median(seconds), work))
        self.necessary.append(necessary_work(self._manifest, steps, call.run))
        self._cache.keep(call.key, bound)

    def _given(self, call: _Call) -> Bound:
        """A call's program with its inputs."""
        bound = self.last = self._model.bound(call.key, self._cache)
        bound.inputs.write(call.inputs)
        return bound

    def kernels(self, rates: Rates) -> list[KernelTime]:
        """The step by kernel, that which takes most first."""
        total = sum(seconds for _, seconds, _ in self._launches)
        found: list[KernelTime] = []
        for name in dict.fromkeys(kernel for kernel, _, _ in self._launches):
            mine = [(seconds, work) for kernel, seconds, work in self._launches if kernel == name]
            taken = sum(seconds for seconds, _ in mine)
            floor = sum(rates.seconds(work.bytes, work.flops) for _, work in mine)
            entry = self._manifest["kernels"].get(name)
            found.append(
                KernelTime(
                    name,
                    entry["implementation"] if entry else "",
                    len(mine),
                    taken,
                    taken / total if total else 0.0,
                    floor,
                    floor / taken if entry and taken else None,
                )
            )
        return sorted(found, key=lambda kernel: -kernel.seconds)


def clock_times(run: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, by the clock."""
    return [_clocked([run])[0] for _ in range(rounds)]


def _clocked(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each of these, run one after the other."""
    found = []
    for run in runs:
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return found


def _walls(model: Model, plan: Plan, cache: Cache, ids: torch.Tensor) -> list[float]:
    """Seconds of each round of the public calls, until the logits are there; the first isn't counted."""

    def once() -> None:
        public_step(model, plan, cache, ids)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    once()
    return clock_times(once, plan.rounds)


def _peak(on_gpu: bool) -> int:
    """See `Memory`."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
