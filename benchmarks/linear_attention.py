"""Linear attention alone on the CPU: the recurrent against the chunked kernel over the length of a sequence.

    python -m benchmarks.linear_attention [--preset ring-small] [--heads H] [--plot FILE.png] [--write]

They are the generated kernels, checked against the fp64 reference at every length. The scheduler predicts from which length the chunked
form wins; the benchmark finds where it does, and the two should be within a factor of two of each other. Beside them runs the chunked form
on segments side by side, which is for more threads than heads: `--heads` takes fewer heads than the preset has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Times,
    command_line,
    deliver,
    machine,
    machine_line,
    measured_crossover,
    options,
    table,
    verdict,
)
from ringc.codegen.emit import emit
from ringc.codegen.kernel import kernel_of
from ringc.codegen.tvm.build import import_tvm, module_of, processor
from ringc.ir.symbols import evaluate
from ringc.ir.text_parse import parse_module
from ringc.ir.types import TensorType
from ringc.model_defs import load_spec
from ringc.model_defs.spec import Spec
from ringc.passes.schedules.linear_attention import Problem, forms, segments, switch_length
from ringc.passes.schedules.model import Candidate
from ringc.passes.target import target
from tests.reference.ring_linear import linear_attention_chunked

LONGEST = 4096
FACTOR = 2.0
"""How far the predicted crossover may be from the measured one."""

TOLERANCE = 1e-4
"""Of outputs and states, relative to their largest element."""

ROUND_SECONDS = 0.03


@dataclass(frozen=True)
class Form:
    """A kernel of one form, its implementation's name, and the shape of its workspaces."""

    name: str
    implementation: str
    run: Callable[..., Any]
    workspace: tuple[TensorType, ...]

    def scratch(self, tokens: int) -> list[Tensor]:
        """Workspaces for one sequence, poisoned."""
        sizes = {"N": tokens, "B": 1}
        return [torch.full([evaluate(d, sizes) for d in t.shape], torch.nan) for t in self.workspace]


def kernel_text(heads: int, dim: int) -> str:
    """The IR of linear attention alone."""
    rows, pool = f"f32[N / B, {heads}, {dim}]", f"state<f32[P; {heads}, {dim}, {dim}]>"
    return f"""module @benchmark level kernel
symbol B >= 0
symbol N >= 0
symbol P >= 0
func @mixer(%q: {rows}, %k: {rows}, %v: {rows}, %slopes: f32[{heads}], %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]) {{
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {{scale = {dim**-0.5!r}}} : {rows}, {pool}
  return %o, %after
}}
"""


def build(heads: int, dim: int, name: str, candidate: Candidate) -> Form:
    """The kernel of an implementation such as `tvm.linear_chunked{chunk=16}`, compiled for this machine."""
    implementation, workspace = candidate.implementation, candidate.workspace
    (function,) = parse_module(kernel_text(heads, dim)).functions.values()
    function.notes |= {"family": "linear_attention", "implementation": implementation, "workspace": workspace}
    source = emit(kernel_of(function))
    library = import_tvm().compile(module_of(source.text, source.name), target=processor().tvm_target())
    return Form(name, implementation, library["main"], workspace)


def inputs(heads: int, dim: int, tokens: int, slopes: Tensor) -> list[Tensor]:
    """q, k, v, slopes, a random state, slots and offsets of one sequence, and the poisoned output."""
    generator = torch.Generator().manual_seed(tokens)
    made = [torch.randn(tokens, heads, dim, generator=generator) for _ in range(3)]
    state = torch.randn(1, heads, dim, dim, generator=generator)
    index = [torch.tensor([0], dtype=torch.int32), torch.tensor([0, tokens], dtype=torch.int32)]
    return [*made, slopes, state, *index, torch.full((tokens, heads, dim), torch.nan)]


def check(built: Sequence[Form], given: Sequence[Tensor]) -> None:
    """Run each form on a copy and compare output and state with the fp64 reference.

    Raises:
        SystemExit: one is wrong.
    """
    q, k, v, slopes, state = (x.double() for x in given[:5])
    o, after = linear_attention_chunked(q, k, v, slopes, state[0])
    for form in built:
        mine = [x.clone() for x in given]
        form.run(*mine, *form.scratch(len(q)))
        for got, right in ((mine[7], o), (mine[4][0], after)):
            error = ((got.double() - right).abs().max() / right.abs().max()).item()
            if not error <= TOLERANCE:
                raise SystemExit(f"{form.implementation} is wrong at T = {len(q)}: relative error {error:.1e}")


def measure(built: Sequence[Form], given: Sequence[Tensor], rounds: int) -> dict[str, Times]:
    """Seconds of a call of each form, measured in turns. The state goes on from call to call: decay keeps it bounded."""
    import tvm_ffi

    calls, given_to = {}, {}
    for form in built:
        arguments = given_to[form.name] = [tvm_ffi.from_dlpack(x) for x in (*given, *form.scratch(len(given[0])))]
        form.run(*arguments)
        begin = time.perf_counter()
        form.run(*arguments)
        calls[form.name] = max(2, int(ROUND_SECONDS / max(time.perf_counter() - begin, 1e-7)))
    found: dict[str, list[float]] = {form.name: [] for form in built}
    for _ in range(rounds):
        for form in built:
            arguments = given_to[form.name]
            form.run(*arguments)
            begin = time.perf_counter()
            for _ in range(calls[form.name]):
                form.run(*arguments)
            found[form.name].append((time.perf_counter() - begin) / calls[form.name])
    return {name: Times(tuple(seconds), min(seconds)) for name, seconds in found.items()}


