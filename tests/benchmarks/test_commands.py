"""The benchmarks run, at the smallest size there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.models import compiled

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, name: str, *arguments: str) -> tuple[str, dict]:
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_contenders_are_checked_measured_and_compared(tmp_path):
    options = ["--rounds", "1", "--steps", "2", "--jobs", "decode-1", "--contenders", "eager-bmm,eager-loop"]
    printed, result = run(tmp_path, "cpu", "--preset", "ring-tiny", *options)
    job = result["jobs"]["decode-1"]
    for name in ("eager-bmm", "eager-loop"):
        contender = job["contenders"][name]
        assert contender["error"] < 2e-4
        assert len(contender["rounds"][0]) == 2
        assert contender["median"] > 0
    assert job["fastest_peer"] in job["contenders"]
    assert job["ratio"] is None, "ringc wasn't asked for"
    assert "floor" in printed


def test_the_three_ways_to_put_a_text_in_agree(tmp_path):
    folder = compiled("ring-tiny", tmp_path / "tiny")
    printed, result = run(tmp_path, "parity", str(folder), "--tokens", "40", "--chunk", "16")
    assert [way["way"] for way in result["results"]] == ["chunks of 16", "token by token"]
    assert result["replay"]["largest"] < 1e-6
    for way in result["results"]:
        assert 0 < way["replayed"]["largest"] < 2e-4
        assert 0 < way["free"]["mean"] <= way["free"]["p99"] <= way["free"]["largest"] < 2e-4
        assert way["same_history"]["count"] == way["free_history"]["count"] == 0
        assert 0 < way["noise"]["median"] < way["noise"]["largest"] < 1e-4
    assert result["flips_within_noise"]
    assert "token by token" in printed


def test_an_edit_is_measured_in_turns_on_the_same_weights(tmp_path):
    """Of the copy, the last kernel doubles the logits."""
    folder = compiled("ring-tiny", tmp_path / "tiny")
    edited = Path(shutil.copytree(folder, tmp_path / "edited"))
    heads = re.findall(r'rt\.launch\("(\w+)", \w+, lm_head_weight, out\)', (edited / "program.py").read_text())
    for head in set(heads):
        with (edited / "kernels" / f"{head}.py").open("a") as file:
            file.write("\n\nonce = launch\n\n\ndef launch(*given):\n    once(*given)\n    given[-1].mul_(2)\n")
    printed, result = run(tmp_path, "turns", str(folder), str(edited), "--context", "8", "--rounds", "2")
    assert [r["artifact"] for r in result] == [str(folder), str(edited)]
    assert [r["logits_off"] for r in result] == [0, 1]
    assert all(len(r["rounds"]) == 2 for r in result)
    assert result[0]["difference"] == 0
    assert "decode of 1 x 1 tokens behind 8" in printed
    for wrong, said in (
        ("--rounds=0", "--rounds is 0"),
        ("--tokens=2", "takes one token"),
        ("--context=70000", "positions"),
    ):
        with pytest.raises(AssertionError, match=said):
            run(tmp_path, "turns", str(folder), wrong)


def test_unknown_contenders_are_named(tmp_path):
    with pytest.raises(AssertionError, match="there is no 'nobody'"):
        run(tmp_path, "cpu", "--contenders", "nobody")
