"""The repository installs as the packages it promises, and the tested set of versions fits the ranges it declares."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ["ir", "passes", "codegen", "model_defs", "runtime"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

packaging_requirements = pytest.importorskip("packaging.requirements")


def requirements() -> list[tuple[str, str]]:
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return [(group, line) for group, lines in groups.items() for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [packaging_requirements.Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in parsed:
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{pin} isn't one exact version"
    return {normalised(pin.name): str(pin.specifier)[2:] for pin in parsed}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_are_packages_of_ringc_through_relative_links(folder):
    link = ROOT / "ringc" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"  # noqa: PTH115 - the link as written, not resolved


@pytest.mark.parametrize(("group", "line"), requirements())
def test_every_requirement_has_a_tested_version(group, line):
    requirement = packaging_requirements.Requirement(line)
    assert requirement.specifier.contains(pins()[normalised(requirement.name)])


def test_oldest_supported_versions_are_in_range():
    oldest = {"torch": "2.11.0", "triton": "3.6.0"}
    declared = {r.name: r for r in map(packaging_requirements.Requirement, PROJECT["dependencies"])}
    assert all(declared[name].specifier.contains(version) for name, version in oldest.items())
    assert {"3.11", "3.12"} <= {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python ::" in c}


def test_a_plain_install_has_neither_tvm_nor_test_tools():
    names = {normalised(packaging_requirements.Requirement(line).name) for line in PROJECT["dependencies"]}
    assert not names & {"apache-tvm", "tokenizers", "pytest", "nvidia-cuda-nvcc"}
