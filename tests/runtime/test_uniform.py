"""Numbers hashed from a seed and a position."""

from __future__ import annotations

import math

import pytest
import torch

from ringc.runtime.uniform import stream_of, uniform

COUNT = 1 << 16


def by_whole_numbers(stream: int, count: int) -> float:
    """SplitMix64's output number `count`, as it is published."""
    everything = (1 << 64) - 1
    z = (stream + (count + 1) * 0x9E3779B97F4A7C15) & everything
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & everything
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & everything
    return ((z ^ (z >> 31)) >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 63, (1 << 70) + 5])
def test_it_is_splitmix64(seed: int) -> None:
    stream = stream_of(seed)
    assert -(1 << 63) <= stream < 1 << 63
    counts = [0, 1, 5, 131071]
    made = uniform(torch.tensor([stream] * 4), torch.tensor(counts))
    assert made.tolist() == [by_whole_numbers(stream, count) for count in counts]


def evenness(x: torch.Tensor) -> float:
    """Chi-squared of 256 equal parts of [0, 1), in standard deviations from what is expected."""
    found = torch.histc(x, 256, 0, 1)
    wanted = len(x) / 256
    chi = float(((found - wanted) ** 2 / wanted).sum())
    return (chi - 255) / math.sqrt(2 * 255)


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """In standard deviations."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]) * math.sqrt(len(x))


def test_the_numbers_of_a_stream_are_even_and_independent() -> None:
    x = uniform(torch.full((COUNT,), stream_of(3)), torch.arange(COUNT))
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(evenness(x)) < 4
    for distance in (1, 2, 64):
        assert abs(correlation(x[:-distance], x[distance:])) < 4


def test_the_same_number_of_many_streams_is_even_and_independent() -> None:
    x = uniform(torch.tensor([stream_of(seed) for seed in range(COUNT)]), torch.full((COUNT,), 17))
    assert abs(evenness(x)) < 4
    for distance in (1, 2, 64):
        assert abs(correlation(x[:-distance], x[distance:])) < 4
