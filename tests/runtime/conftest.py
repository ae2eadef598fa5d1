"""Artifacts that the runtime's tests share, compiled once a session, and the reference's side of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ringc
from ringc.model_defs import load_spec
from ringc.runtime.model import Model
from tests.reference.ring_linear import RingConfig
from tests.runtime.models import compiled, reference_config, reference_weights


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ring-tiny for target torch. Not to be changed: see `tiny_copy`."""
    return compiled("ring-tiny", tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    """ring-tiny with random weights."""
    return ringc.load(tiny_folder, "random:0")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of the artifact that a test may damage."""

    def copy() -> Path:
        return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))

    return copy


@pytest.fixture(scope="session")
def config() -> RingConfig:
    """ring-tiny's, as the reference takes it."""
    return reference_config(load_spec("ring-tiny"))


@pytest.fixture(scope="session")
def weights(config: RingConfig) -> dict[str, torch.Tensor]:
    """What `tiny` loads, as the reference takes it. Not to be changed."""
    return reference_weights(config, 0)
