"""`ringc calibrate`: what it measures becomes a file that a compile goes by. Nothing here asserts a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ringc import api
from ringc.errors import ToolchainError, UsageError
from ringc.passes.device import Device, load_device
from ringc.passes.target import target
from ringc.runtime import calibrate, generated, rates
from ringc.runtime.here import device_name
from tests.cli.support import SMALL, Here, contents

pytest.importorskip("tvm")


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "SECONDS", 0.01)
    monkeypatch.setattr(generated, "ROUNDS", 2)
    monkeypatch.setattr(rates, "STREAM_BYTES", 10**6)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def assumed() -> Device:
    """What the constants of target cpu say."""
    t = target("cpu")
    return Device("cpu", "an abacus", t.bandwidth, t.matrix_rate, t.vector_rate, t.launch, t.width)


@pytest.mark.usefixtures("_short")
def test_this_machine_is_measured_into_a_file_that_a_compile_goes_by(spec: Path, here: Here) -> None:
    path = spec.parent / "cpu.json"
    done = here("calibrate", "-o", path)
    assert done.returncode == 0, done.stderr
    found = load_device(path, "cpu")
    assert found.name == device_name(target("cpu")) and found.name in done.stdout
    for number in (found.bandwidth, found.matrix_rate, found.vector_rate, found.launch):
        assert math.isfinite(number) and float(f"{number:.4g}") == number
    assert dict(found.measured_with)["torch"] == torch.__version__
    assert "date" not in path.read_text() and "UTC" in done.stdout
    assert [key for key in json.loads(path.read_text()) if key != "measured_with"] == [
        "bandwidth", "device", "format_version", "launch", "matrix_rate", "target", "vector_rate", "width",
    ]  # fmt: skip
    assert f"--device {path}" in done.stdout
    for kind in calibrate.how(target("cpu")).values():
        assert kind in done.stdout

    compiled = here("compile", spec, "-o", spec.parent / "out", "--device", path)
    assert f"costs as calibrated on {found.name}" in compiled.stdout, compiled.stderr
    manifest = json.loads((spec.parent / "out" / "manifest.json").read_text())
    assert manifest["device"] == {"sha256": found.sha256, "name": found.name}
    assert f"predicted by the device description of {found.name}" in here("explain", spec.parent / "out").stdout
    assert here("run", spec.parent / "out", "--weights", "random:0", "--prompt", "a").returncode == 0


@pytest.mark.usefixtures("_short")
def test_a_description_of_the_same_target_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    assumed().save(path)
    told: list[tuple[str, int, int]] = []
    made = api.calibrate(path, progress=lambda *now: told.append(now))
    assert load_device(path) == made
    assert made.name != "an abacus"
    assert told[0] == ("measuring", 0, 4) and told[-1] == ("measuring", 4, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_named_after_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    monkeypatch.setattr(calibrate, "measure_device", lambda _target, _progress: assumed())
    monkeypatch.chdir(tmp_path)
    assert here("calibrate").returncode == 0
    assert load_device(tmp_path / "cpu.json") == assumed()


def test_equal_descriptions_give_equal_artifacts_and_others_other_predictions(spec: Path, tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        assumed().save(tmp_path / name)
    slow = replace(assumed(), sha256="", bandwidth=1e9)
    slow.save(tmp_path / "slow.json")
    api.compile(spec, tmp_path / "a", device=tmp_path / "one.json")
    api.compile(spec, tmp_path / "b", device=tmp_path / "two.json")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    plain, other = (
        api.compile(spec, tmp_path / name, device=device).manifest
        for name, device in (("c", None), ("d", tmp_path / "slow.json"))
    )
    assert "device" not in plain
    assert other["device"]["sha256"] == slow.sha256

    def predicted(manifest: object) -> float:
        assert isinstance(manifest, dict)
        return float(manifest["entries"]["decode"][0]["predicted"])

    assert predicted(other) > 2 * predicted(plain)


def test_what_can_not_be_calibrated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing to measure for target torch"):
        api.calibrate(tmp_path / "d.json", target="torch")
    with pytest.raises(UsageError, match="no target 'cpus'"):
        api.calibrate(tmp_path / "d.json", target="cpus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ToolchainError, match="sm_90 can't be measured here: there is no CUDA GPU"):
        api.calibrate(tmp_path / "d.json", target="sm_90")
    assert not list(tmp_path.iterdir())


def test_tuning_goes_by_a_description(spec: Path, tmp_path: Path, here: Here) -> None:
    replace(assumed(), sha256="", target="sm_90").save(tmp_path / "sm_90.json")
    done = here("tune", spec, "-o", tmp_path / "record.json", "--device", tmp_path / "sm_90.json")
    assert done.returncode == 2
    assert "is of target sm_90, and this is target cpu" in done.stderr
    assert not (tmp_path / "record.json").exists()
