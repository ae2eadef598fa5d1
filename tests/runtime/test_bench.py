"""What `ringc bench` measures: floors against counts made by hand, times given to the right kernels. Nothing here asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ringc
from ringc.errors import CheckpointError, RingcError, RunError, ToolchainError, UsageError
from ringc.json_file import write_whole
from ringc.model_defs import load_spec
from ringc.runtime.baseline import check_baseline, measure_baseline
from ringc.runtime.bench import SEED, Plan, Report, measure, public_step
from ringc.runtime.cache import Cache, Key
from ringc.runtime.execute import Step
from ringc.runtime.floors import Run, Work, kernel_work, necessary_work, step_works
from ringc.runtime.machine import FIELDS, parsed_state
from ringc.runtime.model import Model
from ringc.runtime.rates import Rates
from ringc.runtime.timeline import Event, attributed
from ringc.runtime.weights import PublishedTensors
from tests.cli.support import SMALL
from tests.runtime.models import sharded

RATES = Rates(1e9, 1e12, "made up")
PLANS = [Plan("decode", 3, 40, rounds=2), Plan("prefill", 2, 8, 20, rounds=2), Plan("prefill", 2, 8, 20, 12, rounds=2)]


# -- floors


def test_a_kernel_reads_the_context_once_and_attends_causally() -> None:
    run = Run(batch=2, tokens=3, context=5, rows=2, takes_rows=True, distinct_ids=6)
    entry = {"bytes": "512*B*S + 4*N + R", "flops": "16*N*S + P"}
    # N = 6, S = 8; its three new tokens see 6, 7 and 8 rows
    assert kernel_work(entry, run) == Work(512 * 2 * 8 + 4 * 6 + 2, 16 * 2 * (6 + 7 + 8) + 2)


def test_experts_that_have_tokens_are_counted_in_place_of_those_that_can_have() -> None:
    run = Run(3, 1, 0, 3, takes_rows=False, distinct_ids=3)
    entry = {"bytes": "100*N + 10*min(16, 4*N) + 1", "flops": "0"}
    assert kernel_work(entry, run).bytes == 300 + 10 * 12 + 1
    assert kernel_work(entry, run, experts=5).bytes == 300 + 10 * 5 + 1


def test_experts_are_of_the_layer_that_routed_last() -> None:
    grouped = {"family": "grouped", "bytes": "min(4, N)", "flops": "N"}
    manifest = {"kernels": {"route": {"family": "route", "bytes": "0", "flops": "0"}, "grouped": grouped}}
    steps = [Step(name, lambda: None) for name in ("grouped", "route", "grouped", "copy", "route", "grouped")]
    run = Run(9, 1, 0, 9, takes_rows=False, distinct_ids=9, experts=(3, 2))
    assert [work.bytes for work in step_works(manifest, steps, run)] == [4, 0, 3, 0, 0, 2]


def test_weights_count_once_a_step_and_experts_and_rows_as_they_are_touched() -> None:
    prepare = {
        "dense": {"shape": [8, 4], "dtype": "bf16", "parts": [{}]},
        "stack": {"shape": [4, 8, 2], "dtype": "f32", "parts": [{"stack": 4}]},
        "table": {"shape": [100, 4], "dtype": "f32", "gathered": True, "parts": [{}]},
        "untouched": {"shape": [1000], "dtype": "f32", "parts": [{}]},
    }
    kernel = {"family": "matmul", "bytes": "0", "flops": "7*N"}
    manifest = {
        "kernels": {"k": kernel, "route": {**kernel, "family": "route"}},
        "prepare": prepare,
        "states": {"keys": {"shape": ["S", 2, 3], "dtype": "bf16"}, "state": {"shape": [5, 5], "dtype": "f32"}},
        "vocabulary": {"size": 100},
    }
    steps = [
        Step(name, lambda: None, weights)
        for name, weights in (("k", ("table",)), ("k", ("dense",)), ("route", ()), ("k", ("dense", "stack")))
    ]
    run = Run(batch=2, tokens=3, context=10, rows=2, takes_rows=True, distinct_ids=5, experts=(3,))
    weights = 8 * 4 * 2 + 3 * 8 * 2 * 4 + 5 * 4 * 4
    states = 2 * 13 * 6 * 2 + 2 * 2 * 25 * 4
    others = 4 * (6 + 6 + 2 + 3 + 2 + 3) + 4 * 2 * 100
    assert necessary_work(manifest, steps, run) == Work(weights + states + others, 4 * 7 * 6)


def test_the_floor_of_a_small_model_is_what_one_counts_by_hand(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    ringc.compile(tmp_path / "small.yaml", tmp_path / "small", target="torch")
    model = ringc.load(tmp_path / "small", "random:0")
    plan = Plan("decode", 2, 9, rounds=1)
    report = measure(model, plan, RATES)
    layer = 4 * 16 * 32 + 32 * 32 + 3 * 32 * 32 + 2 * 16 + 2 * 32
    frequencies = 8
    weights = layer + 32 + 256 * 32 + frequencies
    embedded = len(set(plan.ids(256).flatten().tolist())) * 32
    caches = 2 * 2 * 10 * 16
    numbers = 2 * 2 + 2 + 3
    logits = 2 * 256
    assert report.floor.bytes == 4 * (weights + embedded + caches + numbers + logits)
    products = 2 * 2 * (layer - 2 * 16 - 2 * 32 + 256 * 32)
    attention = 4 * 2 * 2 * 16 * 10
    assert products + attention < report.floor.flops < 1.05 * (products + attention)
    assert report.floor.seconds == pytest.approx(report.floor.bytes / 1e9)
    assert report.floor.kernels_seconds > report.floor.seconds
    assert report.experts is None


def test_of_a_prompt_the_last_layer_counts_for_the_wanted_rows(tmp_path: Path) -> None:
    """Here the only one: queries, keys and values of all tokens, and the rest of the last token of each sequence."""
    (tmp_path / "small.yaml").write_text(SMALL)
    ringc.compile(tmp_path / "small.yaml", tmp_path / "small", target="torch")
    model = ringc.load(tmp_path / "small", "random:0")
    report = measure(model, Plan("prefill", 2, 0, tokens=9, rounds=1), RATES)
    projections, behind = 4 * 16 * 32, 32 * 32 + 3 * 32 * 32 + 256 * 32
    products = 2 * (18 * projections + 2 * behind)
    assert products < report.floor.flops < 1.1 * products
    bound = model.bound(Key("prefill", 18, 2, 2), model.new_cache(2, 9))
    assert {step.rows for step in bound.steps} == {18, 2}


def test_experts_are_those_that_have_tokens_in_a_layer(tiny: Model) -> None:
    """Of the last layer, of which a prompt's last token alone is made, its own."""
    plan = Plan("prefill", 1, 0, tokens=9, rounds=1)
    cache = tiny.new_cache(1, 9)
    cache.draw(SEED)
    with tiny.record_routing() as calls:
        public_step(tiny, plan, cache, plan.ids(tiny.vocabulary["size"]))
    touched = [len(taken[taken >= 0].unique()) for taken in calls[0]]
    assert touched[-1] == 4 < touched[0]
    assert measure(tiny, plan, RATES).experts == sum(touched) / len(touched)


