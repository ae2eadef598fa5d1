"""Names of the configurations of a Triton kernel file, in files and manifests. Imports nothing: the runtime needs it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def labels(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name of its own for each job of `JOBS`: its kernel's, with a number behind it where a kernel has several."""
    names = [str(job["kernel"]) for job in jobs]
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if names.count(name) == 1 else f"{name}_{seen[name]}")
    return found
