"""Routing that is taken from a recording: two computations that round differently may then be compared beyond a tie of two experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from ringc.errors import IRError

if TYPE_CHECKING:
    import torch

    from ringc.ir.ops.routing import Route


@dataclass
class Replay:
    """The experts that `route` operations take in place of their own choice.

    A recorded choice is no better for being recorded: every one is judged by the scores of the graph that it is replayed into.

    Attributes:
        experts: i32[N, k] for each `route`, in the order in which they run.
        scores: [N, E] with the bias, for each `route` that has run.
        shortfalls: [N], see `shortfall`, for each `route` that has run.
    """

    experts: Sequence[torch.Tensor]
    scores: list[torch.Tensor] = field(default_factory=list)
    shortfalls: list[torch.Tensor] = field(default_factory=list)

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The experts of the next `route`.

        Raises:
            IRError: the recording has none for it, or such of another shape.
        """
        if len(self.scores) == len(self.experts):
            raise IRError(f"the recording has the choices of {len(self.experts)} routings, and the graph has more")
        taken = self.experts[len(self.scores)]
        if tuple(taken.shape) != shape:
            raise IRError(f"the recording has experts {list(taken.shape)} for a routing of {list(shape)}")
        return taken

    def judge(self, route: Route, scores: torch.Tensor, own: torch.Tensor, taken: torch.Tensor) -> None:
        """Note how far what was taken is from what `route` would have chosen itself."""
        self.scores.append(scores)
        other = (own.long().sort(-1).values != taken.long().sort(-1).values).any(-1)
        found = scores.new_zeros(len(scores))
        found[other] = shortfall(route, scores[other], taken[other])
        self.shortfalls.append(found)


def is_choice(taken: torch.Tensor, experts: int) -> torch.Tensor:
    """Whether each row [N, k] is of distinct numbers of experts: [N]."""
    ordered = taken.long().sort(-1).values
    return (ordered >= 0).all(-1) & (ordered < experts).all(-1) & (ordered.diff(dim=-1) != 0).all(-1)


def shortfall(route: Route, scores: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """By how much scores must be off for a choice of experts to be right: 0 where it is.

    That is the largest amount by which a group or an expert that was left out beats one that was taken, for those kept groups with
    which it is the smallest. A recording doesn't say which groups were kept, so all ways to keep them are tried.

    Args:
        route: how the choice is made.
        scores: [N, E], with the bias.
        taken: integers [N, k].

    Returns:
        [N]; inf for what no scores explain.
    """
    import torch

    rows, experts = scores.shape
    valid = is_choice(taken, experts)
    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    chosen.scatter_(1, taken.long().clamp(0, experts - 1), True)
    grouped = scores.reshape(rows, route.groups, experts // route.groups)
    by_group = grouped.topk(min(route.group_top, grouped.shape[-1]), -1).values.sum(-1)
    best = scores.new_full((rows,), float("inf"))
    for kept in combinations(range(route.groups), route.keep):
        mask = torch.zeros(route.groups, dtype=torch.bool)
        mask[list(kept)] = True
        limited = torch.where(mask[:, None], grouped, route.dropped).reshape(rows, experts)
        best = torch.minimum(best, torch.maximum(_behind(by_group, mask.expand_as(by_group)), _behind(limited, chosen)))
    return torch.where(valid, best.clamp(min=0), float("inf"))


def _behind(scores: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """The best score that wasn't taken less the worst that was; -inf where all were taken."""
    infinity = float("inf")
    return scores.masked_fill(taken, -infinity).amax(-1) - scores.masked_fill(~taken, infinity).amin(-1)
