"""Loads compiled kernels into a GPU and launches them: the few calls of CUDA's driver that this takes.

PyTorch has no public call for it, and NVIDIA's Python package comes with some builds of PyTorch alone; the driver's library is there
wherever a GPU is. A launch is prepared once, with all its arguments, and costs about 2 us each time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch

from ringc.errors import ToolchainError

PLAIN_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may take without asking."""

_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_INVALID_VALUE = 1
"""CUDA_ERROR_INVALID_VALUE."""
_PROGRAMMATIC = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""

Arguments = Sequence["ctypes._SimpleCData[Any]"]
"""Values of a kernel's parameters, in order."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, and a union of 64 bytes of which the first four are used here."""

    _fields_ = (("id", ctypes.c_int), ("_pad", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@functools.cache
def _driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        ToolchainError: it isn't there.
    """
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ToolchainError(f"CUDA's driver can't be loaded: {error}", help="install the GPU's driver") from error
    return found


def _status(name: str, *arguments: Any) -> int:
    """Call a function of the driver; 0 if it succeeded.

    Raises:
        ToolchainError: the driver has no such function.
    """
    function = getattr(_driver(), name, None)
    if function is None:
        raise ToolchainError(f"CUDA's driver has no {name}", help="install a driver for CUDA 12.4 or newer")
    return int(function(*arguments))


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        ToolchainError: it failed.
    """
    _check(name, _status(name, *arguments))


def _check(name: str, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        said = text.value.decode() if text.value else f"error {status}"
        raise ToolchainError(f"{name} of CUDA's driver failed: {said}", help="is the driver as new as PyTorch's CUDA?")


class Binary:
    """A kernel of a cubin, in the memory of the current GPU, where it stays.

    Args:
        cubin: the file's contents.
        name: of the kernel in it.
        warps: of 32 threads, in each program.
        shared: bytes of shared memory of a program.
        overlaps: whether its programs may start while the launch before ends (programmatic dependent launch): it waits by itself.

    Raises:
        ToolchainError: the driver can't load it.
    """

    def __init__(self, cubin: bytes, name: str, warps: int, shared: int, *, overlaps: bool = False) -> None:
        torch.cuda.current_stream()  # PyTorch's context is made by now, and is the current one
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(module), cubin)
        _call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())
        if shared > PLAIN_SHARED:
            _call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED, shared)
        self._threads = 32 * warps
        self._shared = shared
        self._overlaps = overlaps

    def parameters(self) -> list[int]:
        """Bytes of each of the kernel's parameters.

        Raises:
            ToolchainError: the driver is too old to tell.
        """
        found: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        while True:
            index = ctypes.c_size_t(len(found))
            status = _status("cuFuncGetParamInfo", self._function, index, ctypes.byref(offset), ctypes.byref(size))
            if status == _INVALID_VALUE:  # there are no more
                return found
            _check("cuFuncGetParamInfo", status)
            found.append(size.value)

    def prepared(self, grid: Sequence[int], arguments: Arguments) -> Launch:
        """A launch on these arguments."""
        return Launch(self._function, grid, self._threads, self._shared, arguments, overlaps=self._overlaps)


class Launch:
    """A launch whose arguments stay as they are: call it any number of times. It runs on PyTorch's current stream."""

    def __init__(
        self,
        function: ctypes.c_void_p,
        grid: Sequence[int],
        threads: int,
        shared: int,
        arguments: Arguments,
        *,
        overlaps: bool,
    ) -> None:
        self._function = function
        self._arguments = arguments  # the driver reads them at each launch
        self._places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        self._attribute = _Attribute(id=_PROGRAMMATIC, value=1)
        self._config = _Config(
            grid=(ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
            block=(ctypes.c_uint * 3)(threads, 1, 1),
            shared=shared,
            attributes=ctypes.pointer(self._attribute),
            count=int(overlaps),
        )

    def __call__(self) -> None:
        self._config.stream = torch.cuda.current_stream().cuda_stream
        _call("cuLaunchKernelEx", ctypes.byref(self._config), self._function, self._places, None)
