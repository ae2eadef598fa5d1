"""Into which versions an entry point is cut."""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Function
from ringc.passes.schedules.model import Rows

FEW = 16
"""Up to this many rows a product is bound by reading its weight, and one kernel that streams it serves them all."""


@dataclass(frozen=True)
class Version:
    """One version of an entry point: the rows that it serves, the condition that the host tests, the form of linear attention."""

    name: str
    guard: str
    rows: Rows
    form: str
    predicted: float = 0.0


def versions_of(entry: Function) -> list[Version]:
    """The versions of an entry point, the most special first; the last has no guard."""
    few, many = (1, FEW), (FEW + 1, 0)
    if entry.notes["entry"] == "decode":
        return [
            Version("one", "N <= 1", (1, 1), "recurrent"),
            Version("few", f"N <= {FEW}", (2, FEW), "recurrent"),
            Version("many", "", many, "recurrent"),
        ]
    return [Version("short", f"N <= {FEW}", few, "recurrent"), Version("long", "", many, "chunked")]
