"""Routing that is replayed in the model: the same numbers for its own recording, the reference's for any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import ringc
from ringc.codegen.packing import pack
from ringc.errors import RunError
from ringc.ir.text_parse import parse_module
from ringc.model_defs import load_spec
from ringc.runtime.flips import flips, own, score_differences
from ringc.runtime.model import Model
from ringc.runtime.replay import Choice, ReplayedLaunch
from ringc.runtime.routing import NONE, Routing, cut
from tests.reference.ring_linear import RingConfig, forward
from tests.runtime.models import compiled

TOLERANCE = 2e-4
"""Largest error of a logit, at a standard deviation of 1."""

ROUNDING = 1e-5
"""The same, where only the experts' weights are computed in another order."""

TOKENS = 40


@pytest.fixture(scope="module")
def ids(config: RingConfig) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(7))


def recorded(model: Model, ids: torch.Tensor, lengths: Sequence[int] | None = None) -> tuple[torch.Tensor, Routing]:
    """Logits [B, T, V] of one call, and its recording."""
    with model.record_routing() as calls:
        logits = model(ids, lengths=lengths)
    return logits, calls


def drawn(config: RingConfig, tokens: int, seed: int) -> Routing:
    """Any experts, in one call."""
    generator = torch.Generator().manual_seed(seed)
    layers = sum(not config.is_dense(i) for i in range(config.num_hidden_layers))
    scores = torch.rand(layers, tokens, config.num_experts, generator=generator)
    return [tuple(scores.topk(config.num_experts_per_tok, -1).indices.int())]


def reference(config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor, call: Sequence[torch.Tensor]):
    """Logits [T, V] in double precision, with these experts."""
    layers = [i for i in range(config.num_hidden_layers) if not config.is_dense(i)]
    experts = {layer: taken.long() for layer, taken in zip(layers, call, strict=True)}
    return forward(config, weights, ids, replay_ids=experts).logits


def error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    assert made.shape == wanted.shape
    return float((made.double() - wanted.double()).abs().max())


