"""The whole model against the reference, in one piece and in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ringc
from ringc.errors import RunError
from ringc.runtime.model import Model
from ringc.runtime.routing import NONE
from tests.reference.ring_linear import RingConfig, forward

TOLERANCE = 2e-4
"""Largest error of a logit, at a standard deviation of 1, where single precision can reach it."""


def allowed(config: RingConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor, wanted: torch.Tensor) -> float:
    """The tolerance; or, where the sequence is ill-conditioned, twice the error of the reference's own code in single precision.

    The norm behind linear attention divides by the size of its input, which is near zero when a first token's query and key happen to be
    orthogonal: rounding errors grow by that factor, in whatever order they are made.
    """
    narrow = {name: w.float() for name, w in weights.items()}
    plain = [forward(config, narrow, ids, chunk=chunk).logits for chunk in (32, None)]
    return max(TOLERANCE, 2 * max(float((p.double() - wanted).abs().max()) for p in plain))


@pytest.fixture(scope="module")
def text(config: RingConfig, weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """60 ids and the reference's logits after each."""
    ids = torch.randint(0, config.vocab_size, (60,), generator=torch.Generator().manual_seed(7))
    return ids, forward(config, weights, ids).logits


def error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    assert made.shape == wanted.shape
    assert made.dtype == torch.float32
    return float((made.double() - wanted).abs().max())


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 60])
def test_logits_equal_the_reference(tiny: Model, text: tuple[torch.Tensor, torch.Tensor], tokens: int) -> None:
    ids, wanted = text
    assert error(tiny(ids[None, :tokens])[0], wanted[:tokens]) < TOLERANCE


def test_a_ragged_batch_equals_its_sequences(
    tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], generator: torch.Generator
) -> None:
    ids = torch.randint(0, config.vocab_size, (4, 33), generator=generator)
    lengths = [33, 1, 17, 20]
    made = tiny(ids, lengths=lengths)
    for row, n, got in zip(ids, lengths, made, strict=True):
        wanted = forward(config, weights, row[:n]).logits
        assert error(got[:n], wanted) < allowed(config, weights, row[:n], wanted)
        assert not got[n:].any()


def test_an_ill_conditioned_sequence_is_no_worse_than_unfused_code(
    tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor]
) -> None:
    """Its first token's attention is 100 times smaller than usual in layer 1, where a group norm enlarges it."""
    ids = torch.tensor([193, 30, 220, 156, 168, 31, 254, 196, 128, 234, 243, 269, 256, 219, 29, 156, 155])
    wanted = forward(config, weights, ids).logits
    limit = allowed(config, weights, ids, wanted)
    assert TOLERANCE < limit < 2e-3
    assert error(tiny(ids[None])[0], wanted) < limit


@settings(max_examples=12)
@given(cuts=st.lists(st.integers(1, 59), max_size=4, unique=True), decoded=st.integers(0, 5))
def test_prefill_cut_anywhere_then_decode(
    tiny: Model, text: tuple[torch.Tensor, torch.Tensor], cuts: list[int], decoded: int
) -> None:
    ids, wanted = text
    total = len(ids) - decoded
    ends = [*sorted(c for c in cuts if c < total), total]
    cache = tiny.new_cache(1, len(ids))
    start = 0
    for end in ends:
        made = tiny.prefill(ids[None, start:end], cache)
        assert error(made[0], wanted[end - 1]) < TOLERANCE
        start = end
    for t in range(total, len(ids)):
        assert error(tiny.decode(ids[t : t + 1], cache)[0], wanted[t]) < TOLERANCE
    assert cache.lengths.tolist() == [len(ids)]


def test_slots_are_independent_and_can_be_used_again(
    tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], generator: torch.Generator
) -> None:
    ids = torch.randint(0, config.vocab_size, (3, 12), generator=generator)
    wanted = [forward(config, weights, row).logits for row in ids]
    cache = tiny.new_cache(4, 20)
    tiny.prefill(ids[:2, :6], cache, slots=[3, 1])
    tiny.prefill(ids[2:, :4], cache, slots=[0])
    assert cache.lengths.tolist() == [4, 6, 0, 6]
    made = tiny.prefill(ids[:2, 6:11], cache, slots=torch.tensor([3, 1]), all_logits=True)
    for got, full in zip(made, wanted[:2], strict=True):
        assert error(got, full[6:11]) < TOLERANCE
    cache.free(1)
    # Slot 1 starts a new sequence beside slot 3's, which goes on.
    made = tiny.prefill(ids[2:, :11], cache, slots=[1])
    assert error(made[0], wanted[2][10]) < TOLERANCE
    made = tiny.decode(torch.stack([ids[2, 11], ids[0, 11]]), cache, slots=[1, 3])
    assert error(made[0], wanted[2][11]) < TOLERANCE
    assert error(made[1], wanted[0][11]) < TOLERANCE
    assert error(tiny.decode(ids[2, 4:5], cache, slots=[0])[0], wanted[2][4]) < TOLERANCE


