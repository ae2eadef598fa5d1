"""RMS norm and softmax, from means, roots, exponentials and sums."""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.ops.pointwise import Add, Div, Exp, Mul, Rsqrt, Sub
from ringc.ir.ops.reduce import Max, Mean, Sum
from ringc.ir.ops.rows import RmsNorm, Softmax
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.raising.match import Match, either, last_axis, look
from ringc.passes.rewrite import NoMatch, Rewriter, need, no_match, pattern, single_user


def _inverse_root_mean_square(m: Match, value: Value) -> tuple[Value, float]:
    """`rsqrt(mean(x * x) + eps)` over the last axis, which stays with size 1: (x, eps)."""
    inside, eps = m.take(value, Rsqrt).x, 0.0
    if isinstance(inside.op, Add):
        added = m.take(inside, Add)
        inside, eps = added.a, float(number(added.b))
    mean = m.take(inside, Mean)
    square = m.take(mean.x, Mul)
    need(square.a is square.b, "not the mean of a square")
    need(mean.axes == last_axis(mean.x) and mean.keep, "the mean is not over the last axis")
    return square.a, eps


@pattern(Mul)
def rms_norm(op: Mul, r: Rewriter) -> None:
    """`x * rsqrt(mean(x * x) + eps)`, or with a weight multiplied to one of the two factors before."""

    def factors(scale: Value, rest: Value) -> tuple[Value, Value | None, float]:
        m = Match()
        m.found[op] = None
        weight: Value | None = None
        if isinstance(scale.op, Mul):  # x * (rsqrt(..) * w)
            scaled = m.take(scale, Mul)
            scale, weight = (scaled.a, scaled.b) if isinstance(scaled.a.op, Rsqrt) else (scaled.b, scaled.a)
        x, eps = _inverse_root_mean_square(m, scale)
        if weight is None and rest is not x:  # (x * w) * rsqrt(..)
            scaled = m.take(rest, Mul)
            weight = scaled.b if scaled.a is x else scaled.a
            rest = scaled.a if scaled.a is x else scaled.b
        need(rest is x, "the norm of another value")
        m.closed(op.result)
        return x, weight, eps

    x, weight, eps = either(op, lambda a, b: factors(b, a))
    need(weight is None or weight.shape == x.shape[-1:], "the weight is no vector along the last axis")
    need(weight is None or not is_number(weight), "a factor, no weight")
    r.replace(op, r(RmsNorm(x, weight, eps)))


@pattern(Mul)
def norm_weight(op: Mul, r: Rewriter) -> None:
    """`rms_norm(x) * w` takes the weight in, when w is a vector along the last axis and nobody takes the norm without it."""
    for y, w in ((op.a, op.b), (op.b, op.a)):
        if isinstance(y.op, RmsNorm) and y.op.weight is None and w.shape == y.shape[-1:]:
            single_user(y)
            r.replace(op, r(RmsNorm(y.op.x, w, y.op.eps)))
            return
    no_match("no norm without a weight, or a weight of another shape")


@pattern(Div)
def softmax(op: Div, r: Rewriter) -> None:
    """`e / sum(e)` over the last axis, with `e = exp(x - max(x))`, or `exp(x)` of any x: subtracting a row's constant changes nothing."""
    m = Match()
    total = m.take(op.b, Sum)
    need(total.x is op.a, "the sum of something else")
    need(total.axes == last_axis(op.a) and total.keep, "the sum is not over the last axis")
    m.found[op] = None
    x = m.take(op.a, Exp).x
    m.closed(op.result)
    try:
        shifted = look(x, Sub)
        top = look(shifted.b, Max)
        need(top.x is shifted.a and top.axes == total.axes and top.keep, "not less the row's maximum")
        x = shifted.a
    except NoMatch:
        pass
    r.replace(op, r(Softmax(x)))


RULES = (rms_norm, norm_weight, softmax)
