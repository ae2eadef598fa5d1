"""Random programs in planned memory: calls, views and launches beside others give what the module means."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ringc.codegen.program import emit_program
from ringc.ir.interpret import run
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target

TENSOR = "f32[N, 8]"
ROWS = 3

KERNELS = """
func @row(%x: f32[N, 8]) with {family = "row", implementation = "torch.eager"} {
  %1 = sigmoid(%x) : f32[N, 8]
  return %1
}

func @two(%x: f32[N, 8], %y: f32[N, 8]) with {family = "row", implementation = "torch.eager"} {
  %1 = sub(%x, %y) : f32[N, 8]
  %2 = sigmoid(%1) : f32[N, 8]
  return %2, %1
}

func @sum(%x: f32[N, 8], %w: f32[8, 8], %r: f32[N, 8]) with {family = "matmul", implementation = "torch.eager"} {
  %1 = matmul(%x, %w) {transpose_b = true} : f32[N, 8]
  %2 = add(%r, %1) : f32[N, 8]
  return %2
}
"""

MEANING: dict[str, Callable[..., list[torch.Tensor]]] = {
    "row": lambda x: [x.sigmoid()],
    "two": lambda x, y: [(x - y).sigmoid(), x - y],
    "sum": lambda x, w, r: [r + x @ w.T],
}

Signature = tuple[str, int, int]
"""A function's name, and its numbers of arguments (beside the weight) and of results."""


class Writer:
    """Draws one function."""

    def __init__(self, draw: random.Random, arguments: int, callees: list[Signature]) -> None:
        self.draw = draw
        self.callees = callees
        self.values = [f"%a{i}" for i in range(arguments)]
        self.lines: list[str] = []

    def value(self) -> str:
        """One that there is, mostly a late one."""
        return self.draw.choice(self.values[-4:] if self.draw.random() < 0.7 else self.values)

    def made(self, count: int, operation: str, attributes: str) -> None:
        """Write an operation with so many results."""
        names = [f"%v{len(self.lines)}_{i}" for i in range(count)]
        types = ", ".join([TENSOR] * count)
        self.lines.append(f"{', '.join(names)} = {operation} {{{attributes}, out = [{types}]}} : {types}")
        self.values += names

    def operation(self) -> None:
        kind = self.draw.choice(["call", "view", "sum", "sum", "sum", "two", "row"])
        beside = "beside = true, " if self.draw.random() < 0.25 else ""
        if kind == "call" and self.callees:
            name, arguments, results = self.draw.choice(self.callees)
            given = ", ".join([*(self.value() for _ in range(arguments)), "%w"])
            self.made(results, f"call([{given}])", f'callee = "{name}"')
        elif kind == "view":
            name = f"%v{len(self.lines)}"
            self.lines.append(f"{name} = reshape({self.value()}) {{shape = [N, 2, 4]}} : f32[N, 2, 4]")
            self.lines.append(f"{name}_0 = reshape({name}) {{shape = [N, 8]}} : {TENSOR}")
            self.values.append(f"{name}_0")
        elif kind == "two":
            self.made(2, f"launch([{self.value()}, {self.value()}])", f'{beside}kernel = "two"')
        elif kind == "sum":
            self.made(1, f"launch([{self.value()}, %w, {self.value()}])", f'{beside}kernel = "sum"')
        else:
            self.made(1, f"launch([{self.value()}])", f'{beside}kernel = "row"')


def drawn(seed: int) -> str:
    """A module: an entry point, and up to three functions that it and the later ones of them call."""
    draw = random.Random(seed)
    functions: list[str] = []
    callees: list[Signature] = []
    for name in [*(f"layer{i}" for i in range(draw.randint(0, 3))), "go"]:
        arguments, results = (2, 2) if name == "go" else (draw.randint(1, 3), draw.randint(1, 2))
        writer = Writer(draw, arguments, list(callees))
        for _ in range(draw.randint(2, 9)):
            writer.operation()
        given = ", ".join([*(f"%a{i}: {TENSOR}" for i in range(arguments)), "%w: f32[8, 8]"])
        notes = 'entry = "go", guard = "", rows = [1, 0]' if name == "go" else "rows = [1, 0]"
        back = ", ".join(draw.choice(writer.values[-3:]) for _ in range(results))
        body = "\n  ".join([*writer.lines, f"return {back}"])
        functions.append(f"func @{name}({given}) with {{{notes}}} {{\n  {body}\n}}\n")
        callees.append((name, arguments, results))
    return "module @m level kernel\nsymbol N >= 1\n\n" + "\n".join(functions) + KERNELS


def lies(x: torch.Tensor) -> range:
    """The elements of the arena that a tensor has."""
    start = x.data_ptr() // 4
    return range(start, start + x.numel())


class Machine:
    """The `rt` of a program in one block of memory. What may run beside others runs at once, or as late as it may."""

    N = ROWS

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self.memory = torch.zeros(1 << 14)
        self.top = 0
        self.waiting: list[Callable[[], None]] = []
        self.is_beside = False

    @contextmanager
    def frame(self, *sizes: int) -> Iterator[Callable[..., torch.Tensor]]:
        before, starts = self.top, []
        for size in sizes:
            starts.append(self.top)
            self.top += size // 4
        self.memory[before : self.top] = torch.nan

        def buffer(number: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
            return self.memory[starts[number] :][: ROWS * 8].view(shape)

        yield buffer
        self.top = before

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.is_beside = True
        yield
        self.is_beside = False

    def join(self) -> None:
        for work in self.waiting:
            work()
        self.waiting = []

    def copy(self, source: torch.Tensor, made: torch.Tensor) -> None:
        def work() -> None:
            made.copy_(source)

        self.do(work)

    def launch(self, kernel: str, *tensors: torch.Tensor) -> None:
        count = MEANING[kernel].__code__.co_argcount
        taken, made = tensors[:count], tensors[count:]
        for i, result in enumerate(made):
            others = [x for x in (*taken, *made[:i]) if set(lies(x)) & set(lies(result))]
            assert not others, f"a result of {kernel} lies where it reads, or where another one lies"

        def work() -> None:
            for result, x in zip(made, MEANING[kernel](*(x.clone() for x in taken)), strict=True):
                result.copy_(x)

        self.do(work)

    def do(self, work: Callable[[], None]) -> None:
        if self.is_beside and self.late:
            self.waiting.append(work)
        else:
            work()


@pytest.mark.parametrize("part", range(4))
def test_planned_memory_holds_what_is_needed(part: int) -> None:
    for seed in range(100 * part, 100 * (part + 1)):
        module = parse_module(drawn(seed))
        PassManager(parse_pipeline("memory"), [verify_each]).run(module, target("torch"))
        names: dict[str, Any] = {}
        exec(emit_program(module, "torch"), names)
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(ROWS, 8, generator=generator) for _ in range(2)] + [
            torch.randn(8, 8, generator=generator) / 3
        ]
        wanted = run(module, "go", [x.double() for x in inputs], None, torch.float64)
        for late in (False, True):
            machine = Machine(late=late)
            given, made = [x.clone() for x in inputs], [torch.full((ROWS, 8), torch.nan) for _ in range(2)]
            names["go"](machine, *given, *made)
            for x, y in zip(made, wanted, strict=True):
                torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4, msg=f"module {seed}, late: {late}")
            assert all(torch.equal(x, y) for x, y in zip(given, inputs, strict=True)), (
                f"module {seed} overwrites its inputs"
            )
