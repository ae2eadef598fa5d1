"""Sets Triton's JIT up in a process that runs kernels. Imports nothing of the compiler: running an artifact needs this module."""

from __future__ import annotations

import os

from ringc.codegen.triton.toolchain import find_toolchain, ptxas_variable, toolchain_problems
from ringc.errors import ToolchainError


def prepare_jit(*, strict: bool = True) -> list[str]:
    """Make Triton's JIT of this process use the assembler that a compile ahead of time would use. Call it before the first launch.

    Args:
        strict: refuse combinations of Triton and ptxas that are known to give wrong numbers.

    Returns:
        What is known to be bad about this combination, with the remedy, one line each.

    Raises:
        ToolchainError: there is no GPU that kernels can be compiled for, or the combination is refused.
    """
    import torch

    if not torch.cuda.is_available():
        raise ToolchainError(
            "there is no CUDA GPU here to run Triton kernels", help="compile for this machine with `--target cpu`"
        )
    major, minor = torch.cuda.get_device_capability()
    toolchain = find_toolchain(major * 10 + minor)
    problems = toolchain_problems(toolchain, "run")
    refused = [p for p in problems if p.severity == "error"]
    if refused and strict:
        raise ToolchainError(
            f"Triton {toolchain.triton} with ptxas {toolchain.ptxas.version} on sm_{toolchain.arch}: {refused[0].what}",
            help=refused[0].remedy,
        )
    # Triton's own is its default: naming it would only make the setting look like a choice.
    if toolchain.ptxas.origin == "wheel":
        os.environ[ptxas_variable(toolchain.arch)] = str(toolchain.ptxas.path)
    return [f"{p.severity}: {p.what} ({p.remedy})" for p in problems]
