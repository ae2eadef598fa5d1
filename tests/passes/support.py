"""Graphs as text, passes on them, and the proof that a pass changed nothing: both run at fp64 on the same random inputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch

from ringc.ir.core import Function, Module
from ringc.ir.interpret import run
from ringc.ir.levels import verify
from ringc.ir.ops.source import Param
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target

SIZES = {"N": 7, "B": 3, "P": 5, "S": 6}
"""What the symbols of a test's graph are worth: tokens, sequences, slots, rows of a cache."""


def graph(signature: str, body: str) -> str:
    """A module with one function. The last line of the body is its return."""
    return f"module @test level graph\nfunc @main({signature}) {{\n{body}\n}}\n"


def passed(module: Module, pipeline: str) -> Module:
    """A copy of a module after a pipeline, verified before and after every pass; the copy also survives printing and parsing."""
    verify(module)
    copy = module.clone()
    PassManager(parse_pipeline(pipeline), [verify_each]).run(copy, target("cpu"))
    text = print_module(copy)
    assert print_module(parse_module(text)) == text
    return copy


def names(module: Module) -> Counter[str]:
    """How often each operation stands in @main, regions left out."""
    return Counter(op.name for op in module.functions["main"].body.ops)


def transformed(
    text: str | Module,
    pipeline: str = "raise",
    sizes: Mapping[str, int] | None = None,
    ranges: Mapping[str, int] | None = None,
) -> Module:
    """The module after a pipeline, having checked that it computes what it did before.

    Args:
        sizes: values of the symbols, beside or instead of SIZES.
        ranges: upper ends of integer arguments that have no meaning by their name.
    """
    before = parse_module(text) if isinstance(text, str) else text
    after = passed(before, pipeline)
    assert_same(before, after, {**SIZES, **(sizes or {})}, ranges or {})
    return after


def counts(text: str | Module, pipeline: str = "raise", **options: Mapping[str, int]) -> Counter[str]:
    """`names` of `transformed`."""
    return names(transformed(text, pipeline, **options))


def assert_same(before: Module, after: Module, sizes: Mapping[str, int], ranges: Mapping[str, int]) -> None:
    """Two modules' @main give the same results, within 1e-9, for two draws of inputs."""
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        inputs = random_inputs(before.functions["main"], sizes, ranges, generator)
        weights = random_weights(before, generator)
        results = [run(m, "main", inputs, weights.__getitem__, torch.float64) for m in (before, after)]
        assert len(results[0]) == len(results[1]) > 0
        for x, y in zip(*results, strict=True):
            assert x.shape == y.shape
            assert torch.isfinite(x.double()).all(), "a test that compares NaN with NaN shows nothing"
            torch.testing.assert_close(y.double(), x.double(), rtol=1e-9, atol=1e-9)


def random_inputs(
    function: Function, sizes: Mapping[str, int], ranges: Mapping[str, int], generator: torch.Generator
) -> list[torch.Tensor]:
    """Inputs that fit a function's arguments.

    Names with a meaning: `offsets` cut N rows into B runs, one of them empty where there are three; `slots` are distinct places of P;
    `positions` are below S; `slopes` are positive.
    """
    from ringc.ir.symbols import evaluate
    from ringc.ir.types import StateType

    found: list[torch.Tensor] = []
    for arg in function.body.args:
        dims = (arg.type.slots, *arg.type.shape) if isinstance(arg.type, StateType) else arg.type.shape
        shape = [evaluate(d, sizes) for d in dims]
        if arg.name.startswith("offsets"):
            inner = sorted(torch.randint(0, sizes["N"] + 1, (shape[0] - 2,), generator=generator).tolist())
            if len(inner) > 1:
                inner[1] = inner[0]
            found.append(torch.tensor([0, *inner, sizes["N"]], dtype=torch.int32))
        elif arg.name.startswith("slots"):
            found.append(torch.randperm(sizes["P"], generator=generator)[: shape[0]].to(torch.int32))
        elif not arg.type.dtype.is_float:
            high = sizes["S"] if arg.name == "positions" else ranges.get(arg.name, 2)
            found.append(torch.randint(0, high, shape, generator=generator).to(arg.type.dtype.torch))
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            found.append(x.abs() + 0.01 if arg.name.startswith("slopes") else x)
    return found


def random_weights(module: Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A tensor for every parameter of a module."""
    weights: dict[str, torch.Tensor] = {}
    for function in module.functions.values():
        for op in function.body.walk():
            if isinstance(op, Param):
                shape = [int(d) for d in (op.shape[1:] if "*" in op.source else op.shape)]
                for name in op.names():
                    if name not in weights:
                        weights[name] = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(
                            shape[-1]
                        )
    return weights