def test_a_step_names_the_weights_that_it_reads(tiny: Model) -> None:
    cache = tiny.new_cache(1, 4)
    bound = tiny.bound(Key("decode", 1, 1, 1), cache)
    read = {key for step in bound.steps for key in step.weights}
    assert read == set(tiny.artifact.manifest["prepare"])


# -- times


def test_device_work_belongs_to_the_step_before_its_marker() -> None:
    mark = "void at::cuda::(anonymous namespace)::spin_kernel(long)"
    events = [
        Event("matmul", 1.0, 3.0), Event("split", 3.0, 3.5), Event(mark, 4.0, 4.5), Event(mark, 5.0, 5.5),
        Event("Memcpy DtoD", 6.0, 6.25), Event(mark, 7.0, 8.0),
    ]  # fmt: skip
    assert attributed(reversed(events), 3) == [2.5, 0.0, 0.25]
    with pytest.raises(ToolchainError, match="saw 3 of 4 steps"):
        attributed(events, 4)


@pytest.fixture(scope="module", params=PLANS, ids=["decode", "prefill", "chunks"])
def report(request: pytest.FixtureRequest, tiny: Model) -> Report:
    return measure(tiny, request.param, RATES)


def test_every_launch_of_a_step_is_in_the_table(report: Report, tiny: Model) -> None:
    plan = report.plan
    cache = tiny.new_cache(plan.batch, plan.length)
    launched = 0
    for start, stop in plan.chunks:
        key = Key(plan.entry, plan.batch * (stop - start), plan.batch, plan.batch)
        launched += len(tiny.bound(key, cache).steps)
    assert sum(kernel.count for kernel in report.kernels) == launched
    assert sum(kernel.share for kernel in report.kernels) == pytest.approx(1)
    assert sum(kernel.floor for kernel in report.kernels) == pytest.approx(report.floor.kernels_seconds)
    assert [k.seconds for k in report.kernels] == sorted((k.seconds for k in report.kernels), reverse=True)
    assert 0 < report.shortest <= report.seconds
    assert report.call_seconds > 0
    assert report.tokens_per_second == pytest.approx(plan.new_tokens / report.seconds)


def test_touched_experts_are_at_least_a_token_s_and_at_most_all(report: Report) -> None:
    assert report.experts is not None
    assert 4 <= report.experts <= min(16, 4 * report.plan.new_tokens)


def test_all_numbers_are_data(report: Report) -> None:
    data = json.loads(json.dumps(report.as_data(), allow_nan=False))
    assert data["ratio_to_floor"] == pytest.approx(data["seconds"] / data["floor"]["seconds"])
    assert data["kernels"][0]["kernel"] == report.kernels[0].kernel
    assert data["machine"]["torch"] == torch.__version__


