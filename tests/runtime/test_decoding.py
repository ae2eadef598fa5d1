"""Sequences that enter and leave rows between steps."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ringc
from ringc.errors import RunError
from ringc.runtime.decoding import Decoder
from ringc.runtime.model import Model
from ringc.runtime.sample import Kind, Sampling
from tests.runtime.models import compiled
from tests.runtime.sequences import alone, assert_equal, together
from tests.runtime.test_model import TOLERANCE


@pytest.fixture(scope="module")
def cpu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not find_spec("tvm"):
        pytest.skip("TVM isn't installed")
    return compiled("ring-tiny", tmp_path_factory.mktemp("artifacts") / "cpu", target="cpu")


@pytest.fixture(scope="module")
def model(cpu_folder: Path) -> Model:
    return ringc.load(cpu_folder, "random:0")


class TestJoinsAndLeaves:
    def test_a_thousand_steps_equal_the_sequences_alone(self, model: Model) -> None:
        sequences = together(model, batch=5, steps=1000, seed=0)
        assert len({one.sampling for one in sequences}) == 5
        assert_equal(sequences, alone(model, 5, sequences))

    def test_many_rows_equal_the_sequences_alone(self, model: Model) -> None:
        """Of the kernels for many rows, most of them empty."""
        sequences = together(model, batch=40, steps=60, seed=1)
        assert_equal(sequences, alone(model, 40, sequences))

    def test_portable_kernels(self, tiny: Model) -> None:
        """PyTorch's products round otherwise when an expert has other rows beside."""
        sequences = together(tiny, batch=3, steps=40, seed=2)
        for a, b in zip(sequences, alone(tiny, 3, sequences), strict=True):
            assert a.tokens == b.tokens
            assert not a.logits or float((torch.stack(a.logits) - torch.stack(b.logits)).abs().max()) < TOLERANCE

    def test_they_equal_plain_decoding(self, model: Model) -> None:
        """Kernels of one row round otherwise: within the tolerance, for the same tokens."""
        for one in together(model, batch=5, steps=100, seed=3):
            cache = model.new_cache(1, 60)
            model.prefill([one.prompt], cache)
            for token, logits in zip(one.tokens, one.logits, strict=False):
                assert float((model.decode([token], cache)[0] - logits).abs().max()) < TOLERANCE


def started(model: Model, batch: int = 3, slots: int = 4, room: int = 20) -> tuple[ringc.Cache, Decoder]:
    """A decoder with a sequence of three tokens in slot 2 and row 1."""
    cache = model.new_cache(slots, room)
    decoder = model.decoder(cache, batch, history=4)
    decoder.enter(1, 2, model.prefill([[1, 2, 3]], cache, slots=[2]))
    return cache, decoder


