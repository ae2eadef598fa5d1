"""Where the most likely tokens end that top_k and top_p keep, found without a sort, in whole numbers.

A vocabulary of 157184 tokens takes milliseconds to sort. What is needed is one number for each row: the *threshold*, the least logit that
is kept. Logits become integers of the same order, weights integers in fixed point, so sums are exact: they don't depend on the order in
which a GPU adds, on the other rows, or on the way in which the threshold was found.
"""

from __future__ import annotations

import torch

UNIT = 1 << 40
"""Weight of the most likely token. A token that is 2^-40 times as likely or less has weight 0, and 2^22 tokens' weights can be summed."""

LISTED = 1024
"""Most tokens of a row that are listed in order: to select so many takes a few passes."""

_DIGITS = ((21, 11), (10, 11), (0, 10))
"""Shifts and numbers of bits in which a key is found."""

BINS = 1 << 11
"""Most bins of a row's histogram."""


def keys_of(logits: torch.Tensor) -> torch.Tensor:
    """Integers that are ordered as the logits are, equal where they are equal: float32 [B, V] -> int32 [B, V]."""
    bits = (logits + 0.0).view(torch.int32)  # -0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def weights_of(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Probabilities in fixed point, not normalised: `exp((x - max x) / temperature)` in parts of `UNIT`.

    Args:
        logits: float32 [B, V].
        temperature: float32 [B], above 0.

    Returns:
        int64 [B, V].
    """
    # The largest is 0, also where it is divided by the smallest temperature: no NaN.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None]
    return (scaled.exp_() * UNIT).long()


def reached(keys: torch.Tensor, amounts: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the amounts of a row, summed in falling order of keys, first reach a target: a histogram of the keys' digits, three times.

    Args:
        keys: int32 [B, V].
        amounts: int64 [B, V], 0 or more.
        target: int64 [B], from 1 to the row's sum.

    Returns:
        That key, int32 [B], and the sum of the amounts of greater keys, int64 [B].
    """
    above = torch.zeros_like(target)
    found = torch.zeros_like(target, dtype=torch.int32)
    for shift, bits in _DIGITS:
        digits = (keys >> shift) & ((1 << bits) - 1)
        counted = amounts
        if shift + bits == 32:
            digits = digits ^ (1 << (bits - 1))  # negative keys have the upper half of the first digit, and come first
        else:
            counted = amounts.masked_fill((keys >> (shift + bits)) != found[:, None], 0)
        sums = amounts.new_zeros((len(keys), 1 << bits)).scatter_add_(1, digits.long(), counted)
        from_here = sums.flip(-1).cumsum(-1).flip(-1)
        # Sums fall with the digit: the last digit that still reaches the target.
        digit = ((from_here + above[:, None]) >= target[:, None]).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
        above = above + (from_here - sums).gather(1, digit)[:, 0]
        last = digit[:, 0].int()
        found = last - (1 << (bits - 1)) if shift + bits == 32 else (found << bits) | last
    return found, above


def reached_in_list(
    keys: torch.Tensor, amounts: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for keys in falling order, as `topk` gives them."""
    at = (amounts.cumsum(-1) < target[:, None]).sum(-1, keepdim=True).clamp_(max=keys.shape[1] - 1)
    found = keys.gather(1, at)
    return found[:, 0], amounts.masked_fill(keys <= found, 0).sum(-1)


def index_at(amounts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index up to which a row's amounts sum to more than the target: int64 [B, V], [B] -> [B].

    Sums of parts first, then within one part: a sum over every index would be written, and read again.
    """
    size = 512
    parts = torch.nn.functional.pad(amounts, (0, -amounts.shape[1] % size)).view(len(amounts), -1, size)
    sums = parts.sum(-1)
    upto = sums.cumsum(-1)
    part = (upto <= target[:, None]).sum(-1, keepdim=True).clamp_(max=parts.shape[1] - 1)
    left = target[:, None] - (upto - sums).gather(1, part)
    inside = parts.gather(1, part[:, :, None].expand(-1, 1, size))[:, 0].cumsum(-1)
    index = part[:, 0] * size + (inside <= left).sum(-1).clamp_(max=size - 1)
    return index.clamp_(max=amounts.shape[1] - 1)
