"""What a tensor made from a cache by reshapes, broadcasts, slices and concatenations holds: which head of the cache stands where.

Query heads share key-value heads, and there are many ways to write the sharing. Instead of listing them, the axes of `state_read`
[N, S, Hk, D] are followed through any operations that move elements: each axis of the result is a run of *atoms*, and the atom of the
heads knows which head of the cache it has at each place. This is exact: what can't be followed doesn't match.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product as combinations

from ringc.ir.core import Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice, Transpose
from ringc.ir.ops.state import StateRead
from ringc.ir.symbols import Dim, Shape, mul
from ringc.passes.raising.match import known_integers
from ringc.passes.rewrite import need, no_match


@dataclass(frozen=True)
class Atom:
    """A factor of an axis: tokens `n`, cache rows `s`, channels `d`, heads `h` (`heads[i]`: the head at place i), or copies `g`."""

    kind: str
    size: Dim
    heads: tuple[int, ...] = ()


Axes = tuple[tuple[Atom, ...], ...]
"""The atoms of each axis, outermost first."""


@dataclass(frozen=True)
class CacheView:
    """A tensor read from a cache, and what its axes are."""

    read: StateRead
    axes: Axes

    def kinds(self, axis: int) -> str:
        """The kinds of an axis' atoms; those of size 1 are left out."""
        return "".join(a.kind for a in self.axes[axis] if a.size != 1)

    def heads(self, start: int, stop: int) -> list[int]:
        """The cache's head at each place of the axes `start .. stop`, taken together in row-major order.

        Raises:
            NoMatch: there is more than heads and copies of heads in these axes.
        """
        atoms = [a for axis in self.axes[start:stop] for a in axis if a.size != 1]
        need(all(a.kind in "hg" for a in atoms), "not an axis of heads")
        (head,) = (a for axis in self.axes for a in axis if a.kind == "h")
        need(head in atoms or head.size == 1, "the heads are elsewhere")
        places = combinations(*(range(int(a.size)) for a in atoms))
        at = next((i for i, a in enumerate(atoms) if a.kind == "h"), None)
        return [head.heads[0 if at is None else place[at]] for place in places]


def cache_view(value: Value) -> CacheView:
    """Follow a value back to the cache.

    Raises:
        NoMatch: it was not read from a cache, or moved in a way that isn't understood.
    """
    op = value.op
    match op:
        case StateRead():
            longest, heads, channels = op.pool().shape
            need(isinstance(heads, int), "an unknown number of heads")
            atoms = (
                Atom("n", value.shape[0]),
                Atom("s", longest),
                Atom("h", heads, tuple(range(int(heads)))),
                Atom("d", channels),
            )
            return CacheView(op, tuple((a,) for a in atoms))
        case Transpose():
            view = cache_view(op.x)
            return replace(view, axes=tuple(view.axes[a] for a in op.axes))
        case Reshape():
            view = cache_view(op.x)
            return replace(view, axes=_regrouped([a for axis in view.axes for a in axis], op.shape))
        case Broadcast():
            view = cache_view(op.x)
            old = (1,) * (len(op.shape) - op.x.tensor.rank) + op.x.shape
            kept = ((),) * (len(op.shape) - op.x.tensor.rank) + view.axes
            return replace(
                view,
                axes=tuple(a if n == o else (*a, Atom("g", n)) for a, o, n in zip(kept, old, op.shape, strict=True)),
            )
        case Slice():
            chosen = range(op.start, op.stop, op.step)
            return _picked(cache_view(op.x), op.axis, list(chosen))
        case Gather() if op.ids.tensor.rank == 1:
            return _picked(cache_view(op.x), 0, known_integers(op.ids))
        case Concat():
            return _joined([cache_view(p) for p in op.parts], op.axis)
    return no_match("not moved elements of a cache")


def _regrouped(atoms: list[Atom], shape: Shape) -> Axes:
    """The atoms of a row-major reshape."""
    axes: list[tuple[Atom, ...]] = []
    left = list(atoms)
    for d in shape:
        size: Dim = 1
        axis: list[Atom] = []
        while left and size != d:
            size = mul(size, left[0].size)
            axis.append(left.pop(0))
        need(size == d, "an axis of the cache is cut")
        axes.append(tuple(axis))
    need(all(a.size == 1 for a in left), "an axis of the cache is cut")
    if left and axes:
        axes[-1] = (*axes[-1], *left)
    return tuple(axes)


def _table(view: CacheView, axis: int) -> tuple[int, ...]:
    return tuple(view.heads(axis, axis + 1))


def _with_heads(view: CacheView, axis: int, heads: tuple[int, ...]) -> CacheView:
    """The view whose axis holds these heads, and no other axis any."""
    others = tuple(tuple(a for a in atoms if a.kind != "h") for atoms in view.axes)
    return replace(view, axes=(*others[:axis], (Atom("h", len(heads), heads),), *others[axis + 1 :]))


def _picked(view: CacheView, axis: int, places: list[int]) -> CacheView:
    table = _table(view, axis)
    need(all(0 <= p < len(table) for p in places), "beyond the heads")
    return _with_heads(view, axis, tuple(table[p] for p in places))


def _joined(views: list[CacheView], axis: int) -> CacheView:
    joined = _with_heads(views[0], axis, tuple(h for v in views for h in _table(v, axis)))

    def beside(view: CacheView) -> list[tuple[Atom, ...]]:
        return [tuple(a for a in atoms if a.size != 1) for i, atoms in enumerate(view.axes) if i != axis]

    need(
        all(v.read is views[0].read and beside(v) == beside(views[0]) for v in views), "parts differ beside their heads"
    )
    return joined
