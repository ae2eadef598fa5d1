"""Library: beside a region that competes with a call of PyTorch, that call and the work around it in kernels of its own.

A generated kernel must never be slower than the library, so the library is a candidate: every region with a product or with softmax
attention becomes an `alternatives` of the fused region and of its operations apart, and `select` keeps what costs less.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.core import Block, Function, Module, Op
from ringc.ir.ops.call import Alternatives, Fused
from ringc.ir.ops.mixers import Attention
from ringc.ir.ops.products import GatherMatMul, MatMul, SegmentMatMul
from ringc.ir.ops.routing import Route
from ringc.ir.ops.source import Constant
from ringc.passes.framework import Pass
from ringc.passes.fuse import is_row_op
from ringc.passes.regions import as_block, inlined, replace, replace_by_region
from ringc.passes.rewrite import drop_unused
from ringc.passes.target import Target

CALLED = (MatMul, SegmentMatMul, Attention)
"""The operations that PyTorch has a call for."""


@dataclass(frozen=True)
class Library(Pass):
    """Offer library calls as alternatives of fused regions."""

    name = "library"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend == "torch":
            return  # every kernel is made of library calls there
        for function in module.functions.values():
            _offer(function, target)


def _offer(function: Function, target: Target) -> None:
    body = function.body
    for op in list(body.ops):
        if isinstance(op, Fused) and _has_call(op, target):
            taken, made, fused = as_block(body, [op])
            replace(body, [op], made, Alternatives(tuple(taken), ("fused", "library"), (fused, _apart(op.body))))
        elif isinstance(op, Alternatives) and any(
            isinstance(o, Fused) and _has_call(o, target) for o in op.ways[0].ops
        ):
            op.labels += ("library",)
            op.ways += (_apart(inlined(op.ways[0])),)


def _has_call(region: Fused, target: Target) -> bool:
    """Whether PyTorch has a call for an operation of a region that is worth one.

    A router's product is small: on a CPU a call between TVM's kernels costs more than it saves. Of experts that each row names there is no
    call, and what accompanies them stays with them.
    """
    if region.family == "route" and target.backend != "triton":
        return False
    if any(isinstance(o, GatherMatMul) for o in region.body.ops):
        return False
    return any(isinstance(o, CALLED) for o in region.body.ops)


def _apart(body: Block) -> Block:
    """A block's operations as a library call for each one that there is a call for, and kernels before and behind."""
    way = body.clone()
    runs: list[tuple[str, list[Op]]] = []
    for op in way.ops:
        if isinstance(op, CALLED):
            runs.append(("library", [op]))
        elif isinstance(op, Route):
            runs.append(("route", [op]))
        elif not (isinstance(op, Constant) and not op.shape):
            assert is_row_op(op), op
            if not runs or runs[-1][0] != "row":
                runs.append(("row", []))
            runs[-1][1].append(op)
    for family, ops in runs:
        replace_by_region(way, ops, family)
    drop_unused(way, list(way.ops))  # scalars, of which every region has its own
    return way
