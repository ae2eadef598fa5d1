"""The command line: one file a verb. Nothing heavy is imported before a verb runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ringc import __version__
from ringc.cli import (
    cache,
    check,
    compile_,
    doctor,
    explain,
    import_,
    inspect_,
    opt,
    presets,
    run,
    schema,
)
from ringc.errors import RingcError

app = typer.Typer(
    name="ringc",
    help="Compile a description of a hybrid linear-attention language model into fused kernels, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("compile")(compile_.compile_spec)
app.command("run")(run.run)
app.command("inspect")(inspect_.inspect_artifact)
app.command("check")(check.check)
app.command("explain")(explain.explain)
app.command("opt")(opt.opt)
app.command("import")(import_.import_config)
app.command("presets")(presets.presets)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.command("cache")(cache.cache)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ringc {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a verb."""


def main() -> None:
    """Entry point of the `ringc` command: a user's mistake is printed and exits with code 2, without a traceback."""
    try:
        app()
    except RingcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output has gone (`ringc inspect DIR K | head`): nothing is wrong, and nothing more may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
