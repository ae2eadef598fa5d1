"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import ringc
from ringc.model_defs import load_spec
from tests.cli.support import Here
from tests.runtime.models import reference_config, reference_weights


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs the command line in this process."""
    return Here(monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ring-tiny's artifact for target torch. Not to be changed."""
    folder = tmp_path_factory.mktemp("artifact") / "tiny"
    ringc.compile("ring-tiny", folder, target="torch")
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ring-tiny's checkpoint in three shards with an index. Not to be changed."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    folder.mkdir()
    weights = reference_weights(reference_config(load_spec("ring-tiny")), 3)
    places: dict[str, str] = {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        part = {name: weights[name].float() for name in list(weights)[i::3]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
