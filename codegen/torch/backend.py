"""Building for target `torch`: there is nothing to build, the source is what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from ringc.codegen.backend import Built, Launcher, run_source
from ringc.codegen.cache import Cache
from ringc.codegen.kernel import Source
from ringc.passes.target import Target


class TorchBackend:
    """See `ringc.codegen.backend.Backend`."""

    def build(
        self, sources: Sequence[Source], target: Target, cache: Cache | None, done: Callable[[str], None]
    ) -> dict[str, Built]:
        """Nothing but a check that each file is valid Python."""
        built: dict[str, Built] = {}
        for source in sources:
            compile(source.text, f"{source.name}.py", "exec")
            built[source.name] = Built(cached=True)  # there is nothing to build
            done(source.name)
        return built

    def versions(self, target: Target) -> dict[str, str]:
        return {"torch": version("torch").partition("+")[0]}

    def launcher(self, path: Path, name: str) -> Launcher:
        launch: Launcher = run_source(path)["launch"]
        return launch
