"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringc.errors import RunError


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


def sample(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a token for each row: logits [B, V] -> int64 [B].

    Temperature first, then top_k, then top_p. Of equal logits the lower token wins, so that 0 temperature is deterministic.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # The largest is 0, in double precision: the smallest temperature makes no NaN then.
    scaled = ((logits.double() - logits.double().amax(-1, keepdim=True)) / sampling.temperature).float()
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = float("-inf")
    probabilities = ordered.softmax(-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)  # the first token always stays
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(-1, drawn)[:, 0]
