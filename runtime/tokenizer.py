"""Text to tokens and back: bytes, or a checkpoint's tokenizer.json."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ringc.errors import CheckpointError, Place, ToolchainError
from ringc.runtime.drawn import is_drawn

_ANOTHER = "download the checkpoint's tokenizer.json anew, or give --prompt-ids"


class Tokenizer(Protocol):
    """What `ringc run` needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without the one that begins it."""

    def stream(self) -> Stream:
        """Something that turns tokens into text as they come."""


class Stream(Protocol):
    """Text of tokens that come one at a time."""

    def push(self, token: int) -> str:
        """The text that is certain now: nothing while a character isn't complete."""

    def end(self) -> str:
        """What is left."""


class ByteTokenizer:
    """Token b is the byte b; text is UTF-8. Tokens above 255 have no text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def stream(self) -> Stream:
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if 0 <= token < 256 else ""

    def end(self) -> str:
        return self._decoder.decode(b"", True)


class FileTokenizer:
    """A tokenizer.json, by Hugging Face's `tokenizers`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError as error:
            raise ToolchainError("the package tokenizers is not installed", help="pip install 'ringc[text]'") from error
        try:
            self._tokenizer = Loaded.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower class
            raise CheckpointError(f"the tokenizer can't be read: {error}", place=Place(path), help=_ANOTHER) from error

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # as above; a vocabulary without a token for what it doesn't know
            raise CheckpointError(
                f"the tokenizer can't encode the text: {error}", place=Place(self.path), help=_ANOTHER
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def stream(self) -> Stream:
        return _FileStream(self)


class _FileStream:
    """Decodes again from the last place where the text was certain: tokens may be parts of characters."""

    def __init__(self, tokenizer: FileTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if len(self._tokens) > 64 and new:
            self._tokens = self._tokens[-8:]  # enough for what a decoder looks back
            self._shown = self._tokenizer.decode(self._tokens)
        return new

    def end(self) -> str:
        return self._tokenizer.decode(self._tokens)[len(self._shown) :]


def find_tokenizer(vocabulary: Mapping[str, Any], weights: str | Path | None, artifact: Path) -> Tokenizer:
    """The tokenizer of an artifact: bytes, or the tokenizer.json beside the weights.

    Raises:
        CheckpointError: the spec wants a checkpoint's tokenizer, and there is none, or no checkpoint.
    """
    if vocabulary["tokenizer"] == "bytes":
        return ByteTokenizer()
    folders = [artifact]
    if weights is not None and not is_drawn(weights):
        path = Path(weights)
        try:
            is_there, is_folder = path.exists(), path.is_dir()
        except OSError:  # a name too long
            is_there = is_folder = False
        if not is_there:
            raise CheckpointError("there is no such checkpoint", place=Place(path), help="give the checkpoint's folder")
        folders.insert(0, path if is_folder else path.parent)
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return FileTokenizer(folder / "tokenizer.json")
    raise CheckpointError(
        "there is no tokenizer: the spec neither says `tokenizer: bytes` nor is there a tokenizer.json",
        place=Place(folders[0] / "tokenizer.json"),
        help="put the checkpoint's tokenizer.json beside its weights, say `tokenizer: bytes` in the spec, or give --prompt-ids",
    )
