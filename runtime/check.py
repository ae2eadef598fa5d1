"""Checks an artifact on this machine: every kernel, and the whole model, against the fp64 interpreter. This needs the compiler."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ringc.codegen.artifact import MANIFEST
from ringc.codegen.check import check_kernel
from ringc.codegen.compare import Compared
from ringc.codegen.inputs import check_sizes
from ringc.codegen.kernel import kernel_of
from ringc.errors import Place
from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.replay import Replay
from ringc.ir.text_parse import parse_module
from ringc.ir.types import StateType
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target as target_of
from ringc.runtime.artifact import Artifact
from ringc.runtime.backends import Kernels
from ringc.runtime.manifest import contradiction
from ringc.runtime.memory import check_memory
from ringc.runtime.model import Model
from ringc.runtime.routing import NONE
from ringc.runtime.weights import Weights

TOLERANCE = {"f32": 2e-4, "bf16": 6e-2}
"""Largest error of a logit, by the type of weights and activations, where logits have a standard deviation of 1."""

MULTIPLE = 2.0
"""How many times the error that unfused computations make at a token the model's may be, where that is more."""

SAMPLES = 16
"""At most so many unfused computations are made to explain an error above the tolerance."""

LEAST_SPREAD = 1e-3
"""Numbers that vary by less than so much of their size are taken to vary by as much: what is less are roundings."""

HOPELESS = 100.0
"""How many times what is allowed so far no rounding explains."""

SAME = 1e-8
"""Largest difference in fp64 between two graphs that mean the same."""

RAISING = "canonicalize,cse,raise,dce"
"""What makes one operation of a routing chain, so that its choice can be replayed."""

Progress = Callable[[str, int, int], None]


def check_kernels(
    artifact: Artifact, *, progress: Progress = lambda _what, _done, _total: None
) -> list[tuple[str, list[Compared]]]:
    """Every kernel of an artifact on random inputs at reduced sizes and at large ones, with poisoned outputs.

    Raises:
        ArtifactError: the module's text lacks a kernel, or has another one of its name.
    """
    module = read_module(artifact, "module")
    kernels = Kernels(artifact)
    found: list[tuple[str, list[Compared]]] = []
    for name, entry in artifact.kernels.items():
        progress("kernels", len(found), len(artifact.kernels))
        function = module.functions[name]
        kernel, launch = kernel_of(function), kernels[name]
        meant = [
            [str(a.type) for a in function.body.args],
            list(map(str, kernel.outputs)),
            list(map(str, kernel.workspace)),
        ]
        if meant != [entry["inputs"], entry["outputs"], entry["workspace"]]:
            raise kernels.contradiction(f"the manifest gives the kernel {name} other tensors than the module")
        results: list[Compared] = []
        for sizes in check_sizes(function):
            made = check_kernel(kernel, launch, sizes, device=str(kernels.device))
            results += [replace(one, name=f"{one.name} at N={sizes['N']}") for one in made]
        found.append((name, results))
    return found


def read_module(artifact: Artifact, which: str) -> Module:
    """The module that an artifact was compiled from (`input`), or the fully lowered one (`module`).

    Raises:
        ArtifactError: it lacks an entry point, a version or a kernel.
    """
    path = artifact.path(str(artifact.manifest[which]))
    module = parse_module(path.read_text(encoding="utf-8"), path)
    entries = artifact.manifest["entries"]
    needed = entries if which == "input" else [v["name"] for versions in entries.values() for v in versions]
    lost = [
        name for name in (*needed, *(artifact.kernels if which == "module" else ())) if name not in module.functions
    ]
    if lost:
        raise contradiction(f"{artifact.manifest[which]} lacks {lost[0]}", Place(artifact.path(MANIFEST)))
    return module


