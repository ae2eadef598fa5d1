"""A new pointwise operation, one class in one file, needs no line in any back end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ringc.codegen.backend import backend
from ringc.codegen.check import check_kernel
from ringc.codegen.emit import emit
from ringc.codegen.kernel import kernel_of
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.ir.builder import Builder
from ringc.ir.core import OPS, Env, Level, Value, operand, operation
from ringc.ir.elements import E, Elements, Read
from ringc.ir.ops.pointwise import Add, Exp, Log, Unary
from ringc.ir.ops.source import scalar
from ringc.ir.text_parse import parse_module

TEXT = """module @m level kernel
symbol N >= 1

func @row(%x: f32[N, 24]) with {family = "row", implementation = "IMPLEMENTATION"} {
  %y = softplus(%x) : f32[N, 24]
  %z = mul(%y, %x) : f32[N, 24]
  return %z
}
"""


@pytest.fixture
def softplus() -> Iterator[None]:
    @operation("softplus")
    class Softplus(Unary):
        """`log(1 + exp(x))`."""

        x: Value = operand()
        cost = 3
        levels = frozenset({Level.FUSED})

        def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
            one = math.literal(1.0, self.x.tensor.dtype)
            return math.apply("log", math.apply("add", math.apply("exp", read(0, at)), one))

        def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
            return inputs[0].exp().log1p()

        def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
            return [b(Log(b(Add(b(Exp(inputs[0])), b(scalar(1.0, inputs[0].tensor.dtype))))))]

    yield
    del OPS["softplus"]


@pytest.mark.parametrize("implementation", ["tvm.row{parallel=0}", "triton.row", "torch.eager"])
@pytest.mark.usefixtures("softplus")
def test_every_back_end_takes_it(implementation: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (function,) = parse_module(TEXT.replace("IMPLEMENTATION", implementation)).functions.values()
    made = kernel_of(function)
    package = made.implementation.backend
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    path = tmp_path / "row.py"
    path.write_text(emit(made).text)
    if package == "triton":
        worker: InterpreterWorker = request.getfixturevalue("interpreter")
        (one,) = check_kernel(made, lambda *tensors: void(worker.run(path, *tensors)))
    else:
        (one,) = check_kernel(made, backend(package).launcher(path, "row"))
    assert one.passed, one


def void(_seconds: float) -> None:
    """Launchers give nothing back."""
