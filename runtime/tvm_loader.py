"""Runs kernels that TVM built: LLVM text, made into machine code when it is loaded, with no C++ compiler."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ringc.errors import ArtifactError, Place, ToolchainError
from ringc.runtime.artifact import Artifact
from ringc.runtime.backends import Launcher

ENDING = ".ll"


def set_environment() -> None:
    """Settings of TVM's thread pool, which it reads once when it is loaded; variables that are set stay.

    As many threads as torch has, not bound to cores, where torch's may sit already; an idle thread spins for about 1 ms, so that the next
    kernel of a step doesn't have to wake it.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")


class TvmLoader:
    """See `ringc.runtime.backends.Loader`."""

    def __init__(self) -> None:
        set_environment()
        try:
            import tvm.runtime
            import tvm_ffi
        except ImportError as error:
            raise ToolchainError(
                f"the artifact's kernels need TVM, which can't be imported: {error}",
                help="pip install 'ringc[cpu]', or compile with `--target torch`",
            ) from error
        self.device = torch.device("cpu")
        self._load_module = tvm.runtime.load_module
        self._from_dlpack = tvm_ffi.from_dlpack

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Launcher:
        """A kernel; one whose source was edited is built again from it."""
        if artifact.is_edited(name):
            from ringc.codegen.backend import backend

            return backend("tvm").launcher(artifact.path(entry["source"]), name)
        path = artifact.path(entry["built"][ENDING])
        try:
            launch: Launcher = self._load_module(str(path))["main"]
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"TVM can't load the kernel: {str(error).strip().splitlines()[-1]}",
                place=Place(path),
                help="compile the artifact again with the TVM that is installed",
            ) from error
        return launch

    def bind(self, launch: Launcher, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """Tensors are converted once: a launch then costs 0.3 us, not 1.3."""
        return functools.partial(launch, *(self._from_dlpack(t) for t in tensors))
