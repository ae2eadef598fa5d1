"""A small model on the CPU: ringc, eager PyTorch and torch.compile, decoding and reading a prompt.

    python -m benchmarks.cpu [--preset ring-small] [--rounds 3] [--write]

Every contender is a process of its own; they have the same weights and inputs, and are measured in turns, round by round, decoding three
times a round. One whose logits differ from the fp64 reference's by more than 2e-4 gets no time. PyTorch's contenders differ in how they run
experts, and the fastest of them in each job is what ringc's ratio is against. The floor is the bytes that a decoding step must read at the
speed at which this machine reads memory, and the operations of a prompt at the speed of its products.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import (
    ROOT,
    WORK,
    Times,
    command_line,
    deliver,
    environment,
    machine,
    machine_line,
    milliseconds,
    options,
    table,
)
from benchmarks.contenders import JOBS, MAX_LEN, WARM, Contender, contenders, serve
from benchmarks.cpu_reference import (
    BATCH,
    CONTEXT,
    PROMPT,
    TOLERANCE,
    Reference,
    make_reference,
    prefill_flops,
    read_reference,
    reference_file,
    touched_bytes,
)
from ringc.model_defs import load_spec
from ringc.model_defs.spec import Spec
from ringc.runtime.peer.experts import MOE_FORMS

GOALS = {"decode-1": (2.5, 3.5), f"decode-{BATCH}": (2.0, 3.0), f"prefill-{PROMPT}": (1.2, 1.5)}
"""Job -> how many times faster than the fastest peer ringc must be, and should be."""

DECODE_TURNS = 3
"""How often a round measures decoding: one turn of ringc takes 50 ms, so that one disturbance can fill it."""

USUAL = (
    "ringc",
    *(f"{how}-{form}" for how in ("eager", "compile") for form in MOE_FORMS),
    "wrapped-bmm",
    "wrapped-grouped_mm",
)
"""Contenders of an ordinary run: all that may be the fastest on some machine."""


@dataclass
class Result:
    """What came of a contender in a job: the seconds of each turn, or why there are none."""

    error: float | None = None
    reason: str = ""
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def times(self) -> Times | None:
        if not self.rounds:
            return None
        return Times(tuple(statistics.median(r) for r in self.rounds), min(min(r) for r in self.rounds))


class Worker:
    """A contender's process, as the one that measures sees it."""

    def __init__(self, contender: Contender, preset: str) -> None:
        self.contender = contender
        self.log = WORK / "logs" / f"{contender.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cpu", "--contender", contender.name, "--preset", preset],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
            )  # fmt: skip

    def ask(self, **command: object) -> dict[str, Any]:
        """Give a command and wait for its answer; a process that died has given up all its jobs."""
        assert self.process.stdin is not None and self.process.stdout is not None
        line = ""
        if self.process.poll() is None:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            return {"missing": f"it failed: see {self.log.relative_to(ROOT)}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def turns_of(job: str) -> int:
    """How often a round measures a job."""
    return DECODE_TURNS if job.startswith("decode") else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(
    names: list[str], preset: str, jobs: list[str], rounds: int, repetitions: dict[str, int]
) -> dict[str, dict[str, Result]]:
    """Results by job and contender."""
    known = contenders()
    results: dict[str, dict[str, Result]] = {job: {} for job in jobs}
    workers: list[Worker] = []
    try:
        for name in names:
            worker = Worker(known[name], preset)
            workers.append(worker)
            for job in jobs:
                if job not in known[name].jobs:
                    results[job][name] = Result(reason="not run: gathers gigabytes")
                    continue
                say(f"{name}: setting up and checking {job}")
                answer = worker.ask(do="check", job=job)
                found = Result(error=answer.get("error"), reason=answer.get("missing", ""))
                if not found.reason and not answer["right"]:
                    found.reason = f"wrong: logits differ by {found.error:.1e}, more than {TOLERANCE:g}"
                results[job][name] = found
                if found.reason:
                    say(f"  {found.reason}")
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for job in jobs:
                for worker in workers * turns_of(job):
                    found = results[job][worker.contender.name]
                    if found.reason:
                        continue
                    answer = worker.ask(do="time", job=job, repetitions=repetitions[job])
                    if "missing" in answer:
                        found.reason, found.rounds = answer["missing"], []
                    else:
                        found.rounds.append(answer["seconds"])
    finally:
        for worker in workers:
            worker.close()
    return results


def floors(spec: Spec, reference: Reference, rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Job -> what it must move or compute, and the seconds that this takes at the machine's best rates."""
    found = {}
    for job in JOBS:
        kind, _, size = job.partition("-")
        if kind == "decode":
            moved = touched_bytes(spec, int(size), reference.experts[int(size)])
            found[job] = {"bytes": moved, "seconds": moved / rates["bandwidth"]}
        else:
            flops = prefill_flops(spec, int(size))
            found[job] = {"flops": flops, "seconds": flops / rates["product"]}
    return found


def report(
    spec: Spec,
    jobs: list[str],
    results: dict[str, dict[str, Result]],
    floor: dict[str, dict[str, float]],
    rates: dict[str, float],
) -> tuple[str, dict[str, Any]]:
    """The tables as text, and everything as data."""
    known = contenders()
    names = list(next(iter(results.values())))
    rows = []
    for name in names:
        cells = []
        for job in jobs:
            found = results[job][name]
            cells.append(milliseconds(found.times) if found.times else found.reason)
        rows.append([known[name].title, *cells])
    lower = [f"{floor[j]['seconds'] * 1e3:.2f}" for j in jobs]
    rows.append(["floor", *lower])
    text = [
        table([f"{spec.name}, fp32, ms", *(JOBS[j] for j in jobs)], rows),
        "",
        "Times are medians of turns' medians, with the shortest repetition and the distance between turns; in brackets behind a ratio, the "
        "middle half of the turns' ratios to the peer that was fastest in each. "
        f"Decoding: from a context of {CONTEXT} on, in each turn. Logits are within {TOLERANCE:g} of the fp64 reference's. Floor: "
        + "; ".join(f"{JOBS[j]} {_floor_text(floor[j], rates)}" for j in jobs)
        + ".",
        "",
    ]
    ratios = []
    data: dict[str, Any] = {}
    for job in jobs:
        peers = {n: r.times for n, r in results[job].items() if n != "ringc" and r.times}
        best = min(peers, key=lambda n: peers[n].median, default=None)
        own = results[job]["ringc"].times if "ringc" in results[job] else None
        ratio = peers[best].median / own.median if best and own else None
        goal, aim = GOALS[job]
        data[job] = {
            "contenders": {
                n: {"error": r.error, "reason": r.reason, "rounds": r.rounds, "median": r.times.median if r.times else None}
                for n, r in results[job].items()
            },
            "floor": floor[job], "fastest_peer": best, "ratio": ratio, "goal": goal, "aim": aim,
        }  # fmt: skip
        middle = middle_half(ratios_by_turn(own, list(peers.values()))) if best and own else None
        data[job]["middle_half"] = middle
        ratios.append(
            [
                JOBS[job],
                known[best].title if best else "none",
                f"{ratio:.2f}x ({middle[0]:.2f} to {middle[1]:.2f})" if ratio and middle else "not measured",
                f"{goal}x (aim {aim}x)",
                verdict_of(ratio, middle, goal) if ratio and middle else "",
                f"{own.median / floor[job]['seconds']:.2f}x" if own else "",
            ]
        )
    text.append(table(["job", "fastest peer", "ringc is faster by", "goal", "", "ringc / floor"], ratios))
    return "\n".join(text), data


def ratios_by_turn(own: Times, peers: Sequence[Times]) -> list[float]:
    """How many times faster than the peer that was fastest in it ringc was in each turn; what disturbs a machine for long meets both."""
    return [min(peer.rounds[i] for peer in peers) / seconds for i, seconds in enumerate(own.rounds)]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of a single value itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def verdict_of(ratio: float, middle: tuple[float, float], goal: float) -> str:
    """The goal is reached if the medians say so and three quarters of the turns."""
    if ratio >= goal and middle[0] >= goal:
        return "reached"
    return "turns too unequal to say" if middle[0] < goal <= middle[1] else "missed"


def _floor_text(floor: dict[str, float], rates: dict[str, float]) -> str:
    if "bytes" in floor:
        return f"{floor['bytes'] / 1e6:.1f} MB at {rates['bandwidth'] / 1e9:.0f} GB/s"
    return f"{floor['flops'] / 1e9:.0f} GFLOP at {rates['product'] / 1e9:.0f} GFLOP/s"


def helper(task: str, preset: str) -> Any:
    """Run a part of the work in a process of its own; what it prints last is its JSON answer."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--contender", task, "--preset", preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.strip().splitlines()[-1])


def serve_helper(task: str, preset: str) -> None:
    """Be such a process: the machine's rates, or the reference."""
    if task == "rates":
        from ringc.runtime.rates import product_rate, read_bandwidth

        print(json.dumps({"bandwidth": read_bandwidth(), "product": product_rate()}))
    else:
        make_reference(load_spec(preset))
        print("{}")


def main() -> None:
    parser = options("cpu", __doc__)
    parser.add_argument("--preset", default="ring-small", help="a preset's name or a spec's file")
    parser.add_argument("--contenders", default=",".join(USUAL), help=f"comma-separated, of: {', '.join(contenders())}")
    parser.add_argument("--jobs", default=",".join(JOBS), help=f"comma-separated, of: {', '.join(JOBS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="decoding steps of a turn, of which a round has three")
    parser.add_argument("--prompts", type=int, default=3, help="prompts of a round")
    parser.add_argument("--contender", help="be this contender's process (used by the benchmark itself)")
    given = parser.parse_args()
    if given.contender in ("rates", "reference"):
        return serve_helper(given.contender, given.preset)
    if given.contender:
        return serve(given.contender, given.preset)

    names, jobs = given.contenders.split(","), given.jobs.split(",")
    if wrong := [n for n in names if n not in contenders()] + [j for j in jobs if j not in JOBS]:
        parser.error(f"there is no '{wrong[0]}'")
    if CONTEXT + WARM + given.steps > MAX_LEN:
        parser.error(f"{given.steps} steps of a turn don't fit into caches of {MAX_LEN} tokens")
    spec = load_spec(given.preset)
    found = machine()
    say(machine_line(found))
    if not reference_file(spec).exists():
        say("running the fp64 reference, once")
        helper("reference", given.preset)
    reference = read_reference(spec)
    repetitions = {job: given.steps if job.startswith("decode") else given.prompts for job in jobs}
    with environment(TORCHINDUCTOR_CACHE_DIR=os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(WORK / "inductor"))):
        rates = [helper("rates", given.preset)]
        results = measure(names, given.preset, jobs, given.rounds, repetitions)
        rates.append(helper("rates", given.preset))
    best = {key: max(r[key] for r in rates) for key in rates[0]}
    text, data = report(spec, jobs, results, floors(spec, reference, best), best)
    text = f"{machine_line(found)} `{command_line('cpu')}`\n\n{text}"
    everything = {
        "machine": found,
        "preset": spec.name,
        "rates": rates,
        "margin": reference.margin,
        "experts": reference.experts,
        "jobs": data,
    }
    deliver("cpu", text, everything, given)
    return None


if __name__ == "__main__":
    main()
