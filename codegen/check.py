"""Checks one kernel against what its IR means: random inputs, outputs poisoned with NaN, the fp64 interpreter as reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ringc.codegen.backend import Launcher
from ringc.codegen.inputs import random_inputs, sizes_for
from ringc.codegen.kernel import Kernel
from ringc.codegen.packing import pack
from ringc.ir.core import Block, Env
from ringc.ir.interpret import run_block
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.types import StateType, TensorType

MULTIPLE = 3.0
"""How many times the error of the unfused computation in the same precision a kernel's may be."""

SLACK = 2.0
"""In units of the last place of the largest element: what is allowed even where the unfused computation happens to be exact."""

SUMS = 8.0
"""In units of f32's last place of the largest element: sums are kept in f32, and taken in another order they differ by as much."""


@dataclass(frozen=True)
class Compared:
    """One result of a kernel against the reference.

    `error` and `allowed` are relative to the largest element of the reference; NaN stands for elements that are not numbers.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


def check_kernel(
    kernel: Kernel, launch: Launcher, sizes: Mapping[str, int] | None = None, *, device: str = "cpu", seed: int = 0
) -> list[Compared]:
    """Run a kernel once and compare every result; states are results too.

    Args:
        kernel: what it means.
        launch: what runs it.
        sizes: of its symbols; None for reduced ones.
        device: where it runs.
        seed: of the inputs.
    """
    function = kernel.function
    body = function.body
    sizes = dict(sizes) if sizes is not None else sizes_for(function)
    inputs = random_inputs(function, sizes, seed)
    exact = run_block(body, [x.clone() for x in inputs], Env(dict(sizes), torch.float64))
    plain = run_block(body, [x.clone() for x in inputs], Env(dict(sizes)))
    given = call_tensors(kernel, inputs, sizes, device)
    launch(*given)
    coarse = _coarseness(body)
    outputs = iter(given[len(inputs) : len(inputs) + len(kernel.outputs)])
    compared: list[Compared] = []
    for i, value in enumerate(body.outputs):
        made = given[kernel.in_place[i]] if isinstance(value.type, StateType) else next(outputs)
        name = value.name if value.name and not value.name.isdigit() else f"result {i}"
        compared.append(_compare(name, made.cpu(), exact[i], plain[i], coarse))
    return compared


def call_tensors(
    kernel: Kernel, inputs: Sequence[torch.Tensor], sizes: Mapping[str, int], device: str = "cpu"
) -> list[torch.Tensor]:
    """Tensors for a call: copies of the inputs in the kernel's layouts, poisoned outputs and workspaces."""
    env = Env(dict(sizes))
    given: list[torch.Tensor] = []
    for arg, x in zip(kernel.function.body.args, inputs, strict=True):
        blocks = arg.type.layout.blocks if isinstance(arg.type, TensorType) else ()
        given.append((pack(x, blocks) if blocks else x.clone()).to(device))
    return given + [poisoned(env, t, device) for t in (*kernel.outputs, *kernel.workspace)]


def poisoned(env: Env, type: TensorType, device: str) -> torch.Tensor:
    """Memory full of NaN, or of the largest integer."""
    dtype = type.dtype.torch
    value: float = math.nan if dtype.is_floating_point else 1 if dtype == torch.bool else torch.iinfo(dtype).max
    return torch.full(env.shape(type.shape), value, dtype=dtype, device=device)


def _coarseness(body: Block) -> float:
    """What a kernel's products may be off by, beside a rounding of the result.

    Those of the chunked form take decayed rows and the state rounded to the rows' type. Others add up K terms in an order of their own,
    and tensor cores cut off what they add: about sqrt(K) units of f32's last place.
    """
    found = [0.0]
    for op in body.ops:
        if isinstance(op, LinearAttention) and op.form == "chunked":
            found.append(2 * torch.finfo(op.v.type.dtype.torch).eps)
        elif isinstance(op, MatMul | SegmentMatMul) and isinstance(terms := op.inputs()[0].shape[-1], int):
            found.append(terms**0.5 * torch.finfo(torch.float32).eps)
    return max(found)


def _compare(name: str, made: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor, coarse: float) -> Compared:
    shape = tuple(made.shape)
    if not made.dtype.is_floating_point:
        wrong = int((made.long() != exact.long()).sum())
        return Compared(name, shape, wrong / max(1, made.numel()), 0.0)
    largest = _largest(exact) or 1.0
    error, usual = (_largest(x.double() - exact) / largest for x in (made, plain))
    rounding = SLACK * torch.finfo(made.dtype).eps + SUMS * torch.finfo(torch.float32).eps
    return Compared(name, shape, error, MULTIPLE * usual + rounding + coarse)


def _largest(x: torch.Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(x.abs().max()) if x.numel() else 0.0
