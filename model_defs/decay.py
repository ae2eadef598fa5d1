"""Decay of the linear-attention state: one fixed number for each head and layer, known before any kernel is made.

A head's state is multiplied by `exp(-slope)` at every token; `slope = head law * layer factor`. Everything here is computed with Python
floats (IEEE double precision), so that every consumer of a spec sees the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

LayerFactor = Literal["serving", "hf", "mlx", "none"]


def power_law(heads: int, octaves: float = 8.0) -> tuple[float, ...]:
    """`2 ** (-octaves * (h + 1) / heads)` for head h: the slopes of ALiBi (arXiv 2108.12409, sec. 3) at `octaves = 8`.

    A head count that is not a power of two takes the slopes of the next smaller power p, then every second slope of 2p.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-(octaves / power) * (h + 1)) for h in range(power)]
    if power < heads:
        slopes += power_law(2 * power, octaves)[0::2][: heads - power]
    return tuple(slopes)


def line(heads: int, first: float, last: float) -> tuple[float, ...]:
    """Slopes that fall (or rise) by equal steps from the first head's to the last head's."""
    step = (last - first) / max(1, heads - 1)
    return tuple(first + step * h for h in range(heads))


_POSITION: dict[LayerFactor, Callable[[int], int]] = {
    "serving": lambda layer: layer,
    "hf": lambda layer: layer - 1,
    "mlx": lambda layer: max(0, layer - 1),
}


def layer_factor(kind: LayerFactor, layer: int, layers: int, eps: float) -> float:
    """What the head law is multiplied by in layer `layer` (0-based) of `layers`; see `Decay.layer_factor` for who uses which."""
    if kind == "none":
        return 1.0
    return 1 - _POSITION[kind](layer) / max(1, layers - 1) + eps


def half_life(slope: float) -> float:
    """Tokens after which a head has forgotten half of what it read."""
    return math.log(2) / slope
