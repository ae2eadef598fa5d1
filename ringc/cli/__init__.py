"""The command line: one file a verb. Nothing heavy is imported before a verb runs, so that `--help` is quick."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ringc import __version__
from ringc.cli import (
    bench,
    cache,
    calibrate,
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
    tune,
)
from ringc.errors import RingcError, UsageError, reason

app = typer.Typer(
    name="ringc",
    help="Compile a description of a hybrid linear-attention language model into fused kernels, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("compile")(compile_.compile_spec)
app.command("calibrate")(calibrate.calibrate)
app.command("tune")(tune.tune)
app.command("run")(run.run)
app.command("bench")(bench.bench)
app.command("inspect")(inspect_.inspect_artifact)
app.command("check")(check.check)
app.command("explain")(explain.explain)
app.command("opt")(opt.opt)
app.command("import")(import_.import_config)
app.command("presets")(presets.presets)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.command("cache")(cache.cache)


# Of click, which newer versions of typer hold a copy of.
_ARGUMENTS_ERROR: Any = typer.BadParameter.__mro__[1]


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
    _open_streams()
    try:
        try:
            code = app(standalone_mode=False)
        finally:
            sys.stdout.flush()  # here, and not when Python ends, where nobody could say what is wrong
        sys.exit(code or 0)
    except RingcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except _ARGUMENTS_ERROR as error:
        _explain_arguments(error)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output has gone (`ringc inspect DIR K | head`): nothing is wrong, and nothing more may be written.
        _drop_output()
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or error.filename is not None:
            raise
        _drop_output()
        sys.stderr.write(f"{UsageError(f'the output cannot be written: {reason(error)}', help='free some space')}\n")
        sys.exit(2)


def _explain_arguments(error: Any) -> None:
    """What is wrong with the command line, or the help where nothing was asked."""
    command = error.ctx.command_path if error.ctx is not None else "ringc"
    message = error.format_message()
    if message.startswith("Usage:"):
        sys.stderr.write(f"{message}\n")
        return
    message = message[:1].lower() + message[1:].rstrip(".")
    sys.stderr.write(f"{UsageError(message, help=f'see `{command} --help`')}\n")


def _open_streams() -> None:
    """Make printing safe: a closed stream swallows, and what the terminal's encoding lacks is replaced."""
    nowhere = Path(os.devnull)
    if sys.stdout is None:
        sys.stdout = nowhere.open("w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = nowhere.open("w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Send what is still to be written to nowhere, or Python complains about it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
