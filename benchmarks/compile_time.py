"""How long `ringc compile` takes, cold and with a warm kernel cache, how much memory, how many kernels; and `ringc --help`.

    python -m benchmarks.compile_time [--models ring-small:cpu,...] [--write]

Each compile is a run of the command line in a process of its own, with a cache directory made for it: the first one finds it empty, the
second one finds the first one's kernels. Memory is the largest resident set of any one process, workers included.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.common import (
    ROOT,
    Times,
    command_line,
    deliver,
    machine,
    machine_line,
    options,
    table,
    verdict,
)

COMMAND = (sys.executable, "-m", "ringc")
MODELS = ("ring-small:cpu", "ring-mini-linear-2.0:sm_90", "ring-flash-linear-2.0:sm_90")
COLD = {"ring-small:cpu": 15.0, "ring-mini-linear-2.0:sm_90": 60.0}
WARM = {"ring-mini-linear-2.0:sm_90": 8.0}
KERNELS = {"ring-mini-linear-2.0:sm_90": 60}
FLASH_TO_MINI = 1.3
MEMORY = 1.5e9
HELP = 0.5
SAMPLE = 0.05
"""Seconds between looks at the processes."""


@dataclass(frozen=True)
class Run:
    """A finished command: wall seconds, bytes of its largest process, number of processes seen, what it printed."""

    seconds: float
    peak: int
    processes: int
    output: str


def run(command: Sequence[str], **environment: str) -> Run:
    """Run a command and watch it and its children.

    Raises:
        SystemExit: it failed; its message is shown.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **environment}
        )
        peaks: dict[int, int] = {}
        while True:
            for one in _family(process.pid):
                peaks[one.pid] = max(peaks.get(one.pid, 0), _peak(one))
            try:
                code = process.wait(SAMPLE)
                break
            except subprocess.TimeoutExpired:
                continue
        seconds = time.perf_counter() - begin
        printed.seek(0)
        output = printed.read()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{output[-2000:]}")
    return Run(seconds, max(peaks.values(), default=0), len(peaks), output)


def _family(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak(process: psutil.Process) -> int:
    """The kernel's own mark of the largest resident set, where it keeps one: nothing is missed between two looks."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0
    except OSError:
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@dataclass(frozen=True)
class Compiled:
    """A model compiled twice."""

    cold: Run
    warm: Run
    kernels: int
    same: bool
    passes: str


def compile_twice(model: str) -> Compiled:
    """Compile NAME:TARGET with an empty cache, then with what that left in it; also whether both gave the same manifest."""
    name, _, to = model.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        runs, manifests = [], []
        for turn in ("cold", "warm"):
            place = Path(folder) / turn
            command = (*COMMAND, "compile", name, "-o", str(place), "--target", to)
            runs.append(run(command, RINGC_CACHE_DIR=str(Path(folder) / "cache"), COLUMNS="200"))
            manifests.append((place / "manifest.json").read_bytes())
            print(f"{model}: {turn} {runs[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    said = re.search(r"([\d.]+ \S+) of it in passes", runs[0].output)
    kernels = len(json.loads(manifests[0])["kernels"])
    return Compiled(runs[0], runs[1], kernels, manifests[0] == manifests[1], said[1] if said else "")


def help_times(repetitions: int = 5) -> Times:
    """Seconds of `ringc --help`."""
    seconds = tuple(run((*COMMAND, "--help")).seconds for _ in range(repetitions))
    return Times(seconds, min(seconds))


def _against(value: float, goal: float | None, form: str) -> str:
    shown = form.format(value)
    return shown if goal is None else f"{shown} (goal {form.format(goal)}: {verdict(value, goal)})"


def main() -> None:
    parser = options("compile_time", __doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated PRESET:TARGET")
    given = parser.parse_args()

    found = machine()
    usage = help_times()
    models = {m: compile_twice(m) for m in given.models.split(",")}
    rows = []
    for model, c in models.items():
        rows.append(
            [
                model,
                _against(c.cold.seconds, COLD.get(model), "{:.1f} s"),
                c.passes,
                _against(c.warm.seconds, WARM.get(model), "{:.1f} s"),
                _against(max(c.cold.peak, c.warm.peak) / 1e9, MEMORY / 1e9, "{:.2f} GB"),
                str(c.cold.processes),
                _against(c.kernels, KERNELS.get(model), "{:.0f}"),
                "yes" if c.same else "no",
            ]
        )
    lines = [
        f"{machine_line(found)} `{command_line('compile_time')}`",
        "",
        table(["compile", "cold", "passes", "warm", "largest process", "processes", "kernels", "same manifest"], rows),
        "",
        f"`ringc --help`: {_against(usage.median, HELP, '{:.2f} s')}.",
    ]
    mini, flash = (models.get(f"ring-{size}-linear-2.0:sm_90") for size in ("mini", "flash"))
    if mini and flash:
        ratio = flash.cold.seconds / mini.cold.seconds
        lines[-1] += (
            f" ring-flash-linear-2.0 takes {_against(ratio, FLASH_TO_MINI, '{:.2f}x')} of ring-mini-linear-2.0's time."
        )
    text = "\n".join(lines)
    result = {"machine": found, "help": usage.rounds, "models": {m: asdict(c) for m, c in models.items()}}
    deliver("compile_time", text, result, given)


if __name__ == "__main__":
    main()
