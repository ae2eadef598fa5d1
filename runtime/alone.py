"""Kernels that belong to no artifact: written, built and loaded for a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ringc.codegen.backend import Built, backend
from ringc.codegen.cache import Cache
from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.passes.target import Target
from ringc.runtime.artifact import Artifact
from ringc.runtime.backends import BUILT_AHEAD, Kernels


def load_alone(
    kernels: Sequence[Kernel],
    target: Target,
    folder: Path,
    cache: Cache | None = None,
    done: Callable[[int, int], None] = lambda _done, _total: None,
) -> Kernels:
    """Kernels, ready to run.

    Args:
        kernels: of different names.
        target: that they are for, which runs here.
        folder: where their files go; it must last as long as they are used.
        cache: of built kernels; None for none.
        done: told how many are built, and how many there are to build.

    Raises:
        CodegenError: one doesn't compile.
        ToolchainError: a tool of the target is missing.
    """
    sources = [emit(kernel, target) for kernel in kernels]
    ahead = [s for s in sources if s.backend in BUILT_AHEAD]
    finished: list[str] = []

    def count(name: str) -> None:
        finished.append(name)
        done(len(finished), len(ahead))

    made = backend(target.backend).build(ahead, target, cache, count) if ahead else {}
    entries: dict[str, dict[str, Any]] = {}
    for source in sources:
        built = made.get(source.name, Built())
        for ending, data in {".py": source.text.encode(), **built.files}.items():
            (folder / f"{source.name}{ending}").write_bytes(data)
        entries[source.name] = {
            "backend": source.backend, "source": f"{source.name}.py", "launch": built.launch,
            "built": {ending: f"{source.name}{ending}" for ending in built.files},
        }  # fmt: skip
    about = {"name": target.name, "backend": target.backend, "arch": target.arch}
    tools = backend(target.backend).versions(target)
    return Kernels(Artifact(folder, {"kernels": entries, "target": about, "tools": tools}))
