"""The table of the versions of an artifact's entry points, which `ringc compile` and `ringc explain` show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def versions_table(title: str, manifest: Mapping[str, Any]) -> None:
    """Print each version: its guard, its form of linear attention, and what was predicted at which sizes."""
    from ringc.cli.console import duration, table

    rows = [
        (
            version["name"],
            version["guard"] or "otherwise",
            version["form"],
            ", ".join(f"{k}={v}" for k, v in version["typical"].items() if k in "NBS"),
            duration(version["predicted"]),
        )
        for found in manifest["entries"].values()
        for version in found
    ]
    table(title, ("version", "when", "linear attention", "typical sizes", "predicted"), rows, left=4)
