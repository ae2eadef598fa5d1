"""The researcher's path: one line of a preset changes, and the model compiles and is right with no other change."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import ringc
from ringc.model_defs import preset_text
from ringc.runtime.artifact import open_artifact
from ringc.runtime.check import check_kernels, check_model

TARGET = "cpu" if find_spec("tvm") else "torch"

EDITS = {
    "M": (r"M: 2\b", "M: 4"),
    "decay law": (r"decay: \{kind: power_law, octaves: 8,", "decay: {kind: linear, first: 0.5, last: 0.01,"),
    "experts and top-k": (r"experts: \d+\n(\s+)top_k: \d+", r"experts: 24\n\1top_k: 3"),
    "heads": (r"\nheads: 4\b", "\nheads: 6"),
    "group norm": (r"norm_groups: \d+", "norm_groups: 4"),
}


def edited(edit: str) -> str:
    """ring-tiny with one edit."""
    pattern, replacement = EDITS[edit]
    text, count = re.subn(pattern, replacement, preset_text("ring-tiny"), count=1)
    assert count == 1, f"the preset has nothing that fits {pattern}"
    return text


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_preset_compiles_and_checks(edit: str, tmp_path: Path) -> None:
    spec = tmp_path / "edited.yaml"
    spec.write_text(edited(edit))
    ringc.compile(spec, tmp_path / "artifact", target=TARGET)
    artifact = open_artifact(tmp_path / "artifact")
    found = [one for _, results in check_kernels(artifact) for one in results] + check_model(
        artifact, "random:1", tokens=24
    )
    assert len(found) > 20
    assert all(one.passed for one in found), [one for one in found if not one.passed]
