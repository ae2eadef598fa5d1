"""`ringc tune`: what it measures becomes a record that a compile goes by; what is wrong does not. Nothing here asserts a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ringc import api
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel, Source
from ringc.errors import RecordError, ToolchainError, UsageError
from ringc.passes.choices import Choice
from ringc.passes.record import Entry, Record, load_record
from ringc.passes.target import Target, target
from ringc.runtime import alone, tune
from ringc.runtime.here import device_name
from ringc.runtime.timing import Timer
from tests.cli.support import SMALL, Here, contents

pytest.importorskip("tvm")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.004)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def tuned(spec: Path) -> Iterator[tuple[Path, list[tune.Tuned]]]:
    """A record of prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "SECONDS", 0.004)
        record = spec.parent / "record.json"
        yield record, api.tune(spec, record, entry="prefill")


def test_every_legal_candidate_is_measured(tuned: tuple[Path, list[tune.Tuned]]) -> None:
    path, found = tuned
    record = load_record(path, "cpu")
    assert record.device == device_name(target("cpu"))
    families = {e.region.split()[0] for e in record.entries.values()}
    assert families == {"matmul", "attention", "library", "row"}
    for one in found:
        assert len(one.options) > 1
        assert one.fastest is not None
        assert any(option.name.startswith("library: ") for option in one.options)
    assert {dict(one.sizes).get("N") for one in found} == {8, 512, None}  # None: of the wanted rows alone


def test_a_compile_goes_by_it_and_is_the_same_twice(
    spec: Path, tuned: tuple[Path, list[tune.Tuned]], tmp_path: Path, here: Here
) -> None:
    # Hand-made: the library always wins, which the model would never say.
    record = load_record(tuned[0], "cpu")
    bad = [
        replace(e, seconds=1.0 if "matmul" in e.implementation else 1e-9)
        for e in record.entries.values()
        if "attention" not in e.region
    ]
    for name in ("one.json", "two.json"):
        record.merged(bad).save(tmp_path / name)
    first = api.compile(spec, tmp_path / "a", record=tmp_path / "one.json")
    api.compile(spec, tmp_path / "b", record=tmp_path / "two.json")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    plain = api.compile(spec, tmp_path / "c")

    def calls(manifest: object) -> int:
        assert isinstance(manifest, dict)
        return sum(k["implementation"] == "torch.library" for k in manifest["kernels"].values())

    assert calls(plain.manifest) == 0
    assert calls(first.manifest) > 3
    assert first.manifest["record"]["sha256"] == load_record(tmp_path / "one.json", "cpu").sha256
    assert "record" not in plain.manifest
    assert plain.measured == 0 < first.measured
    text = here("explain", tmp_path / "a", "schedule").stdout
    assert "1 ns" in text
    assert f"measured by the tuning record of {record.device}" in text
    assert "measured by" not in here("explain", tmp_path / "c", "schedule").stdout


def test_what_is_there_is_kept(spec: Path, tuned: tuple[Path, list[tune.Tuned]], tmp_path: Path) -> None:
    old = load_record(tuned[0], "cpu")
    stale = next(e for e in old.entries.values() if e.region.startswith("matmul"))
    other = Entry("matmul 0000", "of another model", (("N", 8),), "tvm.matmul{rows=1,block=32}", 1.0)
    path = tmp_path / "record.json"
    Record("cpu", old.device).merged([other, replace(stale, seconds=123.0)]).save(path)
    api.tune(spec, path, entry="prefill")
    again = load_record(path, "cpu")
    assert again.entries.keys() == {*old.entries, other.key}
    assert again.entries[other.key] == other
    assert again.entries[stale.key].seconds != 123.0