def lengths_around(predicted: int | None) -> list[int]:
    """Powers of two up to 4096, and lengths from half to twice the predicted crossover."""
    found = {2**i for i in range(LONGEST.bit_length())}
    if predicted:
        found |= {max(1, round(predicted * f)) for f in (0.5, 0.75, 1, 1.25, 1.5, 2)}
    return sorted(n for n in found if n <= LONGEST)


def steepest(spec: Spec) -> tuple[float, Tensor]:
    """The largest slope of any layer, and the slopes of its layer."""
    layer = max(spec.linear_layers, key=lambda i: max(spec.slopes(i)))
    return max(spec.slopes(layer)), torch.tensor(spec.slopes(layer))


def plot(path: Path, lengths: Sequence[int], times: Sequence[dict[str, Times]], predicted: int | None) -> None:
    """Microseconds a token over the length, both axes logarithmic."""
    from importlib import import_module

    figure = import_module("matplotlib.figure").Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name in times[0]:
        axes.loglog(
            lengths, [t[name].median / n * 1e6 for n, t in zip(lengths, times, strict=True)], marker="o", label=name
        )
    if predicted:
        axes.axvline(predicted, linestyle="--", color="gray", label="predicted crossover")
    axes.set(xlabel="tokens", ylabel="us a token", title="linear attention on the CPU")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = options("linear_attention", __doc__)
    parser.add_argument("--preset", default="ring-small", help="whose heads and slopes are taken")
    parser.add_argument("--heads", type=int, help="how many of its heads; all if not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="draw the times into this PNG (needs matplotlib)")
    given = parser.parse_args()

    spec = load_spec(given.preset)
    heads, dim = spec.heads if given.heads is None else given.heads, spec.head_dim
    if not 1 <= heads <= spec.heads:
        parser.error(f"{spec.name} has 1 to {spec.heads} heads")
    steep, slopes = steepest(spec)
    slopes = slopes[:heads].contiguous()
    problem = Problem(heads, dim, dim, 4, steep)
    cpu = target("cpu")
    predicted = switch_length(problem, cpu)
    cut = segments(problem, cpu)
    found = forms(problem, cpu) | ({} if cut is None else {"segments": cut})
    offered = {name: candidate for name, candidate in found.items() if not candidate.illegal}
    built = [build(heads, dim, name, candidate) for name, candidate in offered.items()]
    lengths = lengths_around(predicted)
    here = machine()
    times = []
    for tokens in lengths:
        tensors = inputs(heads, dim, tokens, slopes)
        check(built, tensors)
        times.append(measure(built, tensors, given.rounds))
        print(f"T = {tokens}", file=sys.stderr, flush=True)

    rows = []
    for tokens, measured in zip(lengths, times, strict=True):
        us = {name: t.median * 1e6 for name, t in measured.items()}
        ratio = f"{us['recurrent'] / us['chunked']:.2f}" if "chunked" in us else ""
        cells = (f"{us[f.name]:.1f} (min {measured[f.name].shortest * 1e6:.1f})" for f in built)
        rows.append([str(tokens), *cells, ratio])
    crossover = None
    off: float | None
    if "chunked" in offered:
        # Shortest times: the disturbed rounds are the slow ones.
        crossover = measured_crossover(
            lengths, *([t[name].shortest for t in times] for name in ("recurrent", "chunked"))
        )
    if predicted and crossover:
        off = max(predicted / crossover, crossover / predicted)
        everywhere = " The chunked form wins at every length." if predicted == crossover == lengths[0] else ""
        verdict_text = (
            f"They differ by a factor of {off:.2f}; goal: at most {FACTOR:g}: {verdict(off, FACTOR)}.{everywhere}"
        )
    elif predicted is None and crossover is None:
        off, verdict_text = 1.0, "They agree: the chunked form never wins."
    else:
        off, verdict_text = None, "Only one of them exists: missed."
    text = (
        f"{machine_line(here)} `{command_line('linear_attention')}`\n\n"
        + table(
            [f"T (B=1, H={heads}, D={dim})", *(f"{f.name}, us" for f in built), "recurrent / chunked"],
            rows,
        )
        + f"\n\n{', '.join(f'`{f.implementation}`' for f in built)}; medians of {given.rounds} rounds in turns. Measured crossover: "
        + (f"{crossover:.1f} tokens" if crossover else "none")
        + f"; the scheduler's prediction: {predicted or 'none'}. {verdict_text}"
    )
    result = {
        "machine": here,
        "heads": heads,
        "dim": dim,
        "implementations": [f.implementation for f in built],
        "times": {t: {n: list(x.rounds) for n, x in m.items()} for t, m in zip(lengths, times, strict=True)},
        "measured": crossover,
        "predicted": predicted,
        "factor": off,
    }
    deliver("linear_attention", text, result, given)
    if given.plot:
        plot(given.plot, lengths, times, predicted)


if __name__ == "__main__":
    main()
