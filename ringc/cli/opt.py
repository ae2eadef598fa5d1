"""`ringc opt`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def opt(
    file: Annotated[
        Path | None,
        typer.Argument(help="A module in text form; - reads the standard input.", show_default=False, readable=False),
    ] = None,
    passes: Annotated[
        str, typer.Option("-p", "--passes", help="Passes, as in 'raise,fuse{epilogues=false}'.", show_default=False)
    ] = "",
    target: Annotated[str, typer.Option(help="cpu, torch, sm_80, sm_90 or sm_100.")] = "cpu",
    device: Annotated[
        Path | None,
        typer.Option(help="Predict by the device that `ringc calibrate` measured.", show_default=False, readable=False),
    ] = None,
    list_passes: Annotated[bool, typer.Option("--list", help="List the passes and their options.")] = False,
) -> None:
    """Run passes on a module in text form and print the result."""
    from ringc.errors import IRError, Place, UsageError, reason

    if list_passes:
        _list()
        return
    if file is None:
        raise UsageError("a file is needed", help="ringc opt FILE.ring -p raise,fuse; or --list")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IRError(
            f"the module can't be read: {reason(error)}",
            place=Place(file),
            help="give a module in text form, as in an artifact's graph folder",
        ) from error
    from ringc.cli.console import bar

    with bar():
        from ringc.passes.tool import run_text

        made = run_text(text, passes, target, "<stdin>" if str(file) == "-" else file, device)
    sys.stdout.write(made)


def _list() -> None:
    import dataclasses

    from ringc.cli.console import bar, table

    rows = []
    with bar():
        from ringc.passes.pipeline import default_pipeline
        from ringc.passes.registry import PASSES, pass_class

        default = [p.name for p in default_pipeline()]
        for name in sorted(PASSES, key=lambda n: default.index(n) if n in default else len(default)):
            cls = pass_class(name)
            options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(cls))
            rows.append((name, (cls.__doc__ or "").strip().splitlines()[0], options))
    table("passes, in the order in which `ringc compile` runs them", ("pass", "what it does", "options"), rows, left=3)