def test_the_last_tokens_of_a_ragged_prefill_are_those_of_all(tiny: Model, generator: torch.Generator) -> None:
    """In slots out of order, behind what they hold: the last layer is made for the wanted tokens alone, one of each sequence."""
    ids = torch.randint(0, tiny.vocabulary["size"], (3, 30), generator=generator)
    lengths = [9, 1, 20]
    caches = [tiny.new_cache(4, 30) for _ in range(2)]
    for cache in caches:
        tiny.prefill(ids[:, :7], cache, slots=[2, 0, 3], lengths=[7, 2, 5])
    last, every = (
        tiny.prefill(ids[:, 7:27], cache, slots=[2, 0, 3], lengths=lengths, all_logits=all_logits)
        for cache, all_logits in zip(caches, (False, True), strict=True)
    )
    assert error(last, every[torch.arange(3), torch.tensor(lengths) - 1]) < 1e-5
    for state, other in zip(caches[0].states.values(), caches[1].states.values(), strict=True):
        torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-5)


def test_a_decode_step_allocates_no_intermediates(tiny: Model) -> None:
    """What is replayed is bound to memory already: only the logits' copy is new."""
    cache = tiny.new_cache(2, 50)
    tiny.prefill([[1, 2, 3], [4, 5, 6]], cache)
    tiny.decode([7, 8], cache)
    (key,) = [k for k in cache.bound if k[0] == "decode"]
    bound, arena = cache.bound[key], tiny._arena.memory.data_ptr()
    tiny.decode([9, 10], cache)
    assert cache.bound[key] is bound
    assert tiny._arena.memory.data_ptr() == arena


def test_programs_bound_to_a_smaller_arena_are_bound_again(tiny_folder: Path) -> None:
    model = ringc.load(tiny_folder, "random:0")
    cache = model.new_cache(1, 300)
    model.prefill([[1, 2]], cache)
    first = model.decode([3], cache).clone()
    model(torch.arange(200)[None])  # grows the arena
    again = model.new_cache(1, 300)
    model.prefill([[1, 2]], again)
    assert torch.equal(model.decode([3], again), first)
    assert torch.isfinite(model.decode([4], cache)).all()


def test_weights_kept_in_bf16_give_the_logits_of_rounded_weights(
    tiny_folder: Path, config: RingConfig, weights: dict[str, torch.Tensor]
) -> None:
    rounded = {name: w.bfloat16() for name, w in weights.items()}
    wide = ringc.load(tiny_folder, rounded)
    narrow = ringc.load(tiny_folder, rounded, weights_dtype=torch.bfloat16)
    assert narrow.weight_bytes < 0.6 * wide.weight_bytes
    ids = torch.arange(40)[None]
    assert torch.equal(narrow(ids), wide(ids))


def test_published_weights_come_back_out(tiny: Model, weights: dict[str, torch.Tensor]) -> None:
    found = tiny.state_dict()
    assert found.keys() == weights.keys()
    for name, wanted in weights.items():
        assert torch.equal(found[name], wanted.float()), name


