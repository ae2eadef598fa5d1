"""Whether kernels of a target can be measured on this machine, and what they are measured on."""

from __future__ import annotations

import torch

from ringc.codegen import cpu
from ringc.codegen.backend import backend
from ringc.codegen.tvm.threads import usable_cores
from ringc.errors import ToolchainError, UsageError
from ringc.passes.target import Target


def check_runs_here(target: Target) -> None:
    """Raise unless kernels of a target can be measured on this machine.

    Raises:
        ToolchainError: its package or its GPU isn't here.
        UsageError: it leaves nothing to choose.
    """
    if target.backend == "torch":
        raise UsageError(
            f"there is nothing to measure for target {target.name}: each of its regions has one implementation",
            help="use --target cpu, sm_80, sm_90 or sm_100",
        )
    if target.arch is None:
        backend(target.backend).versions(target)
        return
    if not torch.cuda.is_available():
        raise ToolchainError(
            f"kernels for target {target.name} can't be measured here: there is no CUDA GPU",
            help="measure on a machine with such a GPU, or for this one with --target cpu",
        )
    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor != target.arch:
        raise ToolchainError(
            f"kernels for target {target.name} can't be measured here: this GPU is sm_{major}{minor}",
            help=f"use --target sm_{major}{minor}",
        )


def device_name(target: Target) -> str:
    """What kernels of a target are measured on here."""
    if target.arch is not None:
        return str(torch.cuda.get_device_name())
    return f"{cpu.name()}, {usable_cores()} cores"
