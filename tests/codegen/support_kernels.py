"""Kernels from IR text; those of Triton in its interpreter, against the fp64 reference of the same text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.ir.core import Env
from ringc.ir.interpret import bind_sizes, run_block
from ringc.ir.symbols import evaluate
from ringc.ir.text_parse import parse_module
from ringc.ir.types import TensorType

SYMBOLS = "".join(f"symbol {name} >= 0\n" for name in "BNPRS")


def kernel(function: str, implementation: str, workspace: Sequence[str] = ()) -> Kernel:
    """The kernel of a function's text, `func @name(...) { ... }`, made by an implementation."""
    module = parse_module(f"module @test level kernel\n{SYMBOLS}{function}")
    (found,) = module.functions.values()
    family = implementation.partition(".")[2].partition("{")[0].partition("_")[0]
    found.notes |= {"family": family, "implementation": implementation}
    if workspace:
        taken = ", ".join(f"%w{i}: {t}" for i, t in enumerate(workspace))
        text = f"module @test level kernel\n{SYMBOLS}func @w({taken}) {{\n  return {', '.join(f'%w{i}' for i in range(len(workspace)))}\n}}"
        (holder,) = parse_module(text).functions.values()
        found.notes["workspace"] = tuple(a.tensor for a in holder.body.args)
    return kernel_of(found)


def poisoned(type: TensorType, sizes: dict[str, int]) -> torch.Tensor:
    """Uninitialised memory at its worst."""
    shape = [evaluate(d, sizes) for d in type.shape]
    return torch.full(shape, float("nan") if type.dtype.is_float else 2**30 - 1, dtype=type.dtype.torch)


def run(worker: InterpreterWorker, folder: Path, kernel: Kernel, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The kernel's results, in the order of the function's; `inputs` stay as they are."""
    path = folder / f"{kernel.name}.py"
    path.write_text(emit(kernel).text)
    body = kernel.function.body
    given = [x.clone() for x in inputs]
    sizes = bind_sizes(body.args, given)
    made = [poisoned(t, sizes) for t in kernel.outputs]
    worker.run(path, *given, *made, *(poisoned(t, sizes) for t in kernel.workspace))
    outputs = iter(made)
    return [given[kernel.in_place[i]] if i in kernel.in_place else next(outputs) for i in range(len(body.outputs))]


def reference(kernel: Kernel, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The results in fp64."""
    body = kernel.function.body
    return run_block(body, inputs, Env(bind_sizes(body.args, inputs), torch.float64))


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """The relative error of a whole tensor, in the Frobenius norm; infinite where something isn't finite."""
    if got.shape != want.shape:
        raise AssertionError(f"a result of shape {tuple(got.shape)} in the place of {tuple(want.shape)}")
    if not want.numel():
        return 0.0
    error = float((got.double() - want).norm() / (want.double().norm() + 1e-30))
    return error if error == error else float("inf")


def check(
    worker: InterpreterWorker,
    folder: Path,
    kernel: Kernel,
    inputs: Sequence[torch.Tensor],
    tolerance: float = 2e-5,
    same: Callable[[int], bool] = lambda _: False,
) -> None:
    """The kernel gives what its IR means. Integers, and the results that `same` names, must be equal."""
    got, want = run(worker, folder, kernel, inputs), reference(kernel, inputs)
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        if not mine.dtype.is_floating_point or same(i):
            assert torch.equal(mine, theirs.to(mine.dtype)), f"result {i} differs"
        else:
            error = distance(mine, theirs)
            assert error < tolerance, f"result {i}: relative error {error:.2e}"


def offsets_of(lengths: Sequence[int]) -> torch.Tensor:
    """i32[B + 1]"""
    return torch.tensor([0, *torch.tensor(list(lengths), dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """The text is the file's. With RINGC_UPDATE_GOLDEN set, the file becomes the text."""
    path = GOLDEN / f"{name}.txt"
    if "RINGC_UPDATE_GOLDEN" in os.environ:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
