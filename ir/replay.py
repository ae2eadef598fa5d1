"""Routing that is taken from a recording: two computations that round differently may then be compared beyond a tie of two experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb, inf
from typing import TYPE_CHECKING

from ringc.errors import IRError

if TYPE_CHECKING:
    import torch

    from ringc.ir.ops.routing import Route

MOST_SETS = 5000
"""So many sets of kept groups are tried."""


@dataclass
class Replay:
    """The experts that `route` operations take in place of their own choice.

    A recorded choice is no better for being recorded: every one is judged by the scores of the graph that it is replayed into.

    Attributes:
        experts: i32[N, k] for each `route`, in the order in which they run.
        scores: [N, E] with the bias, for each `route` that has run.
        shortfalls: [N], see `shortfall`, for each `route` that has run.
        summed: for each `route` that has run, how many scores are added up before they are compared.
    """

    experts: Sequence[torch.Tensor]
    scores: list[torch.Tensor] = field(default_factory=list)
    shortfalls: list[torch.Tensor] = field(default_factory=list)
    summed: list[int] = field(default_factory=list)

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
        self.summed.append(route.group_top if route.keep < route.groups else 1)


def is_choice(taken: torch.Tensor, experts: int) -> torch.Tensor:
    """Whether each row [N, k] is of distinct numbers of experts: [N]."""
    ordered = taken.long().sort(-1).values
    return (ordered >= 0).all(-1) & (ordered < experts).all(-1) & (ordered.diff(dim=-1) != 0).all(-1)


def shortfall(route: Route, scores: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """By how much scores must be off for a choice of experts to be right: 0 where it is.

    That is the largest amount by which a group or an expert that was left out beats one that was taken, for those kept groups with
    which it is the smallest: a recording doesn't say which groups were kept.

    Args:
        route: how the choice is made.
        scores: [N, E], with the bias.
        taken: integers [N, k].

    Returns:
        [N]; inf for what no scores explain.
    """
    import torch

    if not len(scores):
        return scores.new_zeros(0)
    valid = is_choice(taken, scores.shape[-1])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.scatter_(1, taken.long().clamp(0, scores.shape[-1] - 1), True)
    grouped, chosen = (x.reshape(len(scores), route.groups, -1) for x in (scores, chosen))
    by_group = grouped.topk(min(route.group_top, grouped.shape[-1]), -1).values.sum(-1)
    find = _with_own_groups if route.dropped == -inf else _with_any_groups
    return torch.where(valid, find(route, grouped, by_group, chosen).clamp(min=0), inf)


def _with_own_groups(route: Route, grouped: torch.Tensor, by_group: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The shortfall [N] where nothing of a group that was left out is ever chosen: the experts' own groups were kept, and others.

    Be t the lowest score of a kept group, u the highest of one that was left out. Groups above u were kept then, and the others of at
    least t whose best expert is the least; so the smallest shortfall over all t and u is the smallest over all sets.

    Args:
        route: how the choice is made.
        grouped: scores [N, groups, experts of a group].
        by_group: the groups' scores [N, groups].
        chosen: what was taken, as `grouped`.
    """
    import torch

    own = chosen.any(-1)
    more = route.keep - own.sum(-1, keepdim=True)
    best = grouped.masked_fill(chosen, -inf).amax(-1)  # of those that weren't taken, in each group
    worst = grouped.masked_fill(~chosen, inf).amin((-2, -1))
    # Nothing at all is left out where u is -inf. [N, u, groups] from here on.
    u = torch.nn.functional.pad(by_group, (0, 1), value=-inf)
    above = (by_group[:, None] > u[:, :, None]) & ~own[:, None]
    fill = more - above.sum(-1)
    kept = own[:, None] | above
    beaten = best[:, None].masked_fill(~kept, -inf).amax(-1)
    found = torch.full_like(worst, inf)
    for t in by_group.unbind(-1):
        fit = by_group >= t[:, None]
        possible = (fit[:, None] | ~kept).all(-1) & (fill >= 0)
        least = best[:, None].masked_fill(kept | ~fit[:, None], inf).sort(-1).values
        # The best expert of the last group that fills up; -inf where none is needed.
        least = torch.nn.functional.pad(least, (1, 0), value=-inf)
        last = least.gather(-1, fill.clamp(min=0)[:, :, None]).squeeze(-1)
        behind = torch.maximum(torch.maximum(beaten, last) - worst[:, None], u - t[:, None])
        found = torch.minimum(found, behind.masked_fill(~possible, inf).amin(-1))
    return found


def _with_any_groups(route: Route, grouped: torch.Tensor, by_group: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The shortfall [N] where experts of groups that were left out have the score `dropped`: all sets are tried, or the likely ones.

    Those are the groups of the best scores, and such that hold the experts taken, before others. The arguments are
    `_with_own_groups`'s.
    """
    import torch

    def likely() -> Iterator[torch.Tensor]:
        for first in (torch.zeros_like(by_group), chosen.any(-1) * (1 + by_group.amax() - by_group.amin())):
            kept = (by_group + first).topk(route.keep, -1).indices
            yield torch.zeros_like(by_group, dtype=torch.bool).scatter(1, kept, True)

    def every() -> Iterator[torch.Tensor]:
        for kept in combinations(range(route.groups), route.keep):
            mask = by_group.new_zeros(route.groups, dtype=torch.bool)
            mask[list(kept)] = True
            yield mask.expand_as(by_group)

    found = by_group.new_full((len(by_group),), inf)
    for mask in every() if comb(route.groups, route.keep) <= MOST_SETS else likely():
        limited = torch.where(mask[:, :, None], grouped, route.dropped)
        behind = _behind(limited.flatten(1), chosen.flatten(1))
        found = torch.minimum(found, torch.maximum(_behind(by_group, mask), behind))
    return found


def _behind(scores: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """The best score that wasn't taken less the worst that was; -inf where all were taken."""
    return scores.masked_fill(taken, -inf).amax(-1) - scores.masked_fill(~taken, inf).amin(-1)
