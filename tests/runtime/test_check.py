"""What the whole-model check says of a right model, a wrong one, and one in which a rounding decides."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ringc
from ringc.api import describe
from ringc.codegen.compare import Compared
from ringc.codegen.compile import compile_module
from ringc.ir.types import DType
from ringc.model_defs import load_spec, preset_text
from ringc.model_defs.lower import lower
from ringc.passes.pipeline import default_pipeline
from ringc.passes.target import target
from ringc.runtime.artifact import open_artifact
from ringc.runtime.check import TOLERANCE, check_model
from tests.reference.ring_linear import forward
from tests.runtime.models import reference_config, reference_weights


@pytest.fixture(scope="module")
def bf16_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ring-tiny as a GPU would keep it, in eager PyTorch."""
    spec, folder = load_spec("ring-tiny"), tmp_path_factory.mktemp("bf16") / "a"
    stored = replace(target("torch"), storage=DType.BF16)
    compile_module(lower(spec, DType.BF16), stored, folder, describe(spec), default_pipeline(), cache=None)
    return folder


def checked(folder: Path, weights: str = "random:0") -> list[Compared]:
    return check_model(open_artifact(folder, allow_edited=True), weights, tokens=20)


def edited(folder: Path, file: str, pattern: str, replacement: str) -> None:
    path = folder / file
    text = path.read_text()
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    path.write_text(changed)


def usual(one: Compared) -> float:
    """What is allowed where no error had to be explained: routing adds up the scores of two experts of a group."""
    return TOLERANCE["f32"] * (2 if one.name.startswith("experts of ") else 1)


def exchange_states(folder: Path) -> None:
    """Layer 1 works on layer 0's state: every kernel is right, the model isn't."""
    edited(folder, "program.py", r"(table_\w+|\bt\d+), layers_1_state", r"\1, layers_0_state")


def test_a_right_model_passes(tiny_folder: Path) -> None:
    compared = checked(tiny_folder)
    assert len(compared) == 11
    assert sum(one.name.startswith("experts of ") for one in compared) == 4
    assert all(one.passed for one in compared)
    assert all(one.allowed <= usual(one) for one in compared)


def test_a_wrong_program_is_found(tiny_folder: Path, tmp_path: Path) -> None:
    ringc.compile("ring-tiny", tmp_path / "a", target="torch")
    exchange_states(tmp_path / "a")
    wrong = [one.name for one in checked(tmp_path / "a") if not one.passed]
    assert {"model(ids)", "20 sequences at once", "decode of 20 sequences"} <= set(wrong)


def test_a_wrong_choice_of_experts_is_found(tmp_path: Path) -> None:
    """Replayed in the reference, it gives the same logits: they are all right."""
    ringc.compile("ring-tiny", tmp_path / "a", target="torch")
    edited(tmp_path / "a", "kernels/route_1.py", r"torch\.where\(\w+, (\w+), float\(\"-inf\"\)\)", r"\1")
    compared = checked(tmp_path / "a")
    assert {one.name.startswith("experts of ") for one in compared if not one.passed} == {True}
    assert sum(not one.passed for one in compared) == 4


def test_a_tie_of_two_experts_may_be_decided_either_way(tiny_folder: Path) -> None:
    """Experts 1 and 2 of each layer differ by 1e-12 in their bias, which single precision rounds away: it takes 1, the reference 2."""
    config = reference_config(load_spec("ring-tiny"))
    weights = {n: w.float().double() for n, w in reference_weights(config, 0).items()}
    for name, w in weights.items():
        if name.endswith("gate.weight"):
            w[2] = w[1]
        if name.endswith("expert_bias"):
            w[1], w[2] = 0, 1e-12
    single = {n: w.float() for n, w in weights.items()}
    model = ringc.load(tiny_folder, single)
    ids = torch.arange(40)
    error = (model(ids[None])[0].double() - forward(config, weights, ids).logits).abs().max()
    assert error > 0.1, "no choice depends on the tie"
    compared = check_model(open_artifact(tiny_folder), single, tokens=20)
    assert all(one.passed for one in compared), compared
    assert all(one.allowed <= usual(one) for one in compared)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (16, 4)])
def test_scores_that_do_not_vary(experts: int, k: int, tmp_path: Path) -> None:
    """One expert, and routers of zeros: the scores' standard deviation is 0."""
    text, count = re.subn(r"experts: 16\n  top_k: 4", f"experts: {experts}\n  top_k: {k}", preset_text("ring-tiny"))
    assert count == 1
    text = re.sub(r"groups: \{.*\}", "groups: null", text).replace("score: sigmoid", "score: softmax")
    (tmp_path / "spec.yaml").write_text(text.replace("bias: true", "bias: false"))
    ringc.compile(tmp_path / "spec.yaml", tmp_path / "a", target="torch")
    artifact = open_artifact(tmp_path / "a")
    weights = ringc.load(tmp_path / "a", "random:0").state_dict()
    routers = [w for name, w in weights.items() if name.endswith("mlp.gate.weight")]
    assert routers
    for w in routers:
        w.zero_()
    compared = check_model(artifact, weights, tokens=20)
    assert all(one.passed for one in compared), compared


class TestContinuation:
    """Tokens that the model generates, as `ringc run` does."""

    def row(self, folder: Path, count: int = 12) -> Compared:
        compared = check_model(open_artifact(folder), "random:0", tokens=20, prompt=[256, 10, 20, 30], new_tokens=count)
        assert len(compared) == 13
        return next(one for one in compared if one.name == "tokens after the prompt")

    def test_right_ones_pass(self, tiny_folder: Path) -> None:
        one = self.row(tiny_folder)
        assert one.passed
        assert one.shape == (12,)
        assert one.allowed == pytest.approx(2 * TOLERANCE["f32"])

    def test_the_second_best_is_wrong(self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ringc.runtime.decoding.draw", lambda logits, *_: logits.topk(2).indices[:, 1])
        one = self.row(tiny_folder)
        assert not one.passed
        assert one.error > 10 * one.allowed

    def test_an_end_that_comes_too_early_is_wrong(self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = ringc.load(tiny_folder, "random:0")
        end = torch.tensor([model.vocabulary["eos"]])
        monkeypatch.setattr("ringc.runtime.decoding.draw", lambda *_: end)
        one = self.row(tiny_folder)
        assert one.shape == (1,)
        assert not one.passed


class TestHalfPrecision:
    def test_a_right_model_passes(self, bf16_folder: Path) -> None:
        """Routing flips at many tokens: without its replay, logits differ by as much as they vary."""
        compared = checked(bf16_folder)
        assert all(one.passed for one in compared), compared
        experts = [one for one in compared if one.name.startswith("experts of ")]
        assert max(one.error for one in experts) > 0
        usual = [one for one in compared if one.name in ("model(ids)", "decode after it")]
        assert all(one.allowed < 0.5 for one in usual)

    def test_a_wrong_program_is_found(self, bf16_folder: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(bf16_folder, tmp_path / "a"))
        exchange_states(copy)
        wrong = {one.name for one in checked(copy) if not one.passed}
        assert {"model(ids)", "20 sequences at once"} <= wrong
