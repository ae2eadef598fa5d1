"""`ringc tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ringc.runtime.tune import Option, Tuned


def tune(
    spec: Annotated[
        str, typer.Argument(help="A preset's name (see `ringc presets`) or a YAML file.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="The tuning record; one that exists is added to.", show_default=False, readable=False
        ),
    ],
    target: Annotated[str, typer.Option(help="cpu, sm_80, sm_90 or sm_100; it must run here.")] = "cpu",
    entry: Annotated[
        str | None, typer.Option(help="Measure for one entry point.", show_default=False, metavar="prefill|decode")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use the cache of built kernels.")] = True,
    device: Annotated[
        Path | None,
        typer.Option(help="Predict by the device that `ringc calibrate` measured.", show_default=False, readable=False),
    ] = None,
) -> None:
    """Measure on this machine what the compiler chooses among.

    Wherever several kernels could compute something, all of them are checked and timed. `ringc compile --record` goes by the times.
    """
    from ringc.cli.console import bar, out, table, warn

    with bar() as progress:
        from ringc import api
        from ringc.runtime.tune import WRONG

        tuned = api.tune(spec, output, target=target, entry=entry, use_cache=cache, device=device, progress=progress)
    rows = [row for one in tuned for row in _rows(one)]
    table("what was measured", ("region", "at", "candidate", "measured", "predicted", "off", ""), rows, left=3)
    whole = [one for one in tuned if one.fastest is not None]
    agreed = sum(one.fastest is one.by_model for one in whole)
    out(f"{len(whole)} of {len(tuned)} choices measured; the cost model makes {agreed} of them as the record does")
    failed = {(one.what, *item) for one in tuned for option in one.options for item in option.failed.items()}
    for what, name, why in sorted(failed):
        out(f"not recorded: {name} {why} ({what})")
    unsteady = sum(any(option.unsteady for option in one.options) for one in tuned)
    if unsteady:
        warn(
            f"times of {unsteady} choices are unsteady: this machine was busy with something else",
            "tune again when it is quiet; what is measured again replaces what the record has",
        )
    by_device = "" if device is None else f" --device {device}"
    out(f"use it with: ringc compile {spec} -o DIR --target {target} --record {output}{by_device}")
    if any(why == WRONG for *_, why in failed):
        raise typer.Exit(1)


def _rows(one: Tuned) -> list[tuple[str, ...]]:
    """A row for each option, the fastest first."""
    from ringc.cli.console import duration
    from ringc.passes.record import sizes_text

    rows: list[tuple[str, ...]] = []
    options: Sequence[Option] = sorted(one.options, key=lambda o: (o.measured is None, o.measured))
    for i, option in enumerate(options):
        head = (_short(one.what), sizes_text(one.sizes)) if i == 0 else ("", "")
        notes = ["fastest"] if option is one.fastest else []
        notes += ["model's choice"] if option is one.by_model else []
        notes += ["unsteady"] if option.unsteady else []
        if option.measured is None:
            notes += [", ".join(option.failed.values())]
            rows.append((*head, option.name, "", duration(option.predicted), "", ", ".join(notes)))
            continue
        off = f"{option.predicted / option.measured:.2f}x"
        rows.append((*head, option.name, duration(option.measured), duration(option.predicted), off, ", ".join(notes)))
    return rows


def _short(what: str) -> str:
    """A region without the types of what it takes, which would fill the table."""
    ops, _, types = what.partition(": ")
    return f"{ops} -> {types.rpartition(' -> ')[2]}"
