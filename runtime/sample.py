"""From logits to the next token, for many rows at once, each with parameters of its own.

Nothing here waits for the device, and sizes depend on nothing that is on it, so a CUDA graph may hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch

from ringc.errors import RunError
from ringc.runtime.threshold import BINS, LISTED, index_at, keys_of, reached, reached_in_list, weights_of

_LEAST = float(torch.finfo(torch.float32).tiny)
"""Temperatures between 0 and this are this one: they mean the same."""

GROUP = 1 << 22
"""Logits that are worked on at a time: so many whole numbers of 8 bytes stay in a GPU's second-level cache, and take no gigabytes."""

_BELOW_ALL = -(1 << 31)
"""A key that no logit has."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most likely token; larger is more random.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together have this probability (Holtzman et al. 2020); 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise RunError(
                f"the temperature is {self.temperature}", help="use 0 for the most likely token, or a positive number"
            )
        if self.top_k < 0:
            raise RunError(f"top_k is {self.top_k}", help="use 0 for all tokens, or a positive number")
        if not 0 < self.top_p <= 1:
            raise RunError(f"top_p is {self.top_p}", help="use a number above 0 and at most 1")


class Parameters(NamedTuple):
    """Samplings of rows, on the device.

    temperature: float32 [B]. top_k: int64 [B]. top_p: float64 [B], so that 0.9 is what was said.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor

    @staticmethod
    def of(samplings: Iterable[Sampling], device: torch.device) -> Parameters:
        made = list(samplings)
        rows = Parameters(
            torch.empty(len(made), dtype=torch.float32, device=device),
            torch.empty(len(made), dtype=torch.int64, device=device),
            torch.empty(len(made), dtype=torch.float64, device=device),
        )
        for row, sampling in enumerate(made):
            rows.put(row, sampling)
        return rows

    def put(self, row: int, sampling: Sampling) -> None:
        """Give a row another sampling, in the order of the stream: the host doesn't wait."""
        t = sampling.temperature
        self.temperature[row].fill_(min(max(t, _LEAST), 1 / _LEAST) if t else 0.0)
        self.top_k[row].fill_(min(sampling.top_k, 1 << 62))
        self.top_p[row].fill_(sampling.top_p)


class Kind(Enum):
    """What the rows of a batch need: the host knows it, and each costs as much as it must. What a row draws doesn't depend on it."""

    GREEDY = "the largest logit"
    PLAIN = "no limits"
    LISTED = f"top_k of at most {LISTED} in each row that is drawn"
    NUCLEUS = "top_p alone"
    ALL = "top_k of any size, and top_p"

    @staticmethod
    def of(samplings: Iterable[Sampling]) -> Kind:
        """What is enough for all of these."""
        drawn = [s for s in samplings if s.temperature]
        if not drawn:
            return Kind.GREEDY
        if all(s.top_k == 0 and s.top_p == 1 for s in drawn):
            return Kind.PLAIN
        if all(0 < s.top_k <= LISTED for s in drawn):
            return Kind.LISTED
        return Kind.NUCLEUS if all(s.top_k == 0 for s in drawn) else Kind.ALL


def draw(logits: torch.Tensor, rows: Parameters, uniforms: torch.Tensor | None, kind: Kind) -> torch.Tensor:
    """Draw a token for each row.

    Temperature first, then top_k, then top_p: the fewest of the most likely tokens whose probabilities sum up to `top_p` or more. Of equal
    logits the lower token comes first, so that temperature 0 is deterministic. Probabilities below 2^-40 of the largest count as 0.

    Args:
        logits: float32 [B, V].
        rows: of each row.
        uniforms: float64 [B], in [0, 1); None where nothing is random.
        kind: of the rows' samplings, or one that holds more.

    Returns:
        int64 [B], within the vocabulary whatever the logits are.
    """
    largest = logits.argmax(-1)
    if kind is Kind.GREEDY or uniforms is None:
        return largest
    many = max(1, GROUP // max(logits.shape[1], BINS))
    drawn = [
        _drawn(logits[i : i + many], Parameters(*(p[i : i + many] for p in rows)), uniforms[i : i + many], kind)
        for i in range(0, len(logits), many)
    ]
    return torch.where(rows.temperature == 0, largest, torch.cat(drawn))


def _drawn(logits: torch.Tensor, rows: Parameters, uniforms: torch.Tensor, kind: Kind) -> torch.Tensor:
    """`draw` of some rows; without meaning for those of temperature 0."""
    temperature = rows.temperature.masked_fill(rows.temperature == 0, 1.0)
    weights = weights_of(logits, temperature)
    if kind is Kind.PLAIN:
        return index_at(weights, _part(uniforms, weights.sum(-1)))
    keys = keys_of(logits)
    threshold, above, target = _limits(keys, weights, rows, kind)
    # Without limits all tokens are above the threshold, so that they are taken in the order that `PLAIN` takes them in.
    unlimited = (rows.top_k == 0) & (rows.top_p == 1)
    threshold = threshold.masked_fill(unlimited, _BELOW_ALL)
    above = torch.where(unlimited, weights.sum(-1), above)
    tied = keys == threshold[:, None]
    weight = weights.masked_fill(~tied, 0).amax(-1).clamp_(min=1)  # of each of those at the threshold
    count = (target - above + weight - 1) // weight  # so many of which are kept
    chosen = _part(uniforms, above + count * weight)
    # First those above the threshold in the order of tokens, then the first `count` of those at it.
    at_threshold = chosen >= above
    amounts = torch.where(at_threshold[:, None], tied.long(), weights.masked_fill(keys <= threshold[:, None], 0))
    return index_at(amounts, torch.where(at_threshold, (chosen - above) // weight, chosen))


def _limits(
    keys: torch.Tensor, weights: torch.Tensor, rows: Parameters, kind: Kind
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row's threshold, the weight above it, and the weight that is to be kept at least: [B] each."""
    size = keys.shape[1]
    if kind is Kind.LISTED:
        keys, listed = keys.topk(min(LISTED, size))
        weights = weights.gather(1, listed)
        last = rows.top_k.clamp(1, keys.shape[1])[:, None] - 1
        target = _share(rows.top_p, weights.cumsum(-1).gather(1, last)[:, 0])
        return *reached_in_list(keys, weights, target), target
    total = weights.sum(-1)
    if kind is Kind.ALL:
        most = rows.top_k.masked_fill(rows.top_k == 0, size).clamp_(max=size)
        least, before = reached(keys, torch.ones_like(weights), most)
        tied = weights.masked_fill(keys != least[:, None], 0).amax(-1)
        total = weights.masked_fill(keys <= least[:, None], 0).sum(-1) + (most - before) * tied
    target = _share(rows.top_p, total)
    return *reached(keys, weights, target), target


def _share(top_p: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The least whole number that is this share of a total, and at least 1."""
    return torch.minimum((top_p * total).ceil().long(), total).clamp_(min=1)


def _part(uniforms: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """A whole number in `0 .. total - 1`."""
    return torch.minimum((uniforms * total).long(), total - 1)


def sample(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a token for each row, with one sampling for all: logits [B, V] -> int64 [B]. See `draw`."""
    uniforms = torch.rand(len(logits), dtype=torch.float64, device=logits.device, generator=generator)
    rows = Parameters.of([sampling], logits.device)
    return draw(logits, Parameters(*(p.expand(len(logits)) for p in rows)), uniforms, Kind.of([sampling]))
