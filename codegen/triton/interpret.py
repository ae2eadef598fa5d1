"""Run kernel files in Triton's interpreter, which needs no GPU, in a process of its own.

TRITON_INTERPRET must be set before Triton is imported and spoils compiling in the same process, hence the worker. A
kernel file has a function `launch(*tensors, **scalars)` that starts its kernels and writes its results into tensors
that it was given. Tensors travel through one file in shared memory, storage by storage, so that views and aliases stay
what they are.

What the interpreter can and can't show, by version (Triton 3.6.0 to 3.9.0 tried):

* It is right at fp32 and fp16. bf16 dots multiply raw bit patterns, and casts to bf16 and fp8 round wrongly: tensors of
these types are
  refused unless asked for.
* Triton 3.6 with numpy >= 2.4 fails on loops whose bound is a run-time value. This is reported when a worker is made;
nothing is patched.

Around every storage lie guard bytes of 0xFF, NaN in every float type: a load outside of its tensor shows as NaN and a
store outside of it is an error, where a GPU might let both pass.
"""

from __future__ import annotations

import importlib.util
import linecache
import re
import sys
import tempfile
import time
import traceback
from hashlib import sha256
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from ringc.codegen.triton.toolchain import installed_versions, known_problems, triton_version
from ringc.codegen.triton.worker import WorkerProcess, serve
from ringc.errors import CodegenError, ToolchainError

if TYPE_CHECKING:
    import torch

_GUARD = 4096
_ALIGN = 64
_GUARD_BYTE = 0xFF
_LOW_PRECISION = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
)

Scalar = bool | int | float | str | None


