"""Random numbers that are a function of a sequence's seed and a token's position.

A generator hands out its numbers in the order in which they are asked for, so what a sequence draws would depend on who else is drawn.
Here the number is hashed from seed and position (SplitMix64, Steele, Lea and Flood 2014): a sequence draws the same tokens alone, beside
others, and when it goes on in another row. On the device these are a few operations on integers, which a CUDA graph may hold.
"""

from __future__ import annotations

import torch

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_ALL = (1 << 64) - 1


def stream_of(seed: int) -> int:
    """A seed of any size as the start of a stream, in -2^63 .. 2^63 - 1: hashed, so that near seeds don't give near streams."""
    z = (seed + _GAMMA) & _ALL
    z = ((z ^ (z >> 30)) * _FIRST) & _ALL
    z = ((z ^ (z >> 27)) * _SECOND) & _ALL
    return _signed(z ^ (z >> 31))


def uniform(streams: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), all multiples of 2^-53 alike.

    Args:
        streams: int64 [B], each made by `stream_of`.
        counts: int64 [B], which number of its stream.

    Returns:
        float64 [B].
    """
    z = streams + (counts + 1) * _signed(_GAMMA)  # wraps around, as it should
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 11).double() * 2.0**-53


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right with zeros; torch's integers have a sign, which its shift repeats."""
    return (x >> by) & ((1 << (64 - by)) - 1)
