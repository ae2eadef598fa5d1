"""`ringc check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FEWEST_TOKENS = 4
"""Of the sequence that is cut into chunks."""


def check(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `ringc compile` wrote.", show_default=False, readable=False)
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="A checkpoint's folder, or random:SEED or initial:SEED, for the whole model.",
            metavar="DIR|random:SEED|initial:SEED",
        ),
    ] = "random:0",
    kernels_only: Annotated[bool, typer.Option("--kernels", help="Check the kernels, not the whole model.")] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of the longest sequence of the whole-model check.")] = 40,
    prompt: Annotated[
        str | None,
        typer.Option(help="Check the tokens that the model continues this text with, too.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to continue the prompt with.")] = 48,
    allow_edited: Annotated[bool, typer.Option("--allow-edited", help="Check kernels that were edited.")] = False,
) -> None:
    """Compare kernels and model with the fp64 reference.

    Every kernel and then the whole model run on this machine, on random inputs and with the given weights.
    """
    from ringc.cli.console import bar, out, table
    from ringc.cli.prompt import encoded

    with bar() as progress:
        from ringc.errors import UsageError
        from ringc.runtime.artifact import open_artifact
        from ringc.runtime.check import check_kernels, check_model
        from ringc.runtime.tokenizer import find_tokenizer

        opened = open_artifact(artifact, allow_edited=allow_edited)
        most = opened.manifest["max_positions"]
        if not FEWEST_TOKENS <= tokens <= most:
            raise UsageError(f"--tokens is {tokens}", help=f"use {FEWEST_TOKENS} to {most}, the positions of the model")
        ids: list[int] = []
        if prompt is not None:
            if kernels_only:
                raise UsageError("--prompt is for the whole model", help="leave out --kernels")
            vocabulary = opened.manifest["vocabulary"]
            ids = encoded(find_tokenizer(vocabulary, weights, artifact), prompt, vocabulary)
            if not 1 <= max_new_tokens <= most - len(ids):
                raise UsageError(
                    f"--max-new-tokens is {max_new_tokens}, after {len(ids)} tokens of the prompt",
                    help=f"use 1 or more, and at most the model's {most} positions in all",
                )
        found = check_kernels(opened, progress=progress)
        rows = [
            (
                name,
                opened.kernels[name]["implementation"],
                f"{one.name} {list(one.shape)}",
                f"{one.error:.1e}",
                f"{one.allowed:.1e}",
                _verdict(one.passed),
            )
            for name, results in found
            for one in results
        ]
        model = (
            []
            if kernels_only
            else check_model(opened, weights, tokens=tokens, prompt=ids, new_tokens=max_new_tokens, progress=progress)
        )
    table(
        "kernels against the fp64 interpreter",
        ("kernel", "implementation", "result", "error", "allowed", ""),
        rows,
        left=3,
    )
    if model:
        table(
            f"the whole model against the fp64 interpreter ({weights})",
            ("what", "error", "allowed", ""),
            [(one.name, f"{one.error:.1e}", f"{one.allowed:.1e}", _verdict(one.passed)) for one in model],
        )
    compared = [one for _, results in found for one in results] + list(model)
    wrong = [one for one in compared if not one.passed]
    out(f"{len(compared)} results compared, {len(wrong)} wrong")
    if wrong:
        raise typer.Exit(1)


def _verdict(passed: bool) -> str:
    return "ok" if passed else "WRONG"