class TestReplay:
    def test_its_own_recording_changes_nothing(self, tiny: Model, ids: torch.Tensor) -> None:
        lengths = [TOKENS, 23]
        logits, calls = recorded(tiny, ids, lengths)
        with tiny.replay_routing(calls) as replay, tiny.record_routing() as again:
            made = tiny(ids, lengths=lengths)
        assert error(made, logits) < ROUNDING
        assert replay.calls == 1 and not replay.choices
        assert all(torch.equal(a, b) for a, b in zip(again[0], calls[0], strict=True))

    def test_any_experts_give_the_reference_s_logits(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor
    ) -> None:
        calls = drawn(config, TOKENS, seed=1)
        wanted = reference(config, weights, ids[0], calls[0])
        with tiny.replay_routing(calls), tiny.record_routing() as again:
            made = tiny(ids[:1])[0]
        assert error(made, wanted) < TOLERANCE
        assert error(tiny(ids[:1])[0], wanted) > 0.1, "the block is over"
        assert all(torch.equal(a, b) for a, b in zip(again[0], calls[0], strict=True))

    def test_chunks_and_steps_of_a_batch(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor
    ) -> None:
        """A whole recording, cut for a prefill in two parts and steps of decode, in slots out of order."""
        calls = drawn(config, 2 * TOKENS, seed=2)
        counts = [9, 20, *[1] * (TOKENS - 29)]
        cache = tiny.new_cache(3, TOKENS)
        with tiny.replay_routing(cut(calls, counts, batch=2)) as replay:
            parts = [
                tiny.prefill(part, cache, slots=[2, 0], all_logits=True) for part in (ids[:, :9], ids[:, 9:29])
            ] + [tiny.decode(ids[:, t], cache, slots=[2, 0])[:, None] for t in range(29, TOKENS)]
        assert replay.calls == len(counts)
        made = torch.cat(parts, 1)
        for i in range(2):
            experts = [taken.view(2, TOKENS, -1)[i] for taken in calls[0]]
            assert error(made[i], reference(config, weights, ids[i], experts)) < TOLERANCE

    def test_the_last_layer_takes_the_experts_of_the_rows_that_it_makes(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor
    ) -> None:
        """Of a recording of all tokens the last ones', and what a prefill has recorded of those alone."""
        calls = drawn(config, 2 * 9, seed=9)
        experts = [[taken.view(2, 9, -1)[i] for taken in calls[0]] for i in range(2)]
        wanted = [reference(config, weights, ids[i, :9], experts[i])[-1] for i in range(2)]
        with tiny.replay_routing(calls, judge=True) as replay, tiny.record_routing() as last:
            made = tiny.prefill(ids[:, :9], tiny.new_cache(2, 9))
        assert error(made, torch.stack(wanted)) < TOLERANCE
        for choice, taken in zip(replay.choices[0][:-1], calls[0], strict=False):
            assert torch.equal(choice.taken, taken)
        final = replay.choices[0][-1]
        assert torch.equal(final.taken, last[0][-1])
        assert final.scores.isnan().any(-1).nonzero().flatten().tolist() == [i for i in range(18) if i not in (8, 17)]
        made_rows = (last[0][-1] != NONE).all(-1).nonzero().flatten().tolist()
        assert made_rows == [8, 17] and torch.equal(last[0][-1][made_rows], calls[0][-1][made_rows])
        with tiny.replay_routing(last):
            assert error(tiny.prefill(ids[:, :9], tiny.new_cache(2, 9)), made) < ROUNDING
        with tiny.replay_routing(last), pytest.raises(RunError, match=r"(?s)of token 0 are no choice.*all_logits"):
            tiny(ids[:, :9])
        with tiny.replay_routing(
            [tuple(choice.own for choice in replay.choices[0])]
        ):  # what it would have taken is a recording, too
            tiny.prefill(ids[:, :9], tiny.new_cache(2, 9))
        for choices in (replay.choices, self.judged(tiny, ids[:, :9], calls)):
            with pytest.raises(RunError, match="lacks tokens of the last layer"):
                flips(choices, last)

    def judged(self, model: Model, ids: torch.Tensor, calls: Routing) -> list[tuple[Choice, ...]]:
        with model.replay_routing(calls, judge=True) as replay:
            model(ids)
        return replay.choices

    def test_programs_of_both_kinds_are_kept_apart(self, tiny: Model, config: RingConfig, ids: torch.Tensor) -> None:
        """Each call takes its own experts from programs that are kept, and free ones aren't changed."""
        one, two = drawn(config, 5, seed=3)[0], drawn(config, 5, seed=4)[0]
        cache = tiny.new_cache(1, 10)

        def run() -> torch.Tensor:
            cache.free(0)
            return tiny.prefill(ids[:1, :5], cache)

        free = run()
        steps = len(next(iter(cache.bound.values())).steps)
        with tiny.replay_routing([one, two, one]):
            first, second, third = run(), run(), run()
        assert torch.equal(first, third) and error(first, second) > 0.01
        assert torch.equal(run(), free)
        lengths = sorted(len(bound.steps) for bound in cache.bound.values())
        assert lengths == [steps, steps + len(one)]

    def test_experts_may_be_of_any_integer_type(self, tiny: Model, ids: torch.Tensor) -> None:
        logits, calls = recorded(tiny, ids)
        with tiny.replay_routing([[taken.long() for taken in calls[0]]]):
            assert error(tiny(ids), logits) < ROUNDING

    def test_weights_may_be_kept_narrow(self, tiny_folder: Path, ids: torch.Tensor) -> None:
        """The router's matrix is widened into memory that others use next."""
        model = ringc.load(tiny_folder, "random:0", weights_dtype=torch.bfloat16)
        logits, calls = recorded(model, ids)
        with model.replay_routing(calls):
            assert error(model(ids), logits) < ROUNDING

    def test_generated_kernels_take_what_is_replayed(
        self, config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor, tmp_path: Path
    ) -> None:
        pytest.importorskip("tvm")
        model = ringc.load(compiled("ring-tiny", tmp_path / "tiny", "cpu"), "random:0")
        calls = drawn(config, TOKENS, seed=8)
        with model.replay_routing(calls):
            made = model(ids[:1])[0]
        assert error(made, reference(config, weights, ids[0], calls[0])) < TOLERANCE
        logits, calls = recorded(model, ids)
        with model.replay_routing(calls):
            assert error(model(ids), logits) < ROUNDING

    def test_a_model_without_experts_replays_nothing(self, tmp_path: Path) -> None:
        spec = load_spec("ring-tiny")
        dense = spec.model_copy(update={"moe": None, "mlp": spec.mlp.model_copy(update={"first_k": 0})})
        model = ringc.load(compiled(dense, tmp_path / "dense"), "random:0")
        wanted, calls = recorded(model, torch.tensor([[1, 2, 3]]))
        with model.replay_routing(cut(calls, [3]), judge=True) as replay:
            assert torch.equal(model([[1, 2, 3]]), wanted)
        assert replay.choices == [()]
        assert flips(replay.choices, calls).rate == 0

    def test_a_blocked_weight_is_read_as_it_lies(self, generator: torch.Generator) -> None:
        """No template takes one so far."""
        text = """module @test level fused
symbol N >= 0
func @route_1(%x: f32[N, 8], %gate: f32[6, 8]@0x4) {
%logits = matmul(%x, %gate) {transpose_b = true} : f32[N, 6]
%experts, %weights = route(%logits, _) {top_k = 2} : i32[N, 2], f32[N, 2]
return %experts, %weights
}
"""
        x, gate = (torch.randn(n, 8, generator=generator) for n in (3, 6))
        outputs = torch.empty(3, 2, dtype=torch.int32), torch.empty(3, 2)
        body = parse_module(text).functions["route_1"].body
        launch = ReplayedLaunch(body, [x, pack(gate, [(0, 4)]), *outputs], {"N": 3}, torch.device("cpu"))
        launch.experts.copy_(torch.tensor([[5, 4], [0, 1], [3, 2]]))
        launch.run()
        p = torch.sigmoid(x @ gate.T).gather(1, launch.experts.long())
        assert torch.equal(outputs[0], launch.experts)
        torch.testing.assert_close(outputs[1], p / p.sum(-1, keepdim=True))


