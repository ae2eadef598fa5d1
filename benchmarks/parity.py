"""How far the log-probabilities of a text depend on how it is put in: in one prefill, in chunks, or token by token.

    python -m benchmarks.parity ARTIFACT [--weights random:0] [--tokens 2048] [--chunk 512] [--json FILE] [--write]

The three ways run other programs, which sum in other orders; a rounding may then choose another expert, which changes more than a
rounding does. So each way is taken twice. First its experts are those that the one prefill took: what is left is rounding. Then every way
chooses for itself, and where it chose otherwise, the one prefill's own scores say by how much they would have to be off.

A difference is of the log-probability of the token that comes next in the text, and, beside it, of the hundred tokens that the one prefill
finds likeliest. The text is random.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import ringc
from benchmarks.common import command_line, deliver, machine, machine_line, options, table, verdict
from ringc.runtime.flips import Flips, flips, own, score_differences
from ringc.runtime.model import Model
from ringc.runtime.replay import Choice
from ringc.runtime.routing import cut

REPLAYED = (0.05, 0.01)
"""Largest difference with routing replayed: goal and aim."""

FREE = (0.02, 0.005)
"""Mean difference with free routing: goal and aim."""

LIKELIEST = 100
"""Tokens whose log-probabilities are compared, beside the next one."""

ROWS = 256
"""Rows of logits that are worked on at a time."""

SEED = 0
"""Of the text."""

START = time.perf_counter()
"""What times of progress count from."""

NUMBERS = (
    "log-probabilities beside the one prefill's", "replayed, next token: largest", "100 likeliest: largest",
    "free, next token: mean", "99th percentile", "largest", "100 likeliest: largest",
)  # fmt: skip
ROUTING = (
    "experts beside the one prefill's", "replayed: flips", "largest shortfall", "free: flips", "of them unprovoked",
    "their largest shortfall", "noise of a score: median, 99th percentile, largest",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A way to put a text in: tokens of each call, which decode if `decodes`, and prefill else."""

    name: str
    counts: Sequence[int]
    decodes: bool = False


def ways(tokens: int, chunk: int) -> list[Way]:
    """Those that are compared, the first with all others."""
    chunks = [min(chunk, tokens - start) for start in range(0, tokens, chunk)]
    return [
        Way("one prefill", [tokens]),
        Way(f"chunks of {chunk}", chunks),
        Way("token by token", [1] * tokens, decodes=True),
    ]


@dataclass(frozen=True)
class Readings:
    """Log-probabilities behind each token: of the next one [T], and of the likeliest ones [T, K], whose ids are `top`."""

    next: torch.Tensor
    likely: torch.Tensor
    top: torch.Tensor