def check_model(
    artifact: Artifact,
    weights: Weights,
    *,
    tokens: int = 40,
    prompt: Sequence[int] = (),
    new_tokens: int = 48,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[Compared]:
    """The whole model: one call, prefill in chunks, decode, many sequences, against the graph as the front end wrote it, in fp64.

    Where two experts' scores are nearly equal, a rounding decides which one is taken, and with it the logits. So the model's choice of
    experts is recorded and replayed in the reference, and judged apart: by the reference's own scores it must be right but for a rounding.

    At some tokens rounding errors grow: a norm divides by the size of a vector that is nearly zero. An error above the tolerance is
    therefore held against those that the same graph makes at the same token, unfused, in the artifact's own precision.

    Args:
        artifact: whose kernels run.
        weights: of the model.
        tokens: of the longest sequence of random tokens.
        prompt: a text that is continued too, and each token taken held against the reference's best; none by default.
        new_tokens: at most so many continue it.
        progress: told what has been compared.

    Raises:
        RunError: the double-precision weights don't fit into memory.
    """
    count = int(artifact.manifest["facts"]["parameters"])
    check_memory(
        24 * count, torch.device("cpu"), "the weights in double precision", "check the kernels alone: --kernels"
    )
    model = Model(artifact, weights)
    generator = torch.Generator().manual_seed(zlib.crc32(artifact.name.encode()))
    vocabulary = int(artifact.manifest["vocabulary"]["size"])

    def draw(*lengths: int) -> list[torch.Tensor]:
        return [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]

    pair, many = draw(max(tokens, 4), max(tokens // 2, 4)), draw(*[3] * 20)
    oracle = _Oracle(artifact, {name: t.cpu().double() for name, t in model.state_dict().items()})
    runs: list[Callable[[], _Run]] = [
        lambda: _at_once(model, pair, "model(ids)"),
        lambda: _in_chunks(model, [i[: len(pair[1])] for i in pair]),
        lambda: _at_once(model, many, "20 sequences at once"),
        lambda: _by_decode(model, many, "20 sequences"),
    ]
    if prompt:
        runs.append(lambda: _continued(model, prompt, new_tokens))
    progress("reference", 0, 1 + len(runs))
    found = [oracle.compare_raised(pair)]
    for done, made in enumerate(runs, start=1):
        progress("reference", done, 1 + len(runs))
        # Once something is wrong, the rest only shows where: less is spent on finding excuses.
        found += oracle.compare(made(), SAMPLES if all(one.passed for one in found) else 1)
    return found


# ---------------------------------------------------------------- what the model makes


@dataclass(frozen=True)
class _Logits:
    """Logits [M, V] that the model made for these rows [M] of the sequences' tokens, laid end to end."""

    name: str
    made: torch.Tensor
    rows: torch.Tensor
    margin = 1.0

    def errors(self, exact: torch.Tensor) -> torch.Tensor:
        return _errors(self.made.cpu().double(), exact[self.rows], exact)


@dataclass(frozen=True)
class _Tokens:
    """Tokens [M] that the model took after these rows."""

    name: str
    made: torch.Tensor
    rows: torch.Tensor
    # The logit of the token taken may be too high, and that of the best one too low.
    margin = 2.0

    def errors(self, exact: torch.Tensor) -> torch.Tensor:
        """By how much the logit of the token taken is below the best."""
        logits = exact[self.rows]
        return (logits.amax(-1) - logits.gather(-1, self.made[:, None]).squeeze(-1)) / _spread(exact)


@dataclass(frozen=True)
class _Run:
    """What the model made of sequences; `experts`: i32[N, k] of all of their tokens, for each layer that has any, as they are recorded."""

    ids: Sequence[torch.Tensor]
    parts: Sequence[_Logits | _Tokens]
    experts: Sequence[torch.Tensor]


def _at_once(model: Model, ids: Sequence[torch.Tensor], name: str) -> _Run:
    lengths = [len(i) for i in ids]
    with model.record_routing() as calls:
        made = model(torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True), lengths=lengths)
    logits = torch.cat([made[i, :n] for i, n in enumerate(lengths)])
    return _Run(ids, [_Logits(name, logits, torch.arange(sum(lengths)))], calls[0])


def _in_chunks(model: Model, ids: Sequence[torch.Tensor]) -> _Run:
    """Prefill of two sequences of one length, cut at 1, 2 and a little before the end, in slots out of order, then decode."""
    length = len(ids[0])
    ends = sorted({1, 2, length // 2, length - 2})
    name = f"prefill in chunks to {', '.join(map(str, ends))}"
    return _piecewise(model, torch.stack(list(ids)), ends, [2, 0], name, "decode after it")


def _by_decode(model: Model, ids: Sequence[torch.Tensor], name: str) -> _Run:
    """Prefill of the first tokens, the rest one by one."""
    return _piecewise(
        model, torch.stack(list(ids)), [1], list(range(len(ids))), f"first token of {name}", f"decode of {name}"
    )


def _piecewise(
    model: Model, ids: torch.Tensor, ends: Sequence[int], slots: Sequence[int], prefill: str, decode: str
) -> _Run:
    """Prefill up to each end in turn, then decode: ids [B, T]."""
    batch, length = ids.shape
    cache = model.new_cache(max(slots) + 1, length)
    with model.record_routing() as calls:
        chunks = [model.prefill(ids[:, a:b], cache, slots=slots) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        steps = [model.decode(ids[:, t], cache, slots=slots) for t in range(ends[-1], length)]
    # A call's rows are its tokens, sequence by sequence: put each sequence's calls behind each other.
    layers = zip(*calls, strict=True)
    experts = [torch.cat([c.view(batch, -1, c.shape[-1]) for c in layer], 1).flatten(0, 1) for layer in layers]
    first = torch.arange(batch) * length

    def rows(positions: Sequence[int]) -> torch.Tensor:
        return torch.cat([first + p for p in positions])

    return _Run(
        list(ids),
        [
            _Logits(prefill, torch.cat(chunks), rows([e - 1 for e in ends])),
            _Logits(decode, torch.cat(steps), rows(range(ends[-1], length))),
        ],
        experts,
    )


def _continued(model: Model, prompt: Sequence[int], count: int) -> _Run:
    """The prompt and its most likely continuation, as `ringc run` makes it."""
    with model.record_routing() as calls:
        taken = list(model.generate(prompt, max_new_tokens=count))
    if len(taken) < count:
        taken.append(int(model.vocabulary["eos"]))  # it ended the text, and was a choice too
    ids = torch.tensor([*prompt, *taken[:-1]])
    rows = torch.arange(len(prompt) - 1, len(ids))
    experts = [torch.cat(layer) for layer in zip(*calls, strict=True)]
    return _Run([ids], [_Tokens("tokens after the prompt", torch.tensor(taken), rows)], experts)


# ---------------------------------------------------------------- what it should have made


class _Oracle:
    """The meaning of an artifact's input graph, with its weights."""

    def __init__(self, artifact: Artifact, published: Mapping[str, torch.Tensor]) -> None:
        self.graph = read_module(artifact, "input")
        self.target = target_of(str(artifact.target["name"]))
        self.published = published
        self.storage = str(artifact.target["storage"])
        self.tolerance = TOLERANCE[self.storage]

    @cached_property
    def raised(self) -> Module:
        """The same graph, in which routing is an operation."""
        return PassManager(parse_pipeline(RAISING)).run(self.graph.clone(), self.target)

    def logits(
        self,
        module: Module,
        ids: Sequence[torch.Tensor],
        precision: torch.dtype | None,
        replay: Replay | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Logits of whole sequences, laid end to end [N, V], by the interpreter."""
        lengths = [len(i) for i in ids]
        positions = torch.cat([torch.arange(n) for n in lengths])
        given = {
            "ids": torch.cat(list(ids)),
            "positions": positions,
            "slots": torch.arange(len(ids)),
            "offsets": torch.tensor([0, *lengths]).cumsum(0),
            "rows": torch.arange(len(positions)),
        }
        given["row_offsets"] = given["offsets"]
        inputs: list[torch.Tensor] = []
        for arg in module.functions["prefill"].body.args:
            if isinstance(arg.type, StateType):
                shape = [d if isinstance(d, int) else max(lengths) for d in arg.type.shape]
                inputs.append(torch.zeros((len(ids), *shape), dtype=torch.float64))
            else:
                inputs.append(given[arg.name].to(torch.int32))
        return run(module, "prefill", inputs, (weights or self.published).__getitem__, precision, replay)[0].double()

    def compare_raised(self, ids: Sequence[torch.Tensor]) -> Compared:
        """The graph in which routing is replayed against the one that the front end wrote; both choose for themselves."""
        wanted, found = (self.logits(module, ids, torch.float64) for module in (self.graph, self.raised))
        return Compared(
            "the raised graph, in fp64", tuple(found.shape), float(_errors(found, wanted, wanted).max()), SAME
        )

    def compare(self, made: _Run, samples: int) -> list[Compared]:
        """A run's logits, and its choice of experts; at most so many unfused computations explain their errors."""
        recorded = [e.cpu() for e in made.experts]
        # What no layer has made nothing reads: any experts do, and are nobody's choice.
        unmade = [(e == NONE).any(-1) for e in recorded]
        experts = [
            torch.where(rows[:, None], torch.arange(e.shape[1], dtype=e.dtype), e)
            for e, rows in zip(recorded, unmade, strict=True)
        ]
        replay = Replay(experts)
        exact = self.logits(self.raised, made.ids, torch.float64, replay)
        errors = [part.errors(exact) for part in made.parts]
        shortfalls = _by_layer(
            [s.masked_fill(rows, 0.0) for s, rows in zip(replay.shortfalls, unmade, strict=True)], replay
        )
        allowed = torch.full((len(exact),), self.tolerance)
        # The scores that are summed up may all be off.
        summed = torch.tensor(replay.summed, dtype=torch.float64)[:, None]
        allowed_shortfalls = (self.tolerance * summed).expand_as(shortfalls)

        def results() -> list[Compared]:
            found = [
                _worst(part.name, part.made.shape, error, part.margin * allowed[part.rows])
                for part, error in zip(made.parts, errors, strict=True)
            ]
            if experts:
                shape = (len(experts), *experts[0].shape)
                found.append(_worst(f"experts of {made.parts[0].name}", shape, shortfalls, allowed_shortfalls))
            return found

        found = results()
        if all(one.passed for one in found):
            return found
        for usual, off in itertools.islice(self.unfused(made.ids, experts, exact, replay), samples):
            allowed = torch.fmax(allowed, MULTIPLE * usual)
            # A score that is too high and one that is too low make a shortfall of twice the error.
            allowed_shortfalls = torch.fmax(allowed_shortfalls, 2 * MULTIPLE * summed * off)
            found = results()
            if all(one.passed for one in found) or not all(one.error <= HOPELESS * one.allowed for one in found):
                break
        return found

    def unfused(
        self, ids: Sequence[torch.Tensor], experts: Sequence[torch.Tensor], exact: torch.Tensor, replay: Replay
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same graph in the artifact's own precision, again and again: errors of each token's logits [N], and of scores [layers, N].

        After the first, weights are off by about a rounding: other roundings are made everywhere, hence other errors.
        """
        step = torch.finfo(torch.bfloat16 if self.storage == "bf16" else torch.float32).eps / 2
        generator = torch.Generator().manual_seed(0)
        for sample in itertools.count():
            weights = self.published
            if sample:
                weights = {
                    name: t * (1 + step * torch.randn(t.shape, generator=generator, dtype=t.dtype))
                    for name, t in self.published.items()
                }
            again = Replay(experts)
            logits = self.logits(self.raised, ids, None, again, weights)
            off = [(a - b).abs().amax(-1) for a, b in zip(again.scores, replay.scores, strict=True)]
            yield _errors(logits, exact, exact), _by_layer(off, replay)


def _worst(name: str, shape: Sequence[int], errors: torch.Tensor, allowed: torch.Tensor) -> Compared:
    """The error that is largest for what is allowed at its token."""
    at = int((errors / allowed).argmax())
    return Compared(name, tuple(shape), float(errors.flatten()[at]), float(allowed.flatten()[at]))


def _errors(made: torch.Tensor, wanted: torch.Tensor, all_wanted: torch.Tensor) -> torch.Tensor:
    """The largest error of each row of logits, where all logits have a standard deviation of 1."""
    return (made - wanted).abs().amax(-1) / _spread(all_wanted)


def _by_layer(rows: Sequence[torch.Tensor], replay: Replay) -> torch.Tensor:
    """What was found out about each layer's scores [N], where these have a standard deviation of 1: [layers, N]."""
    return (
        torch.stack([r / _spread(s) for r, s in zip(rows, replay.scores, strict=True)]) if rows else torch.zeros(0, 0)
    )


def _spread(x: torch.Tensor) -> float:
    """The standard deviation; never 0."""
    least = max(LEAST_SPREAD * float(x.abs().max()), torch.finfo(torch.float32).tiny)
    return max(float(x.std(correction=0)), least)
