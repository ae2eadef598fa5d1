"""Bound programs: what their launches touch, in whatever order those beside others run; and which can't be repeated by a device alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch

from ringc.codegen.program import emit_program
from ringc.ir.ops.source import Weight
from ringc.ir.symbols import evaluate
from ringc.ir.types import StateType
from ringc.passes.pipeline import default_pipeline
from ringc.runtime.backends import DTYPES
from ringc.runtime.execute import Arena, Binder, Inputs, Sizes, bind
from tests.passes.support_model import Program, tiny_spec

CPU = torch.device("cpu")


class Touched(NamedTuple):
    """A launch: whether beside others, and where in memory it reads and writes, `(first byte, one behind the last)`."""

    kernel: str
    beside: bool
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]


@dataclass
class Noting:
    """In the place of kernels: notes what each launch touches."""

    arguments: dict[str, int]
    host: frozenset[str] = frozenset()
    launched: list[Touched] = field(default_factory=list)

    def bind(self, name: str, given: Sequence[torch.Tensor]) -> Callable[[], None]:
        spans = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in given]
        count = self.arguments[name]
        self.launched.append(Touched(name, False, spans[:count], spans[count:]))
        return lambda: None

    def reads_host(self, name: str) -> bool:
        return name in self.host

    def contradiction(self, what: str) -> Exception:
        return AssertionError(what)

    def wanted(self, name: str, sizes: Any) -> list[Any]:
        raise AssertionError("this is asked when a program is measured")


class Measured(Binder):
    """Takes any tensors."""

    def _check(self, kernel: str, given: Sequence[torch.Tensor]) -> None:
        pass


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(tiny_spec(), default_pipeline(), "sm_90")


def steps_of(program: Program, entry: str, tokens: int) -> tuple[list[Touched], tuple[int, int]]:
    """What the launches of an entry point touch, in order, with a "join" where one is; and where the arena lies."""
    names: dict[str, Any] = {}
    exec(emit_program(program.lowered, "sm_90"), names)
    functions = program.lowered.functions
    sizes = {"N": tokens, "B": tokens, "R": tokens, "P": tokens + 1, "S": 16}
    weights = {}
    for function in functions.values():
        for op in function.body.ops:
            if isinstance(op, Weight):
                weights[op.key] = torch.zeros(
                    [evaluate(d, sizes) for d in op.type.shape], dtype=DTYPES[op.type.dtype.value]
                )
    version = next(f for f in functions.values() if f.notes.get("entry") == entry)
    given = []
    for arg in version.body.args:
        shape = (arg.type.slots, *arg.type.shape) if isinstance(arg.type, StateType) else arg.type.shape
        given.append(torch.zeros([evaluate(d, sizes) for d in shape], dtype=DTYPES[arg.type.dtype.value]))
    logits = torch.zeros(tokens, program.spec.vocabulary.size)
    kernels: Any = Noting({f.name: len(f.body.args) for f in functions.values() if "family" in f.notes})
    measured = Measured(Sizes(**sizes), weights, kernels, None)
    names[entry](measured, *given, logits)
    memory = torch.empty(measured.high, dtype=torch.uint8)
    binder = Measured(Sizes(**sizes), weights, kernels, memory)
    names[entry](binder, *given, logits)
    launched = iter(kernels.launched)
    found = [
        Touched("join", False, [], []) if step.kernel == "join" else next(launched)._replace(beside=step.beside)
        for step in binder.steps
    ]
    return found, (memory.data_ptr(), memory.data_ptr() + memory.nbytes)


def overlap(first: list[tuple[int, int]], second: list[tuple[int, int]], inside: tuple[int, int]) -> bool:
    return any(max(a, c, inside[0]) < min(b, d, inside[1]) for a, b in first for c, d in second)


@pytest.mark.parametrize(("tokens", "least"), [(1, 2), (5, 30), (40, 30)])
def test_what_runs_beside_others_shares_no_memory_with_them(program: Program, tokens: int, least: int) -> None:
    """In the whole program, layers that it calls included: neither writes what the other touches, up to where they join."""
    steps, arena = steps_of(program, "decode", tokens)
    running: list[Touched] = []
    pairs = 0
    for step in steps:
        if step.kernel == "join":
            running = []
        elif step.beside:
            running.append(step)
        for other in running if not step.beside else []:
            pairs += 1
            assert not overlap(step.writes, other.reads + other.writes, arena), (step.kernel, other.kernel)
            assert not overlap(step.reads, other.writes, arena), (step.kernel, other.kernel)
    assert pairs >= least


class Replaying:
    """Meanings of kernels none of which routes."""

    def behind(self, _kernel: str, _given: Sequence[torch.Tensor], _sizes: Sizes) -> Sequence[Any]:
        return ()


@pytest.mark.parametrize(
    ("host", "meanings", "captured"),
    [(frozenset[str](), None, True), (frozenset({"attend"}), None, False), (frozenset[str](), Replaying(), True)],
)
def test_what_reads_the_host_is_no_graph(host: frozenset[str], meanings: Any, captured: bool) -> None:
    def run(rt: Binder, ids: torch.Tensor, logits: torch.Tensor) -> None:
        rt.launch("attend", ids, logits)

    kernels: Any = Noting({"attend": 1}, host)
    kernels.wanted = lambda _name, _sizes: [((3,), torch.int32), ((3, 7), torch.float32)]
    arena = Arena(CPU)
    graphs: Any = object()
    arena.graphs = graphs
    inputs = Inputs({"ids": 3}, CPU)
    bound = bind(
        run, ["ids"], inputs, {}, torch.zeros(3, 7), Sizes(3, 1, 3, 1, 1), {}, kernels, arena, meanings=meanings
    )
    assert bound.graphs is (graphs if captured else None)


def test_lengths_are_known_on_the_host() -> None:
    inputs = Inputs({"offsets": 3, "slots": 2}, CPU)
    inputs.write({"offsets": [0, 4, 9], "slots": [5, -1]})
    assert inputs.tensors["offsets"].ringc_host.tolist() == [0, 4, 9]  # type: ignore[attr-defined]
    assert inputs.tensors["slots"].ringc_host.tolist() == [5, -1]  # type: ignore[attr-defined]
