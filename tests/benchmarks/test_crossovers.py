"""The crossovers of decisions on a GPU: what is predicted, how inputs are arranged, what the table says of times. Nothing runs on a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import crossovers
from benchmarks.crossovers import Measured, check_equal, measure, summary
from benchmarks.decisions import CONTEXT, Decision, arrange, decisions
from ringc.codegen.inputs import Inputs
from ringc.passes.device import Device
from ringc.passes.schedules.linear_attention import Problem, switch_length
from ringc.passes.target import described, target
from tests.benchmarks.test_commands import run

SM_90 = target("sm_90")


@pytest.fixture(scope="module")
def found() -> list[Decision]:
    return decisions(SM_90)


def test_every_decision_has_two_ways_and_kernels_of_their_own_names(found: list[Decision]) -> None:
    names = [way.kernel.name for one in found for way in (one.first, one.second)]
    assert len(set(names)) == len(names)
    assert all(one.first.name != one.second.name for one in found)
    assert {one.why for one in found} == {"solved", "stated"}
    assert all(list(one.counts) == sorted(set(one.counts)) for one in found)


def test_the_predictions_are_the_scheduler_s(found: list[Decision]) -> None:
    problem = Problem(16, 128, 128, 2, 0.7)
    for one, sequences in zip(found[:2], (1, 16), strict=True):
        switch = switch_length(problem, SM_90, sequences)
        assert switch is not None and one.predicted is not None
        assert switch <= one.predicted <= switch + 1
    dear = Device("sm_90", "slow to start", SM_90.bandwidth, SM_90.matrix_rate, SM_90.vector_rate, 5e-5, SM_90.width)
    later = decisions(described(SM_90, dear))
    assert (later[0].predicted or 0) > 2 * (found[0].predicted or 0)


def test_sizes_are_of_sequences_rows_or_tokens(found: list[Decision]) -> None:
    single, sixteen, *_, attention = found
    assert (single.sizes(64)["N"], single.sizes(64)["B"]) == (64, 1)
    assert (sixteen.sizes(64)["N"], sixteen.sizes(64)["B"]) == (1024, 16)
    assert attention.sizes(24) == {"N": 24, "B": 24, "P": 24, "S": CONTEXT, "R": 24}


def test_sequences_and_experts_are_shared_out(found: list[Decision]) -> None:
    sixteen, attention = found[1], found[-1]
    for one, lengths in ((sixteen, [3] * 16), (attention, [1] * 3)):
        sizes = one.sizes(3) | {"S": 8}
        inputs = Inputs(one.first.kernel.function.body, sizes, 1, one_each=False).all()
        arrange(one.first.kernel, inputs, sizes)
        by_name = dict(zip((a.name for a in one.first.kernel.function.body.args), inputs, strict=True))
        assert by_name["offsets"].diff().tolist() == lengths
        assert by_name["slots"].tolist() == list(range(len(lengths)))
        if one is attention:
            assert by_name["positions"].tolist() == [7, 7, 7]


def times(one: Decision, counts: list[int], first: list[float], second: list[float]) -> Measured:
    return Measured(replace(one, counts=tuple(counts), predicted=4), counts, first, second)


def test_what_the_prediction_loses_is_against_the_faster_way(found: list[Decision]) -> None:
    counts = [1, 2, 4, 8]
    late = times(found[0], counts, [1.0, 4.0, 4.0, 8.0], [2.0, 2.0, 2.0, 2.0])
    assert late.loss == (2.0, 2)
    assert late.crossover is not None and 1 < late.crossover < 2
    never = times(found[0], counts, [1.0] * 4, [3.0] * 4)
    assert (never.crossover, never.loss) == (None, (3.0, 8))
    assert Measured(found[0]).loss is None
    text = summary([late, never, Measured(found[0])])
    assert text.count("| not measured |") == 1
    assert "2.00x at 2" in text and "| never " in text and "4 (solved)" in text


def test_ways_that_differ_end_the_run(found: list[Decision]) -> None:
    a = torch.randn(100)
    check_equal(found[0], 1, [a], [a.bfloat16()])
    for wrong in (a * 1.05, a * float("nan")):
        with pytest.raises(SystemExit, match=r"linear_recurrent and .* differ by .* at 1 tokens each"):
            check_equal(found[0], 1, [a, a], [a, wrong])


def test_sizes_for_which_there_is_no_time_are_left_out(
    found: list[Decision], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 11.0])
    monkeypatch.setattr("benchmarks.crossovers.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(crossovers, "run_once", lambda _way, _kernels, sizes: (sizes["N"] * 1e-6, [torch.ones(3)]))
    made = measure(found[0], None, 10.0)  # type: ignore[arg-type]
    assert (made.counts, made.first) == ([1, 2], [1e-6, 2e-6])
    assert "no time left for 4 tokens each and more" in capsys.readouterr().out


def test_predictions_need_no_gpu(tmp_path) -> None:
    printed, result = run(tmp_path, "crossovers", "--predict")
    assert "not measured" in printed and "predictions by the constants of target sm_90" in printed
    assert len(result["decisions"]) == printed.count("not measured")
    assert all(one["measured"] is None and one["counts"] == [] for one in result["decisions"])
