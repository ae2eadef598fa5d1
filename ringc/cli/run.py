"""`ringc run`."""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ringc.runtime.artifact import Artifact
    from ringc.runtime.model import Model
    from ringc.runtime.tokenizer import Tokenizer


def run(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `ringc compile` wrote.", show_default=False, readable=False)
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="A checkpoint's folder, or random:SEED or initial:SEED.",
            show_default=False,
            metavar="DIR|random:SEED|initial:SEED",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.", show_default=False)] = None,
    prompt_ids: Annotated[
        Path | None,
        typer.Option(help="File of token ids, as JSON or apart by spaces.", show_default=False, readable=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most likely tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the draw repeatable.", show_default=False)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End at this text; may be given again.", show_default=False, metavar="TEXT")
    ] = None,
    weights_dtype: Annotated[
        str, typer.Option(help="bf16 halves the weights' memory, at a cost in time; or model.")
    ] = "model",
    allow_edited: Annotated[bool, typer.Option("--allow-edited", help="Run kernels that were edited.")] = False,
) -> None:
    """Generate text, or token ids, with an artifact and weights."""
    from ringc.errors import UsageError

    if prompt is None and prompt_ids is None:
        raise UsageError("there is nothing to continue", help="give --prompt TEXT, or --prompt-ids FILE")
    if prompt is not None and prompt_ids is not None:
        raise UsageError("both --prompt and --prompt-ids are given", help="give one of them")
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}", help="ask for at least 1")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise UsageError(f"--seed is {seed}", help="use a number from 0 to 2**63 - 1")
    if weights_dtype not in ("model", "bf16"):
        raise UsageError(f"weights can't be kept in '{weights_dtype}'", help="use bf16 or model")
    if prompt == "":
        raise UsageError("the prompt is empty", help="give at least one character")

    from ringc.cli.console import bar
    from ringc.cli.prompt import encoded

    with bar() as progress:
        # Inside, as these imports take longer than a second on a slow machine.
        import torch

        from ringc.runtime.artifact import open_artifact
        from ringc.runtime.cache import cache_bytes
        from ringc.runtime.model import Model
        from ringc.runtime.sample import Sampling
        from ringc.runtime.tokenizer import find_tokenizer

        Sampling(temperature, top_k, top_p)  # says what is wrong with them before gigabytes are loaded
        opened = open_artifact(artifact, allow_edited=allow_edited)
        vocabulary = opened.manifest["vocabulary"]
        tokenizer = find_tokenizer(vocabulary, weights, artifact) if prompt is not None or stop else None
        if prompt_ids is not None:
            ids = _read_ids(prompt_ids, vocabulary["size"])
        else:
            assert tokenizer is not None and prompt is not None
            ids = encoded(tokenizer, prompt, vocabulary)
        _check_length(len(ids), max_new_tokens, opened)
        narrow = torch.bfloat16 if weights_dtype == "bf16" else None
        room = cache_bytes(opened.manifest["states"], 1, len(ids) + max_new_tokens)
        model = Model(opened, weights, weights_dtype=narrow, room=room, progress=partial(progress, "weights"))
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    _stream(model, tokenizer, ids, prompt, max_new_tokens, stop or [], **options)


def _stream(
    model: Model,
    tokenizer: Tokenizer | None,
    ids: list[int],
    prompt: str | None,
    count: int,
    stop: list[str],
    **options: object,
) -> None:
    """Print the prompt and the tokens as they come, then how fast they came; numbers where the prompt was given in numbers."""
    from ringc.cli.console import bar
    from ringc.cli.stopping import StopText

    as_ids = prompt is None
    text = tokenizer.stream() if tokenizer is not None else None
    guard = StopText(stop)
    began = time.perf_counter()
    first = None
    made = 0
    with bar() as progress:
        told = partial(progress, "prompt")
        tokens = model.generate(ids, max_new_tokens=count, progress=told, **options)  # type: ignore[arg-type]
        ahead = list(itertools.islice(tokens, 1))
    sys.stdout.write(prompt or "")
    for token in itertools.chain(ahead, tokens):
        made += 1
        first = first or time.perf_counter()
        piece = text.push(token) if text is not None else ""
        shown = guard.push(piece)
        sys.stdout.write(f"{token} " if as_ids else shown)
        sys.stdout.flush()
        if guard.found:
            break
    if not guard.found and not as_ids:
        sys.stdout.write(guard.end(text.end() if text is not None else ""))
    ended = time.perf_counter()
    sys.stdout.write("\n")
    sys.stdout.flush()
    rate = f", {(made - 1) / (ended - first):.1f} tokens/s" if first is not None and made > 1 else ""
    wait = f", first after {(first - began) * 1e3:.0f} ms" if first is not None else ""
    why = ", up to a stop text" if guard.found else ", up to the end token" if made < count else ""
    sys.stderr.write(f"[{len(ids)} tokens in, {made} out{why}{wait}{rate}]\n")


def _check_length(prompt: int, more: int, artifact: Artifact) -> None:
    """Raise unless the prompt and what is to come fit into the positions that the model is made for."""
    from ringc.errors import Place, RunError

    most = int(artifact.manifest["max_positions"])
    if prompt + more <= most:
        return
    room = most - prompt
    raise RunError(
        f"{prompt} tokens of the prompt and {more} new ones are more than the model's {most} positions",
        place=Place(artifact.folder),
        help=f"--max-new-tokens {room}" if room > 0 else "shorten the prompt, or compile with a larger max_positions",
    )


def _read_ids(path: Path, vocabulary: int) -> list[int]:
    """Token ids from a file: a JSON list, or numbers apart by spaces, commas or lines.

    Raises:
        RunError: the file can't be read, or holds something else than ids of the vocabulary.
    """
    import re

    from ringc.errors import Place, RunError, reason

    form = "write numbers apart by spaces, or a JSON list of them"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the ids can't be read: {reason(error)}", place=Place(path), help=form) from error
    ids = []
    for number, line in enumerate(text.split("\n")):
        for word in re.finditer(r"[^\s,\[\]]+", line):
            place = Place(path, number + 1, word.start() + 1, line if line.isprintable() else None, len(word[0]))
            if not re.fullmatch(r"-?[0-9]+", word[0]):
                raise RunError(f"'{word[0][:40]}' is no token id", place=place, help=form)
            # Long ones aren't worth reading: Python refuses numbers of thousands of digits.
            if len(word[0]) > 18 or not 0 <= int(word[0]) < vocabulary:
                raise RunError(
                    f"the id {word[0][:40]} is outside the vocabulary of {vocabulary}",
                    place=place,
                    help=f"ids are 0 .. {vocabulary - 1}",
                )
            ids.append(int(word[0]))
    if not ids:
        raise RunError("the file holds no token ids", place=Place(path), help=form)
    return ids
