"""Runs kernels built by TVM: LLVM text that is compiled for this machine when it is loaded, without a C++ compiler.

Only TVM's two libraries are loaded, through `tvm_ffi`; its Python package, which takes seconds to import, stays out.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringc.codegen.tvm.threads import set_environment
from ringc.errors import ArtifactError, Place, ToolchainError

if TYPE_CHECKING:
    import torch

    from ringc.runtime.artifact import Artifact

Kernel = Callable[..., None]
"""Called with compact tensors (`torch.Tensor`, or what `converted` made of one); writes its outputs and states.

Raises TypeError or ValueError, with a readable text, when a tensor has another type or shape than the kernel's, or isn't compact.
"""

FUNCTION = "main"
"""What the function of a kernel's module is called."""


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """TVM's libraries, loaded once.

    Raises:
        ToolchainError: TVM isn't installed, or can't be loaded.
    """
    set_environment()
    remedy = "pip install 'ringc[cpu]'"
    package = find_spec("tvm")
    if package is None or package.origin is None:
        raise ToolchainError("this artifact needs TVM, which isn't installed", help=remedy)
    folder = [Path(package.origin).parent / "lib"]
    try:
        from tvm_ffi.libinfo import load_lib_ctypes

        # In this order: the one that reads LLVM text finds the other's symbols.
        return (
            load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=folder),
            load_lib_ctypes("tvm", "tvm_compiler", "RTLD_LOCAL", extra_lib_paths=folder),
        )
    except (ImportError, OSError, RuntimeError) as error:
        raise ToolchainError(f"TVM can't be loaded: {error}", help=remedy) from error


def load(path: Path) -> Kernel:
    """The kernel of an `.ll` file; about 40 ms.

    Raises:
        ArtifactError: the file is missing, or LLVM can't read it.
        ToolchainError: TVM isn't installed.
    """
    _libraries()
    import tvm_ffi

    if not path.is_file():
        raise ArtifactError("there is no such kernel", place=Place(path), help="compile the artifact again")
    try:
        kernel: Kernel = tvm_ffi.load_module(str(path))[FUNCTION]
    except (RuntimeError, AttributeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"LLVM can't load the kernel: {reason}", place=Place(path), help="compile the artifact again"
        ) from error
    return kernel


def converted(x: torch.Tensor) -> Any:
    """The tensor as kernels take it. Made once for memory that stays where it is, it saves 0.2 us an argument and call."""
    import tvm_ffi

    return tvm_ffi.from_dlpack(x)


def bound(kernel: Kernel, tensors: Iterable[torch.Tensor]) -> Callable[[], None]:
    """A call of a kernel on tensors that stay where they are; it keeps them alive."""
    return functools.partial(kernel, *map(converted, tensors))


class TvmLoader:
    """See `ringc.runtime.backends.Loader`."""

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")

    def load(self, artifact: Artifact, name: str, entry: Mapping[str, Any]) -> Kernel:
        if ".ll" not in entry["built"]:
            raise ArtifactError(f"kernel {name} has no LLVM text", help="compile the artifact again")
        return load(artifact.path(entry["built"][".ll"]))

    def bind(self, launch: Kernel, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        return bound(launch, tensors)


def set_threads(count: int) -> None:
    """Give parallel kernels this many threads from now on."""
    _libraries()
    import tvm_ffi

    # 1: prefer big cores, where there are two kinds.
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, count)


def threads() -> int:
    """Threads that parallel kernels run on."""
    _libraries()
    import tvm_ffi

    return int(tvm_ffi.get_global_func("runtime.NumThreads")())
