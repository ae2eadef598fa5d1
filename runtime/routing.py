"""Recordings of routing: which experts tokens were given to, call by call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ringc.errors import RunError

if TYPE_CHECKING:
    from ringc.runtime.execute import Numbers

Routing = list[tuple[torch.Tensor, ...]]
"""For each call, the experts that each layer with experts took: i32[N, k], a row for each token of the call, in order of layers.

A prefill makes the last layer's row of a token only if its logits are wanted: the others' experts are `NONE` there.
"""

NONE = -1
"""The experts of a row that no layer has made."""


def of_all(made: torch.Tensor, tokens: int, rows: Numbers, other: float) -> torch.Tensor:
    """What was made for these rows, or for all, as a tensor of all tokens, with `other` where nothing was. A copy."""
    if len(made) == tokens:
        return made.clone()
    whole = made.new_full((tokens, *made.shape[1:]), other)
    whole[torch.as_tensor(rows)] = made
    return whole


def cut(recording: Sequence[Sequence[torch.Tensor]], counts: Sequence[int], *, batch: int = 1) -> Routing:
    """The same tokens' experts, as calls of other lengths would have recorded them: of one prefill, say, as of its chunks.

    Args:
        recording: calls that go on with the same sequences, each with equally many tokens of every sequence.
        counts: for each call that is wanted, its tokens of each sequence.
        batch: number of sequences. Sequences of different lengths can't be cut together: record each of them alone.

    Raises:
        RunError: a call's tokens aren't equally many of each sequence, or the calls have other tokens than were asked for.
    """
    if batch < 1 or any(n < 1 for n in counts):
        raise RunError(f"calls of {list(counts)} tokens of {batch} sequences", help="all of them are at least 1")
    if not recording:
        raise RunError("a recording of no calls", help="give what `record_routing` recorded")
    if len({len(call) for call in recording}) > 1:
        raise RunError("calls with experts in different numbers of layers", help="give calls of one model")
    layers = [_cut_layer(layer, counts, batch) for layer in zip(*recording, strict=True)]
    if not layers:  # a model without experts
        return [() for _ in counts]
    return [tuple(part.flatten(0, 1) for part in call) for call in zip(*layers, strict=True)]


def _cut_layer(calls: Sequence[torch.Tensor], counts: Sequence[int], batch: int) -> Sequence[torch.Tensor]:
    """A layer's experts in each call, [sequences, tokens, k]."""
    uneven = [len(taken) for taken in calls if len(taken) % batch]
    if uneven:
        raise RunError(
            f"a call of {uneven[0]} tokens doesn't hold equally many of {batch} sequences",
            help="record sequences of different lengths apart",
        )
    found, wanted = sum(len(taken) for taken in calls), batch * sum(counts)
    if found != wanted:
        raise RunError(
            f"the recording is of {found} tokens, and the calls that are wanted of {wanted}",
            help="give counts that add up to the recorded tokens of one sequence",
        )
    by_sequence = torch.cat([taken.view(batch, -1, taken.shape[-1]) for taken in calls], 1)
    return torch.split_with_sizes(by_sequence, list(counts), 1)