def test_chunks_cover_a_prompt() -> None:
    assert Plan("prefill", 1, 5, 20, 12).chunks == [(0, 12), (12, 20)]
    assert Plan("prefill", 1, 5, 20).chunks == [(0, 20)]


@pytest.mark.parametrize(("plan", "message"), [
    (Plan("train", 1, 0), "no entry point 'train'"), (Plan("decode", 0, 0), "--batch is 0"),
    (Plan("decode", 1, -1), "--context is -1"), (Plan("prefill", 1, 0, 0), "--tokens is 0"),
    (Plan("prefill", 1, 0, 4, 0), "--chunk is 0"), (Plan("decode", 1, 0, rounds=0), "--rounds is 0"),
    (Plan("decode", 1, 0, 2), "takes one token"), (Plan("decode", 1, 0, 1, 1), "takes one token"),
    (Plan("prefill", 1, 60, 5), "more than the model's 64 positions"),
])  # fmt: skip
def test_what_can_t_be_measured_is_said(plan: Plan, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan.check(64)


# -- caches that were not computed


def test_a_cache_pretends(tiny: Model) -> None:
    cache = tiny.new_cache(2, 8)
    cache.pretend(7)
    assert cache.lengths.tolist() == [7, 7]
    for wrong in (-1, 9):
        with pytest.raises(RunError, match="no slot holds"):
            cache.pretend(wrong)


def test_drawn_caches_are_equal_for_equal_seeds_and_pools_differ(tiny: Model) -> None:
    def drawn(seed: int) -> Cache:
        cache = tiny.new_cache(2, 8)
        cache.draw(seed)
        return cache

    one, same, other = drawn(0), drawn(0), drawn(1)
    for name, state in one.states.items():
        assert torch.equal(state, same.states[name])
        assert not torch.equal(state, other.states[name])
        assert state.isfinite().all()
        assert 0.8 < state.std() < 1.2
    assert not torch.equal(one.states["layers.0.state"], one.states["layers.1.state"])


# -- plain PyTorch beside it


def test_the_baseline_computes_the_same_function(report: Report, tiny: Model) -> None:
    manifest = tiny.artifact.manifest
    cpu = torch.device("cpu")
    weights = PublishedTensors(manifest["prepare"], "random:0", cpu)
    rest = (manifest["states"], torch.float32, cpu, report.plan)
    found = measure_baseline("eager", load_spec("ring-tiny"), weights, *rest)
    largest, typical = found.off(report.log_probabilities)
    assert largest < 1e-3
    assert typical < 1e-5
    shifted = report.log_probabilities.clone()
    shifted[:, 0] += 1
    assert found.off(shifted)[0] == pytest.approx(1, abs=1e-3)
    assert found.off(report.log_probabilities + 2)[1] == pytest.approx(2, abs=1e-3)
    assert 0 < found.shortest <= found.seconds
    assert "float32" in found.how


def test_a_baseline_that_there_isn_t_is_refused() -> None:
    spec = load_spec("ring-tiny")
    with pytest.raises(UsageError, match="no baseline 'jit'"):
        check_baseline("jit", spec)
    with pytest.raises(UsageError, match="FP8 products"):
        check_baseline("eager", spec.model_copy(update={"fp8": object()}))


def test_published_tensors_are_those_that_the_model_has(tiny: Model, tmp_path: Path) -> None:
    prepare, cpu = tiny.artifact.manifest["prepare"], torch.device("cpu")
    right = tiny.state_dict()
    files = sharded(tmp_path / "published", right)
    for source in ("random:0", files, right):
        found = PublishedTensors(prepare, source, cpu)
        assert set(found) == set(right)
        assert found.elements == tiny.artifact.manifest["facts"]["parameters"]
        assert all(torch.equal(found[name], right[name]) for name in right)
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        PublishedTensors(prepare, {}, cpu)
    with pytest.raises(UsageError, match="names no random weights"):
        PublishedTensors(prepare, "random:x", cpu)


# -- what stands beside the numbers


def test_what_a_gpu_doesn_t_say_is_unknown() -> None:
    found = parsed_state("570.86.15, 1980 MHz, 2619 MHz, 612.30 W, [N/A]\n")
    assert found["SM clock"] == "1980 MHz"
    assert found["power"] == "612.30 W"
    assert found["power limit"] == "unknown"
    for nothing in ("", "No devices were found\n"):
        assert parsed_state(nothing) == dict.fromkeys(FIELDS, "unknown")


def test_rates_bound_by_bytes_or_operations() -> None:
    assert RATES.seconds(2e9, 1e12) == 2.0
    assert RATES.seconds(1e9, 3e12) == 3.0


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"one", "the report", UsageError, "choose another")
    write_whole(path, b"two", "the report", UsageError, "choose another")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(RingcError, match="the report can't be written"):
        write_whole(tmp_path / "none" / "a.json", b"", "the report", UsageError, "choose another")
