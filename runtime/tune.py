"""Measures what `select` chooses among, on this machine, into a tuning record.

A program is lowered to just before `select`. At each distinct place where several implementations are legal, every one of them is made a
kernel, checked against the fp64 interpreter, and timed at the typical sizes of its version. A wrong kernel is reported and never recorded.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ringc.codegen.alone import kernel_alone
from ringc.codegen.cache import Cache
from ringc.codegen.check import call_tensors, check_kernel
from ringc.codegen.inputs import TypicalInputs, check_sizes
from ringc.codegen.kernel import Kernel
from ringc.errors import Place, RecordError, UsageError
from ringc.ir.core import Module
from ringc.ir.symbols import evaluate
from ringc.passes.choices import Choice, Region, choices
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import default_pipeline
from ringc.passes.record import Entry, Key, Record, Sizes, load_record
from ringc.passes.schedules.model import Candidate, at
from ringc.passes.target import Target
from ringc.runtime.alone import load_alone
from ringc.runtime.backends import Kernels
from ringc.runtime.here import device_name
from ringc.runtime.memory import available_bytes
from ringc.runtime.timing import Timer, timer
from ringc.units import size

SECONDS = 0.2
"""Time that each kernel is launched for."""

ROUNDS = 4
"""Into so many pieces it is cut: the kernels of a choice take turns, so that what else the machine does meets all of them."""

WRONG = "gives wrong results"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Option:
    """One way to compute what a place computes: its implementations, predicted and measured seconds.

    `failed` says of implementations that weren't timed why; such an option has no measured time. `unsteady`: times of some differed much.
    """

    name: str
    predicted: float
    measured: float | None
    failed: Mapping[str, str] = field(default_factory=dict)
    unsteady: bool = False


@dataclass(frozen=True)
class Tuned:
    """What was measured at one place of a program."""

    what: str
    sizes: Sizes
    options: tuple[Option, ...]

    @property
    def by_model(self) -> Option:
        """What the cost model would choose."""
        return min(self.options, key=lambda option: option.predicted)

    @property
    def fastest(self) -> Option | None:
        """The fastest of those measured; None where one that wasn't leaves the choice to the cost model."""
        if any(option.measured is None for option in self.options):
            return None
        return min(self.options, key=lambda option: option.measured or 0.0)


