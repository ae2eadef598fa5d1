"""A step of several artifacts of a model, in turns and on the same weights: what an edit of a kernel, or another compiler, gives.

    python -m benchmarks.turns ARTIFACT ARTIFACT... [--entry decode|prefill] [--batch 1] [--context 4096] [--tokens 1] [--rounds 6]

A GPU gets slower by 2 % while it works, which is more than most edits give: so all artifacts are bound first, and each round measures each
of them. Compared are differences of one round, to the first artifact; and the logits, which an edit that is only faster leaves as they
were, but for roundings where it sums in another order, and for experts that these let win.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track

import ringc
from benchmarks.common import command_line, deliver, machine, machine_line, options, table
from benchmarks.gpu import gpu_line
from ringc.errors import RingcError, UsageError
from ringc.runtime.bench import SEED, Plan, clock_times, public_step
from ringc.runtime.cache import Cache
from ringc.runtime.rates import event_times

REPEATS = 40
"""Steps of an artifact in a round."""


@dataclass
class Contender:
    """An artifact whose step is ready to be run, its logits, what it works on, and seconds of each round."""

    name: str
    run: Callable[[], object]
    logits: torch.Tensor
    cache: Cache
    rounds: list[float] = field(default_factory=list)


def contender(model: ringc.Model, name: str, plan: Plan) -> Contender:
    """A model's step behind a context; on a GPU its graph has been made.

    Raises:
        UsageError: the program isn't kept for a second run, as its logits are too large.
    """
    cache = model.new_cache(plan.batch, plan.length)
    ids = plan.ids(model.vocabulary["size"])
    logits = torch.empty(0)
    for _ in range(2):  # on a GPU the second makes the graph
        cache.draw(SEED)
        logits = public_step(model, plan, cache, ids).float().clone()
    if not cache.bound:
        raise UsageError(
            f"the logits of {plan.batch} sequences are too large to be kept", help="ask for fewer sequences"
        )
    (bound,) = cache.bound.values()
    return Contender(name, bound.run, logits, cache)


def measure(contenders: list[Contender], rounds: int, *, on_gpu: bool) -> None:
    """Rounds in which each takes its turn."""
    times = event_times if on_gpu else clock_times
    for contender in contenders:
        times(contender.run, REPEATS // 4)  # clocks rise
    for _ in range(rounds):
        for contender in contenders:
            contender.rounds.append(statistics.median(times(contender.run, REPEATS)))


def main() -> None:
    parser = options("turns", __doc__, on_page=False)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--entry", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--context", type=int, default=4096, help="tokens that each has before")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()

    plan = Plan(given.entry, given.batch, given.context, given.tokens, rounds=given.rounds)
    contenders: list[Contender] = []
    model: ringc.Model | None = None
    try:
        for folder in track(given.artifacts, "loading", transient=True):
            model = ringc.load(folder, model or "random:0", allow_edited=True)
            plan.check(model.artifact.manifest["max_positions"])
            contenders.append(contender(model, str(folder), plan))
    except RingcError as error:
        parser.error(str(error))
    assert model is not None
    on_gpu = model.device.type == "cuda"
    measure(contenders, plan.rounds, on_gpu=on_gpu)

    first, rows, results = contenders[0], [], []
    for c in contenders:
        difference = statistics.median(a - b for a, b in zip(c.rounds, first.rounds, strict=True))
        part = difference / statistics.median(first.rounds)
        off = float((c.logits - first.logits).norm() / first.logits.norm())
        us = statistics.median(c.rounds) * 1e6
        rows.append([c.name, f"{us:.1f}", f"{difference * 1e6:+.1f}", f"{part:+.2%}", f"{off:.1e}"])
        results.append({"artifact": c.name, "rounds": c.rounds, "difference": difference, "logits_off": off})
    header = ["artifact", "us", "beside the first, us", "of the first", "logits off by"]
    line = gpu_line() if on_gpu else machine_line(machine())
    what = f"{plan.entry} of {plan.batch} x {plan.tokens} tokens behind {plan.context}"
    deliver("turns", f"{line} `{command_line('turns')}`\n\n{what}\n\n{table(header, rows)}", results, given)


if __name__ == "__main__":
    main()
