"""Memory is asked for before it is taken, and what is said when there isn't enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ringc
from ringc.errors import RunError
from ringc.runtime import memory, weights
from ringc.runtime.cache import cache_bytes
from ringc.runtime.model import Model

CPU = torch.device("cpu")


def limit(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From here on, so many bytes are free."""
    for module in (memory, weights):
        monkeypatch.setattr(module, "available_bytes", lambda _device: count)


def test_a_cache_takes_what_was_computed(tiny: Model) -> None:
    for batch, longest in ((1, 1), (3, 50)):
        assert cache_bytes(tiny.artifact.manifest["states"], batch, longest) == tiny.new_cache(batch, longest).bytes


def test_room_is_asked_for_together_with_the_weights(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 6_000_000)
    ringc.load(tiny_folder, "random:0", room=100_000)
    with pytest.raises(
        RunError, match=r"weights \(5\.\d MB\) and the cache \(2\.0 MB\) need 7\.\d MB .* 6\.0 MB are"
    ) as caught:
        ringc.load(tiny_folder, "random:0", room=2_000_000)
    assert "--weights-dtype bf16" in str(caught.value.help)
    with pytest.raises(RunError) as caught:
        ringc.load(tiny_folder, "random:0", room=200_000_000)
    assert "fewer tokens" in str(caught.value.help)


@pytest.mark.parametrize(
    ("free", "what"), [(1000, "logits of 40 tokens need 43.5 kB"), (50_000, "the intermediate results need")]
)
def test_a_call_says_what_it_lacks(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, what: str) -> None:
    model = ringc.load(tiny_folder, "random:0")
    cache = model.new_cache(1, 40)
    limit(monkeypatch, free)
    with pytest.raises(RunError, match=what) as caught:
        model.prefill([[1] * 40], cache, all_logits=True)
    assert "shorter part of the prompt" in str(caught.value.help)
    assert cache.lengths.tolist() == [0]
    monkeypatch.undo()
    assert model.prefill([[1] * 40], cache, all_logits=True).isfinite().all()


def test_pages_of_files_are_free_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("_LIMIT", "1000000\n"),
        ("_USED", "900000\n"),
        ("_DETAILS", "anon 500000\ninactive_file 300000\nactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_bytes(CPU) == 450_000
    (tmp_path / "_LIMIT").write_text("max\n")
    assert memory.available_bytes(CPU) > 1_000_000
