"""What a kernel file does when it is run by itself: check the kernel against its reference, and time it.

    $ python kernels/row_3.py
    @row_3 by torch.eager at N=37
      result 0 [37, 128]  error 1.2e-07  allowed 2.1e-06  ok
    12.3 us (median of 50)

Reduced sizes are used unless others are given: `python kernels/row_3.py N=2048`. Where there is no GPU, a Triton kernel runs in Triton's
interpreter, in f32, as the interpreter can't compute in bf16, and a library call of a GPU's artifact on this CPU.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ringc.codegen.backend import Launcher, backend
from ringc.codegen.check import call_tensors, check_kernel
from ringc.codegen.inputs import REDUCED, random_inputs, sizes_for
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.errors import CodegenError, Place, RingcError, UsageError
from ringc.ir.ops.products import ExpertProduct
from ringc.ir.symbols import symbols_of
from ringc.ir.text_parse import parse_module
from ringc.ir.types import DType, StateType

ROUNDS = 50
"""Timed calls, at most."""

FEW_TOKENS = 4
"""Tokens of experts' products in Triton's interpreter: nearly every row has an expert of its own, whose tile takes it half a second."""

SECONDS = 1.0
"""Time after which no further call is timed."""


def kernel_of_file(path: Path) -> Kernel:
    """The kernel that a file implements, read from the text in its docstring.

    Raises:
        CodegenError: the file has no such docstring.
    """
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
    except (OSError, SyntaxError) as error:
        raise CodegenError(f"the kernel file can't be read: {error}", place=Place(path)) from error
    start = doc.find("func @")
    stop = doc.find("\n}\n", start)
    if start < 0 or stop < 0:
        raise CodegenError(
            "the file's docstring holds no function", place=Place(path), help="keep the text that was generated"
        )
    module = parse_module(f"module @kernel level kernel\n\n{doc[start:stop]}\n}}\n", path)
    (function,) = module.functions.values()
    return kernel_of(function)


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Check and time the kernel of a file, print what was found, and exit: 0 if all results are right."""
    try:
        right = run(Path(file), sys.argv[1:] if arguments is None else arguments)
    except RingcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.exit(0 if right else 1)


def run(path: Path, arguments: Sequence[str] = ()) -> bool:
    """Check and time the kernel of a file; whether all results are right."""
    kernel = kernel_of_file(path)
    if kernel.implementation.backend == "triton" and not torch.cuda.is_available():
        return _run_interpreted(path, arguments)
    for_gpu = kernel.implementation.backend == "triton" or _is_library_call_for_gpu(kernel)
    device = "cuda" if for_gpu and torch.cuda.is_available() else "cpu"
    sizes = _sizes(kernel, arguments)
    launch = backend(kernel.implementation.backend).launcher(path, kernel.name)
    right = _check(kernel, launch, sizes, device)
    seconds, count = measure(kernel, launch, sizes, device)
    note = ", of this CPU, not of the target: there is no GPU here" if for_gpu and device == "cpu" else ""
    sys.stdout.write(f"{seconds * 1e6:.1f} us (median of {count}){note}\n")
    return right


def _is_library_call_for_gpu(kernel: Kernel) -> bool:
    """Whether a kernel is a call of PyTorch in an artifact for GPUs: only there are matrices bf16."""
    types = (arg.type for arg in kernel.function.body.args)
    return kernel.implementation.template == "torch.library" and any(t.dtype == DType.BF16 for t in types)


def _run_interpreted(path: Path, arguments: Sequence[str]) -> bool:
    """As `run`, with the file's text in f32 and Triton's interpreter, whose time says nothing about a GPU's."""
    from ringc.codegen.triton.interpret import InterpreterWorker, in_f32

    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ringc-kernel-") as folder, InterpreterWorker() as worker:
        copy = Path(folder) / path.name
        copy.write_text(in_f32(path.read_text(encoding="utf-8")), encoding="utf-8")
        kernel = kernel_of_file(copy)
        many = any(isinstance(op, ExpertProduct) for op in kernel.function.body.walk())
        sizes = _sizes(kernel, arguments, {**REDUCED, "N": FEW_TOKENS} if many else REDUCED)
        right = _check(kernel, lambda *tensors: times.append(worker.run(copy, *tensors)), sizes, "cpu")
    sys.stdout.write(f"{times[-1]:.3g} s in Triton's interpreter, in f32: there is no GPU here\n")
    return right


def _check(kernel: Kernel, launch: Launcher, sizes: Mapping[str, int], device: str) -> bool:
    """Compare the kernel's results with the reference's, a line for each; whether all are right."""
    shown = ", ".join(f"{k}={v}" for k, v in sizes.items() if k in _symbols(kernel))
    sys.stdout.write(f"@{kernel.name} by {kernel.implementation} at {shown}\n")
    compared = check_kernel(kernel, launch, sizes, device=device)
    for one in compared:
        verdict = "ok" if one.passed else "WRONG"
        sys.stdout.write(
            f"  {one.name} {list(one.shape)}  error {one.error:.1e}  allowed {one.allowed:.1e}  {verdict}\n"
        )
    return all(one.passed for one in compared)


def measure(kernel: Kernel, launch: Launcher, sizes: Mapping[str, int], device: str = "cpu") -> tuple[float, int]:
    """Median seconds of a call, and how many were timed. Repeated calls find their inputs in the processor's caches."""
    inputs = random_inputs(kernel.function, sizes)
    given = call_tensors(kernel, inputs, sizes, device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < ROUNDS and (len(times) < 2 or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        launch(*given)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), len(times) - 1


def _symbols(kernel: Kernel) -> set[str]:
    found: set[str] = set()
    for value in (*kernel.function.body.args, *kernel.function.body.outputs):
        type = value.type
        found |= symbols_of((type.slots, *type.shape) if isinstance(type, StateType) else type.shape)
    return found


def _sizes(kernel: Kernel, arguments: Sequence[str], wanted: Mapping[str, int] = REDUCED) -> dict[str, int]:
    sizes = sizes_for(kernel.function, wanted)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in sizes or not value.isdecimal() or int(value) < 1:
            raise UsageError(f"'{argument}' is no size", help=f"write sizes as in N=64; there are {', '.join(sizes)}")
        sizes[name] = int(value)
    sizes["S"] = max(sizes["S"], sizes["N"])
    sizes["P"] = max(sizes["P"], sizes["B"])
    return sizes
