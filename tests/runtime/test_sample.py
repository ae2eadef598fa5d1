"""Drawing the next token."""

from __future__ import annotations

import math

import pytest
import torch

from ringc.runtime.sample import Kind, Parameters, Sampling, draw, sample
from ringc.runtime.threshold import keys_of, weights_of


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


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.5 + 1e-13, 2), (0.75, 3), (0.75 + 1e-13, 4)])
def test_top_p_is_exact_where_logits_are_equal(top_p: float, kept: int) -> None:
    found = drawn([0.0] * (4 if top_p > 0.6 else 2), Sampling(1.0, top_p=top_p))
    assert found.nonzero()[:, 0].tolist() == list(range(kept))


def test_top_p_counts_within_top_k() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 the first two have 0.7, and 0.4 is more than half of that: in all it would be less."""
    logits = torch.tensor([0.3, 0.4, 0.1, 0.2]).log().tolist()
    assert set(drawn(logits, Sampling(1.0, top_k=2, top_p=0.55)).nonzero()[:, 0].tolist()) == {1}
    assert set(drawn(logits, Sampling(1.0, top_p=0.55)).nonzero()[:, 0].tolist()) == {0, 1}


def by_sorting(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities of one row's tokens in double precision, with a sort: float64 [V]."""
    scaled = (logits.double() - logits.max()) / sampling.temperature
    order = scaled.sort(descending=True, stable=True).indices[: sampling.top_k or None]
    p = scaled[order].softmax(-1)
    p[(p.cumsum(-1) - p) >= sampling.top_p - 1e-12] = 0
    return torch.zeros_like(scaled).index_put_((order,), p / p.sum())


LIMITS = [
    Sampling(1.0),
    Sampling(1.0, top_k=1),
    Sampling(0.8, top_k=13),
    Sampling(1.2, top_p=0.8),
    Sampling(1.0, top_p=1e-9),
    Sampling(1.0, top_k=9, top_p=0.5),
    Sampling(1.0, top_k=2000, top_p=0.99),
]


@pytest.mark.parametrize("sampling", LIMITS)
@pytest.mark.parametrize("step", [None, 0.5, 2.0])
def test_frequencies_equal_those_of_a_sort(sampling: Sampling, step: float | None, generator: torch.Generator) -> None:
    """Random logits, also rounded to multiples, so that many are equal at the edge."""
    logits = torch.randn(50, generator=generator) * 2
    if step is not None:
        logits = (logits / step).round() * step
    wanted = by_sorting(logits, sampling)
    found = drawn(logits.tolist(), sampling)
    assert not found[wanted == 0].any()
    assert torch.allclose(found.double(), wanted, atol=0.03)


def token_by_sorting(logits: torch.Tensor, sampling: Sampling, u: float) -> int:
    """The one token that a number draws: in whole numbers as `draw` has them, with a sort."""
    weights = weights_of(logits[None], torch.tensor([sampling.temperature], device=logits.device))[0]
    order = logits.sort(descending=True, stable=True).indices
    sums = weights[order[: sampling.top_k or None]].cumsum(-1)
    target = min(max(math.ceil(sampling.top_p * int(sums[-1])), 1), int(sums[-1]))
    kept = order[: int((sums < target).sum()) + 1]
    if sampling.top_k == 0 and sampling.top_p == 1:
        kept = order.sort().values
    else:  # those above the last one first, in the order of tokens
        greater = logits[kept] > logits[kept[-1]]
        kept = torch.cat([kept[greater].sort().values, kept[~greater]])
    sums = weights[kept].cumsum(-1)
    chosen = min(int(u * int(sums[-1])), int(sums[-1]) - 1)
    return int(kept[int((sums <= chosen).sum())])


@pytest.mark.parametrize("size", [1, 7, 513, 157184])
@pytest.mark.parametrize("step", [None, 0.5, 100.0])
def test_every_kind_draws_what_a_sort_draws(size: int, step: float | None, generator: torch.Generator) -> None:
    """Rows of different samplings in one batch, exactly."""
    samplings = [Sampling(), *LIMITS, Sampling(0.9, top_k=1024, top_p=0.999), Sampling(1e-30, top_p=0.5)]
    logits = torch.randn(len(samplings), size, generator=generator) * 3
    if step is not None:
        logits = (logits / step).round() * step  # with both zeros
    uniforms = torch.rand(len(samplings), dtype=torch.float64, generator=generator)
    wanted = [
        token_by_sorting(row, s, float(u)) if s.temperature else int(row.argmax())
        for row, s, u in zip(logits, samplings, uniforms, strict=True)
    ]
    rows = Parameters.of(samplings, logits.device)
    assert draw(logits, rows, uniforms, Kind.ALL).tolist() == wanted
    kinds = set()
    for i, sampling in enumerate(samplings):
        kinds.add(Kind.of([sampling]))
        one = Parameters(*(p[i : i + 1] for p in rows))
        assert draw(logits[i : i + 1], one, uniforms[i : i + 1], Kind.of([sampling])).tolist() == [wanted[i]], sampling
    assert kinds == set(Kind)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.9), Sampling(1.0, 3000)]
)
def test_the_ends_of_the_range(u: float, sampling: Sampling) -> None:
    """No token is drawn that isn't there, and none of probability 0."""
    logits = torch.tensor([[float("-inf"), 1.0, 0.0, -200.0, 2.0, float("-inf")]])
    rows = Parameters.of([sampling], logits.device)
    token = draw(logits, rows, torch.tensor([u], dtype=torch.float64), Kind.of([sampling]))
    assert 0 < int(token) < 5
    assert int(token) != 3


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_give_some_token(kind: Kind, value: float) -> None:
    """What is drawn is an index into the embedding: out of range it would end a GPU's process."""
    logits = torch.tensor([[1.0, value, 0.0], [value] * 3])
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5), Sampling(1.0)):
        token = draw(logits, Parameters.of([sampling] * 2, logits.device), torch.full((2,), 0.7).double(), kind)
        assert token.min() >= 0
        assert token.max() < 3


def test_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    logits = torch.randn(5, 40, generator=generator)
    uniforms = torch.rand(5, dtype=torch.float64, generator=generator)
    rows = Parameters.of([Sampling(1.0, k) for k in range(5)], logits.device)
    wanted = draw(logits, rows, uniforms, Kind.ALL)
    monkeypatch.setattr("ringc.runtime.sample.GROUP", 80)
    assert torch.equal(draw(logits, rows, uniforms, Kind.ALL), wanted)


def test_keys_are_ordered_as_the_numbers_are(generator: torch.Generator) -> None:
    x = torch.cat([torch.randn(100, generator=generator) * 10.0**e for e in (-40, -3, 0, 30)]).float()
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("inf"), float("-inf")])])
    keys = keys_of(x[None])[0]
    assert torch.equal(keys[:, None] < keys, x[:, None] < x)
    assert torch.equal(keys[:, None] == keys, x[:, None] == x)
