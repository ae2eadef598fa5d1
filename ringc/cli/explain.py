"""`ringc explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ringc.ir.core import Function, Module
    from ringc.runtime.artifact import Artifact


def explain(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `ringc compile` wrote.", show_default=False, readable=False)
    ],
    what: Annotated[str, typer.Argument(help="schedule")] = "schedule",
) -> None:
    """Say which forms were chosen for which sizes, and why.

    Shows the versions of each entry point, the crossovers, what each form costs, what lost and why.
    """
    from ringc.cli.console import bar, out, table
    from ringc.errors import UsageError

    if what != "schedule":
        raise UsageError(f"there is nothing to explain about '{what}'", help="use `ringc explain DIR schedule`")
    with bar():
        from ringc.runtime.artifact import open_artifact
        from ringc.runtime.check import read_module

        opened = open_artifact(artifact, allow_edited=True, any_machine=True)
        module = read_module(opened, "module")
        candidates = _candidates(module)
    _versions(opened, module)
    _forms(module)
    _products(module)
    columns = ("kernel", "implementation", "at", "predicted", "measured", "")
    table("candidates of each kernel", columns, candidates, left=3)
    if "device" in opened.manifest:
        out(f"predicted by the device description of {opened.manifest['device']['name']}")
    if "record" in opened.manifest:
        out(f"measured by the tuning record of {opened.manifest['record']['device']}")


def _versions(artifact: Artifact, module: Module) -> None:
    from ringc.cli.console import out
    from ringc.cli.versions import versions_table

    versions_table("versions, tested from top to bottom", artifact.manifest)
    for entry, found in artifact.manifest["entries"].items():
        notes = module.functions[found[0]["name"]].notes
        if "switch" in notes and entry != "decode":
            switch = notes["switch"]
            when = "never" if switch is None else f"from {switch} tokens of a sequence on"
            out(f"{entry}: the chunked form of linear attention costs less {when}")
        for regime, rows, why, *_ in notes.get("crossovers", ()):
            when = "never" if rows is None else f"from {rows} rows on"
            cuts = [version["rows"][1] for version in found if version["rows"][1]]
            near = min(cuts, key=lambda cut: max(cut / rows, rows / cut)) if rows and cuts else 0
            served = f"; the version up to {near} rows serves it" if near and near + 1 != rows else ""
            out(f"{entry}: {regime} go the way of many rows {when} ({why}{served})")


def _forms(module: Module) -> None:
    """What each form of linear attention costs by length, and which are unsafe."""
    from ringc.cli.console import duration, out, table
    from ringc.passes.schedules.predict import seconds_at

    notes = next((f.notes for f in module.functions.values() if f.notes.get("forms")), None)
    if notes is None:
        return
    lengths = (1, 4, 16, 64, 256, 1024, 4096)
    rows = []
    for name, seconds, illegal in notes["forms"]:
        costs = [duration(seconds_at(seconds, {"N": n, "B": 1, "R": 1, "P": 1, "S": 4096})) for n in lengths]
        rows.append((name, *(["unsafe"] * len(lengths) if illegal else costs)))
    table("linear attention of one sequence, predicted", ("form", *(f"T={n}" for n in lengths)), rows)
    for name, seconds, illegal in notes["forms"]:
        out(f"  {name}: {illegal or seconds}")


def _products(module: Module) -> None:
    """What the products of a decode step cost, all together, row by row and in tiles, where their crossovers are solved."""
    from ringc.cli.console import duration, table
    from ringc.passes.schedules.predict import seconds_at

    notes = next((f.notes for f in module.functions.values() if f.notes.get("entry") == "decode"), {})
    counts = (1, 2, 4, 8, 16, 32, 64)
    rows = [
        (
            f"{regime}, {way}",
            *(duration(seconds_at(seconds, {"N": n, "B": n, "R": n, "P": n, "S": 4096})) for n in counts),
        )
        for regime, _, _, first, second in notes.get("crossovers", ())
        for way, seconds in (("row by row", first), ("in tiles", second))
        if seconds
    ]
    if rows:
        table("products of a decode step, predicted", ("products", *(f"N={n}" for n in counts)), rows)


def _candidates(module: Module) -> list[tuple[str, ...]]:
    """The candidates of every kernel: at the sizes at which they were measured, else at typical ones of the rows that it serves."""
    from ringc.passes.schedules.candidates import typical_sizes

    rows: list[tuple[str, ...]] = []
    for function in module.functions.values():
        if "family" in function.notes:
            typical = typical_sizes(*_service(function))
            found = _measured(function, typical) or _predicted(function, typical)
            rows += [(function.name if i == 0 else "", *row) for i, row in enumerate(found)]
    return rows


def _predicted(function: Function, sizes: dict[str, int]) -> list[tuple[str, ...]]:
    """Rows of a kernel that was chosen by the cost model."""
    from ringc.cli.console import duration
    from ringc.passes.schedules.predict import seconds_at

    notes = function.notes
    where = ", ".join(f"{k}={v}" for k, v in sizes.items() if k in "NB")
    rows: list[tuple[str, ...]] = []
    rows.append((notes["implementation"], where, duration(seconds_at(notes["seconds"], sizes)), "", "chosen"))
    lost = [(name, *(seconds_at(t, sizes) for t in (own, won)), why) for name, own, why, won in notes.get("lost", ())]
    for name, own, won, why in sorted(lost, key=lambda c: c[1]):
        rows.append((name, where, duration(own), "", why or f"{own / won:.2f}x the time of what won"))
    return rows


def _measured(function: Function, typical: dict[str, int]) -> list[tuple[str, ...]]:
    """Rows of a kernel that was chosen by a tuning record, for each of the sizes that it was chosen for; none of another kernel."""
    from ringc.cli.console import duration
    from ringc.passes.schedules.predict import seconds_at

    notes = function.notes
    costs = {name: (own, why) for name, own, why, _ in notes.get("lost", ())}
    costs[notes["implementation"]] = (notes["seconds"], "")
    found = notes.get("measured", ())
    rows: list[tuple[str, ...]] = []
    for where in dict.fromkeys(sizes for sizes, *_ in found):
        sizes = typical | {k: int(v) for k, _, v in (part.partition("=") for part in where.split(", ") if part)}
        for _, name, own, won in sorted((f for f in found if f[0] == where), key=lambda f: float(f[2])):
            predicted = duration(seconds_at(costs[name][0], sizes)) if name in costs else ""
            chosen = name == notes["implementation"]
            verdict = "chosen" if chosen else f"{float(own) / float(won):.2f}x the time of what won"
            rows.append((name, where, predicted, duration(float(own)), verdict))
    illegal: list[tuple[str, ...]] = [(name, "", "", "", why) for name, (_, why) in costs.items() if why]
    return rows + illegal if rows else []


def _service(function: Function) -> tuple[tuple[int, int], str, int]:
    """The rows that a kernel serves, for which entry point, and the most tokens of a sequence."""
    notes = function.notes
    low, high = notes.get("rows", (1, 0))
    return (low, high), str(notes.get("serves", "prefill")).split("+")[-1], notes.get("each", 0)
