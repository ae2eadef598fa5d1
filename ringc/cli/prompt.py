"""From the text of a prompt to its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringc.runtime.tokenizer import Tokenizer


def encoded(tokenizer: Tokenizer, prompt: str, vocabulary: Mapping[str, Any]) -> list[int]:
    """The prompt's tokens behind the one that begins a text.

    Raises:
        CheckpointError: the tokenizer knows more tokens than the model.
        UsageError: the prompt has no tokens.
    """
    from ringc.errors import CheckpointError, Place, UsageError
    from ringc.runtime.tokenizer import FileTokenizer

    bos, size = vocabulary.get("bos"), vocabulary["size"]
    ids = ([] if bos is None else [bos]) + tokenizer.encode(prompt)
    if not ids:
        raise UsageError("the tokenizer makes no tokens of the prompt", help="give another one")
    if max(ids) >= size:
        raise CheckpointError(
            f"the tokenizer makes token {max(ids)}, and the model's vocabulary has {size}",
            place=Place(tokenizer.path) if isinstance(tokenizer, FileTokenizer) else None,
            help="use the tokenizer.json of the model's own checkpoint",
        )
    return ids
