"""Angles of the rotary position embedding, with and without YaRN, as Python floats."""

from __future__ import annotations

import math


def plain_frequencies(theta: float, rotary_dim: int) -> tuple[float, ...]:
    """`theta ** (-2j / rotary_dim)` for j = 0 .. rotary_dim / 2 - 1: radians per token (arXiv 2104.09864, sec. 3.2.2)."""
    return tuple(theta ** (-2 * j / rotary_dim) for j in range(rotary_dim // 2))


def yarn_frequencies(
    theta: float, rotary_dim: int, *, factor: float, original_positions: int, beta_fast: float, beta_slow: float
) -> tuple[float, ...]:
    """Frequencies stretched for longer contexts (arXiv 2309.00071, sec. 3.2).

    Pairs that turn more than `beta_fast` times within the original context keep their frequency, those that turn less than `beta_slow`
    times are slowed by `factor`, and those between are blended. The bounds of the blend are rounded outwards to whole pairs, as the
    paper's code and Hugging Face do.
    """

    def pair_turning(times: float) -> float:
        return rotary_dim * math.log(original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(beta_fast)), 0)
    high = min(math.ceil(pair_turning(beta_slow)), rotary_dim - 1)
    width = high - low if high != low else 0.001
    frequencies = []
    for pair, plain in enumerate(plain_frequencies(theta, rotary_dim)):
        slowed = min(max((pair - low) / width, 0.0), 1.0)
        frequencies.append(plain / factor * slowed + plain * (1 - slowed))
    return tuple(frequencies)


def yarn_amplitude(factor: float) -> float:
    """What cos and sin are multiplied by (arXiv 2309.00071, eq. 22: the square root of the attention temperature's inverse)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
