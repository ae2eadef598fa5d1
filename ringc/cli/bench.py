"""`ringc bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringc.runtime.artifact import Artifact
    from ringc.runtime.baseline import Baseline
    from ringc.runtime.bench import Plan, Report

    Progress = Callable[[str, int, int], None]


def bench(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `ringc compile` wrote.", show_default=False, readable=False)
    ],
    entry: Annotated[str, typer.Option(help="The entry point.", metavar="prefill|decode")] = "decode",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens that each sequence has before, which aren't computed.")] = 0,
    tokens: Annotated[
        int | None, typer.Option(help="New tokens of each sequence, of a prefill.", show_default=False)
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(help="Tokens that a prefill takes at a time; all of them if not given.", show_default=False),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="A checkpoint's folder, or random:SEED or initial:SEED.", metavar="DIR|random:SEED|initial:SEED"
        ),
    ] = "random:0",
    rounds: Annotated[int, typer.Option(help="Steps that are measured.")] = 20,
    json: Annotated[
        Path | None, typer.Option(help="Write all numbers into this file.", show_default=False, readable=False)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the kernels' times into this file.", show_default=False, readable=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Run the model in plain PyTorch, too.", show_default=False, metavar="eager|compile"),
    ] = None,
    allow_edited: Annotated[bool, typer.Option("--allow-edited", help="Run kernels that were edited.")] = False,
) -> None:
    """Measure how fast an artifact runs here, kernel by kernel, beside the least that its bytes and FLOPs need.

    What sequences have before the new tokens is made up of random numbers, as are the tokens.
    """
    for path, what in ((json, "--json"), (png, "--png")):
        if path is not None:
            _check_output(path, what)
    if png is not None:
        from ringc.cli.plot import check_matplotlib

        check_matplotlib()

    from ringc.cli.console import bar

    with bar() as progress:
        from ringc.errors import UsageError
        from ringc.runtime.artifact import open_artifact
        from ringc.runtime.bench import Plan

        opened = open_artifact(artifact, allow_edited=allow_edited)
        if entry == "prefill" and tokens is None:
            raise UsageError("a prefill needs to know how many tokens", help="give --tokens")
        plan = Plan(entry, batch, context, 1 if tokens is None else tokens, chunk, rounds)
        plan.check(opened.manifest["max_positions"])
        report, beside = _measured(opened, weights, plan, baseline, progress)
    _show(report, beside, opened)
    _warn(report, beside)
    if json is not None:
        _write_json(json, report, beside)
    if png is not None:
        from ringc.cli.plot import draw_kernels

        draw_kernels(png, report)


def _check_output(path: Path, option: str) -> None:
    """Raise now what would go wrong when all has been measured."""
    import os

    from ringc.errors import Place, UsageError

    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"no file can be written here for {option}", place=Place(path), help="name a file in a folder that is there"
        )


def _measured(
    artifact: Artifact, weights: str, plan: Plan, mode: str | None, progress: Progress
) -> tuple[Report, Baseline | None]:
    """The measurements: of the artifact, and, where a mode is given, of plain PyTorch."""
    import gc
    import json
    from functools import partial

    import torch

    from ringc.model_defs.spec import Spec
    from ringc.runtime.backends import Kernels
    from ringc.runtime.baseline import check_baseline, measure_baseline
    from ringc.runtime.bench import measure
    from ringc.runtime.cache import cache_bytes
    from ringc.runtime.model import Model
    from ringc.runtime.rates import measured_rates
    from ringc.runtime.weights import PublishedTensors

    manifest = artifact.manifest
    device = Kernels(artifact).device
    spec = Spec.model_validate_json(json.dumps(manifest["spec"]))
    if mode is not None:
        check_baseline(mode, spec)
    progress("machine", 0, 1)
    rates = measured_rates(device)  # first: a large model leaves no room for it
    if device.type == "cuda":
        torch.cuda.empty_cache()
    beside = None
    if mode is not None:
        # Before the kernels are profiled: a GPU's profiler, once it was there, makes each launch slower for the host.
        progress("baseline", 0, 1)
        published = PublishedTensors(manifest["prepare"], weights, device, manifest["ignored_tensors"])
        dtype = torch.bfloat16 if manifest["target"]["storage"] == "bf16" else torch.float32
        beside = measure_baseline(mode, spec, published, manifest["states"], dtype, device, plan)
        gc.collect()  # there may not be room for the same weights twice
        if device.type == "cuda":
            torch.cuda.empty_cache()
    room = cache_bytes(manifest["states"], plan.batch, plan.length)
    model = Model(artifact, weights, room=room, progress=partial(progress, "weights"))
    return measure(model, plan, rates, progress), beside


def _show(report: Report, beside: Baseline | None, artifact: Artifact) -> None:
    from ringc.cli.console import count, duration, flops, table
    from ringc.units import size

    plan, floor, rates, memory = report.plan, report.floor, report.rates, report.memory
    work = f"{size(floor.bytes)} at {size(rates.bytes_per_second)}/s, {flops(floor.flops)} at {flops(rates.flops_per_second)}/s"
    rows = [
        ("step", f"{duration(report.seconds)}, the shortest {duration(report.shortest)}"),
        ("tokens", f"{count(report.tokens_per_second)} a second"),
        ("call", f"{duration(report.call_seconds)}, with the host's work"),
        ("floor", f"{duration(floor.seconds)}: {work}"),
        ("ratio", f"{report.ratio:.2f} times the floor"),
        ("kernels' floors", f"{duration(floor.kernels_seconds)} in all, what passes between them included"),
    ]
    if report.experts is not None:
        of = artifact.manifest["spec"]["moe"]["experts"]
        rows.append(("experts", f"{report.experts:.1f} of {of} touched in a layer"))
    held = f"{size(memory.weights)} of weights, {size(memory.cache)} of caches, {size(memory.intermediates)} between kernels"
    rows.append(("memory", f"{size(memory.peak)} {'at most' if 'GPU' in report.machine else 'of the process'}: {held}"))
    if beside is not None:
        times = f"{duration(beside.seconds)}, {beside.seconds / report.seconds:.2f} times ringc's"
        rows.append((f"PyTorch, {beside.mode}", f"{times} ({beside.how})"))
        largest, typical = beside.off(report.log_probabilities)
        rows.append(("", f"log-probabilities differ by {largest:.2g} at most, {typical:.2g} typically"))
    table(f"{report.artifact} for {report.target}: {_conditions(plan)}", ("", ""), rows, left=2)
    cells = [
        (
            kernel.kernel,
            kernel.implementation,
            str(kernel.count),
            duration(kernel.seconds / kernel.count),
            duration(kernel.seconds),
            f"{kernel.share:.1%}",
            duration(kernel.floor) if kernel.of_floor is not None else "",
            f"{kernel.of_floor:.0%}" if kernel.of_floor is not None else "",
        )
        for kernel in report.kernels
    ]
    columns = ("kernel", "implementation", "launches", "each", "all", "share", "floor", "of floor")
    table("kernels", columns, cells, left=2)
    table("measured on", ("", ""), [*report.machine.items(), ("rates", rates.source)], left=2)


def _warn(report: Report, beside: Baseline | None) -> None:
    """Say which times are those of a busy machine."""
    from ringc.cli.console import warn
    from ringc.runtime.timing import UNSTEADY

    measured = {"the step": report, "the baseline": beside}
    unsteady = [what for what, one in measured.items() if one is not None and one.seconds > UNSTEADY * one.shortest]
    if unsteady:
        warn(
            f"times of {' and '.join(unsteady)} are unsteady: this machine was busy with something else",
            "measure again when it is quiet",
        )


def _conditions(plan: Plan) -> str:
    sequences = f"{plan.batch} sequence{'s' * (plan.batch > 1)}"
    chunks = f" in chunks of {plan.chunk}" if plan.chunk is not None else ""
    new = f" of {plan.tokens} tokens{chunks}" if plan.entry == "prefill" else ""
    return f"{plan.entry}{new}, {sequences}, {plan.context} tokens before; median of {plan.rounds}"


def _write_json(path: Path, report: Report, beside: Baseline | None) -> None:
    import json
    from dataclasses import asdict

    from ringc.errors import UsageError
    from ringc.json_file import write_whole

    data: dict[str, Any] = report.as_data()
    if beside is not None:
        largest, typical = beside.off(report.log_probabilities)
        plain = {name: value for name, value in asdict(beside).items() if name != "log_probabilities"}
        data["baseline"] = {**plain, "largest": largest, "typical": typical, "ratio": beside.seconds / report.seconds}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode(), "the report", UsageError, "choose another file with --json")
