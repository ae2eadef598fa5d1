"""Artifacts that the runtime's tests share, compiled once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ringc
from ringc.runtime.model import Model
from tests.runtime.models import compiled


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
