"""One kernel alone: a region with an implementation of one's own choice, lowered as in a whole program."""

from __future__ import annotations

from ringc.codegen.kernel import Kernel, kernel_of
from ringc.ir.core import Block, Function, Level, Module
from ringc.ir.ops.call import Fused
from ringc.passes.choices import Region
from ringc.passes.kernels import OutlineKernels
from ringc.passes.layout import WeightLayout
from ringc.passes.schedules.model import Candidate
from ringc.passes.target import Target


def kernel_alone(region: Region, candidate: Candidate, name: str, target: Target) -> Kernel:
    """The kernel that a program would launch for a region, had `select` chosen this candidate.

    Args:
        region: what it computes, and for which rows.
        candidate: one of the region's.
        name: of the kernel.
        target: what it is for.
    """
    outer = Block([a.type for a in region.body.args], [a.name for a in region.body.args])
    op = Fused(tuple(outer.args), region.family, region.body.clone(), candidate.implementation)
    op.workspace = candidate.workspace
    outer.insert(op)
    outer.set_outputs(op.results)
    module = Module(name, {"caller": Function("caller", outer)}, level=Level.FUSED)
    # Weights get the layout that the implementation reads.
    WeightLayout().apply(module, target)
    OutlineKernels().apply(module, target)
    (made,) = (f for f in module.functions.values() if "family" in f.notes)
    return kernel_of(Function(name, made.body, **made.notes, rows=region.rows, serves=region.serves))