class TestRows:
    def test_all_empty(self, tiny: Model) -> None:
        cache = tiny.new_cache(2, 10)
        decoder = tiny.decoder(cache, 3)
        assert decoder.step().tolist() == [-1, -1, -1]
        assert decoder.slots == [-1, -1, -1]
        assert not decoder._ids.any()
        assert not decoder._positions.any()  # or they would end up behind the tables of positions
        assert not any(state.any() for state in cache.states.values())

    def test_lengths_are_counted_and_freed_slots_start_anew(self, tiny: Model) -> None:
        cache, decoder = started(tiny)
        first = [decoder.step()[1].item() for _ in range(3)]
        assert cache.lengths.tolist() == [0, 0, 6, 0]
        assert decoder.slots == [-1, 2, -1]
        decoder.leave(1)
        cache.free(2)
        assert decoder.step().tolist() == [-1, -1, -1]
        assert cache.lengths.tolist() == [0, 0, 0, 0]
        decoder.enter(0, 2, tiny.prefill([[1, 2, 3]], cache, slots=[2]))
        assert [decoder.step()[0].item() for _ in range(3)] == first

    def test_the_history_holds_the_last_steps(self, tiny: Model) -> None:
        _, decoder = started(tiny)
        made = [decoder.step().clone() for _ in range(6)]
        assert decoder.steps == 6
        for step in range(2, 6):
            assert torch.equal(decoder.history[step % 4], made[step])

    def test_a_draw_depends_on_the_seed_and_the_position(self, tiny: Model) -> None:
        """What a step draws is drawn from a prompt's logits, too, when the prompt is all before it."""
        cache, sampling = tiny.new_cache(2, 20), Sampling(temperature=2.0)
        decoder = tiny.decoder(cache, 2)
        text = [1, 2, 3]
        text.append(int(decoder.enter(0, 0, tiny.prefill([text], cache, slots=[0]), sampling, seed=5)))
        text += [int(decoder.step()[0]) for _ in range(6)]
        assert len(set(text[3:])) > 1
        for length in range(4, len(text)):
            cache.free(1)
            logits = tiny.prefill([text[:length]], cache, slots=[1])
            assert int(decoder.enter(1, 1, logits, sampling, seed=5)) == text[length]
            decoder.leave(1)

    def test_the_first_token_may_be_given(self, tiny: Model) -> None:
        cache, decoder = started(tiny)
        assert decoder.enter(0, 0, 7).item() == 7  # a slot that holds nothing yet
        again = tiny.new_cache(1, 5)
        wanted = tiny.prefill([[7]], again).argmax(-1)
        assert decoder.step()[0] == wanted
        assert cache.length(0) == 1

    def test_a_step_makes_no_tensors_but_those_it_drops(self, tiny: Model) -> None:
        _, decoder = started(tiny)
        drawn, logits = decoder.step(), decoder.logits
        assert decoder.step() is drawn
        assert decoder.logits.data_ptr() == logits.data_ptr()

    def test_it_outlives_a_larger_arena(self, tiny_folder: Path) -> None:
        model = ringc.load(tiny_folder, "random:0")
        _, decoder = started(model)
        wanted = [decoder.step()[1].item() for _ in range(4)]
        _, decoder = started(model)
        before = model._arena.generation
        model(torch.arange(200)[None])
        assert model._arena.generation > before
        assert [decoder.step()[1].item() for _ in range(4)] == wanted

    def test_rows_differ_in_sampling(self, tiny: Model) -> None:
        """The same sequence three times: greedy, drawn, and drawn from one token alone."""
        cache = tiny.new_cache(3, 30)
        decoder = tiny.decoder(cache, 3)
        samplings = [Sampling(), Sampling(temperature=2.0), Sampling(temperature=2.0, top_k=1)]
        for row, sampling in enumerate(samplings):
            decoder.enter(row, row, tiny.prefill([[1, 2, 3]], cache, slots=[row]), sampling, seed=4)
        made = torch.stack([decoder.step().clone() for _ in range(10)])
        assert torch.equal(made[:, 0], made[:, 2])
        assert not torch.equal(made[:, 0], made[:, 1])

    def test_equal_rows_of_other_seeds_differ(self, tiny: Model) -> None:
        cache = tiny.new_cache(3, 30)
        decoder = tiny.decoder(cache, 3)
        for row, seed in enumerate([1, 2, None]):
            logits = tiny.prefill([[1, 2, 3]], cache, slots=[row])
            decoder.enter(row, row, logits, Sampling(temperature=1.0), seed=seed)
        made = torch.stack([decoder.step().clone() for _ in range(10)])
        assert len({tuple(row) for row in made.T.tolist()}) == 3

    def test_a_kind_that_holds_more_draws_the_same(self, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        def tokens() -> list[list[int]]:
            cache = tiny.new_cache(2, 30)
            decoder = tiny.decoder(cache, 2)
            for row in range(2):
                logits = tiny.prefill([[1, 2, 3]], cache, slots=[row])
                decoder.enter(row, row, logits, Sampling(1.0, 10 * row, 1 - 0.1 * row), seed=row)
            return [decoder.step().tolist() for _ in range(10)]

        wanted = tokens()
        monkeypatch.setattr(Kind, "of", staticmethod(lambda _samplings: Kind.ALL))
        assert tokens() == wanted


class Recorded:
    """Stands for a CUDA graph, and for what makes them: work that is done when it is replayed."""

    def __init__(self) -> None:
        self.made: list[Callable[[], None]] = []
        self.capturing = False

    def captured(self, work: Callable[[], None]) -> Recorded:
        self.made.append(work)
        graph = Recorded()
        graph.replay = work  # type: ignore[attr-defined]
        return graph


class TestGraphs:
    def test_one_is_made_for_each_kind_and_used_again(self, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        def tokens() -> tuple[list[list[int]], list[list[int]]]:
            cache = tiny.new_cache(2, 30)
            decoder = tiny.decoder(cache, 2)
            made = []
            for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, top_k=5), Sampling(), Sampling(1.0)):
                for row in range(2):
                    decoder.enter(row, row, 5, sampling, seed=row)
                made += [decoder.step().tolist() for _ in range(3)]
                for row in range(2):
                    decoder.leave(row)
                made.append(decoder.step().tolist())
            return made, decoder.history.tolist()

        wanted = tokens()
        graphs = Recorded()
        monkeypatch.setattr(tiny._arena, "graphs", graphs)
        assert tokens() == wanted
        assert len(graphs.made) == 3


