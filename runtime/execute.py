"""Runs the host program: once to bind it to sizes and memory, then any number of times as a flat list of launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from inspect import signature
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from ringc.runtime.backends import DTYPES, Kernels, Shape
from ringc.runtime.blocks import ALIGNMENT
from ringc.runtime.graphs import Graphs
from ringc.runtime.memory import check_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ringc.runtime.replay import Meanings, ReplayedLaunch

Buffer = Callable[[int, tuple[int, ...], str], torch.Tensor]
"""`buffer(number, shape, dtype)` of a frame."""


FEWER_TOKENS = "give a shorter part of the prompt at a time, or fewer sequences"
"""What to do when a call needs more memory than there is."""

Numbers: TypeAlias = "Sequence[int] | NDArray[np.int64]"
"""Whole numbers on the host."""


class Arena:
    """One block of memory for the intermediates of all programs. It grows; programs bound to the smaller one are then stale.

    `graphs` makes CUDA graphs of programs; None where there is no GPU, or where launches one by one are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs = Graphs() if device.type == "cuda" else None
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.generation = 0

    def reserve(self, size: int) -> None:
        """Make room for a program that needs this many bytes.

        Raises:
            RunError: there isn't enough memory; the block is as it was.
        """
        if size > self.memory.numel():
            # All of it, not what is added: the old block is there until the new one is.
            check_memory(size, self.device, "the intermediate results", FEWER_TOKENS)
            self.memory = torch.empty(size, dtype=torch.uint8, device=self.device)
            self.generation += 1


class Step(NamedTuple):
    """One step of a bound program: a kernel's name, "copy", "replay" or "join", what runs it, and the keys of the weights that it reads.

    `beside`: it may run beside the steps that follow, up to the next "join". `rows`: a kernel's `N`.
    """

    kernel: str
    run: Callable[[], Any]
    weights: tuple[str, ...] = ()
    beside: bool = False
    rows: int | None = None


@dataclass(frozen=True)
class Sizes:
    """Tokens N, sequences B, wanted rows R, slots P of a pool, rows S of a cache."""

    N: int
    B: int
    R: int
    P: int
    S: int


