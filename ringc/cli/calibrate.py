"""`ringc calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ringc.passes.device import Device
    from ringc.passes.target import Target


def calibrate(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The device description; TARGET.json here if not given.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="cpu, sm_80, sm_90 or sm_100; it must run here.")] = "cpu",
) -> None:
    """Measure what this machine reaches, for the cost model.

    Bandwidth, rates and what a launch costs: `ringc compile --device` and `ringc tune --device` predict by them.
    """
    from datetime import UTC, datetime

    from ringc.cli.console import bar, out

    path = output or Path(f"{target}.json")
    with bar() as progress:
        from ringc import api
        from ringc.passes.target import target as find_target

        began = datetime.now(UTC)
        found = api.calibrate(path, target=target, progress=progress)
    _show(found, find_target(target))
    out(f"measured on {began:%Y-%m-%d %H:%M} UTC with {', '.join(f'{k} {v}' for k, v in found.measured_with)}")
    out(f"use it with: ringc compile SPEC -o DIR --target {target} --device {path}")


def _show(found: Device, constants: Target) -> None:
    """What was measured, beside the constants that it replaces."""
    from ringc.cli.console import duration, flops, table
    from ringc.runtime.calibrate import how
    from ringc.units import size

    ways = how(constants)
    rows = [
        (name, ways[key], shown(getattr(found, key)), shown(getattr(constants, key)), f"{ratio:.2f}x")
        for key, name, shown in (
            ("bandwidth", "bandwidth", lambda v: f"{size(v)}/s"),
            ("matrix_rate", "products", lambda v: f"{flops(v)}/s"),
            ("vector_rate", "other arithmetic", lambda v: f"{flops(v)}/s"),
            ("launch", "one more kernel", duration),
            ("width", "side by side", str),
        )
        for ratio in (getattr(found, key) / getattr(constants, key),)
    ]
    title = f"{found.name}, for target {found.target}"
    table(title, ("", "measured by", "measured", "constant", "of it"), rows, left=2)