def read(model: Model, text: torch.Tensor, way: Way, top: torch.Tensor | None = None) -> Readings:
    """Put a text in.

    Args:
        model: any.
        text: ids [T + 1], of which the last is only the next of the one before.
        way: whose counts add up to T.
        top: ids [T, K] to read; None for the likeliest.
    """
    cache = model.new_cache(1, len(text) - 1)
    parts: list[tuple[torch.Tensor, ...]] = []
    start = 0
    for count in way.counts:
        ids = text[start : start + count]
        logits = model.decode(ids, cache) if way.decodes else model.prefill(ids[None], cache, all_logits=True)[0]
        for at in range(0, count, ROWS):
            rows = slice(start + at, start + min(at + ROWS, count))
            probable = logits[at : at + ROWS].log_softmax(-1)
            following = text[rows.start + 1 : rows.stop + 1, None].to(probable.device)
            size = min(LIKELIEST, probable.shape[-1])
            found = probable.topk(size).indices if top is None else top[rows]
            parts.append((probable.gather(-1, following)[:, 0], probable.gather(-1, found), found))
        start += count
    return Readings(*(torch.cat(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Difference:
    """Of log-probabilities: over the next tokens the mean, the 99th percentile and the largest; the largest over the likeliest ones."""

    mean: float
    p99: float
    largest: float
    largest_likely: float


def difference(made: Readings, wanted: Readings) -> Difference:
    off = (made.next - wanted.next).abs().double()
    likely = (made.likely - wanted.likely).abs().max()
    return Difference(float(off.mean()), float(off.quantile(0.99)), float(off.max()), float(likely))


@dataclass(frozen=True)
class Parted:
    """Where a choice of experts differs from the one prefill's.

    Attributes:
        rate: share of tokens and layers whose sets of experts differ.
        count: how many that are.
        unprovoked: how many of them have the one prefill's history, but for roundings.
        shortfall: largest of those, by the one prefill's scores; 0 without any.
    """

    rate: float
    count: int
    unprovoked: int
    shortfall: float


def parted(found: Flips, unprovoked: torch.Tensor) -> Parted:
    shortfalls = found.shortfalls[unprovoked]
    largest = float(shortfalls.max()) if len(shortfalls) else 0.0
    return Parted(found.rate, int(found.flipped.sum()), len(shortfalls), largest)


@dataclass(frozen=True)
class Noise:
    """The largest difference of a token's scores in two ways, with one history, over tokens and layers that didn't flip."""

    median: float
    p99: float
    largest: float


def noise(first: Sequence[Sequence[Choice]], second: Sequence[Sequence[Choice]], flipped: torch.Tensor) -> Noise:
    kept = score_differences(first, second)[~flipped].double()
    if not len(kept):
        return Noise(0.0, 0.0, 0.0)
    # `quantile` takes at most 2^24 numbers.
    ordered = kept.sort().values
    return Noise(*(float(ordered[int(share * (len(ordered) - 1))]) for share in (0.5, 0.99, 1.0)))


@dataclass(frozen=True)
class Result:
    """What a way makes beside the one prefill.

    Attributes:
        way: its name.
        replayed: with the one prefill's experts.
        free: with its own.
        same_history: what it would have taken where it was given the one prefill's.
        free_history: what it took.
        noise: of its scores.
    """

    way: str
    replayed: Difference
    free: Difference
    same_history: Parted
    free_history: Parted
    noise: Noise


@dataclass(frozen=True)
class Parity:
    """All ways.

    Attributes:
        replay: what the one prefill's own experts, replayed, change: their weights are computed anew.
        results: of the other ways.
        errors: how many errors of a score may add up to a shortfall.
    """

    replay: Difference
    results: Sequence[Result]
    errors: int

    @property
    def replayed(self) -> float:
        return max(r.replayed.largest for r in self.results)

    @property
    def free(self) -> float:
        return max(r.free.mean for r in self.results)

    @property
    def flips_within_noise(self) -> bool:
        return all(
            max(r.same_history.shortfall, r.free_history.shortfall) <= self.errors * r.noise.largest
            for r in self.results
        )


def measure(model: Model, tokens: int, chunk: int) -> Parity:
    """Put a text in, in all ways."""
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randint(int(model.vocabulary["size"]), (tokens + 1,), generator=generator)
    first, *others = ways(tokens, chunk)
    say(f"{first.name}, free")
    with model.record_routing() as taken:
        free = read(model, text, first)
    say(f"{first.name}, replayed")
    with model.replay_routing(taken, judge=True) as replay:
        base = read(model, text, first, free.top)
    choices = replay.choices
    results = []
    errors = 2
    for way in others:
        say(f"{way.name}, replayed")
        with model.replay_routing(cut(taken, way.counts), judge=True) as replay:
            replayed = read(model, text, way, free.top)
        say(f"{way.name}, free")
        with model.record_routing() as others_taken:
            chosen = read(model, text, way, free.top)
        same, apart = flips(choices, own(replay.choices)), flips(choices, others_taken)
        errors = 2 * same.summed  # of a score that is too low, and one that is too high
        results.append(
            Result(
                way.name,
                difference(replayed, base),
                difference(chosen, free),
                parted(same, same.flipped),
                parted(apart, apart.unprovoked()),
                noise(choices, replay.choices, same.flipped),
            )
        )
    return Parity(difference(base, free), results, errors)


def report(found: Parity) -> str:
    """Tables, and the goals below them."""
    within = "within the noise" if found.flips_within_noise else "not explained by the noise"
    goals = (
        f"Replayed, largest: {found.replayed:.2g}; goal {_goals(found.replayed, REPLAYED)}. Free, mean: {found.free:.2g}; goal "
        f"{_goals(found.free, FREE)}. The one prefill with its own experts replayed differs by at most {found.replay.largest:.2g}."
    )
    meaning = (
        "Replayed, the ways have one history but for roundings, and a flip is what a way would have taken. A free flip is unprovoked where "
        "none in an earlier layer, of the same token or of one before, can be its cause. "
        f"{found.errors} errors of a score may add up to a shortfall: both kinds are {within}."
    )
    numbers, routing = ([shown(r) for r in found.results] for shown in (_numbers, _routing))
    return "\n\n".join([table(NUMBERS, numbers), goals, table(ROUTING, routing), meaning])


def _numbers(r: Result) -> list[str]:
    values = (r.replayed.largest, r.replayed.largest_likely, r.free.mean, r.free.p99, r.free.largest)
    return [r.way, *(f"{value:.2g}" for value in (*values, r.free.largest_likely))]


def _routing(r: Result) -> list[str]:
    same, free = r.same_history, r.free_history
    return [
        r.way,
        f"{same.rate:.2%}",
        f"{same.shortfall:.2g}",
        f"{free.rate:.2%}",
        str(free.unprovoked),
        f"{free.shortfall:.2g}",
        f"{r.noise.median:.2g}, {r.noise.p99:.2g}, {r.noise.largest:.2g}",
    ]


def _goals(value: float, goals: tuple[float, float]) -> str:
    goal, aim = goals
    return f"{goal}: {verdict(value, goal)}, aim {aim}: {verdict(value, aim)}"


def say(what: str) -> None:
    print(f"{time.perf_counter() - START:7.1f} s  {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = options("parity", __doc__)
    parser.add_argument("artifact", type=Path, help="what `ringc compile` wrote")
    parser.add_argument("--weights", default="random:0", help="a checkpoint's folder, random:SEED or initial:SEED")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a chunk")
    given = parser.parse_args()
    if given.tokens < 1 or given.chunk < 1:
        parser.error("--tokens and --chunk are at least 1")

    model = ringc.load(given.artifact, given.weights)
    manifest = model.artifact.manifest
    if given.tokens > manifest["max_positions"]:
        parser.error(f"the model has {manifest['max_positions']} positions")
    here = machine()
    where = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "the CPU"
    found = measure(model, given.tokens, given.chunk)
    subject = f"{model.artifact.name}, {manifest['target']['name']}, {manifest['target']['storage']}"
    text = f"{machine_line(here)} `{command_line('parity')}`\n\n{subject}, on {where}; {given.tokens} random tokens.\n\n{report(found)}"
    everything = {
        "machine": here | {"device": where},
        "artifact": subject,
        "weights": given.weights,
        "tokens": given.tokens,
        "chunk": given.chunk,
        **asdict(found),
        "replayed": found.replayed,
        "free": found.free,
        "flips_within_noise": found.flips_within_noise,
    }
    deliver("parity", text, everything, given)


if __name__ == "__main__":
    main()
