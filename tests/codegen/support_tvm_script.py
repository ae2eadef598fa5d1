"""Kernels of TVM script, built and run against the fp64 reference of the same IR text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.packing import pack
from ringc.codegen.tvm.build import compile_kernel
from ringc.ir.core import Env
from ringc.ir.interpret import bind_sizes, run_block
from ringc.ir.types import TensorType
from ringc.runtime.tvm_backend import Kernel as Loaded
from ringc.runtime.tvm_backend import load
from tests.codegen.support_kernels import poisoned


class Built:
    """A kernel, loaded as the runtime does it."""

    def __init__(self, kernel: Kernel, folder: Path) -> None:
        self.kernel = kernel
        self.built = compile_kernel(emit(kernel).text, kernel.name)
        path = folder / f"{kernel.name}.ll"
        path.write_bytes(self.built.files[".ll"])
        self.launch: Loaded = load(path)

    def results(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Results in the order of the function's, outputs and workspaces poisoned first; `inputs`, in logical layout, stay as they are."""
        body = self.kernel.function.body
        sizes = bind_sizes(body.args, inputs)
        given = []
        for arg, x in zip(body.args, inputs, strict=True):
            blocks = arg.type.layout.blocks if isinstance(arg.type, TensorType) else ()
            given.append(anywhere(pack(x, blocks) if blocks else x))
        made, scratch = (
            [anywhere(poisoned(t, sizes)) for t in types] for types in (self.kernel.outputs, self.kernel.workspace)
        )
        self.launch(*given, *made, *scratch)
        outputs = iter(made)
        in_place = self.kernel.in_place
        return [given[in_place[i]] if i in in_place else next(outputs) for i in range(len(body.outputs))]

    def check(self, inputs: Sequence[torch.Tensor], tolerance: float = 2e-5) -> None:
        """Floats are near the reference, relative to its largest element; integers are equal to it."""
        body = self.kernel.function.body
        wanted = run_block(body, inputs, Env(bind_sizes(body.args, inputs), torch.float64))
        for i, (mine, theirs) in enumerate(zip(self.results(inputs), wanted, strict=True)):
            if not mine.is_floating_point():
                assert torch.equal(mine, theirs.to(mine.dtype)), f"result {i} differs"
            elif mine.numel():
                error = float((mine.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
                assert error < tolerance, f"result {i}: relative error {error:.2e}"


def nearly_orthogonal(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Queries [N, H, D] with hardly anything of their keys left: what a first token then sees of itself is mostly rounding."""
    along = (q * k).sum(-1, keepdim=True) / (k * k).sum(-1, keepdim=True)
    return q - (along - 1e-4) * k


def unevenness(o: torch.Tensor, v: torch.Tensor) -> float:
    """How far outputs [N, H, D] of first tokens are from multiples of their values, which they are without rounding."""
    shares = o.double() / v.double()
    return float((shares / shares.mean(-1, keepdim=True) - 1).abs().max())


def anywhere(x: torch.Tensor) -> torch.Tensor:
    """A copy that begins where no vector may be taken to be aligned."""
    return torch.cat([x.new_empty(1), x.flatten()])[1:].view(x.shape)


def offsets_of(lengths: Sequence[int]) -> torch.Tensor:
    """i32[B + 1]"""
    return torch.tensor([0, *lengths]).cumsum(0).int()
