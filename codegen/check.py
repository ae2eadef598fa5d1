"""Checks one kernel against what its IR means: random inputs, outputs poisoned with NaN, the fp64 interpreter as reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ringc.codegen.backend import Launcher
from ringc.codegen.compare import Compared, coarseness, compare
from ringc.codegen.inputs import random_inputs, sizes_for
from ringc.codegen.kernel import Kernel
from ringc.codegen.packing import pack
from ringc.ir.core import Env
from ringc.ir.interpret import run_block
from ringc.ir.types import StateType, TensorType


def check_kernel(
    kernel: Kernel, launch: Launcher, sizes: Mapping[str, int] | None = None, *, device: str = "cpu", seed: int = 0
) -> list[Compared]:
    """Run a kernel once and compare every result; states are results too.

    Args:
        kernel: what it means.
        launch: what runs it.
        sizes: of its symbols; None for reduced ones.
        device: where it runs, and its reference.
        seed: of the inputs.
    """
    function = kernel.function
    body = function.body
    sizes = dict(sizes) if sizes is not None else sizes_for(function)
    inputs = random_inputs(function, sizes, seed, device)
    with torch.device(device):
        exact = run_block(body, [x.clone() for x in inputs], Env(dict(sizes), torch.float64))
        plain = run_block(body, [x.clone() for x in inputs], Env(dict(sizes)))
    given = call_tensors(kernel, inputs, sizes, device)
    launch(*given)
    coarse = coarseness(body)
    outputs = iter(given[len(inputs) : len(inputs) + len(kernel.outputs)])
    compared: list[Compared] = []
    for i, value in enumerate(body.outputs):
        made = given[kernel.in_place[i]] if isinstance(value.type, StateType) else next(outputs)
        name = value.name if value.name and not value.name.isdigit() else f"result {i}"
        compared.append(compare(name, made, exact[i], plain[i], coarse))
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
