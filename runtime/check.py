"""Checks an artifact on this machine: every kernel, and the whole model, against the fp64 interpreter. This needs the compiler."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringc.codegen.check import Compared, check_kernel
from ringc.codegen.kernel import kernel_of
from ringc.errors import ArtifactError, Place, RunError
from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.text_parse import parse_module
from ringc.ir.types import StateType
from ringc.runtime.artifact import Artifact
from ringc.runtime.backends import Kernels
from ringc.runtime.memory import check_memory
from ringc.runtime.model import Model

TOLERANCE = {"f32": 2e-4, "bf16": 6e-2}
"""Largest error of a logit, by the type of weights and activations, where logits have a standard deviation of 1."""

REDRAWS = 3
"""How often random weights are drawn anew when a model turns out to stand on a knife's edge."""

PROBES = 2
"""Random changes of the weights by which it is found out whether a rounding decides."""

Progress = Callable[[str, int, int], None]


def check_kernels(
    artifact: Artifact, *, progress: Progress = lambda _what, _done, _total: None
) -> list[tuple[str, list[Compared]]]:
    """Every kernel of an artifact on random inputs at reduced sizes, with poisoned outputs.

    Raises:
        ArtifactError: the module's text lacks a kernel.
    """
    module = read_module(artifact, "module")
    kernels = Kernels(artifact)
    found: list[tuple[str, list[Compared]]] = []
    for name in artifact.kernels:
        progress("kernels", len(found), len(artifact.kernels))
        if name not in module.functions:
            raise ArtifactError(
                f"the kernel {name} is not in {artifact.manifest['module']}", place=Place(artifact.folder)
            )
        found.append((name, check_kernel(kernel_of(module.functions[name]), kernels[name], device=str(kernels.device))))
    return found


def read_module(artifact: Artifact, which: str) -> Module:
    """The module that an artifact was compiled from (`input`), or the fully lowered one (`module`)."""
    path = artifact.path(str(artifact.manifest[which]))
    return parse_module(path.read_text(encoding="utf-8"), path)


