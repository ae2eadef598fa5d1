"""Steps of a decoder on a GPU: one graph, no allocation, no waiting, and what a sequence makes doesn't depend on the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ringc
from ringc.runtime.decoding import Decoder
from ringc.runtime.model import Model
from ringc.runtime.sample import Kind, Parameters, Sampling, draw
from tests.runtime.sequences import SAMPLINGS, alone, assert_equal, together
from tests.runtime.test_sample import LIMITS, token_by_sorting
from tests.runtime.test_uniform import by_whole_numbers

STEPS = 50
WAITS = ("Synchronize", "cudaMalloc", "cudaFree", "cudaHostAlloc", "cuMemAlloc", "cudaMemcpy")
"""In the names of CUDA's calls that wait for the device or allocate. A copy on the device is a part of the graph."""


pytestmark = pytest.mark.usefixtures("_as_users_run")


@pytest.fixture
def _as_users_run() -> Iterator[None]:
    """Without the deterministic mode that poisons memory in tests: it takes other kernels, and fills what is allocated."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_thousand_steps_of_joins_and_leaves_equal_the_sequences_alone(model: Model, batch: int) -> None:
    steps = 1000 if batch == 5 else 300
    sequences = together(model, batch, steps, seed=batch)
    assert_equal(sequences, alone(model, batch, sequences))


def entered(model: Model, batch: int, sampling: Sampling, room: int = 512) -> tuple[ringc.Cache, Decoder]:
    """A decoder whose even rows hold sequences."""
    cache = model.new_cache(batch, room)
    decoder = model.decoder(cache, batch)
    for row in range(0, batch, 2):
        enter(model, cache, decoder, row, sampling)
    return cache, decoder


def enter(model: Model, cache: ringc.Cache, decoder: Decoder, row: int, sampling: Sampling) -> None:
    decoder.enter(row, row, model.prefill([[row % 250 + 1, 2, 3]], cache, slots=[row]), sampling, seed=row)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, Sampling(1.0, top_k=2000)])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_a_step_neither_allocates_nor_waits(model: Model, batch: int, sampling: Sampling) -> None:
    _, decoder = entered(model, batch, sampling)
    for _ in range(3):
        decoder.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS):
            decoder.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for what in ("allocation.all.allocated", "segment.all.allocated", "reserved_bytes.all.allocated"):
        assert after[what] == before[what], what
    assert len(decoder._captured) == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=20, top_p=0.9), Sampling(1.0, top_p=0.9)])
def test_the_profiler_sees_graph_launches_alone(model: Model, sampling: Sampling) -> None:
    _, decoder = entered(model, 16, sampling)
    for _ in range(3):
        decoder.step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        decoder.step()
        for _ in range(STEPS):
            decoder.step()
        torch.cuda.synchronize()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    launches = [i for i, event in enumerate(events) if event.name == "cudaGraphLaunch"]
    assert len(launches) == STEPS + 1
    between = [event.name for event in events[launches[0] : launches[-1]]]
    waited = [name for name in between if name.startswith("cu") and any(word in name for word in WAITS)]
    assert not waited


def test_sequences_join_and_leave_without_a_capture_or_a_wait(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is prefilled beforehand, as it waits for its own logits to be copied; joining and leaving don't."""
    cache, decoder = entered(model, 8, Sampling(0.8, top_k=20))
    waiting = {row: model.prefill([[row, 2, 3]], cache, slots=[row]) for row in (1, 3, 5, 7)}
    decoder.step()
    captures: list[object] = []
    graphs = model._arena.graphs
    assert graphs is not None
    captured = graphs.captured

    def counted(*args: object) -> torch.cuda.CUDAGraph:
        captures.append(args)
        return captured(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "captured", counted)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row, logits in waiting.items():
            decoder.leave(row - 1)
            decoder.enter(row, row, logits, Sampling(0.7, top_k=row), seed=row)
            for _ in range(3):
                decoder.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not captures
    assert len(decoder._captured) == 1
    assert (decoder.step() >= 0).tolist() == [False, True] * 4


def test_a_larger_prompt_moves_nothing_that_a_graph_uses(model: Model) -> None:
    """The arena grows between steps: the decoder keeps the one that its graph was made with."""

    def tokens(prompt: int) -> list[list[int]]:
        _, decoder = entered(model, 4, Sampling(1.0))
        made = [decoder.step().tolist()]
        before = model._arena.generation
        ids = torch.randint(model.vocabulary["size"], (1, prompt), generator=torch.Generator().manual_seed(0))
        model.prefill(ids, model.new_cache(1, prompt))
        assert prompt == 1 or model._arena.generation > before
        junk = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
        made += [decoder.step().tolist() for _ in range(10)]
        del junk
        return made

    wanted = tokens(1)
    assert tokens(4096) == wanted


def test_steps_equal_launches_one_by_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens() -> list[list[int]]:
        _, decoder = entered(model, 6, Sampling(0.9, top_k=40, top_p=0.95))
        return [decoder.step().tolist() for _ in range(20)]

    replayed = tokens()
    monkeypatch.setattr(model._arena, "graphs", None)
    assert tokens() == replayed


def test_torch_s_deterministic_mode_changes_nothing(model: Model) -> None:
    """It adds up histograms in another way; they are of whole numbers."""

    def tokens() -> list[list[int]]:
        _, decoder = entered(model, 6, Sampling(0.9, top_k=1030, top_p=0.95))
        return [decoder.step().tolist() for _ in range(10)]

    wanted = tokens()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert tokens() == wanted


def test_many_steps_may_be_started_before_one_is_read(model: Model) -> None:
    _, first = entered(model, 6, Sampling(1.0))
    wanted = [first.step().tolist() for _ in range(60)]
    _, second = entered(model, 6, Sampling(1.0))
    for _ in range(60):
        second.step()
    assert second.history[:60].tolist() == wanted


def test_generated_tokens_repeat(model: Model) -> None:
    def text(seed: int) -> list[int]:
        return list(model.generate([1, 2, 3], max_new_tokens=20, temperature=1.0, top_p=0.9, seed=seed, end=None))

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize("size", [272, 157184])
def test_every_kind_draws_what_a_sort_draws(size: int, generator: torch.Generator) -> None:
    """As on the CPU, whose exponentials differ in the last bit: here the sort is of the GPU's."""
    samplings = [Sampling(), *LIMITS]
    logits = ((torch.randn(len(samplings), size, generator=generator) * 24).round() / 8).cuda()
    uniforms = torch.rand(len(samplings), dtype=torch.float64, generator=generator)
    wanted = [
        token_by_sorting(row, s, float(u)) if s.temperature else int(row.argmax())
        for row, s, u in zip(logits, samplings, uniforms, strict=True)
    ]
    rows = Parameters.of(samplings, logits.device)
    assert draw(logits, rows, uniforms.cuda(), Kind.ALL).tolist() == wanted
    for i, sampling in enumerate(samplings):
        one = Parameters(*(p[i : i + 1] for p in rows))
        made = draw(logits[i : i + 1], one, uniforms[i : i + 1].cuda(), Kind.of([sampling]))
        assert made.tolist() == [wanted[i]], sampling


def test_the_hash_is_the_same_on_the_gpu() -> None:
    from ringc.runtime.uniform import stream_of, uniform

    stream = stream_of(5)
    made = uniform(torch.tensor([stream] * 3, device="cuda"), torch.tensor([0, 1, 70000], device="cuda"))
    assert made.tolist() == [by_whole_numbers(stream, count) for count in (0, 1, 70000)]
