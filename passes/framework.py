"""What a pass is, and how a list of passes runs.

A pass is a frozen dataclass: its fields are its options, as written in a pipeline (`fuse{epilogues=false}`), and `apply` changes a module
in place. It takes valid IR and leaves valid IR. Verification, timing and dumps are instruments around the passes, not code in them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ringc.errors import IRError
from ringc.ir.core import Module
from ringc.ir.levels import verify
from ringc.passes.target import Target


@dataclass(frozen=True)
class Pass:
    """Base of all passes. Subclasses are frozen dataclasses with a `name` and a line in `ringc.passes.registry`."""

    name: ClassVar[str] = ""

    def apply(self, module: Module, target: Target) -> None:
        """Change the module in place."""
        raise NotImplementedError

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(changed)}}}" if changed else "")


@dataclass(frozen=True)
class Step:
    """What an instrument is told after a pass: its place in the pipeline from 0, the pass, the module as it left it, how long it took."""

    index: int
    done: Pass
    module: Module
    seconds: float


Instrument = Callable[[Step], None]
"""Called after each pass."""


@dataclass
class PassManager:
    """Runs passes in order, with instruments after each."""

    passes: Sequence[Pass]
    instruments: list[Instrument] = field(default_factory=list)

    def run(self, module: Module, target: Target) -> Module:
        """Run all passes on the module, in place.

        Raises:
            IRError: a pass or its result is wrong; the message names the pass.
        """
        for index, step in enumerate(self.passes):
            start = time.perf_counter()
            try:
                step.apply(module, target)
            except IRError as error:
                raise IRError(f"in pass {step}: {error.message}", place=error.place, help=error.help) from error
            seconds = time.perf_counter() - start
            for instrument in self.instruments:
                instrument(Step(index, step, module, seconds))
        return module


def verify_each(step: Step) -> None:
    """Instrument: the module is valid after every pass."""
    try:
        verify(step.module)
    except IRError as error:
        raise IRError(f"after pass {step.done}: {error.message}", place=error.place, help=error.help) from error


def dump_each(write: Callable[[str, str], None]) -> Instrument:
    """Instrument: hands `NN_pass.ring` and the module's text to `write` after every pass."""
    from ringc.ir.text_print import print_module

    def dump(step: Step) -> None:
        write(f"{step.index + 1:02d}_{step.done.name}.ring", print_module(step.module))

    return dump


@dataclass
class Timing:
    """Instrument: seconds by pass, in order."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        self.seconds.append((str(step.done), step.seconds))

    @property
    def total(self) -> float:
        return sum(s for _, s in self.seconds)
