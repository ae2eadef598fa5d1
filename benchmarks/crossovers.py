"""Crossovers on a GPU: from which size on the other of two ways is faster, as measured and as the cost model predicts.

    python -m benchmarks.crossovers [--target sm_90] [--device FILE] [--predict] [--write]

At every size both ways are run on the same inputs, compared with each other and timed: medians over replays of a CUDA graph, the
second-level cache overwritten before each. The measured crossover is the threshold that loses least over all sizes. `--device` takes the
predictions from a description that `ringc calibrate` wrote; `--predict` makes the predictions alone, and needs no GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.common import command_line, deliver, measured_crossover, options, package, table
from benchmarks.decisions import Decision, Way, arrange, decisions
from ringc.codegen.cache import Cache
from ringc.codegen.check import call_tensors
from ringc.passes.target import Target, target_of
from ringc.runtime.alone import load_alone
from ringc.runtime.backends import Kernels
from ringc.runtime.here import check_runs_here, device_name
from ringc.runtime.timing import replayed
from tests.device.cases import DeviceInputs, results

TOLERANCE = 0.02
"""By how much the results of two ways may differ, relative to their norm: both round to bf16."""

SECONDS = 150.0
"""Time after which no further size is begun."""


@dataclass
class Measured:
    """Seconds of both ways of a decision at the sizes that there was time for."""

    decision: Decision
    counts: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    @property
    def crossover(self) -> float | None:
        """The size from which the second way is to be taken; None for never, or where nothing was measured."""
        return measured_crossover(self.counts, self.first, self.second) if self.counts else None

    @property
    def loss(self) -> tuple[float, int] | None:
        """How many times as long as the faster way the predicted one takes at worst, and at which size."""
        start = self.decision.predicted
        taken = [
            (b if start is not None and n >= start else a) / min(a, b)
            for n, a, b in zip(self.counts, self.first, self.second, strict=True)
        ]
        return max(zip(taken, self.counts, strict=True), default=None)


def run_once(way: Way, kernels: Kernels, sizes: dict[str, int]) -> tuple[float, list[torch.Tensor]]:
    """Seconds of a way, and its results on inputs that depend on the sizes alone.

    A state that is updated in place goes on from replay to replay; the results are those of the first run.
    """
    inputs = DeviceInputs(way.kernel.function, sizes, 1, integers_only=False).all()
    arrange(way.kernel, inputs, sizes)
    given = call_tensors(way.kernel, inputs, sizes, "cuda")
    del inputs
    run = kernels.bind(way.kernel.name, given)
    run()
    made = [x.clone() for x in results(way.kernel, given)]
    return replayed(run), made


def check_equal(decision: Decision, count: int, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> None:
    """Raise unless both ways give the same.

    Raises:
        SystemExit: they don't.
    """
    for a, b in zip(first, second, strict=True):
        error = float((a.float() - b.float()).norm() / a.float().norm())
        if not error <= TOLERANCE:
            names = f"{decision.first.name} and {decision.second.name}"
            raise SystemExit(f"{decision.what}: {names} differ by {error:.1e} at {count} {decision.counted}")


def measure(decision: Decision, kernels: Kernels, deadline: float) -> Measured:
    """Both ways at all sizes, one row printed for each."""
    found = Measured(decision)
    for count in decision.counts:
        if time.monotonic() > deadline:
            print(f"{decision.what}: no time left for {count} {decision.counted} and more", flush=True)
            break
        sizes = decision.sizes(count)
        (a, first), (b, second) = (run_once(way, kernels, sizes) for way in (decision.first, decision.second))
        check_equal(decision, count, first, second)
        found.counts.append(count)
        found.first.append(a)
        found.second.append(b)
        times = f"{a * 1e6:9.1f} us  {b * 1e6:9.1f} us  {a / b:5.2f}"
        print(f"{decision.what:<44} {count:>5} {decision.counted:<12} {times}", flush=True)
        del first, second
    return found


def summary(found: Sequence[Measured]) -> str:
    """The table: a row for each decision."""
    rows: list[list[str]] = []
    for one in found:
        decision, measured = one.decision, one.crossover
        names = [way.name.partition(".")[2] for way in (decision.first, decision.second)]
        templates = [name.partition("{")[0] for name in names]
        names = templates if len({*templates}) > 1 else names  # of one template it is the configuration that differs
        ratio, lost = "", ""
        if one.counts:
            if measured is not None and decision.predicted is not None:
                ratio = f"{decision.predicted / measured:.2f}"
            worst = one.loss
            lost = "" if worst is None else f"{worst[0]:.2f}x at {worst[1]}"
        least, most = (one.counts[0], one.counts[-1]) if one.counts else (decision.counts[0], decision.counts[-1])
        rows.append([
            decision.what,
            ", then ".join(names),
            f"{decision.counted}, {least} to {most}",
            "not measured" if not one.counts else "never" if measured is None else f"{measured:.1f}",
            f"{'never' if decision.predicted is None else decision.predicted} ({decision.why})",
            ratio,
            lost,
        ])  # fmt: skip
    head = [
        "decision",
        "ways",
        "by",
        "measured",
        "predicted",
        "predicted / measured",
        "lost by the prediction at worst",
    ]
    return table(head, rows)


def about(target: Target, *, measured: bool) -> str:
    """Date, GPU and versions, and where the predictions come from."""
    source = "the constants of" if target.device is None else f"the description of {target.device.name} for"
    here = f"{device_name(target)}; " if measured else ""
    versions = ", ".join(f"{name} {package(name)}" for name in ("torch", "triton"))
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{date}; {here}{versions}; predictions by {source} target {target.name}. `{command_line('crossovers')}`"


def main() -> None:
    parser = options("crossovers", __doc__)
    parser.add_argument("--target", default="sm_90", choices=("sm_80", "sm_90", "sm_100"))
    parser.add_argument("--device", type=Path, help="a device description, by which crossovers are predicted")
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no further size is begun")
    given = parser.parse_args()

    deadline = time.monotonic() + given.seconds
    target = target_of(given.target, given.device)
    found = decisions(target)
    if given.predict:
        measured = [Measured(decision) for decision in found]
    else:
        check_runs_here(target)
        built = [way.kernel for decision in found for way in (decision.first, decision.second)]
        with tempfile.TemporaryDirectory(prefix="ringc-crossovers-") as folder:
            kernels = load_alone(built, target, Path(folder), Cache())
            print(f"{len(built)} kernels built", file=sys.stderr, flush=True)
            measured = [measure(decision, kernels, deadline) for decision in found]
    text = f"{about(target, measured=not given.predict)}\n\n{summary(measured)}"
    result = {
        "about": about(target, measured=not given.predict),
        "decisions": [
            {
                "what": one.decision.what,
                "by": one.decision.counted,
                "ways": [one.decision.first.name, one.decision.second.name],
                "predicted": one.decision.predicted,
                "why": one.decision.why,
                "measured": one.crossover,
                "counts": one.counts,
                "seconds": [one.first, one.second],
            }
            for one in measured
        ],
    }
    deliver("crossovers", text, result, given)


if __name__ == "__main__":
    main()
