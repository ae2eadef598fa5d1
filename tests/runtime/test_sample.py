"""Drawing the next token."""

from __future__ import annotations

import pytest
import torch

from ringc.runtime.sample import Sampling, sample


def drawn(logits: list[float], sampling: Sampling, count: int = 4000) -> torch.Tensor:
    """How often each token is drawn."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(count, -1)
    return torch.bincount(sample(rows, sampling, generator), minlength=len(logits)) / count


def test_zero_temperature_takes_the_first_of_the_largest() -> None:
    assert sample(torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]]), Sampling()).tolist() == [1, 0]


def test_frequencies_are_the_softmax_of_the_scaled_logits() -> None:
    logits = [1.0, -0.5, 0.3, 2.0]
    wanted = (torch.tensor(logits) / 0.7).softmax(0)
    assert torch.allclose(drawn(logits, Sampling(temperature=0.7)), wanted, atol=0.03)


def test_top_k_keeps_the_k_largest() -> None:
    found = drawn([1.0, -0.5, 0.3, 2.0], Sampling(temperature=1.0, top_k=2))
    wanted = torch.tensor([1.0, 2.0]).softmax(0)
    assert found[1] == found[2] == 0
    assert found[0] == pytest.approx(float(wanted[0]), abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, {0}), (0.5, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2})]
)
def test_top_p_keeps_the_least_set_of_that_probability(top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
    found = drawn(logits, Sampling(temperature=1.0, top_p=top_p))
    assert set(found.nonzero()[:, 0].tolist()) == kept
