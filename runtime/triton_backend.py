"""Runs kernels written in Triton: on a GPU its JIT compiles an artifact's files, with the configurations pinned in them.

Without a GPU they run in Triton's interpreter, slowly and at fp32 only: for `ringc check`, never for serving.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ringc.codegen.triton.jit import prepare_jit

if TYPE_CHECKING:
    from ringc.codegen.triton.interpret import InterpreterWorker
    from ringc.runtime.artifact import Artifact

Launcher = Callable[..., None]
"""`launch(*inputs, *outputs, *workspaces)` on tensors."""


class TritonLoader:
    """See `ringc.runtime.backends.Loader`.

    Args:
        interpret: run in the interpreter, on CPU tensors.

    Raises:
        ToolchainError: there is no GPU, or Triton and its assembler are known to give wrong numbers on it.
    """

    def __init__(self, *, interpret: bool = False) -> None:
        self._interpret = interpret
        self._worker: InterpreterWorker | None = None
        if not interpret:
            prepare_jit()
        self.device = torch.device("cpu" if interpret else "cuda")

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Launcher:
        """A kernel of an artifact, ready to run; a GPU's code is made at its first launch.

        Raises:
            ArtifactError: its file can't be loaded, or has no `launch`.
        """
        from ringc.runtime.backends import run_file

        path = artifact.path(entry["source"])
        if self._interpret:
            worker = self._interpreter()
            return lambda *tensors: _ignore(worker.run(path, *tensors))
        found: Launcher = run_file(artifact, entry["source"], defines=("launch",))["launch"]
        return found

    def bind(self, launch: Launcher, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """A launch on tensors that stay where they are."""
        return functools.partial(launch, *tensors)

    def _interpreter(self) -> InterpreterWorker:
        if self._worker is None:
            from ringc.codegen.triton.interpret import InterpreterWorker

            self._worker = InterpreterWorker()
        return self._worker


def _ignore(_seconds: float) -> None:
    """The interpreter says how long a call took."""
