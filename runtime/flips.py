"""Where two computations of the same tokens took different experts, and whether roundings explain it. This needs the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ringc.errors import RunError
from ringc.ir.replay import shortfall
from ringc.runtime.replay import Choice
from ringc.runtime.routing import NONE


@dataclass(frozen=True)
class Flips:
    """Differences of two choices of experts, by layer and token.

    Attributes:
        flipped: bool[layers, N], whether the sets of experts differ.
        shortfalls: f32[layers, N], by how much the first computation's scores would have to be off for the second's choice to be right
            (`ringc.ir.replay.shortfall`); 0 where they agree.
        summed: how many scores are added up before they are compared: a shortfall is at most twice as many errors of a score, where the
            two computations have the same history.
    """

    flipped: torch.Tensor
    shortfalls: torch.Tensor
    summed: int

    @property
    def rate(self) -> float:
        """Share of the tokens and layers that flipped."""
        return float(self.flipped.double().mean()) if self.flipped.numel() else 0.0

    def unprovoked(self) -> torch.Tensor:
        """The flips of one sequence of which none in an earlier layer, of the same token or of one before, is the cause: bool[layers, N].

        Their histories differ by roundings alone; what comes after a flip has other inputs, and may differ by any amount.
        """
        before = torch.zeros_like(self.flipped)
        before[1:] = self.flipped.int().cummax(1).values.cummax(0).values[:-1].bool()
        return self.flipped & ~before


def flips(choices: Sequence[Sequence[Choice]], other: Sequence[Sequence[torch.Tensor]]) -> Flips:
    """Hold another recording against choices that a model made with its own scores.

    Args:
        choices: of a replay with `judge`, call by call. What was replayed is compared, by the scores that it was replayed into.
        other: a recording of the same tokens. Its calls may be other ones, if they are of one sequence.

    Raises:
        RunError: the recordings are of different numbers of tokens or layers, or lack tokens of the last layer.
    """
    mine = list(zip(*choices, strict=True))
    theirs = [torch.cat(list(layer)) for layer in zip(*other, strict=True)]
    taken = [torch.cat([choice.taken for choice in layer]) for layer in mine]
    if [x.shape for x in taken] != [x.shape for x in theirs]:
        raise RunError(
            f"recordings of {_shapes(taken)} and {_shapes(theirs)} experts",
            help="compare what was recorded of the same tokens",
        )
    if any(bool((x == NONE).any()) for x in (*taken, *theirs)):
        raise RunError(
            "a recording lacks tokens of the last layer", help="compare prefills that were asked for `all_logits`"
        )
    if not mine:
        return Flips(torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, 0), 1)
    flipped, shortfalls = [], []
    for layer, first, second in zip(mine, taken, theirs, strict=True):
        found = (first.sort(-1).values != second.to(first).sort(-1).values).any(-1)
        scores = torch.cat([choice.scores for choice in layer])
        behind = scores.new_zeros(len(scores))
        behind[found] = shortfall(layer[0].route, scores[found], second[found])
        flipped.append(found)
        shortfalls.append(behind)
    route = mine[0][0].route
    return Flips(torch.stack(flipped), torch.stack(shortfalls), route.group_top if route.keep < route.groups else 1)


def score_differences(first: Sequence[Sequence[Choice]], second: Sequence[Sequence[Choice]]) -> torch.Tensor:
    """The largest difference of each token's scores in two computations, f32[layers, N]: their noise, where no flip made it larger."""
    scores = [
        [torch.cat([choice.scores for choice in layer]) for layer in zip(*one, strict=True)] for one in (first, second)
    ]
    found = [(a - b).abs().amax(-1) for a, b in zip(*scores, strict=True)]
    return torch.stack(found) if found else torch.zeros(0, 0)


def own(choices: Sequence[Sequence[Choice]]) -> list[tuple[torch.Tensor, ...]]:
    """What a model would have chosen where it was given experts: a recording."""
    return [tuple(choice.own for choice in call) for call in choices]


def _shapes(layers: Sequence[torch.Tensor]) -> str:
    return f"{len(layers)} x {list(layers[0].shape)}" if layers else "no"