class TestRecordRouting:
    def test_it_gives_the_experts_of_each_layer_and_call(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor], generator: torch.Generator
    ) -> None:
        """A whole call with filling, then prefill and decode of the same sequences."""
        ids = torch.randint(0, config.vocab_size, (2, 9), generator=generator)
        lengths = [9, 5]
        wanted = [forward(config, weights, row[:n]).routing for row, n in zip(ids, lengths, strict=True)]
        assert min(float(r.margin.min()) for routing in wanted for r in routing.values()) > 1e-5
        cache = tiny.new_cache(2, 9)
        with tiny.record_routing() as calls:
            tiny(ids, lengths=lengths)
            tiny.prefill(ids[:, :4], cache)
            tiny.decode(ids[:, 4], cache)
        layers = [i for i in range(config.num_hidden_layers) if not config.is_dense(i)]
        assert [len(call) for call in calls] == [len(layers)] * 3
        for i, layer in enumerate(layers):
            first, second = (routing[layer].ids.sort(-1).values for routing in wanted)
            prompt = torch.cat([first[:4], second[:4]])
            if layer == config.num_hidden_layers - 1:  # which a prefill makes for the tokens whose logits are wanted
                prompt[[0, 1, 2, 4, 5, 6]] = NONE
            for call, rows in zip(
                calls, [torch.cat([first, second]), prompt, torch.stack([first[4], second[4]])], strict=True
            ):
                assert call[i].dtype == torch.int32
                assert torch.equal(call[i].long().sort(-1).values, rows)

    def test_entries_are_copies_and_logits_are_the_same(self, tiny: Model) -> None:
        cache, again = tiny.new_cache(1, 10), tiny.new_cache(1, 10)
        wanted = [tiny.prefill([[1, 2]], cache), tiny.decode([3], cache), tiny.decode([4], cache)]
        with tiny.record_routing() as calls:
            made = [tiny.prefill([[1, 2]], again), tiny.decode([3], again)]
            before = [t.clone() for t in calls[1]]
            made.append(tiny.decode([4], again))
        assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(calls[1], before, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(calls[1], calls[2], strict=True))

    def test_it_costs_nothing_when_it_is_off(self, tiny: Model) -> None:
        cache = tiny.new_cache(1, 10)
        tiny.prefill([[1, 2]], cache)
        with tiny.record_routing() as calls:
            tiny.prefill([[3, 4]], cache)
        tiny.prefill([[5, 6]], cache)
        assert len(calls) == 1
        off, on = (next(b for k, b in cache.bound.items() if k.record_routing == flag) for flag in (False, True))
        assert not off.experts
        assert len(on.steps) == len(off.steps) + len(calls[0])

    def test_recordings_may_be_nested_and_an_error_adds_nothing(self, tiny: Model) -> None:
        with tiny.record_routing() as outer:
            tiny([[1]])
            with tiny.record_routing() as inner:
                tiny([[2]])
                with pytest.raises(RunError):
                    tiny([[-1]])
            tiny([[3]])
        tiny([[4]])
        assert (len(outer), len(inner)) == (3, 1)
        assert all(torch.equal(a, b) for a, b in zip(outer[1], inner[0], strict=True))

    def test_generated_tokens_are_recorded(self, tiny: Model) -> None:
        with tiny.record_routing() as calls:
            list(tiny.generate([1, 2, 3], max_new_tokens=3, end=None))
        assert [len(call[0]) for call in calls] == [3, 1, 1]


class TestGenerate:
    def test_greedy_is_the_reference_s_choice(
        self, tiny: Model, config: RingConfig, weights: dict[str, torch.Tensor]
    ) -> None:
        prompt = list(b"linear attention")
        made = list(tiny.generate(prompt, max_new_tokens=6, end=None))
        ids = torch.tensor([*prompt, *made])
        logits = forward(config, weights, ids).logits[len(prompt) - 1 : -1]
        best, runner_up = logits.topk(2, -1).values.unbind(-1)
        chosen = logits.gather(-1, torch.tensor(made)[:, None])[:, 0]
        assert (chosen >= best - TOLERANCE).all()
        assert (best - runner_up > 0).all()

    def test_a_seed_repeats_the_draw(self, tiny: Model) -> None:
        def draw(seed: int) -> list[int]:
            return list(
                tiny.generate([1, 2, 3], max_new_tokens=12, temperature=1.0, top_k=50, top_p=0.9, seed=seed, end=None)
            )

        assert draw(5) == draw(5)
        assert draw(5) != draw(6)

    def test_it_ends_at_the_end_token_and_at_stop_words(self, tiny: Model) -> None:
        free = list(tiny.generate([1, 2, 3], max_new_tokens=8, end=None))
        assert list(tiny.generate([1, 2, 3], max_new_tokens=8, end=free[4])) == free[: free.index(free[4])]
        assert list(tiny.generate([1, 2, 3], max_new_tokens=8, stop=[free[1:3]], end=None)) == free[:3]

    def test_tokens_come_as_they_are_made(self, tiny: Model) -> None:
        stream = tiny.generate([1, 2, 3], max_new_tokens=1000, end=None)
        assert len([next(stream) for _ in range(2)]) == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"max_new_tokens": 0},
            {"max_new_tokens": 1, "temperature": -1.0},
            {"max_new_tokens": 1, "temperature": float("nan")},
            {"max_new_tokens": 1, "top_p": 0.0},
            {"max_new_tokens": 1, "top_k": -2},
        ],
    )
    def test_wrong_parameters_are_named(self, tiny: Model, options: dict[str, float]) -> None:
        with pytest.raises(RunError, match=r"temperature|top_|max_new"):
            tiny.generate([1], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int32])