def test_a_wrong_kernel_is_never_recorded(
    spec: Path, tuned: tuple[Path, list[tune.Tuned]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    path = tmp_path / "record.json"
    old = load_record(tuned[0], "cpu")
    old.save(path)  # from a time when it was right

    def wrong(kernel: Kernel, target: Target) -> Source:
        source = emit(kernel, target)
        return replace(source, text=source.text.replace("out=out)", "out=out)\n    out.mul_(1.01)"))

    monkeypatch.setattr(alone, "emit", wrong)
    done = here("tune", spec, "-o", path, "--entry", "prefill")
    assert done.returncode == 1
    assert "not recorded: torch.library gives wrong results (matmul: " in done.stdout
    left = load_record(path, "cpu").entries
    gone = {key[0].split()[0] for key in old.entries.keys() - left.keys()}
    assert gone == {"library"}
    what = {e.what.partition(":")[0] for e in left.values() if e.implementation == "torch.library"}
    assert what == {"attention"}, "whose call is another"


def test_an_interrupt_keeps_what_was_measured(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    measure = tune.Bench.measure
    begun: list[object] = []

    def once(self: tune.Bench, choice: Choice) -> None:
        begun.append(choice)
        if len(begun) == 2:
            raise KeyboardInterrupt
        measure(self, choice)

    monkeypatch.setattr(tune.Bench, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        api.tune(spec, path, entry="prefill")
    assert list(tmp_path.iterdir()) == [path]
    first = begun[0]
    assert isinstance(first, Choice)
    assert {e.region for e in load_record(path, "cpu").entries.values()} == {r.key for r in first.regions}


def test_what_does_not_fit_is_not_measured(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "available_bytes", lambda _device: 200_000)
    found = api.tune(spec, tmp_path / "record.json", entry="prefill")
    left = [one for one in found if one.fastest is None]
    assert left and len(left) < len(found)
    assert all("of memory" in why for one in left for option in one.options for why in option.failed.values())


def test_a_record_of_another_device_stays_as_it_is(spec: Path, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    Record("cpu", "an abacus").save(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="was measured on an abacus, and this is "):
        api.tune(spec, path)
    assert path.read_bytes() == before


def test_what_can_not_be_tuned_is_refused(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(UsageError, match="nothing to measure for target torch"):
        api.tune(spec, path, target="torch")
    with pytest.raises(UsageError, match="no entry point 'training'"):
        api.tune(spec, path, entry="training")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ToolchainError, match="sm_90 can't be measured here: there is no CUDA GPU"):
        api.tune(spec, path, target="sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ToolchainError, match="this GPU is sm_80"):
        api.tune(spec, path, target="sm_90")
    assert not list(tmp_path.iterdir())


def test_the_first_launch_counts_only_where_there_is_no_time_for_another() -> None:
    taken = iter([5.0, 3.0, 1.0, 2.0])
    slow = Timer(lambda: next(taken))
    slow.spend(4.0)
    assert slow.median == 5.0
    later = iter([2e-3, 1e-6, 3e-6, 1e-6])
    quick = Timer(lambda: next(later, 1e-6))
    quick.spend(0.01)
    assert quick.median == 1e-6


def test_a_machine_that_is_busy_is_noticed() -> None:
    busy, quiet = iter([1e-9, 0.1, 0.2, 0.3]), iter([1e-9, 0.1, 0.11])
    timers = Timer(lambda: next(busy, 0.2)), Timer(lambda: next(quiet, 0.1))
    assert not any(one.unsteady for one in timers)  # of one launch nothing is known
    for one in timers:
        one.spend(1e-4)
    assert [one.unsteady for one in timers] == [True, False]


def test_a_record_is_json_that_people_can_read(tuned: tuple[Path, list[tune.Tuned]]) -> None:
    data = json.loads(tuned[0].read_text())
    assert data["format_version"] == 1
    assert {"region", "what", "sizes", "implementation", "seconds"} == set(data["entries"][0])
    assert any(e["what"].startswith("matmul, silu, mul: f32[N / B, 32], f32[32, 32]") for e in data["entries"])
