"""Architectures that ship with ringc, one YAML file each."""

from __future__ import annotations

from pathlib import Path

from ringc.errors import SpecError, did_you_mean

_FOLDER = Path(__file__).parent
# From small to large, each family together; a file that is not named here comes last.
_ORDER = (
    "ring-tiny",
    "ring-small",
    "ring-mini-linear-2.0",
    "ring-flash-linear-2.0",
    "ring-mini-2.0",
    "ring-flash-2.0",
    "qwen3-8b",
    "qwen3-32b",
)


def list_presets() -> list[str]:
    """Names of all presets."""
    names = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        SpecError: there is no such preset.
    """
    known = list_presets()
    if name not in known:
        near = did_you_mean(name, known)
        raise SpecError(
            f"there is no preset named '{name}'", help=f"{near + ' ' if near else ''}presets: {', '.join(known)}"
        )
    return _FOLDER / f"{name}.yaml"


def preset_text(name: str) -> str:
    """A preset's YAML, with its comments: the file to copy and edit.

    Raises:
        SpecError: there is no such preset.
    """
    return preset_path(name).read_text(encoding="utf-8")