class TestEmptyRows:
    @pytest.mark.parametrize("batch", [5, 40])
    def test_what_is_in_them_reaches_nobody(self, cpu_folder: Path, batch: int) -> None:
        """Empty rows are token 0. Here its embedding is NaN, and so are unused slots, of which the last is what -1 would wrap to."""
        clean = ringc.load(cpu_folder, "random:0")
        poisoned = ringc.load(cpu_folder, "random:0")
        (embedding,) = [w for name, w in poisoned._prepared.items() if "word_embeddings" in name]
        embedding[0] = float("nan")

        def logits(model: Model, fill: float) -> torch.Tensor:
            cache = model.new_cache(4, 30)
            decoder = model.decoder(cache, batch)
            for row, slot in ((1, 0), (batch - 1, 2)):
                decoder.enter(row, slot, model.prefill([[90 + slot, 101, 30]], cache, slots=[slot]))
            for state in cache.states.values():
                state[[1, 3]] = fill
            before = {name: state[[1, 3]].clone() for name, state in cache.states.items()}
            made = []
            for _ in range(8):
                assert 0 not in decoder.step().tolist()
                made.append(decoder.logits[[1, batch - 1]].clone())
            for name, state in cache.states.items():
                assert torch.equal(state[[1, 3]].isnan(), before[name].isnan())
                assert torch.equal(state[[1, 3]].nan_to_num(), before[name].nan_to_num())
            return torch.stack(made)

        wanted = logits(clean, 0.0)
        assert wanted.isfinite().all()
        assert torch.equal(logits(poisoned, float("nan")), wanted)


class TestRouting:
    def test_steps_are_recorded(self, tiny: Model) -> None:
        with tiny.record_routing() as calls:
            _, decoder = started(tiny)
            decoder.step()
            decoder.step()
        decoder.step()
        assert [len(call[0]) for call in calls] == [3, 3, 3]  # the prompt's tokens, then all rows
        assert not torch.equal(calls[1][0][1], calls[2][0][1])

    def test_a_decoder_from_outside_the_block_is_refused(self, tiny: Model) -> None:
        _, decoder = started(tiny)
        with tiny.record_routing(), pytest.raises(RunError, match="doesn't record"):
            decoder.step()


class TestErrors:
    """Each is one clear message, and nothing was started."""

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda m, c, d: d.enter(3, 0, 1), "no row 3 in a decoder of 3"),
            (lambda m, c, d: d.enter(-1, 0, 1), "no row -1"),
            (lambda m, c, d: d.enter(1, 0, 1), "row 1 holds a sequence"),
            (lambda m, c, d: d.enter(0, 4, 1), "no slot 4"),
            (lambda m, c, d: d.enter(0, 2, 1), "slot 2 is in row 1"),
            (lambda m, c, d: d.enter(0, 0, 272), "the token is 272"),
            (lambda m, c, d: d.enter(0, 0, 1.5), r"the token is 1\.5"),
            (lambda m, c, d: d.enter(0, 0, torch.tensor(3)), r"logits of torch.int64 \[\]"),
            (lambda m, c, d: d.enter(0, 0, torch.zeros(2, 272)), r"\[2, 272\]"),
            (lambda m, c, d: d.leave(0), r"row 0 holds no sequence"),
            (lambda m, c, d: d.leave(3), r"row 3 holds no sequence"),
            (lambda m, c, d: [d.step() for _ in range(18)], "holds 20 tokens and can't take 1 more"),
            (lambda m, c, d: [c.free(2), d.step()], "holds 0 tokens, and its row 3"),
            (lambda m, c, d: [m.decode([5], c, slots=[2]), d.step()], "holds 4 tokens, and its row 3"),
            (lambda m, c, d: m.decoder(c, 0), "batch is 0"),
            (lambda m, c, d: m.decoder(c, 1, history=0), "history is 0"),
        ],
    )
    def test_it_is_named(
        self, tiny: Model, call: Callable[[Model, ringc.Cache, Decoder], object], message: str
    ) -> None:
        cache, decoder = started(tiny)
        with pytest.raises(RunError, match=message) as caught:
            call(tiny, cache, decoder)
        assert caught.value.help
        assert decoder.slots == [-1, 2, -1]

    def test_a_full_row_may_leave_and_the_others_go_on(self, tiny: Model) -> None:
        cache, decoder = started(tiny, room=5)
        decoder.enter(0, 0, 7)
        for _ in range(2):
            decoder.step()
        with pytest.raises(RunError, match="slot 2 holds 5 tokens"):
            decoder.step()
        assert cache.lengths.tolist() == [2, 0, 5, 0]
        decoder.leave(1)
        assert decoder.step()[0] >= 0
        assert cache.lengths.tolist() == [3, 0, 5, 0]
