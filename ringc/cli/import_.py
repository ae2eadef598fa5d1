"""`ringc import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def import_config(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with a config.json.", show_default=False, readable=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; printed if left out.", show_default=False, readable=False),
    ] = None,
    decay: Annotated[str, typer.Option(help="serving, hf or mlx: the decay's layer factor.")] = "serving",
) -> None:
    """Make a spec from a published checkpoint's config.json."""
    from ringc.errors import Place, SpecError, reason
    from ringc.model_defs import import_checkpoint

    text = import_checkpoint(checkpoint, decay)  # type: ignore[arg-type] # which it checks
    if output is None:
        sys.stdout.write(text)
        return
    try:
        _write_whole(output, text.encode())
    except OSError as error:
        raise SpecError(
            f"the spec can't be written: {reason(error)}", place=Place(output), help="choose another file with -o"
        ) from error
    sys.stdout.write(f"wrote {output}\n")


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that there is all of it or, should the disk be full, what was there before."""
    import tempfile

    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe; a folder raises
        return
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=path.parent) as folder:
        made = Path(folder) / "spec"
        made.write_bytes(data)
        made.replace(path)
