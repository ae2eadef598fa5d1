"""The device description: it survives its file, and costs and choices follow its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ringc.errors import DeviceError
from ringc.ir.ops.call import Fused
from ringc.ir.text_parse import parse_module
from ringc.passes.device import Device, load_device
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.schedules.attention import few_tokens
from ringc.passes.schedules.candidates import candidates
from ringc.passes.schedules.linear_attention import GPU_STEP, Problem, switch_length
from ringc.passes.schedules.model import at
from ringc.passes.target import TARGETS, Target, described, target, target_of

H100 = Device("sm_90", "a GPU", 3.01e12, 7.05e14, 5.1e13, 1.8e-6, 132, (("torch", "2.11.0"), ("triton", "3.6.0")))
MINI = Problem(16, 128, 128, 2, 0.7)


def same(name: str) -> Device:
    """A device that is what the constants say."""
    t = target(name)
    return Device(name, "as assumed", t.bandwidth, t.matrix_rate, t.vector_rate, t.launch, t.width)


def like(name: str, **changed: float) -> Target:
    """A target whose device differs from the constants in these numbers."""
    return described(target(name), replace(same(name), sha256="", **changed))  # type: ignore[arg-type]


def test_a_description_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    H100.save(path)
    read = load_device(path, "sm_90")
    assert read == H100
    assert load_device(path) == H100
    assert list(tmp_path.iterdir()) == [path]
    assert list(map(str.strip, path.read_text().splitlines()[1:3])) == [
        '"bandwidth": 3010000000000.0,',
        '"device": "a GPU",',
    ]


def test_the_file_depends_on_the_numbers_alone(tmp_path: Path) -> None:
    again = replace(H100, sha256="", measured_with=tuple(sorted(H100.measured_with)))
    assert again.text() == H100.text()
    assert again.sha256 == H100.sha256 != replace(H100, sha256="", width=131).sha256
    H100.save(tmp_path / "device.json")
    spaced = (tmp_path / "device.json").read_text().replace("\n", "\n\n")
    (tmp_path / "device.json").write_text(spaced)
    assert load_device(tmp_path / "device.json").sha256 != H100.sha256, "of the file as it is"


def test_a_description_of_another_target_is_refused(tmp_path: Path) -> None:
    H100.save(tmp_path / "device.json")
    assert target_of("sm_90", tmp_path / "device.json").device == H100
    assert target_of("sm_90").device is None
    with pytest.raises(DeviceError, match="is of target sm_90, and this is target sm_100") as caught:
        target_of("sm_100", tmp_path / "device.json")
    assert "ringc calibrate --target sm_100" in str(caught.value.help)
    with pytest.raises(ValueError, match="device of target sm_90 described as cpu"):
        described(target("cpu"), H100)


@pytest.mark.parametrize("name", ["cpu", "sm_80", "sm_90", "sm_100"])
def test_a_device_that_is_as_the_constants_say_changes_nothing(name: str) -> None:
    made = described(target(name), same(name))
    assert replace(made, device=None, library=None) == target(name)
    assert made.library in (None, TARGETS["torch"])


PRODUCT = """func @f(%x: f32[N, 512], %w: f32[1536, 512]) {
  %y = matmul(%x, %w) {transpose_b = true}
  return %y
}"""


@pytest.mark.parametrize("family", ["matmul", "library"])
def test_costs_follow_the_numbers(family: str) -> None:
    (function,) = parse_module(f"module @m level fused\nsymbol N >= 1\n\n{PRODUCT}").functions.values()

    def cost(where: Target, rows: int) -> float:
        return min(at(c.seconds, {"N": rows}) for c in candidates(family, function.body, (rows, rows), where))

    usual = target("cpu")
    assert cost(like("cpu", matrix_rate=2 * usual.matrix_rate), 4096) < 0.6 * cost(usual, 4096)
    assert cost(like("cpu", bandwidth=usual.bandwidth / 2), 1) > 1.5 * cost(usual, 1)
    assert cost(like("cpu", vector_rate=1e9), 4096) == cost(usual, 4096)


def test_a_dear_launch_puts_the_chunked_form_off_and_a_fast_memory_does_not() -> None:
    usual = switch_length(MINI, target("sm_90"))
    dear = switch_length(MINI, like("sm_90", launch=10 * target("sm_90").launch))
    assert usual is not None and dear is not None
    # The chunked form has one launch more, which a few steps of the recurrence outweigh.
    assert dear > usual + 9 * target("sm_90").launch / GPU_STEP


def test_more_processors_split_keys_for_more_tokens() -> None:
    assert few_tokens(4, like("sm_90", width=264)) + 1 == 2 * (few_tokens(4, target("sm_90")) + 1)


NORMED = """func @f(%x: bf16[N, 2048], %n: bf16[2048], %w: bf16[8192, 2048]) with {rows = [1, 1]} {
  %0 = rms_norm(%x, %n)
  %1 = matmul(%0, %w) {transpose_b = true}
  return %1
}"""


@pytest.mark.parametrize(("factor", "kernels"), [(0.01, 2), (1.0, 1), (10.0, 1)])
def test_the_dearer_a_launch_the_more_is_fused(factor: float, kernels: int) -> None:
    module = parse_module(f"module @m level fused\nsymbol N >= 1\n\n{NORMED}")
    where = like("sm_90", launch=factor * target("sm_90").launch)
    PassManager(parse_pipeline("fuse,prologues,select"), [verify_each]).run(module, where)
    assert sum(isinstance(op, Fused) for op in module.functions["f"].body.ops) == kernels


def test_a_cpu_with_more_cores_has_a_faster_library_too() -> None:
    usual = target("cpu")
    many = like("cpu", width=16, matrix_rate=8 * usual.matrix_rate, vector_rate=8 * usual.vector_rate)
    assert many.library is not None
    assert many.library.matrix_rate == pytest.approx(8 * TARGETS["torch"].matrix_rate)
    assert many.library.launch == TARGETS["torch"].launch
    assert like("sm_90", width=100).library is None
