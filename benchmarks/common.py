"""What the benchmarks share: the machine in words, times and their spread, tables, options, and the page that they are written to."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ringc.codegen.tvm.threads import usable_cores

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
WORK = ROOT / "build" / "benchmarks"
"""Where benchmarks put artifacts, compiler caches and results; git ignores it."""


@dataclass(frozen=True)
class Times:
    """Rounds of a measurement, in seconds: each the median of its repetitions, and the shortest repetition of all."""

    rounds: tuple[float, ...]
    shortest: float

    @property
    def median(self) -> float:
        """Median of the rounds' medians."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Distance of the slowest from the fastest round, as a part of the median."""
        return (max(self.rounds) - min(self.rounds)) / self.median


def timed(run: Callable[[], object], repetitions: int, *, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each repetition; `before` runs ahead of each and is not counted."""
    found = []
    for _ in range(repetitions):
        before()
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return found


def measured_crossover(sizes: Sequence[int], first: Sequence[float], second: Sequence[float]) -> float | None:
    """The size from which the second way is to be taken, interpolated between those tried; None if it isn't at the last.

    It is the threshold that loses least: the sum of the logarithms by which the way that it takes is the slower one. Where the two
    differ once in sign this is the place; where a time was disturbed it is near it all the same.

    Args:
        sizes: rising.
        first, second: seconds at each.
    """
    gains = [math.log(a / b) for a, b in zip(first, second, strict=True)]

    def loss(count: int) -> float:
        return sum(max(0.0, g) for g in gains[:count]) + sum(max(0.0, -g) for g in gains[count:])

    count = min(range(len(sizes) + 1), key=loss)
    if count == len(sizes):
        return None
    if count == 0:
        return float(sizes[0])
    low, high = sizes[count - 1], sizes[count]
    before, after = gains[count - 1], gains[count]
    part = before / (before - after) if before < 0 < after else 0.5
    return float(low * (high / low) ** part)


def milliseconds(times: Times) -> str:
    """`12.3 (min 11.9, ±4 %)`: median of rounds, shortest repetition, spread of the rounds."""
    return f"{times.median * 1e3:.2f} (min {times.shortest * 1e3:.2f}, spread {times.spread:.0%})"


def package(name: str) -> str:
    """A package's version, or that it isn't there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Date, processor, cores, load and versions: what a number means nothing without."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    features = [f for f in ("avx512f", "avx2") if info.exists() and f in info.read_text()]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": " ".join([name, *features[:1]]),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{p: package(p) for p in ("torch", "triton", "apache-tvm")},
    }


def machine_line(found: dict[str, Any]) -> str:
    """`machine()` as a sentence."""
    busy = f", load {found['load']} at the start" if found["load"] is not None else ""
    return (
        f"{found['date']}; {found['processor']}, {found['cores']} cores{busy}; Python {found['python']}, torch {found['torch']}, "
        f"apache-tvm {found['apache-tvm']}, Triton {found['triton']}."
    )


def options(name: str, what: str | None, *, on_page: bool = True) -> argparse.ArgumentParser:
    """What every benchmark's command understands; each adds its own.

    Args:
        name: of the benchmark's module.
        what: the module's docstring, shown as help.
        on_page: whether docs/performance.md has a place for it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help=f"where the numbers go; build/benchmarks/{name}.json if not given")
    if on_page:
        parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.set_defaults(write=False)
    return parser


def command_line(name: str) -> str:
    """The command that is running, as one types it, without where its results go."""
    parts = iter(sys.argv[1:])
    kept = []
    for part in parts:
        if part in ("--json", "--plot"):
            next(parts, None)
        elif part != "--write":
            kept.append(part)
    return " ".join([f"python -m benchmarks.{name}", *kept])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: readable as it is printed, too."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *(line(r) for r in rows)])


def verdict(value: float, goal: float, *, higher: bool = False) -> str:
    """Whether a number reaches its goal."""
    return "reached" if (value >= goal if higher else value <= goal) else "missed"


def write_json(name: str, result: Any, path: Path | None = None) -> Path:
    """Write a result as JSON: to `path`, or into the work folder."""
    chosen = path or WORK / f"{name}.json"
    chosen.parent.mkdir(parents=True, exist_ok=True)
    chosen.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return chosen


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in the page.

    Raises:
        ValueError: the page has no such place.
    """
    old = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in old or end not in old:
        raise ValueError(f"{page} has no place for '{name}': it needs the lines {begin.strip()} and {end}")
    head, _, rest = old.partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8")


def deliver(name: str, text: str, result: Any, given: argparse.Namespace) -> None:
    """What every benchmark ends with: the text shown, the numbers written, and the page's section replaced where that was asked for.

    Args:
        name: of the benchmark's module.
        text: for people.
        result: the numbers, as JSON has them.
        given: the command's `options`.
    """
    print(text)
    print(f"written: {write_json(name, result, given.json)}", file=sys.stderr)
    if given.write:
        write_section(name, text)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
