"""`ringc bench`: what it prints and writes, and what it says of mistakes. Nothing here asserts a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringc.cli import plot
from ringc.runtime import baseline, bench, rates
from tests.cli.support import Here, check


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes seconds."""
    monkeypatch.setattr(rates, "measured_rates", lambda _device: rates.Rates(1e10, 1e11, "made up"))


def test_a_decode_step_is_shown_and_written(here: Here, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = here("bench", tiny, "--batch", "2", "--context", "30", "--rounds", "2", "--json", file)
    assert done.returncode == 0, done.stderr
    for said in ("ring-tiny for torch: decode, 2 sequences, 30 tokens before", "a second", "times the floor", "at 10.0 GB/s",
                 "of 16 touched in a layer", "of the process", "made up"):  # fmt: skip
        assert said in done.stdout
    data = json.loads(file.read_text())
    assert data["plan"] == {"entry": "decode", "batch": 2, "context": 30, "tokens": 1, "chunk": None, "rounds": 2}
    assert all(kernel["kernel"] in done.stdout for kernel in data["kernels"])
    assert data["rates"]["bytes_per_second"] == 1e10
    assert "baseline" not in data
    assert list(tmp_path.iterdir()) == [file]


def test_a_prefill_in_chunks_beside_plain_pytorch(here: Here, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    asked = ("--entry", "prefill", "--tokens", "12", "--chunk", "8", "--rounds", "1", "--baseline", "eager")
    done = here("bench", tiny, *asked, "--json", file)
    assert done.returncode == 0, done.stderr
    assert "prefill of 12 tokens in chunks of 8, 1 sequence, 0 tokens before" in done.stdout
    assert "PyTorch, eager" in done.stdout
    data = json.loads(file.read_text())
    assert data["baseline"]["largest"] < 1e-3
    assert data["baseline"]["ratio"] == pytest.approx(data["baseline"]["seconds"] / data["seconds"])


def test_kernels_are_profiled_last(here: Here, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's profiler slows down what the host launches behind it: of the plain model, and of the public call."""
    order: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            order.append(what)
            return function(*given, **named)

        return call

    monkeypatch.setattr(baseline, "measure_baseline", noted("baseline", baseline.measure_baseline))
    monkeypatch.setattr(bench, "_walls", noted("call", bench._walls))
    for what in ("time", "profile"):
        monkeypatch.setattr(bench._Measured, what, noted(what, getattr(bench._Measured, what)))
    asked = ("--entry", "prefill", "--tokens", "12", "--chunk", "8", "--rounds", "1", "--baseline", "eager")
    assert here("bench", tiny, *asked).returncode == 0
    assert order == ["baseline", "time", "time", "call", "profile", "profile"]


def test_a_chart_is_drawn(here: Here, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = here("bench", tiny, "--rounds", "1", "--png", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_needs_matplotlib(here: Here, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        plot, "find_spec", lambda name: None if name == "matplotlib" else importlib.util.find_spec(name)
    )
    done = here("bench", tiny, "--png", tmp_path / "out.png")
    check(done, "a chart needs matplotlib", None)
    assert "ringc[plots]" in done.stderr


@pytest.mark.parametrize(("asked", "message"), [
    (("--entry", "train"), "no entry point 'train'"),
    (("--entry", "prefill"), "needs to know how many tokens"),
    (("--tokens", "4"), "takes one token of each sequence"),
    (("--batch", "0"), "--batch is 0"),
    (("--context", "4096"), "more than the model's 4096 positions"),
    (("--baseline", "jit"), "no baseline 'jit'"),
    (("--weights", "random:x"), "names no random weights"),
])  # fmt: skip
def test_mistakes_are_explained(here: Here, tiny: Path, asked: tuple[str, ...], message: str) -> None:
    check(here("bench", tiny, *asked), message, None)


def test_what_can_t_be_written_is_said_before_anything_is_measured(here: Here, tiny: Path, tmp_path: Path) -> None:
    for option in ("--json", "--png"):
        for path in (tmp_path / "none" / "out", tmp_path):
            check(here("bench", tiny, option, path), f"no file can be written here for {option}", str(path))


def test_times_of_a_busy_machine_are_said_to_be(here: Here, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringc.runtime.timing.UNSTEADY", 0.5)
    done = here("bench", tiny, "--rounds", "1")
    assert done.returncode == 0
    assert "times of the step are unsteady" in done.stderr
