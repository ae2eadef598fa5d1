"""Steps of a program that are timed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ringc
from benchmarks import gpu
from benchmarks.part import part_of
from ringc.runtime.cache import Key
from ringc.runtime.execute import Bound, Step
from tests.runtime.models import compiled


def test_every_part_is_made_for_the_first_token_of_its_sequences(tmp_path: Path) -> None:
    """Were the states of a part's run left to the next one, that would choose other experts."""
    model = ringc.load(compiled("ring-tiny", tmp_path / "tiny"), "random:0")
    inputs = {"ids": range(4), "positions": [0] * 4, "slots": range(4), "offsets": range(5)}

    def last_two(bound: Bound) -> tuple[int, int]:
        return len(bound.steps) - 2, len(bound.steps)

    parts = [part_of(model, Key("decode", 4, 4, 4, True), 8, inputs, last_two) for _ in range(2)]
    whole = model.bound(Key("decode", 4, 4, 4, True), model.new_cache(4, 8))
    for part in parts:
        assert [step.kernel for step in part.steps] == [step.kernel for step in whole.steps[-2:]]
    logits = [part.logits.clone() for part in parts]
    assert torch.equal(*logits)
    parts[1].logits.fill_(float("nan"))
    parts[1].launch()
    assert torch.equal(parts[1].logits, logits[0])


def test_a_part_is_timed_as_the_graph_that_the_model_would_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `Graphs`, which has a second branch for steps that may run beside others, and not by a graph of its own."""
    did: list[str] = []

    class Graph:
        def replay(self) -> None:
            did.append("replay")

    class Graphs:
        capturing = False

        def captured(self, launch: Callable[[], None]) -> Graph:
            did.append("capture")
            return Graph()

    def cold_seconds(call: Callable[[], object], _repetitions: int) -> float:
        did.append("overwrite")
        call()
        return 3e-6

    monkeypatch.setattr(gpu, "cold_seconds", cold_seconds)
    part = Bound(None, torch.empty(0), [Step("a", lambda: did.append("launch"))], [], [], 0, Graphs())  # type: ignore[arg-type]
    assert gpu.part_microseconds(replace(part)) == pytest.approx(3)
    assert did == ["launch", "capture", "replay", "overwrite", "replay"]
