"""Recorded choices of experts: taken as they are, and judged by the scores of the graph that takes them."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.errors import IRError
from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.routing import Route
from ringc.ir.replay import Replay, shortfall
from ringc.ir.text_parse import parse_module

INFINITY = math.inf


def module(options: str, experts: int, k: int, routings: int = 1) -> Module:
    lines = [
        f"%e{i}, %w{i} = route(%logits, %bias) {{top_k = {k}{options}}} : i32[N, {k}], f32[N, {k}]"
        for i in range(routings)
    ]
    returned = ", ".join(f"%e{i}, %w{i}" for i in range(routings))
    body = "\n".join(lines)
    return parse_module(
        f"module @test level fused\nsymbol N >= 0\nfunc @main(%logits: f32[N, {experts}], %bias: f32[{experts}]) {{\n"
        f"{body}\nreturn {returned}\n}}\n"
    )


def route_of(made: Module) -> Route:
    (op,) = made.functions["main"].body.ops
    assert isinstance(op, Route)
    return op


GROUPED = module(", groups = 4, keep = 2", experts=12, k=3)
ZEROED = module(", groups = 4, keep = 2, dropped = 0.0, group_top = 1", experts=8, k=3)
PLAIN = module("", experts=6, k=2)


def draw(made: Module, seed: int, rows: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    experts = route_of(made).experts
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((rows, experts), (experts,))]


@pytest.mark.parametrize("made", [GROUPED, ZEROED, PLAIN])
@pytest.mark.parametrize("precision", [torch.float64, None])
def test_its_own_choice_changes_nothing(made: Module, precision: torch.dtype | None) -> None:
    inputs = draw(made, 1)
    experts, weights = run(made, "main", inputs, precision=precision)
    replay = Replay([experts.flip(-1)])
    again, same = run(made, "main", inputs, precision=precision, replay=replay)
    assert torch.equal(again, experts.flip(-1))
    torch.testing.assert_close(same.flip(-1), weights)
    assert not replay.shortfalls[0].any()
    wanted = torch.sigmoid(inputs[0].to(weights.dtype)) + inputs[1].to(weights.dtype)
    torch.testing.assert_close(replay.scores[0], wanted)


def test_weights_are_those_of_the_experts_taken() -> None:
    inputs = draw(GROUPED, 2)
    taken = torch.tensor([[0, 4, 11]] * 5, dtype=torch.int32)
    experts, weights = run(GROUPED, "main", inputs, precision=torch.float64, replay=Replay([taken]))
    p = torch.sigmoid(inputs[0])[:, [0, 4, 11]]
    assert torch.equal(experts, taken)
    torch.testing.assert_close(weights, p / p.sum(-1, keepdim=True))


class TestShortfall:
    SCORES = torch.tensor([[0.9, 0.5, 0.45, 0.1, 0.3, 0.2]], dtype=torch.float64)

    @pytest.mark.parametrize(
        ("taken", "expected"),
        [
            ([0, 1], 0.0),
            ([1, 0], 0.0),
            ([0, 2], 0.05),
            ([1, 2], 0.45),
            ([0, 0], INFINITY),
            ([0, 6], INFINITY),
            ([-1, 0], INFINITY),
        ],
    )
    def test_without_groups_it_is_the_gap(self, taken: list[int], expected: float) -> None:
        found = shortfall(route_of(PLAIN), self.SCORES, torch.tensor([taken]))
        assert float(found) == pytest.approx(expected)

    def test_a_group_that_nearly_won_may_be_taken(self) -> None:
        # Groups of 2; sums of both experts: 1.0, 0.99, 0.1, 0.1. One is kept.
        made = route_of(module(", groups = 4, keep = 1", experts=8, k=1))
        scores = torch.tensor([[0.9, 0.1, 0.5, 0.49, 0.05, 0.05, 0.05, 0.05]], dtype=torch.float64)
        expected = {0: 0.0, 1: 0.8, 2: 0.01, 3: 0.01, 4: 0.9}
        for expert, value in expected.items():
            assert float(shortfall(made, scores, torch.tensor([[expert]]))) == pytest.approx(value), expert

    def test_experts_of_too_many_groups_are_never_right(self) -> None:
        scores = torch.full((1, 12), 0.5, dtype=torch.float64)
        assert float(shortfall(route_of(GROUPED), scores, torch.tensor([[0, 3, 6]]))) == INFINITY
        assert float(shortfall(route_of(GROUPED), scores, torch.tensor([[0, 3, 4]]))) == 0

    def test_dropped_scores_of_0_may_be_right(self) -> None:
        # The kept groups 0 and 1 have one score above 0: what is dropped to 0 beats the others.
        scores = torch.tensor([[0.9, -0.1, 0.3, -0.2, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
        own = run(ZEROED, "main", [torch.zeros(1, 8, dtype=torch.float64), scores[0] - 0.5], precision=torch.float64)
        assert own[0].tolist() == [[0, 2, 4]]
        assert float(shortfall(route_of(ZEROED), scores, own[0])) == 0
        assert float(shortfall(route_of(ZEROED), scores, torch.tensor([[0, 2, 1]]))) == pytest.approx(0.1)

    @settings(max_examples=60)
    @given(
        seed=st.integers(0, 10**6), noise=st.sampled_from([1e-6, 1e-2, 0.3]), made=st.sampled_from([GROUPED, ZEROED])
    )
    def test_a_choice_by_scores_that_are_off_falls_short_by_as_much(
        self, seed: int, noise: float, made: Module
    ) -> None:
        logits, bias = draw(made, seed, rows=20)
        scores = torch.sigmoid(logits) + bias
        off = noise * (2 * torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)).double() - 1)
        for i in range(len(scores)):
            # A row of logits of 0 has scores of 0.5 + bias.
            taken = run(made, "main", [0 * logits[:1], scores[i] + off[i] - 0.5], precision=torch.float64)[0]
            found = float(shortfall(route_of(made), scores[i : i + 1], taken))
            assert found <= 2 * noise * route_of(made).group_top + 1e-12

    def test_many_groups_take_no_time(self) -> None:
        """There are 2.7 million ways to keep 12 of 24 groups."""
        scores = torch.rand(50, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        logits = torch.zeros_like(scores)
        for dropped in ("", ", dropped = 0.0"):
            made = module(f", groups = 24, keep = 12{dropped}", experts=48, k=4)
            assert shortfall(route_of(made), scores[:0], torch.zeros(0, 4)).shape == (0,)
            own = torch.cat([run(made, "main", [logits[:1], s - 0.5], precision=torch.float64)[0] for s in scores])
            began = time.perf_counter()
            assert shortfall(route_of(made), scores, own).max() < 1e-12
            own[:, 0] = scores.argmin(-1)
            assert shortfall(route_of(made), scores, own).min() > 0.1
            assert time.perf_counter() - began < 5

    @pytest.mark.parametrize(
        ("groups", "keep", "each", "k", "top"), [(4, 2, 3, 3, 2), (6, 3, 2, 4, 2), (5, 3, 2, 2, 1), (3, 3, 2, 2, 2)]
    )
    def test_it_is_the_smallest_over_all_ways_to_keep_groups(
        self, groups: int, keep: int, each: int, k: int, top: int
    ) -> None:
        """Said again, a token, a choice and a set of groups at a time; with scores that differ, and with ties."""
        experts = groups * each
        made = module(f", groups = {groups}, keep = {keep}, group_top = {top}", experts=experts, k=k)
        generator = torch.Generator().manual_seed(5)
        scores = torch.rand(2, experts, generator=generator, dtype=torch.float64)
        scores[1] = (scores[1] * 6).round() / 8
        choices = list(itertools.combinations(range(experts), k))
        for row in scores:
            values = row.tolist()
            sums = [sum(sorted(values[each * g : each * (g + 1)])[-top:]) for g in range(groups)]
            found = shortfall(route_of(made), row.expand(len(choices), -1), torch.tensor(choices))
            for taken, one in zip(choices, found.tolist(), strict=True):
                best = INFINITY
                for kept in itertools.combinations(range(groups), keep):
                    if any(e // each not in kept for e in taken):
                        continue
                    dropped = max((sums[g] for g in range(groups) if g not in kept), default=-INFINITY)
                    left = [e for e in range(experts) if e // each in kept and e not in taken]
                    beaten = max(values[e] for e in left) - min(values[e] for e in taken)
                    best = min(best, max(dropped - min(sums[g] for g in kept), beaten, 0.0))
                assert one == pytest.approx(best), taken


def test_a_wrong_choice_is_taken_and_told() -> None:
    inputs = draw(PLAIN, 3, rows=2)
    experts = run(PLAIN, "main", inputs, precision=torch.float64)[0]
    wrong = experts.clone()
    wrong[1, 0] = 77
    replay = Replay([wrong])
    run(PLAIN, "main", inputs, precision=torch.float64, replay=replay)
    assert replay.shortfalls[0].tolist() == [0.0, INFINITY]


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([], "has the choices of 0 routings, and the graph has more"),
        ([(5, 2)], "has the choices of 1 routings, and the graph has more"),
        ([(5, 2)] * 3, "has the choices of 3 routings, and the graph 2"),
        ([(5, 3)] * 2, r"has experts \[5, 3\] for a routing of \[5, 2\]"),
    ],
)
def test_a_recording_of_another_graph_is_refused(experts: list[tuple[int, int]], message: str) -> None:
    made = module("", experts=6, k=2, routings=2)
    recorded = [torch.arange(a * b, dtype=torch.int32).reshape(a, b) % b for a, b in experts]
    inputs = [torch.zeros(5, 6), torch.zeros(6)]
    with pytest.raises(IRError, match=message):
        run(made, "main", inputs, replay=Replay(recorded))
