"""What the cost model decides by a size on a GPU, at ring-mini's sizes: two ways to compute the same, and where the second overtakes."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import Tensor

from ringc.codegen.kernel import Kernel, kernel_of
from ringc.ir.core import Function
from ringc.ir.text_parse import parse_module
from ringc.passes.schedules.attention import few_tokens, implementation
from ringc.passes.schedules.model import Rows, crossover
from ringc.passes.schedules.products import TENSOR_CORE_ROWS
from ringc.passes.target import Target
from ringc.runtime.generated import kernel_by
from tests.device.cases import KERNELS

CONTEXT = 4096
"""Keys of a sequence where softmax attention decodes."""

MATRICES = ((2048, 8192), (2048, 2048), (512, 2048), (2048, 3072))
"""Inner size and columns of ring-mini's products with a weight."""

HEAD = (2048, 157184)
"""Inner size and columns of its head, whose logits are f32."""

FEW = (1, 2, 3, 4, 6, 8, 12, 16)
BATCH = (2, 8, 16, 32, 64, 128, 256, 512)
MANY = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
LENGTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)

SOLVED, STATED = "solved", "stated"
"""Why a crossover is where it is: the costs of both ways are compared there, or a rule says so."""


@dataclass(frozen=True)
class Way:
    """One way to compute something: its implementation, its kernel, and its predicted seconds as an expression of the sizes."""

    name: str
    kernel: Kernel
    seconds: sympy.Expr


@dataclass(frozen=True)
class Decision:
    """Two ways, and the size by which one is chosen.

    Attributes:
        what: is computed.
        counted: what the size counts.
        counts: values of the size, rising, that are measured.
        first, second: the ways for small and for large sizes.
        predicted: the least size at which the second way is taken; None for never.
        why: `SOLVED` or `STATED`.
        sequences: how many there are; None for one to each row.
    """

    what: str
    counted: str
    counts: tuple[int, ...]
    first: Way
    second: Way
    predicted: int | None
    why: str
    sequences: int | None = 1

    def sizes(self, count: int) -> dict[str, int]:
        """The symbols' values for a size."""
        sequences = count if self.sequences is None else self.sequences
        rows = count if self.sequences is None else count * sequences
        return {"N": rows, "B": sequences, "P": sequences, "S": CONTEXT, "R": sequences}


def decisions(target: Target) -> list[Decision]:
    """All of them; each kernel has a name of its own."""
    functions = parse_module(KERNELS.read_text(), KERNELS).functions
    made: list[Decision] = []

    def way(function: Function, template: str, rows: Rows, family: str = "") -> Way:
        named = Function(f"{function.name}_{len(made)}_{template.partition('.')[2]}", function.body.clone())
        named.notes["family"] = family or function.notes["family"]
        kernel, candidate = kernel_by(named, template, rows, target)
        return Way(candidate.implementation, kernel, candidate.seconds)

    for sequences in (1, 16):
        recurrent = way(functions["linear_recurrent"], "triton.linear_recurrent", (1, 0))
        chunked = way(functions["linear_chunked"], "triton.linear_chunked", (1, 0))
        tokens = crossover(recurrent.seconds, chunked.seconds, "N", {"B": sequences})
        length = None if tokens is None else max(1, -(-tokens // sequences))
        what = f"linear attention, {sequences} sequence{'s' * (sequences > 1)}"
        made.append(Decision(what, "tokens each", LENGTHS, recurrent, chunked, length, SOLVED, sequences))
    for inner, columns in MATRICES:
        product = _product(inner, columns)
        first, second = way(product, "triton.gemv", (1, 1)), way(product, "triton.matmul", (1, 0))
        made.append(Decision(f"product {inner} -> {columns}", "rows", FEW, first, second, 2, STATED))
    for inner, columns in (*MATRICES, HEAD):
        product = _product(inner, columns)
        # Fewer rows have a version of their own, where the product streams the weight at the library's rate.
        many = (TENSOR_CORE_ROWS + 1, 0)
        first, second = way(product, "triton.matmul", many), way(product, "torch.library", many, "library")
        rows = crossover(first.seconds, second.seconds, "N", {})
        why = SOLVED
        if rows is not None and rows < many[0]:
            rows, why = many[0], STATED
        counts = BATCH if (inner, columns) == HEAD else MANY
        made.append(Decision(f"product {inner} -> {columns}", "rows", counts, first, second, rows, why))
    split, whole = (_attention(functions["attention"], few) for few in (max(BATCHES), 0))
    few = few_tokens(int(functions["attention"].body.args[1].type.shape[1]), target)
    what = f"softmax attention, one token after {CONTEXT - 1}"
    made.append(Decision(what, "sequences", BATCHES, split, whole, few + 1, STATED, None))
    return made


def _attention(function: Function, few: int) -> Way:
    """Softmax attention that splits the keys of up to so many tokens."""
    name, workspace = implementation(function.body, few)
    notes = {"family": "attention", "implementation": name, "workspace": workspace}
    made = Function(f"attention_few_{few}", function.body.clone(), **notes)
    return Way(name, kernel_of(made), sympy.Integer(0))


def _product(inner: int, columns: int) -> Function:
    """A product with a weight in bf16; the head's is given in f32."""
    out, made = (", out = f32", "f32") if (inner, columns) == HEAD else ("", "bf16")
    text = f"""module @m level kernel
symbol B >= 1
symbol N >= 1

func @product_{inner}_{columns}(%x: bf16[N / B, {inner}], %w: bf16[{columns}, {inner}]) with {{family = "matmul"}} {{
  %y = matmul(%x, %w) {{transpose_b = true{out}}} : {made}[N / B, {columns}]
  return %y
}}"""
    (function,) = parse_module(text).functions.values()
    return function


def arrange(kernel: Kernel, inputs: list[Tensor], sizes: dict[str, int]) -> None:
    """Put sequences of equal length in slots of their own, at the end of their context.

    Args:
        kernel: whose inputs they are.
        inputs: as drawn; changed in place.
        sizes: values of the symbols.
    """
    by_name = {arg.name: x for arg, x in zip(kernel.function.body.args, inputs, strict=True)}
    for name, x in by_name.items():
        match name:
            case "slots":
                x.copy_(torch.arange(len(x)))
            case "offsets":
                x.copy_(torch.arange(len(x)) * (sizes["N"] // sizes["B"]))
            case "positions":
                x.fill_(sizes["S"] - 1)
