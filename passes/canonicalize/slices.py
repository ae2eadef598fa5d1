"""Rules of slices and concatenations. Slices go inward, before reshapes, so that a part of a product has one spelling."""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.elements import regroup
from ringc.ir.ops.shape import Concat, Reshape, Slice
from ringc.ir.symbols import product
from ringc.passes.rewrite import Rewriter, need, no_match, pattern


def count(op: Slice) -> int:
    """How many positions a slice takes."""
    return -(-(op.stop - op.start) // op.step)


@pattern(Slice)
def slice_away(op: Slice, r: Rewriter) -> None:
    """A slice that takes all is dropped; `stop` is one past the last position taken; of one position the step doesn't matter."""
    taken = count(op)
    last = op.start + (taken - 1) * op.step + 1
    if taken == op.x.shape[op.axis]:
        r.replace(op, op.x)
    else:
        step = op.step if taken > 1 else 1
        need((last, step) != (op.stop, op.step), "already plain")
        r.replace(op, r(Slice(op.x, op.axis, op.start, last, step)))


@pattern(Slice)
def slice_of_slice(op: Slice, r: Rewriter) -> None:
    """Two slices of one axis are one."""
    inner = op.x.op
    need(isinstance(inner, Slice) and inner.axis == op.axis, "no slice of this axis below")
    assert isinstance(inner, Slice)
    start, step = inner.start + op.start * inner.step, op.step * inner.step
    r.replace(op, r(Slice(inner.x, op.axis, start, start + (count(op) - 1) * step + 1, step)))


@pattern(Slice)
def slice_of_concat(op: Slice, r: Rewriter) -> None:
    """A slice within one part of a concatenation is a slice of that part."""
    inner = op.x.op
    need(isinstance(inner, Concat) and inner.axis == op.axis, "no concatenation along this axis below")
    assert isinstance(inner, Concat)
    start = 0
    for part in inner.parts:
        size = part.shape[op.axis]
        need(isinstance(size, int), "a part of unknown size")
        stop = start + int(size)
        if start <= op.start and op.stop <= stop:
            r.replace(op, r(Slice(part, op.axis, op.start - start, op.stop - start, op.step)))
            return
        start = stop
    no_match("crosses parts")


@pattern(Slice)
def slice_of_reshape(op: Slice, r: Rewriter) -> None:
    """Of an axis that a reshape has cut up: outer parts are a run of the axis, one inner position is a strided slice of it.

    `[N, 3*D]` as `[N, 3, D]`, part 1, is columns D .. 2D; `[N, D]` as `[N, D/2, 2]`, position 1, is columns 1, 3, 5, ...
    """
    reshape = op.x.op
    need(isinstance(reshape, Reshape), "no reshape below")
    assert isinstance(reshape, Reshape)
    old, new = next((o, n) for o, n in regroup(reshape.x.shape, reshape.shape) if op.axis in n)
    need(len(old) == 1 and len(new) > 1, "the axis is not a part of one axis")
    whole = reshape.x.shape[old[0]]
    need(reshape.shape[op.axis] != whole, "the axis is not cut")
    inner = product(reshape.shape[a] for a in new[new.index(op.axis) + 1 :])
    outer = product(reshape.shape[a] for a in new[: new.index(op.axis)])
    need(isinstance(whole, int) and isinstance(inner, int), "sizes are unknown")
    if outer == 1 and op.step == 1:
        part = Slice(reshape.x, old[0], op.start * int(inner), op.stop * int(inner))
    else:
        need(inner == 1 and count(op) == 1, "neither outermost, nor one position of the innermost")
        part = Slice(reshape.x, old[0], op.start, int(whole), int(reshape.shape[op.axis]))
    r.replace(op, r(Reshape(r(part), op.result.shape)))


@pattern(Concat)
def concat_away(op: Concat, r: Rewriter) -> None:
    """Of one part it is the part; concatenations in it along the same axis are spread; slices that continue each other are joined."""
    if len(op.parts) == 1:
        r.replace(op, op.parts[0])
        return
    parts: list[Value] = []
    joined: list[Value | Slice] = []
    for part in op.parts:
        inside = isinstance(part.op, Concat) and part.op.axis == op.axis
        parts += part.op.parts if inside and isinstance(part.op, Concat) else [part]
    for part in parts:
        last = joined[-1] if joined else None
        before = last.op if isinstance(last, Value) else last
        if (
            isinstance(before, Slice)
            and isinstance(part.op, Slice)
            and (before.x, before.axis, before.stop) == (part.op.x, part.op.axis, part.op.start)
            and before.axis == op.axis
            and before.step == part.op.step == 1
        ):
            joined[-1] = Slice(before.x, op.axis, before.start, part.op.stop)
        else:
            joined.append(part)
    need(len(joined) != len(op.parts), "nothing to spread or join")
    r.replace(op, r(Concat(tuple(r(p) if isinstance(p, Slice) else p for p in joined), op.axis)))


@pattern(Reshape)
def reshape_of_concat(op: Reshape, r: Rewriter) -> None:
    """A concatenation along an axis that is then merged with the axes behind it is one along the merged axis."""
    inner = op.x.op
    need(isinstance(inner, Concat), "no concatenation below")
    assert isinstance(inner, Concat)
    groups = regroup(inner.result.shape, op.shape)
    old, new = next((o, n) for o, n in groups if inner.axis in o)
    need(len(new) == 1 and len(old) > 1 and old[0] == inner.axis, "not merged with the axes behind")
    axis = new[0]
    rest = product(inner.result.shape[a] for a in old[1:])
    sizes = [product((p.shape[inner.axis], rest)) for p in inner.parts]
    shapes = [(*op.shape[:axis], size, *op.shape[axis + 1 :]) for size in sizes]
    r.replace(op, r(Concat(tuple(r(Reshape(p, s)) for p, s in zip(inner.parts, shapes, strict=True)), axis)))


RULES = (
    slice_away,
    slice_of_slice,
    slice_of_concat,
    slice_of_reshape,
    concat_away,
    reshape_of_concat,
)
