"""What a code-generating back end does beside writing kernels: build them, and run a kernel file alone.

Back ends are found by name when first used, so that a compile for one never imports another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ringc.codegen.cache import Cache
from ringc.codegen.kernel import Number, Source
from ringc.errors import CodegenError
from ringc.passes.target import Target

Launcher = Callable[..., None]
"""`launch(*inputs, *outputs, *workspaces)` on tensors."""


@dataclass(frozen=True)
class Built:
    """What building a kernel gave.

    Attributes:
        files: contents by ending, as in `{".ll": ...}`: they lie beside the kernel's source under the same name.
        resources: what `ringc inspect --resources` shows.
        launch: what the runtime needs to know beside the files.
        cached: whether it came from the cache.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    resources: Mapping[str, Number] = field(default_factory=dict)
    launch: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = False


class Backend(Protocol):
    """One code generator's builder."""

    def build(
        self, sources: Sequence[Source], target: Target, cache: Cache | None, done: Callable[[str], None]
    ) -> dict[str, Built]:
        """Build kernel files; calls `done(name)` after each.

        Raises:
            ToolchainError: a tool is missing.
            CodegenError: a kernel doesn't compile; the message names it.
        """

    def versions(self, target: Target) -> dict[str, str]:
        """The tools that decide the result, for the manifest and the cache's key."""

    def launcher(self, path: Path, name: str) -> Launcher:
        """A kernel of a source file, built for this machine and ready to run."""


BACKENDS = {
    "torch": "ringc.codegen.torch.backend:TorchBackend",
    "tvm": "ringc.codegen.tvm.build:TvmBackend",
    "triton": "ringc.codegen.triton.build:TritonBackend",
}
"""Name -> where its class is."""


def backend(name: str) -> Backend:
    """The back end of a name.

    Raises:
        CodegenError: there is none.
    """
    if name not in BACKENDS:
        raise CodegenError(f"there is no back end '{name}'", help=f"choose from {', '.join(BACKENDS)}")
    module, _, cls = BACKENDS[name].partition(":")
    found: Backend = getattr(import_module(module), cls)()
    return found


def run_source(path: Path) -> dict[str, Any]:
    """The names that a kernel file defines. The file is run as code: it must be one that the user trusts.

    Raises:
        CodegenError: the file is no valid Python, or fails when it is imported.
    """
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": f"ringc_kernel_{path.stem}", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), names)  # noqa: S102 - an artifact holds code
    except (SyntaxError, NameError, ImportError, AttributeError, TypeError, ValueError) as error:
        raise CodegenError(f"{path}: {type(error).__name__}: {error}") from error
    return names