def tune_module(
    module: Module,
    target: Target,
    path: Path,
    *,
    entry: str | None = None,
    cache: Cache | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[Tuned]:
    """Measure every choice of a program; the record is saved after each, so that a run may be interrupted.

    Args:
        module: at graph level; changed in place.
        target: one that runs here.
        path: of the record; what it holds of other regions is kept.
        entry: measure what this entry point needs alone.
        cache: of built kernels; None for none.
        progress: told how far it is.

    Raises:
        RecordError: the file is no record, is of another target or device, or can't be written.
        UsageError: the module has no such entry point.
        CodegenError: a kernel doesn't compile.
    """
    entries = [f.name for f in module.functions.values() if "entry" in f.notes]
    if entry is not None and entry not in entries:
        raise UsageError(f"there is no entry point '{entry}'", help=f"choose from {', '.join(entries)}")
    record = _start(path, target)
    steps = list(itertools.takewhile(lambda step: step.name != "select", default_pipeline()))
    progress("passes", 0, 1)
    PassManager(steps).run(module, target)
    progress("passes", 1, 1)
    found = choices(module, target, entry)
    with tempfile.TemporaryDirectory(prefix="ringc-tune-") as folder:
        bench = Bench(target, Path(folder))
        bench.build(found, cache, progress)
        tuned: list[Tuned] = []
        for done, choice in enumerate(found):
            progress("measuring", done, len(found))
            bench.measure(choice)
            record = record.merged(bench.entries.values(), without=bench.failed)
            record.save(path)
            tuned.append(bench.result(choice))
    return tuned


def _start(path: Path, target: Target) -> Record:
    """The record to begin with: that of the file, if there is one. It is written, to see now whether it can be."""
    device = device_name(target)
    record = load_record(path, target.name) if os.path.lexists(path) else Record(target.name, device)
    if record.device != device:
        raise RecordError(
            f"the tuning record was measured on {record.device[:80]}, and this is {device}",
            place=Place(path),
            help="choose another file with -o: times of two devices can't be compared",
        )
    record.save(path)
    return record


class Bench:
    """Builds, checks and times kernels, each once however many places want it.

    Args:
        target: of the kernels.
        folder: where their files go.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.entries: dict[Key, Entry] = {}
        self.failed: dict[Key, str] = {}
        self.unsteady: set[Key] = set()
        self._kernels: dict[Key, Kernel] = {}
        self._loaded: Kernels | None = None

    def build(self, found: Sequence[Choice], cache: Cache | None, progress: Progress) -> None:
        """Write, and where the back end needs it build, the kernels of all legal candidates."""
        for choice in found:
            for region in choice.regions:
                for candidate in region.legal:
                    key = _key(region, candidate)
                    name = f"{region.family}_{len(self._kernels) + 1}"
                    if key not in self._kernels:
                        self._kernels[key] = kernel_alone(region, candidate, name, self.target)
        self._loaded = load_alone(
            list(self._kernels.values()), self.target, self.folder, cache, partial(progress, "kernels")
        )

    def measure(self, choice: Choice) -> None:
        """Check and time those kernels of a choice that aren't yet."""
        timers: dict[Key, Timer] = {}
        what: dict[Key, str] = {}
        for region in choice.regions:
            for key in (_key(region, candidate) for candidate in region.legal):
                if key not in self.entries and key not in self.failed and key not in timers:
                    what[key] = region.what
                    problem, made = self._prepared(region, self._kernels[key])
                    if made is None:
                        self.failed[key] = problem
                    else:
                        timers[key] = made
        for turn in range(ROUNDS):
            for one in timers.values():
                one.spend(SECONDS * (turn + 1) / ROUNDS)
        self.unsteady.update(key for key, one in timers.items() if one.unsteady)
        for key, one in timers.items():
            # Four digits: the rest is noise, and this reads better.
            self.entries[key] = Entry(key[0], what[key], key[1], key[2], float(f"{one.median:.4g}"))

    def _prepared(self, region: Region, kernel: Kernel) -> tuple[str, Timer | None]:
        """The timer of a kernel, or why it is not to be timed."""
        assert self._loaded is not None
        kernels, device = self._loaded, self._loaded.device
        sizes = region.typical
        types = (*(arg.type for arg in kernel.function.body.args), *kernel.outputs, *kernel.workspace)
        needed = sum(evaluate(type.bytes, sizes) for type in types)
        # What is drawn, and what the kernel is given.
        if 2 * needed > available_bytes(torch.device("cpu")) or needed > available_bytes(device):
            return f"needs {size(2 * needed)} of memory", None
        if not _is_right(kernel, kernels[kernel.name], str(device)):
            return WRONG, None
        inputs = TypicalInputs(kernel.function, sizes).all()
        given = call_tensors(kernel, inputs, sizes, str(device))
        del inputs
        reads_host = kernels.reads_host(kernel.name)
        return "", timer(partial(kernels.bind, kernel.name), given, reads_host=reads_host)

    def result(self, choice: Choice) -> Tuned:
        """What was measured of a choice: its ways, with all implementations of their regions."""
        options: list[Option] = []
        for label, way in choice.ways:
            for taken in itertools.product(*([(r, c) for c in r.legal] for r in way)):
                keys = [_key(region, candidate) for region, candidate in taken]
                failed = {key[2]: self.failed[key] for key in keys if key in self.failed}
                predicted = sum(at(c.seconds, r.typical) for r, c in taken)
                measured = None if failed else sum(self.entries[key].seconds for key in keys)
                name = " + ".join(key[2] for key in keys)
                unsteady = not self.unsteady.isdisjoint(keys)
                options.append(Option(f"{label}: {name}" if label else name, predicted, measured, failed, unsteady))
        return Tuned(choice.what, choice.sizes, tuple(options))


def _key(region: Region, candidate: Candidate) -> Key:
    return region.key, region.sizes, candidate.implementation


def _is_right(kernel: Kernel, launch: Callable[..., None], device: str) -> bool:
    """Whether a kernel's results are the reference's, at all sizes at which `ringc check` looks."""
    return all(
        one.passed
        for sizes in check_sizes(kernel.function)
        for one in check_kernel(kernel, launch, sizes, device=device)
    )
