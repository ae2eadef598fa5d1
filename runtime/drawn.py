"""Weights that are drawn: each published tensor from its name and a seed alone, on the device where it goes. A GPU draws other numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ringc.errors import UsageError

INITIAL_RANGE = 0.006
"""Standard deviation of `initial:SEED`: `initializer_range` in the configuration of Ling-lite-1.5, and `--init-method-std` where
Ling-mini-2.0 is fine-tuned; its pretraining has 0.02 (github.com/inclusionAI/Ling-V2, `training/megatron`, `examples/pretrain`).
"""


def random_parameter(name: str, shape: Sequence[int], seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The tensor that `random:SEED` gives a published name: float32, the same on every device that draws alike.

    Norm weights are 1 + 0.2 r, the router's bias 0.05 r, all else r / sqrt(inputs), with r standard normal: activations keep their size.
    """
    r = _normal(name, shape, seed, device)
    if name.endswith("norm.weight"):
        return r.mul_(0.2).add_(1)
    if name.endswith("expert_bias"):
        return r.mul_(0.05)
    return r.mul_(float(shape[-1]) ** -0.5)


def initial_parameter(name: str, shape: Sequence[int], seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The tensor that `initial:SEED` gives a published name: float32, as weights are before training.

    Norm weights are 1, the router's bias is 0, all else is normal with a standard deviation of `INITIAL_RANGE`. What the experts add is
    small beside what attention does, and so is what becomes of a rounding, or of another expert.
    """
    r = _normal(name, shape, seed, device)
    if name.endswith("norm.weight"):
        return torch.ones_like(r)
    if name.endswith("expert_bias"):
        return torch.zeros_like(r)
    return r.mul_(INITIAL_RANGE)


def _normal(name: str, shape: Sequence[int], seed: int, device: torch.device | str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    return torch.randn(tuple(shape), generator=generator, device=device)


Draw = Callable[[str, Sequence[int]], torch.Tensor]
"""Makes the tensor of a published name, of a shape."""

_DRAWS = {"random": random_parameter, "initial": initial_parameter}


def is_drawn(weights: object) -> bool:
    """Whether weights are drawn, and come from no file."""
    return isinstance(weights, str) and weights.partition(":")[0] in _DRAWS and ":" in weights


def draw_of(weights: object, device: torch.device) -> Draw | None:
    """What `random:SEED` or `initial:SEED` means; None of anything else.

    Raises:
        UsageError: there is no seed.
    """
    if not is_drawn(weights):
        return None
    kind, _, seed = str(weights).partition(":")
    if not seed.isdecimal() or len(seed) > 18:
        raise UsageError(
            f"'{weights}' names no {kind} weights", help=f"write {kind}:0, or any other number for another draw"
        )
    return partial(_DRAWS[kind], seed=int(seed), device=device)
