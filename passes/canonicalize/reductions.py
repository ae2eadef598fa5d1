"""Rules of reductions."""

from __future__ import annotations

from ringc.ir.ops.pointwise import Mul
from ringc.ir.ops.reduce import Max, Mean, Reduction, Sum
from ringc.ir.ops.shape import Reshape, drop_axis
from ringc.passes.canonicalize.arithmetic import number
from ringc.passes.canonicalize.movement import squeezed
from ringc.passes.rewrite import Rewriter, need, pattern


@pattern(Mul)
def mean_of_sum(op: Mul, r: Rewriter) -> None:
    """`sum(x) * (1/n)` over n elements -> `mean(x)`."""
    total = op.a.op
    c = number(op.b)
    need(isinstance(total, Sum) and isinstance(total.extent, int), "not the sum of a known number of elements")
    assert isinstance(total, Sum)
    need(abs(c * int(total.extent) - 1) < 1e-6, "the factor is not one over the number of elements")
    r.replace(op, r(Mean(total.x, total.axes, total.keep)))


@pattern(Reshape)
def axes_kept(op: Reshape, r: Rewriter) -> None:
    """A reduction whose axes a reshape puts back (or drops), and that nobody else takes, keeps (or drops) them itself."""
    inner = op.x.op
    need(isinstance(inner, Sum | Max | Mean) and len(op.x.uses) == 1, "no reduction of its own below")
    assert isinstance(inner, Reduction)
    other = drop_axis(inner.x.tensor, inner.axes, not inner.keep)
    need(op.shape == other or (inner.keep and squeezed(op.shape) == squeezed(op.x.shape)), "other axes")
    made = inner.clone({}, keep=not inner.keep)
    if op.shape == other:
        need(made.results[0].type == op.result.type, "the reduction's own type differs")
        r.replace(op, r(made))
    else:
        r.replace(op, r(Reshape(r(made), op.shape)))


RULES = (mean_of_sum, axes_kept)