class Binder:
    """The `rt` of a host program: hands out memory and records what is to run.

    Without memory it only measures: buffers have shapes but no storage, and `high` says how many bytes the arena needs.
    """

    def __init__(
        self,
        sizes: Sizes,
        weights: Mapping[str, torch.Tensor],
        kernels: Kernels,
        memory: torch.Tensor | None,
        *,
        record_routing: bool = False,
        meanings: Meanings | None = None,
    ) -> None:
        self.N, self.B, self.R, self.P, self.S = sizes.N, sizes.B, sizes.R, sizes.P, sizes.S
        self.steps: list[Step] = []
        self.experts: list[torch.Tensor] = []
        self.reads_host = False
        self.replayed: list[ReplayedLaunch] = []
        self.high = 0
        self._record_routing = record_routing
        self._meanings = meanings
        self._weights = weights
        self._keys = {tensor.data_ptr(): key for key, tensor in weights.items()}
        self._kernels = kernels
        self._wanted: dict[tuple[str, int], list[Shape]] = {}
        self._memory = memory
        self._top = 0
        self._beside = False

    def weight(self, key: str) -> torch.Tensor:
        """A prepared weight.

        Raises:
            ArtifactError: the manifest prepares none of this name.
        """
        if key not in self._weights:
            raise self._kernels.contradiction(f"the program wants the weight {key}, which isn't prepared")
        return self._weights[key]

    @contextmanager
    def frame(self, *sizes: int) -> Iterator[Buffer]:
        """Numbered buffers of these many bytes, behind those of the caller; free again at the end."""
        before = self._top
        starts = [self._take(size) for size in sizes]

        def buffer(number: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
            return self._tensor(starts[number], shape, DTYPES[dtype])

        yield buffer
        self._top = before

    def launch(self, kernel: str, *tensors: torch.Tensor) -> None:
        """Record a launch. A weight that is stored narrower than the kernel reads it is widened right before.

        Raises:
            ArtifactError: there is no such kernel, or it takes other tensors.
        """
        before = self._top
        given: list[torch.Tensor] = []
        for tensor in tensors:
            wide = getattr(tensor, "ringc_read_as", None)
            if wide is not None:
                narrow, start = tensor, self._take(tensor.numel() * wide.itemsize)
                tensor = self._tensor(start, tuple(narrow.shape), wide)
                self.copy(narrow, tensor)
            given.append(tensor)
        if self._memory is None:
            self._check(kernel, given)
        else:
            run = self._kernels.bind(kernel, given)
            self.steps.append(Step(kernel, run, self._read(given), self._beside, self.N))
            self.reads_host |= self._kernels.reads_host(kernel)
            if self._meanings is not None:
                for launch in self._meanings.behind(kernel, given, self._sizes()):
                    self.replayed.append(launch)
                    self.steps.append(Step("replay", launch.run, beside=self._beside))
            if self._record_routing:
                for taken in self._kernels.experts(kernel, given):
                    self.experts.append(torch.empty_like(taken))
                    self.copy(taken, self.experts[-1])
        self._top = before

    def _check(self, kernel: str, given: Sequence[torch.Tensor]) -> None:
        """Raise unless a kernel takes these tensors: what a kernel is given it doesn't look at again."""
        key = kernel, self.N
        if key not in self._wanted:
            self._wanted[key] = self._kernels.wanted(kernel, self._sizes())
        found = [(tuple(x.shape), x.dtype) for x in given]
        wanted = self._wanted[key]
        if found == wanted:
            return
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
        if at is None:
            what = f"{len(found)} tensors, and it takes {len(wanted)}"
        else:
            what = f"{_shown(found[at])} as tensor {at}, and it takes {_shown(wanted[at])}"
        raise self._kernels.contradiction(f"the program gives the kernel {kernel} {what}")

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Record a copy."""
        if self._memory is not None:
            self.steps.append(Step("copy", lambda: target.copy_(source), self._read([source]), self._beside))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside may run beside the launches that follow."""
        self._beside = True
        yield
        self._beside = False

    @contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """What is run inside has so many rows: `N` is that."""
        before, self.N = self.N, count
        yield
        self.N = before

    def _sizes(self) -> dict[str, int]:
        return asdict(Sizes(self.N, self.B, self.R, self.P, self.S))

    def join(self) -> None:
        """What follows needs what was launched beside."""
        if self._memory is not None:
            self.steps.append(Step("join", _nothing))

    def _read(self, tensors: Sequence[torch.Tensor]) -> tuple[str, ...]:
        """The keys of those tensors that are weights."""
        keys = (self._keys.get(tensor.data_ptr()) for tensor in tensors if tensor.numel())
        return tuple(key for key in keys if key is not None)

    def _take(self, size: int) -> int:
        start = self._top
        self._top = start + -(-size // ALIGNMENT) * ALIGNMENT
        self.high = max(self.high, self._top)
        return start

    def _tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self._memory is None:
            return torch.empty(shape, dtype=dtype, device="meta")
        size = prod(shape) * dtype.itemsize
        return self._memory[start : start + size].view(dtype).view(shape)


def _nothing() -> None:
    """A step that only marks a place."""


def _shown(x: Shape) -> str:
    return f"{list(x[0])} of {str(x[1]).removeprefix('torch.')}"


class Inputs:
    """The whole numbers that a program takes: written on the host, handed to its device in one copy.

    Args:
        counts: how many numbers of each name.
        device: the program's.
    """

    def __init__(self, counts: Mapping[str, int], device: torch.device) -> None:
        each = ALIGNMENT // torch.int32.itemsize
        starts, top = {}, 0
        for name, count in counts.items():
            starts[name] = top
            top += -(-count // each) * each
        self._host = torch.zeros(top, dtype=torch.int32)
        self._device = self._host if device.type == "cpu" else self._host.to(device)
        self.tensors = {name: self._device[starts[name] : starts[name] + n] for name, n in counts.items()}
        self._arrays = {name: self._host[starts[name] : starts[name] + n].numpy() for name, n in counts.items()}
        for name, tensor in self.tensors.items():
            # For launches that want lengths on the host.
            tensor.ringc_host = self._arrays[name]  # type: ignore[attr-defined]

    def write(self, values: Mapping[str, Numbers]) -> None:
        """Give each input its numbers. Lists of a decode step are written within a microsecond, where a tensor's copy takes several."""
        for name, numbers in values.items():
            self._arrays[name][:] = numbers
        if self._device is not self._host:
            self._device.copy_(self._host)


@dataclass
class Bound:
    """A program bound to sizes and memory: write the inputs, run, read the logits.

    On a GPU the second run makes a CUDA graph, and later ones replay it: launching its kernels one by one takes the host longer than they
    take. The first can't be captured, as libraries set themselves up in it.

    `experts`: what each layer's routing took, where the program was bound to record it. `replayed`: where each layer's routing is given its
    experts, where it was bound for that. `graphs`: see `Arena`; None for no graph.
    """

    inputs: Inputs
    logits: torch.Tensor
    steps: Sequence[Step]
    experts: Sequence[torch.Tensor]
    replayed: Sequence[ReplayedLaunch]
    generation: int
    graphs: Graphs | None = None
    _runs: int = field(default=0, init=False)
    _graph: torch.cuda.CUDAGraph | None = field(default=None, init=False)

    def run(self) -> None:
        if self.graphs is not None and self._runs == 1:
            self._graph = self.graphs.captured(self.launch)
        self._runs += 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self.launch()

    def launch(self) -> None:
        """Run its steps: one after the other, or into a graph that is being captured, where some stand beside others."""
        if self.graphs is not None and self.graphs.capturing:
            self._capture(self.graphs)
            return
        for step in self.steps:
            step.run()

    def _capture(self, graphs: Graphs) -> None:
        """Launch its steps on two streams: those that may run beside others on the second."""
        main, second = torch.cuda.current_stream(), graphs.second
        for step, before in zip(self.steps, (None, *self.steps), strict=False):
            if step.beside:
                if before is None or not before.beside:
                    second.wait_stream(main)
                with torch.cuda.stream(second):
                    step.run()
            elif step.kernel == "join":
                main.wait_stream(second)
            else:
                step.run()


def bind(
    program: Callable[..., None],
    arguments: Sequence[str],
    inputs: Inputs,
    states: Mapping[str, torch.Tensor],
    logits: torch.Tensor,
    sizes: Sizes,
    weights: Mapping[str, torch.Tensor],
    kernels: Kernels,
    arena: Arena,
    *,
    record_routing: bool = False,
    meanings: Meanings | None = None,
) -> Bound:
    """Bind an entry point of a host program.

    Args:
        program: the entry point's function.
        arguments: names of its arguments, in order.
        inputs, states: what has these names.
        logits: where its result goes.
        sizes: values of the symbols.
        weights: prepared weights by key.
        kernels: what to launch.
        arena: where intermediates live; grown if need be.
        record_routing: copy the experts that each layer takes, behind the launch that chooses them.
        meanings: of the kernels that route, whose choice a recording is to replace; None to let them choose.

    Raises:
        ArtifactError: the program wants what the manifest hasn't.
        RunError: there isn't enough memory.
    """
    if len(signature(program).parameters) != 2 + len(arguments):
        raise kernels.contradiction(f"the program's {program.__name__} doesn't take {', '.join(arguments)}")
    taken = [inputs.tensors[name] if name in inputs.tensors else states[name] for name in arguments]
    measured = Binder(sizes, weights, kernels, None)
    program(measured, *taken, logits)
    arena.reserve(measured.high)
    binder = Binder(sizes, weights, kernels, arena.memory, record_routing=record_routing, meanings=meanings)
    program(binder, *taken, logits)
    graphs = None if binder.reads_host else arena.graphs  # what reads the host can't be repeated without it
    steps, experts, replayed = tuple(binder.steps), tuple(binder.experts), tuple(binder.replayed)
    return Bound(inputs, logits, steps, experts, replayed, arena.generation, graphs)
