"""What the benchmarks compute from their measurements."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks import common
from benchmarks.common import Times, measured_crossover, table, write_section
from benchmarks.cpu import middle_half, ratios_by_turn, verdict_of
from benchmarks.cpu_reference import prefill_flops, touched_bytes
from benchmarks.linear_attention import lengths_around
from benchmarks.parity import Difference, Noise, Parity, Parted, Readings, Result, difference, report, ways
from ringc.model_defs import load_spec
from ringc.model_defs.parameters import active_parameter_count, parameter_count
from ringc.runtime.peer.linear import decays, linear_prefill
from tests.reference.ring_linear import linear_attention_recurrent


def test_times_are_medians_of_medians():
    times = Times((1.0, 1.5, 1.1), 0.7)
    assert times.median == 1.1
    assert times.spread == pytest.approx(0.5 / 1.1)


def test_a_turn_is_compared_with_the_peer_that_was_fastest_in_it():
    own, peers = Times((1.0, 2.0, 1.0), 1.0), [Times((3.0, 8.0, 2.0), 2.0), Times((4.0, 6.0, 5.0), 4.0)]
    assert ratios_by_turn(own, peers) == [3.0, 3.0, 2.0]


@pytest.mark.parametrize("write", [False, True])
def test_a_benchmark_ends_with_its_text_its_numbers_and_its_section_where_that_is_wanted(
    tmp_path, monkeypatch, capsys, write
):
    sections = []
    monkeypatch.setattr(common, "write_section", lambda *given: sections.append(given))
    file = tmp_path / "numbers.json"
    given = common.options("cpu", "what").parse_args(["--json", str(file), *["--write"] * write])
    common.deliver("cpu", "a table", {"times": [1.5]}, given)
    said = capsys.readouterr()
    assert said.out == "a table\n"
    assert f"written: {file}" in said.err
    assert json.loads(file.read_text()) == {"times": [1.5]}
    assert sections == [("cpu", "a table")] * write


@pytest.mark.parametrize(("ratios", "said"), [
    ([3.0] * 9 + [1.0], "reached"), ([2.6], "reached"),
    ([3.0] * 6 + [1.0] * 4, "turns too unequal to say"), ([3.0] * 2 + [1.0] * 8, "missed"),
])  # fmt: skip
def test_a_goal_is_reached_if_three_quarters_of_the_turns_say_so(ratios, said):
    assert verdict_of(statistics.median(ratios), middle_half(ratios), 2.5) == said


@pytest.mark.parametrize("at", [6.0, 100.0, 1500.0])
def test_a_crossover_is_found_between_the_lengths_tried(at):
    lengths = [2**i for i in range(13)]
    found = measured_crossover(lengths, [n * 1.5 for n in lengths], [n + at / 2 for n in lengths])
    assert at / 1.2 < found < at * 1.2


def test_one_disturbed_time_moves_no_crossover():
    lengths = [2**i for i in range(13)]
    recurrent, chunked = [n * 1.5 for n in lengths], [n + 8.0 for n in lengths]
    before = measured_crossover(lengths, recurrent, chunked)
    chunked[9] *= 3
    assert measured_crossover(lengths, recurrent, chunked) == before


def test_a_form_that_never_wins_has_no_crossover():
    assert measured_crossover([1, 2, 4], [1.0, 2.0, 4.0], [2.0, 3.0, 5.0]) is None
    assert measured_crossover([1, 2, 4], [2.0, 3.0, 5.0], [1.0, 2.0, 4.0]) == 1


def test_lengths_are_dense_around_the_prediction():
    found = lengths_around(100)
    assert {50, 100, 200, 1, 4096} <= set(found)
    assert found == sorted(found)


def test_the_floor_counts_what_is_read():
    spec = load_spec("ring-small")
    assert spec.moe is not None and spec.softmax is not None
    every = len(spec.moe_layers) * spec.moe.experts
    embedding = spec.vocabulary.size * spec.hidden
    states = 2 * len(spec.linear_layers) * spec.heads * spec.head_dim**2
    rows = len(spec.softmax_layers) * 2 * spec.softmax.kv_heads * spec.head_dim * 512
    assert touched_bytes(spec, 1, every) == 4 * (parameter_count(spec) - embedding + spec.hidden + states + rows)
    few = len(spec.moe_layers) * spec.moe.top_k
    assert touched_bytes(spec, 1, few) < touched_bytes(spec, 1, every) / 2


def test_the_floor_of_a_prompt_counts_the_last_layer_for_its_last_token():
    spec = load_spec("ring-small")
    assert spec.moe is not None and spec.softmax is not None
    width, hidden, last = spec.attention_width, spec.hidden, spec.layers.count - 1
    kv = 2 * spec.softmax.kv_heads * spec.head_dim
    assert spec.layer_kind(last) == "softmax" and spec.mlp_kind(last) == "moe"
    mlp = 3 * hidden * (spec.moe.top_k * spec.moe.width + spec.moe.total_shared_width) + hidden * spec.moe.experts
    behind = width * hidden + mlp
    attention = 2 * 2048**2 * width * (len(spec.softmax_layers) - 1)
    recurrence = 5 * 2048 * width * spec.head_dim * len(spec.linear_layers)
    counted = (prefill_flops(spec, 2048) - attention - recurrence) / (2 * 2048)
    assert counted == pytest.approx(active_parameter_count(spec) - behind, rel=1e-3)
    assert kv * hidden < counted, "keys and values of all tokens are kept"


def test_a_difference_is_of_the_next_token_and_of_the_likeliest():
    wanted = Readings(torch.zeros(100), torch.zeros(100, 3), torch.zeros(100, 3, dtype=torch.long))
    off = torch.linspace(0, -0.99, 100)
    found = difference(replace(wanted, next=off, likely=torch.full((100, 3), 0.25)), wanted)
    assert found.mean == pytest.approx(0.495)
    assert found.largest == pytest.approx(0.99)
    assert found.p99 == pytest.approx(0.99 * 0.99, abs=1e-3)
    assert found.largest_likely == 0.25


@pytest.mark.parametrize(("shortfall", "said"), [(0.03, "within the noise"), (0.05, "not explained by the noise")])
def test_flips_are_held_against_the_noise(shortfall, said):
    """Four errors of at most 0.01 explain a shortfall of 0.04."""
    off = Difference(0.01, 0.03, 0.06, 0.3)
    parted = Parted(0.01, 7, 2, shortfall), Parted(0.02, 9, 3, 0.001)
    for same, free in (parted, parted[::-1]):
        found = Parity(off, [Result("chunks", off, off, same, free, Noise(0.001, 0.005, 0.01))], errors=4)
        assert said in report(found)
        assert "0.06; goal 0.05: missed, aim 0.01: missed." in report(found)
        assert "0.01; goal 0.02: reached, aim 0.005: missed." in report(found)


@pytest.mark.parametrize(("tokens", "counts"), [(12, [5, 5, 2]), (10, [5, 5]), (3, [3])])
def test_chunks_add_up_to_the_text(tokens, counts):
    assert [way.counts for way in ways(tokens, 5)] == [[tokens], counts, [1] * tokens]


def test_a_section_of_the_page_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n")
    write_section("x", table(["a", "b"], [["1", "22"]]), page)
    assert page.read_text() == "before\n<!-- x -->\n| a | b  |\n|---|----|\n| 1 | 22 |\n<!-- /x -->\nafter\n"
    with pytest.raises(ValueError, match="no place for 'y'"):
        write_section("y", "", page)


@pytest.mark.parametrize("tokens", [1, 64, 65, 200, 4100])
def test_the_peers_blocks_are_the_recurrence(tokens, generator):
    q, k, v = (torch.randn(1, tokens, 3, 16, generator=generator) for _ in range(3))
    state = torch.randn(1, 3, 16, 16, generator=generator)
    slopes = torch.tensor([2.5, 0.3, 0.001])
    o, after = linear_prefill(q, k, v, state, decays(slopes, tokens, 0.25))
    right = linear_attention_recurrent(q[0].double(), k[0].double(), v[0].double(), slopes.double(), state[0].double())
    torch.testing.assert_close(o[0].double(), right[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[0].double(), right[1], rtol=1e-4, atol=1e-4)
