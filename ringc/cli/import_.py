"""`ringc import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def import_config(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with a config.json.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Left out: printed.", show_default=False)
    ] = None,
    decay: Annotated[str, typer.Option(help="serving, hf or mlx: the decay's layer factor.")] = "serving",
) -> None:
    """Make a spec from a published checkpoint's config.json."""
    from ringc.errors import Place, SpecError
    from ringc.model_defs import import_checkpoint

    text = import_checkpoint(checkpoint, decay)  # type: ignore[arg-type] # which it checks
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(
            f"the spec can't be written: {reason}", place=Place(output), help="choose another file with -o"
        ) from error
    sys.stdout.write(f"wrote {output}\n")