def test_ids_of_any_integer_type(tiny: Model, dtype: torch.dtype) -> None:
    ids = torch.tensor([[7, 200, 3], [1, 2, 255]])
    wide, narrow = tiny.new_cache(2, 4), tiny.new_cache(2, 4)
    assert torch.equal(tiny.prefill(ids.to(dtype), narrow), tiny.prefill(ids, wide))
    assert torch.equal(tiny.decode(ids[:, 0].to(dtype), narrow), tiny.decode(ids[:, 0], wide))
    assert list(tiny.generate(ids[0].to(dtype), max_new_tokens=2)) == list(tiny.generate(ids[0], max_new_tokens=2))


class TestErrors:
    """Every wrong input is one clear message, and leaves the cache as it was."""

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda m, c: m.prefill([[1, 272]], c), "272 is outside the vocabulary of 272"),
            (lambda m, c: m.prefill([[1, -1]], c), "-1 is outside"),
            (lambda m, c: m.prefill(torch.zeros(1, 0, dtype=torch.int64), c), "no ids"),
            (lambda m, c: m.prefill([], c), "no ids"),
            (lambda m, c: m(torch.zeros(0, 5, dtype=torch.int64)), "no ids"),
            (lambda m, c: m.prefill([[1] * 11], c), "holds 0 tokens and can't take 11"),
            (lambda m, c: [m.prefill([[1] * 10], c), m.decode([1], c)], "holds 10 tokens and can't take 1"),
            (lambda m, c: m.prefill([1, 2], c), r"ids of shape \[2\]"),
            (lambda m, c: m.decode([[1]], c), r"ids of shape \[1, 1\]"),
            (lambda m, c: m.prefill([[1.5]], c), "type torch.float32"),
            (lambda m, c: m.prefill([[True]], c), "type torch.bool"),
            (lambda m, c: m.prefill([[1, 2], [3]], c), "no table of integers"),
            (lambda m, c: m.prefill([[1], [2]], c), "2 sequences for a cache of 1"),
            (lambda m, c: m.prefill([[1]], c, slots=[1]), "no slot 1"),
            (lambda m, c: m.prefill([[1], [2]], c, slots=[0, 0]), "slot 0 is given twice"),
            (lambda m, c: m.prefill([[1]], c, slots=[0, 1]), "slots are not 1 integers"),
            (lambda m, c: m.prefill([[1, 2]], c, lengths=[3]), "length of 3"),
            (lambda m, c: m.prefill([[1, 2]], c, lengths=[0]), "length of 0"),
            (lambda m, c: m.prefill([[1, 2]], c, lengths=[1.5]), "lengths are not 1 integers"),
            (lambda m, c: m.prefill([[1, 2]], c, lengths=["a"]), "lengths are not 1 integers"),
            (lambda m, c: m.prefill([[1, 2]], c, lengths=[1j]), "lengths are not 1 integers"),
            (lambda m, c: m.prefill([[1]], c, slots=[None]), "slots are not 1 integers"),
            (lambda m, c: m.decode([1], c, slots=[[0]]), "slots are not 1 integers"),
            (lambda m, c: m.prefill(torch.tensor([[272]], dtype=torch.uint16), c), "272 is outside the vocabulary"),
            (lambda m, c: c.free(4), "no slot 4"),
            (lambda m, c: c.free([0, 1]), r"the slot is \[0, 1\]"),
            (lambda m, c: m.new_cache(0, 4), "holds nothing"),
            (lambda m, c: m.new_cache(1, 4.5), "max_len is 4.5"),
            (lambda m, c: m.generate([[1, 2]], max_new_tokens=1), r"ids of shape \[1, 2\]"),
            (lambda m, c: m.new_cache(1 << 20, 1 << 20), "of memory"),
        ],
    )
    def test_it_is_named(self, tiny: Model, call: Callable[[Model, ringc.Cache], object], message: str) -> None:
        cache = tiny.new_cache(1, 10)
        with pytest.raises(RunError, match=message) as caught:
            call(tiny, cache)
        assert caught.value.help
        assert cache.lengths.tolist() in ([0], [10])
        assert cache.lengths.tolist() == [10] or not any(s.any() for s in cache.states.values())