class TestMistakes:
    @pytest.fixture
    def call(self, config: RingConfig) -> tuple[torch.Tensor, ...]:
        return drawn(config, 3, seed=5)[0]

    def refused(self, model: Model, recording: Sequence[Sequence[torch.Tensor]], message: str) -> None:
        """A call is refused, and nothing has run: the cache is as it was, and the recording may go on."""
        cache = model.new_cache(1, 8)
        with model.replay_routing(recording) as replay, model.record_routing() as recorded:
            with pytest.raises(RunError, match=message):
                model.prefill([[1, 2, 3]], cache)
            assert replay.calls == 0 and not recorded
        assert cache.length(0) == 0
        assert not any(state.any() for state in cache.states.values())

    def test_too_few_calls(self, tiny: Model) -> None:
        self.refused(tiny, [], "has 0 calls, and this is one more")

    def test_another_number_of_layers(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        self.refused(tiny, [call[1:]], f"of {len(call) - 1} layers, and the model {len(call)}")

    def test_another_number_of_tokens(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        self.refused(tiny, [[t[:2] for t in call]], r"experts \[2, 4\] for a routing of \[3, 4\]")

    @pytest.mark.parametrize("wrong", [-1, 16])
    def test_an_expert_that_there_isn_t(self, tiny: Model, call: tuple[torch.Tensor, ...], wrong: int) -> None:
        call[-2][1, 2] = wrong
        self.refused(tiny, [call], "of token 1 are no choice of 16")

    def test_of_the_last_layer_the_wanted_token_s_experts_are_looked_at(
        self, tiny: Model, call: tuple[torch.Tensor, ...]
    ) -> None:
        call[-1][0, 2] = 16
        with tiny.replay_routing([call]):
            tiny.prefill([[1, 2, 3]], tiny.new_cache(1, 8))
        call[-1][2, 2] = 16
        self.refused(tiny, [call], "of token 2 are no choice of 16")

    def test_an_expert_taken_twice(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        call[0][2, 0] = call[0][2, 1]
        self.refused(tiny, [call], "of token 2 are no choice of 16")

    def test_numbers_that_are_no_experts(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        self.refused(tiny, [[t.float() for t in call]], "experts of type torch.float32")

    def test_a_refused_call_takes_nothing_of_the_recording(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        with tiny.replay_routing([call]) as replay:
            with pytest.raises(RunError, match="outside the vocabulary"):
                tiny([[1, 2, -1]])
            tiny([[1, 2, 3]])
        assert replay.calls == 1

    def test_what_doesn_t_replay(self, tiny: Model, call: tuple[torch.Tensor, ...]) -> None:
        decoder = tiny.decoder(tiny.new_cache(1, 8), 1)
        with tiny.replay_routing([call]):
            with pytest.raises(RunError, match="being replayed"):
                tiny.generate([1, 2, 3], max_new_tokens=1)
            with pytest.raises(RunError, match="being replayed"):
                tiny.decoder(tiny.new_cache(1, 8), 1)
            with pytest.raises(RunError, match="being replayed"):
                decoder.step()
            with pytest.raises(RunError, match="being replayed"), tiny.replay_routing([call]):
                pass
        decoder.step()


class TestCut:
    def test_one_sequence_is_cut_and_put_together(self) -> None:
        layers = tuple(torch.arange(12).view(6, 2) + 100 * i for i in range(3))
        parts = cut([layers], [1, 3, 2])
        assert [[t.shape[0] for t in call] for call in parts] == [[1] * 3, [3] * 3, [2] * 3]
        assert all(torch.equal(a, b) for a, b in zip(cut(parts, [6])[0], layers, strict=True))
        assert torch.equal(parts[1][2], layers[2][1:4])

    def test_a_batch_is_cut_within_each_sequence(self) -> None:
        first, second = torch.arange(0, 5)[:, None], torch.arange(10, 15)[:, None]
        parts = cut([(torch.cat([first, second]),)], [2, 3], batch=2)
        assert [call[0].flatten().tolist() for call in parts] == [[0, 1, 10, 11], [2, 3, 4, 12, 13, 14]]

    def test_without_experts_there_is_nothing_to_cut(self) -> None:
        assert cut([()], [1, 2]) == [(), ()]

    @pytest.mark.parametrize(
        ("counts", "batch", "message"),
        [
            ([2, 3], 1, "is of 6 tokens, and the calls that are wanted of 5"),
            ([3, 4], 1, "is of 6 tokens, and the calls that are wanted of 7"),
            ([1], 4, "a call of 6 tokens doesn't hold equally many of 4 sequences"),
            ([6, 0], 1, "all of them are at least 1"),
            ([6], 0, "all of them are at least 1"),
        ],
    )
    def test_what_can_t_be_cut_is_refused(self, counts: list[int], batch: int, message: str) -> None:
        with pytest.raises(RunError) as found:
            cut([(torch.zeros(6, 2),)], counts, batch=batch)
        assert message in str(found.value)

    def test_calls_of_different_models_are_refused(self) -> None:
        taken = torch.zeros(1, 2)
        with pytest.raises(RunError, match="different numbers of layers"):
            cut([(taken,), (taken, taken)], [2])


class TestFlips:
    def test_scores_and_choices_are_the_model_s_own(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor
    ) -> None:
        _, calls = recorded(tiny, ids[:1])
        with tiny.replay_routing(calls, judge=True) as replay:
            tiny(ids[:1])
        (choices,) = replay.choices
        wanted = forward(config, weights, ids[0]).routing
        for choice, routing in zip(choices, wanted.values(), strict=True):
            assert choice.scores.shape == (TOKENS, config.num_experts)
            assert torch.equal(choice.own.long().sort(-1).values, routing.ids.sort(-1).values)
        found = flips(replay.choices, calls)
        assert found.rate == 0 and not found.shortfalls.any()
        assert not score_differences(replay.choices, replay.choices).any()

    def test_another_choice_is_found_with_its_shortfall(self, tiny: Model, ids: torch.Tensor) -> None:
        """The expert that is best of those left out in a kept group, in the place of the least that was taken."""
        _, calls = recorded(tiny, ids[:1])
        with tiny.replay_routing(calls, judge=True) as replay:
            tiny(ids[:1])
        choice = replay.choices[0][2]
        scores, taken = choice.scores[5], calls[0][2][5].long()
        groups = {int(e) // 4 for e in taken}
        left = [e for e in range(16) if e // 4 in groups and e not in taken.tolist()]
        best = max(left, key=lambda e: float(scores[e]))
        least = int(taken[scores[taken].argmin()])
        other = [tuple(t.clone() for t in calls[0])]
        other[0][2][5] = torch.where(taken == least, best, taken)
        found = flips(replay.choices, cut(other, [1] * TOKENS))
        assert found.flipped.nonzero().tolist() == [[2, 5]]
        assert float(found.shortfalls[2, 5]) == pytest.approx(float(scores[least] - scores[best]), abs=1e-6)
        assert found.summed == 2

    def test_what_a_flip_causes_is_told_from_what_it_doesn_t(self, tiny: Model, ids: torch.Tensor) -> None:
        _, calls = recorded(tiny, ids[:1])
        with tiny.replay_routing(calls, judge=True) as replay:
            tiny(ids[:1])
        other = [tuple(t.clone() for t in calls[0])]
        for layer, token in ((1, 5), (1, 3), (3, 4), (3, 2), (2, 5)):
            row = other[0][layer][token]
            row[0] = next(e for e in range(16) if e not in row.tolist())
        found = flips(replay.choices, other)
        assert found.flipped.sum() == 5
        assert found.unprovoked().nonzero().tolist() == [[1, 3], [1, 5], [3, 2]]

    def test_what_others_would_have_taken_is_a_recording(self, tiny: Model, config: RingConfig) -> None:
        given = drawn(config, 3, seed=6)
        with tiny.replay_routing(given, judge=True) as replay:
            tiny([[1, 2, 3]])
        found = flips(replay.choices, own(replay.choices))
        assert found.rate > 0.5
        with tiny.record_routing() as free:
            tiny([[1, 2, 3]])
        # Before the first routing nothing was replayed.
        assert torch.equal(own(replay.choices)[0][0].sort(-1).values, free[0][0].sort(-1).values)

    def test_recordings_of_other_tokens_are_refused(self, tiny: Model, config: RingConfig) -> None:
        given = drawn(config, 3, seed=6)
        with tiny.replay_routing(given, judge=True) as replay:
            tiny([[1, 2, 3]])
        with pytest.raises(RunError, match="of the same tokens"):
            flips(replay.choices, drawn(config, 4, seed=6))