def check_model(
    artifact: Artifact,
    weights: str,
    *,
    tokens: int = 40,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[Compared]:
    """The whole model: one call, prefill in chunks, decode, many sequences, against the graph as the front end wrote it, in fp64.

    A model has inputs at which a rounding decides: which expert is taken, or what a norm makes of a vector that is nearly zero. Where a
    result is wrong and the reference itself jumps when its weights are changed by a rounding, random weights are drawn anew, and the
    results' names say which were used.

    Raises:
        RunError: the double-precision weights don't fit into memory.
    """
    count = int(artifact.manifest["facts"]["parameters"])
    check_memory(
        24 * count, torch.device("cpu"), "the weights in double precision", "check the kernels alone: --kernels"
    )
    module = read_module(artifact, "input")
    for attempt in range(REDRAWS + 1):
        trial = _Trial(artifact, module, weights, tokens, progress, note=f" (redrawn: {weights})" if attempt else "")
        compared = trial.compare()
        if all(one.passed for one in compared) or not trial.on_edge():
            return compared
        if not weights.startswith("random:") or attempt == REDRAWS:
            raise RunError(
                "the reference changes with a rounding of its weights: nothing can be compared",
                help="use other weights",
            )
        weights = f"random:{int(weights.removeprefix('random:')) + 1}"
    raise AssertionError("the loop returns or raises")


@dataclass
class _Batch:
    """Sequences of ids, and the reference's logits of each."""

    ids: list[torch.Tensor]
    logits: list[torch.Tensor]


class _Trial:
    """One comparison with one set of weights."""

    def __init__(
        self, artifact: Artifact, module: Module, weights: str, tokens: int, progress: Progress, *, note: str
    ) -> None:
        self.note = note
        self.module = module
        self.progress = progress
        self.model = Model(artifact, weights)
        self.vocabulary = int(artifact.manifest["vocabulary"]["size"])
        self.published = {name: t.cpu().double() for name, t in self.model.state_dict().items()}
        self.tolerance = TOLERANCE[str(artifact.target["storage"])]
        self.generator = torch.Generator().manual_seed(zlib.crc32(artifact.name.encode()))
        progress("reference", 0, 2)
        self.pair = self.batch([tokens, max(tokens // 2, 4)], self.published)
        progress("reference", 1, 2)
        self.many = self.batch([3] * 20, self.published)
        progress("reference", 2, 2)

    def batch(self, lengths: Sequence[int], published: Mapping[str, torch.Tensor]) -> _Batch:
        ids = [torch.randint(0, self.vocabulary, (n,), generator=self.generator) for n in lengths]
        return _Batch(ids, self.reference(ids, published))

    def reference(self, ids: Sequence[torch.Tensor], published: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Logits of whole sequences, each [T, V], by the interpreter."""
        lengths = [len(i) for i in ids]
        positions = torch.cat([torch.arange(n) for n in lengths])
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        given = {
            "ids": torch.cat(list(ids)),
            "positions": positions,
            "slots": torch.arange(len(ids)),
            "offsets": offsets,
            "rows": torch.arange(len(positions)),
        }
        function = self.module.functions["prefill"]
        inputs: list[torch.Tensor] = []
        for arg in function.body.args:
            if isinstance(arg.type, StateType):
                shape = [d if isinstance(d, int) else max(lengths) for d in arg.type.shape]
                inputs.append(torch.zeros((len(ids), *shape), dtype=torch.float64))
            else:
                inputs.append(given[arg.name].to(torch.int32))
        logits = run(self.module, "prefill", inputs, published.__getitem__, torch.float64)[0]
        return [logits[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]

    def compare(self) -> list[Compared]:
        return [
            *self.at_once(self.pair, "model(ids)"),
            *self.in_chunks(self.pair),
            *self.at_once(self.many, "20 sequences at once"),
            *self.by_decode(self.many, 1, "20 sequences"),
        ]

    def at_once(self, batch: _Batch, name: str) -> list[Compared]:
        lengths = [len(i) for i in batch.ids]
        made = self.model(_padded(batch.ids), lengths=lengths)
        return [self.compared(name, [made[i, :n] for i, n in enumerate(lengths)], batch.logits)]

    def in_chunks(self, batch: _Batch) -> list[Compared]:
        """Prefill cut at 1, 2 and a little before the end, in slots out of order, then decode."""
        shortest = min(len(i) for i in batch.ids)
        ends = sorted({1, 2, shortest // 2, shortest - 2})
        slots = [2, 0]
        cache = self.model.new_cache(3, max(len(i) for i in batch.ids))
        made: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        start = 0
        for end in ends:
            made += self.model.prefill(torch.stack([i[start:end] for i in batch.ids]), cache, slots=slots)
            wanted += [x[end - 1] for x in batch.logits]
            start = end
        found = [self.compared(f"prefill in chunks to {', '.join(map(str, ends))}", made, wanted)]
        return found + self.decoded(batch, cache, slots, ends[-1], shortest, "decode after it")

    def by_decode(self, batch: _Batch, first: int, name: str) -> list[Compared]:
        """Prefill of the first tokens, the rest one by one."""
        cache = self.model.new_cache(len(batch.ids), max(len(i) for i in batch.ids))
        self.model.prefill(torch.stack([i[:first] for i in batch.ids]), cache)
        return self.decoded(
            batch, cache, list(range(len(batch.ids))), first, min(map(len, batch.ids)), f"decode of {name}"
        )

    def decoded(self, batch: _Batch, cache: Any, slots: list[int], start: int, stop: int, name: str) -> list[Compared]:
        made: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        for t in range(start, stop):
            made += self.model.decode(torch.stack([i[t] for i in batch.ids]), cache, slots=slots)
            wanted += [x[t] for x in batch.logits]
        return [self.compared(name, made, wanted)]

    def compared(self, name: str, made: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> Compared:
        a = torch.cat([m.reshape(-1, self.vocabulary) for m in made]).cpu().double()
        b = torch.cat([w.reshape(-1, self.vocabulary) for w in wanted])
        scale = max(1.0, float(b.std()))
        return Compared(name + self.note, tuple(a.shape), float((a - b).abs().max()) / scale, self.tolerance)

    def on_edge(self) -> bool:
        """Whether the reference jumps when each weight is changed by a rounding of the model's arithmetic.

        Each change is tried in both directions: a tie between two experts is decided otherwise by one of them.
        """
        step = 4 * torch.finfo(torch.float32 if self.tolerance < 1e-3 else torch.bfloat16).eps
        for _ in range(PROBES):
            noise = {
                n: torch.randn(t.shape, generator=self.generator, dtype=t.dtype) for n, t in self.published.items()
            }
            for sign in (step, -step):
                changed = {name: t * (1 + sign * noise[name]) for name, t in self.published.items()}
                if any(self.jump(batch, changed) > self.tolerance / 2 for batch in (self.pair, self.many)):
                    return True
        return False

    def jump(self, batch: _Batch, changed: Mapping[str, torch.Tensor]) -> float:
        """How far the reference's logits move when it is given other weights."""
        again = self.reference(batch.ids, changed)
        return max(float((a - b).abs().max()) for a, b in zip(again, batch.logits, strict=True))


def _padded(ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of equal length, filled up with zeros."""
    made = torch.zeros((len(ids), max(len(i) for i in ids)), dtype=torch.int64)
    for row, i in zip(made, ids, strict=True):
        row[: len(i)] = i
    return made