class InterpreterWorker:
    """A process that runs kernel files in Triton's interpreter; a context manager.

    It starts with the first `run` and again after it died. One `run` at a time.

    Args:
        allow_low_precision: take bf16 and fp8 tensors although the interpreter computes with them wrongly.

    Raises:
        ToolchainError: Triton is missing, or this combination of versions can't interpret.
    """

    def __init__(self, *, allow_low_precision: bool = False) -> None:
        triton_version()
        for problem in known_problems(installed_versions(), stage="interpreter"):
            if problem.severity == "error":
                raise ToolchainError(problem.what, help=problem.remedy)
        self._allow_low_precision = allow_low_precision
        environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._worker = WorkerProcess(__name__, environment=environment, what="Triton's interpreter")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The worker's process id; None when it doesn't run."""
        return self._worker.pid

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def restart(self) -> None:
        """End the worker; the next `run` starts a fresh one."""
        self._worker.close()

    def run(
        self,
        path: Path | str,
        *arguments: torch.Tensor | Scalar,
        function: str = "launch",
        timeout: float | None = None,
        **scalars: Scalar,
    ) -> float:
        """Call `function(*arguments, **scalars)` of a kernel file; what it writes into tensors is written into these
        tensors.

        Args:
            path: the kernel file; loaded again when its text has changed.
            arguments: CPU tensors of any strides, which may be views of one another, and plain values.
            function: which function of the file.
            timeout: seconds after which the worker is ended.

        Returns:
            Seconds that the call itself took.

        Raises:
            CodegenError: the kernel raised, wrote outside of a tensor, or was given a tensor that the interpreter can't
                be trusted with.
            ToolchainError: the worker died or took too long.
        """
        import torch

        path = Path(path)
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        for tensor in tensors:
            self._check_tensor(path, tensor)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        offsets: dict[int, int] = {}
        end = _GUARD
        for pointer, storage in storages.items():
            offsets[pointer] = end
            end += -(-storage.nbytes() // _ALIGN) * _ALIGN + _GUARD
        request = {
            "file": str(path.resolve()),
            "function": function,
            "bytes": end,
            "spans": [[offsets[pointer], storage.nbytes()] for pointer, storage in storages.items()],
            "arguments": [_describe(value, offsets) for value in arguments],
            "scalars": scalars,
        }
        with tempfile.NamedTemporaryFile(prefix="ringc-interpret-", dir=_shared_memory()) as file:
            file.truncate(end)
            shared = torch.from_file(file.name, shared=True, size=end, dtype=torch.uint8)
            shared.fill_(_GUARD_BYTE)
            for pointer, storage in storages.items():
                shared[offsets[pointer] : offsets[pointer] + storage.nbytes()].copy_(_bytes_of(storage))
            request["shared"] = file.name
            answer = self._worker.request(request, doing=f"running {function} of {path}", timeout=timeout)
            if failed := answer.get("error"):
                raise CodegenError(f"{path}: {failed['message']}", help=failed["help"])
            for pointer, storage in storages.items():
                _bytes_of(storage).copy_(shared[offsets[pointer] : offsets[pointer] + storage.nbytes()])
        return float(answer["result"]["seconds"])

    def _check_tensor(self, path: Path, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            raise CodegenError(f"the interpreter takes CPU tensors; {path} was given one on {tensor.device}")
        name = str(tensor.dtype).removeprefix("torch.")
        if name in _LOW_PRECISION and not self._allow_low_precision:
            raise CodegenError(
                f"{path} was given a {name} tensor, with which Triton's interpreter computes wrongly",
                help="run it at float32 here, and at lower precision on a GPU",
            )


def in_f32(text: str) -> str:
    """The text of a generated kernel file with f32 in the place of bf16, in its IR, its signatures and its code."""
    for written, wide in ((r"\*bf16\b", "*fp32"), (r"\bbf16\b", "f32"), (r"\btl\.bfloat16\b", "tl.float32")):
        text = re.sub(written, wide, text)
    return text


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    import torch

    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _describe(value: torch.Tensor | Scalar, offsets: dict[int, int]) -> dict[str, object]:
    import torch

    if not isinstance(value, torch.Tensor):
        return {"value": value}
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "offset": offsets[value.untyped_storage().data_ptr()] // value.element_size() + value.storage_offset(),
        "shape": list(value.shape),
        "stride": list(value.stride()),
    }


def _shared_memory() -> str:
    folder = Path("/dev/shm")  # noqa: S108
    return str(folder) if folder.is_dir() else tempfile.gettempdir()


# The rest runs in the worker.

_modules: dict[str, tuple[str, ModuleType]] = {}


def _load(path: str) -> ModuleType:
    digest = sha256(Path(path).read_bytes()).hexdigest()
    known = _modules.get(path)
    if known is not None and known[0] == digest:
        return known[1]
    _leave_out_launches()
    linecache.checkcache(path)
    spec = importlib.util.spec_from_file_location(f"_ringc_kernel_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise CodegenError("this is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    _modules[path] = digest, module
    return module


def _leave_out_launches() -> None:
    """Make nothing of waiting for other launches: the interpreter runs one after the other, and has no such instruction."""
    from triton.language.extra import cuda

    for name in ("gdc_wait", "gdc_launch_dependents"):
        setattr(cuda, name, lambda: None)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    shared = torch.from_file(request["shared"], shared=True, size=request["bytes"], dtype=torch.uint8)
    values = []
    for row in request["arguments"]:
        if "value" in row:
            values.append(row["value"])
        else:
            empty = torch.empty(0, dtype=getattr(torch, row["dtype"]))
            values.append(empty.set_(shared.untyped_storage(), row["offset"], row["shape"], row["stride"]))
    try:
        function = getattr(_load(request["file"]), request["function"])
        started = time.perf_counter()
        function(*values, **request["scalars"])
        seconds = time.perf_counter() - started
    # Kernel files are arbitrary code; the caller gets the frames that lie in the file, which name the line.
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == request["file"]]
        lines = "".join(traceback.format_list(frames))
        raise CodegenError(f"{request['function']} failed: {_root_cause(error)}\n{lines}".rstrip()) from error
    _check_guards(shared, request["spans"])
    return {"seconds": seconds}


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _check_guards(shared: torch.Tensor, spans: list[list[int]]) -> None:
    guard_from = 0
    for index, (offset, size) in enumerate([*spans, [len(shared), 0]]):
        if not bool((shared[guard_from:offset] == _GUARD_BYTE).all()):
            where = "before the first tensor" if index == 0 else f"behind the end of storage {index} of {len(spans)}"
            raise CodegenError(f"a kernel wrote outside of its tensors: {where}")
        guard_from = offset + size


if __name__ == "__main__":
    serve(_handle)
