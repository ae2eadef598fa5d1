"""The values of a region as tiles: from what a kernel stores back to what it loads, each once.

`Reader.read(value, at)` gives the element of a value at an index whose terms are tile axes, so it stands for a whole block of elements.
Element-wise operations follow their element rules; views of an argument are read from its memory at once; a concatenation is decided by
its index, for which axes are cut where parts meet; a reduction runs over an axis of its own, in a tile axis that its result doesn't have,
or in a loop.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ringc.codegen.triton.elements import (
    Axis,
    Cut,
    Expression,
    Index,
    Loop,
    NeedsAxis,
    Scope,
    Term,
    Tile,
    Tiles,
    number,
    operand,
    power_of_two,
)
from ringc.codegen.triton.jobs import element
from ringc.errors import CodegenError
from ringc.ir.core import Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.pointwise import Cast, Cos, Sin
from ringc.ir.ops.reduce import Mean, Reduction
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice, Transpose, storage_of
from ringc.ir.ops.source import Constant, SegmentIds
from ringc.ir.symbols import Dim, add, dim_text
from ringc.ir.types import DType, TensorType

WIDEST = 16384
"""Most elements of a row that are held in registers at once; a wider row is worked on in chunks."""

CHUNK = 4096

UNROLLED = 64
"""Longest axis that is summed in an unrolled loop, for lack of a tile axis."""

_HINTS = {"sum": "total", "max": "largest", "abs": "magnitude", "not": "opposite", "and": "both", "or": "either"}
_IDENTITY = {"add": (0.0, 0), "maximum": (float("-inf"), -(1 << 31))}


@dataclass(frozen=True)
class Piece:
    """A part of an axis: `index` runs over it, by `axes`, of which one may need a loop."""

    index: Index
    axes: tuple[Axis, ...] = ()
    loop: Loop | None = None


Cuts = Mapping[int, Cut]
"""Length of an axis -> how it is cut."""


def ranges(extent: int, cuts: Cuts) -> list[tuple[int, list[tuple[int, int]]]]:
    """An axis after all cuts: pieces `(first value, [(extent, factor) of each of its axes, outermost first])`."""
    if extent == 1:
        return [(0, [])]
    cut = cuts.get(extent)
    if cut is None:
        return [(0, [(extent, 1)])]
    if cut.factor:
        outer, inner = ranges(extent // cut.factor, cuts), ranges(cut.factor, cuts)
        return [
            (a * cut.factor + b, [*((e, f * cut.factor) for e, f in outside), *inside])
            for (a, outside), (b, inside) in itertools.product(outer, inner)
        ]
    found: list[tuple[int, list[tuple[int, int]]]] = []
    for start, stop in itertools.pairwise((0, *cut.points, extent)):
        found += [(start + low, axes) for low, axes in ranges(stop - start, cuts)]
    return found


@dataclass
class Seen:
    """What writing a body showed of it, for the choice of its configuration.

    `fixed`: tile axes that a reduction's result doesn't vary over: cutting them between programs would repeat the reduction.
    `elements`: most elements of one row in a reduction's operand. `heavy`: there are functions that take many registers.
    """

    fixed: set[int] = field(default_factory=set)
    elements: int = 1
    heavy: bool = False


class Reader:
    """Reads values of one region into the body that `tiles` collects.

    Args:
        tiles: the body.
        cuts: how axes are cut so far.
        axes: tile axes that exist already, by slot and extent, for reductions to share loads with.
        given: values that the kernel has in registers, as blocks that every index reads.
        cuttable: whether axes that the reader makes may be cut. Where they may not, a concatenation reads each of its parts at a place that
            the part has, and chooses.
    """

    def __init__(
        self,
        tiles: Tiles,
        cuts: Cuts,
        given: Mapping[Value, Tile] | None = None,
        *,
        cuttable: bool = True,
    ) -> None:
        self.tiles = tiles
        self.cuts = cuts
        self.given = dict(given or {})
        self.cuttable = cuttable
        self.seen = Seen()
        self.axes: dict[tuple[int, int], Axis] = {}

    # -- axes

    def axis(self, slot: int, extent: int, hint: str = "") -> Axis:
        """The values `0 .. extent-1` along a tile axis."""
        key = slot, extent
        if key not in self.axes:
            name = self.tiles.names.fresh(hint or f"i{slot}")
            block = power_of_two(extent)
            first = self.tiles.scopes[0]
            first.lines.append(f"{name} = {self.tiles.place(slot, f'tl.arange(0, {block})')}")
            inside = ""
            if block != extent:
                inside = self.tiles.names.fresh(f"{name}_in")
                first.lines.append(f"{inside} = {name} < {extent}")
            self.axes[key] = Axis(name, 0, extent - 1, slot=slot, block=block, inside=inside, cuttable=self.cuttable)
        return self.axes[key]

    def has(self, slot: int, extent: int) -> bool:
        """Whether the kernel has such an axis already."""
        return (slot, extent) in self.axes

    def define(self, axis: Axis, extent: int) -> None:
        """Use this axis, which a kernel has made itself, for this tile axis and extent."""
        assert axis.slot is not None
        self.axes[axis.slot, extent] = axis

    # -- values

    def read(self, value: Value, at: Sequence[Expression]) -> Expression:
        """The value's element at an index."""
        index = tuple(self.tiles.index(i) for i in at)
        key = value, index
        for scope in reversed(self.tiles.scopes):
            if key in scope.values:
                return scope.values[key]
        made = self._make(value, index)
        self.tiles.home(made.axes).values[key] = made
        return made

    def _make(self, value: Value, at: tuple[Index, ...]) -> Expression:
        if value in self.given:
            return self.given[value]
        source = viewed(value)
        if source is not None:
            return self._load(source, value, at)
        op = value.op
        match op:
            case None:
                raise CodegenError(f"%{value.name} is a state, which a kernel's arithmetic can't read")
            case Concat():
                return self._concat(op, at)
            case Reduction():
                return self._name(op, self._reduce(op, at))
            case SegmentIds():
                return self._segment(op, at)
            case Constant() if op.shape:
                return self._table(op, at)
            case Cast() if op.dtype is DType.F32 and op.x.type.dtype.is_float:
                return self.read(op.x, at)  # it is computed in f32 already
            case Elementwise():
                operands = op.inputs()
                self.seen.heavy |= isinstance(op, Cos | Sin)
                made = op.element(at, lambda k, i: self.read(operands[k], i), self.tiles)
                return made if isinstance(op, Reshape | Broadcast | Transpose | Slice) else self._name(op, made)
            case Op():
                raise CodegenError(f"a row kernel can't hold '{op.name}'", help="leave it to a kernel of its own")

    def _name(self, op: Op, made: Expression) -> Expression:
        if isinstance(made, Index):
            return made
        name = op.results[0].name
        return self.tiles.bind(made, name if name and not name.isdigit() else _HINTS.get(op.name, op.name))

    def _load(self, source: Value, value: Value, at: tuple[Index, ...]) -> Tile:
        if source not in self.tiles.pointers:
            raise CodegenError(f"%{source.name} is no argument of the kernel")
        pointer = self.tiles.pointers[source]
        return self.tiles.load(pointer, source.tensor, at, value.shape, f"{pointer}_x")

    def _concat(self, op: Concat, at: tuple[Index, ...]) -> Expression:
        where = at[op.axis]
        ends = list(itertools.accumulate((p.shape[op.axis] for p in op.parts), add))
        starts = [0, *ends[:-1]]
        if where.low is not None and where.high is not None and all(isinstance(e, int) for e in ends):
            inner = [int(e) for e in ends[:-1]]
            k = sum(e <= where.low for e in inner)
            if k == sum(e <= where.high for e in inner):
                shifted = where + Index(constant=-int(starts[k]))
                return self.read(op.parts[k], (*at[: op.axis], shifted, *at[op.axis + 1 :]))
            _cut_at(where, inner)
        # Where the index is data, each part is read at a place that it has, and the right one is chosen.
        t, value = self.tiles, None
        for part, start, end in reversed(list(zip(op.parts, starts, ends, strict=True))):
            place = t.apply("sub", where, t.size(start))
            last = t.apply("sub", t.size(part.shape[op.axis]), Index(constant=1))
            place = t.apply("maximum", t.apply("minimum", place, last), Index())
            piece = self.read(part, (*at[: op.axis], t.index(place, 0), *at[op.axis + 1 :]))
            value = piece if value is None else t.apply("where", t.apply("lt", where, t.size(end)), piece, value)
        assert value is not None
        return self._name(op, value)

    def _table(self, op: Constant, at: tuple[Index, ...]) -> Expression:
        flat = Index()
        for i, d in zip(at, op.shape, strict=True):
            flat = flat * int(d) + i
        value = self.tiles.literal(op.value[-1], op.dtype)
        for place in range(len(op.value) - 2, -1, -1):
            if op.value[place] != op.value[place + 1] or (isinstance(value, Tile) and value.value is None):
                here = self.tiles.apply("le", flat, Index(constant=place))
                value = self.tiles.apply("where", here, self.tiles.literal(op.value[place], op.dtype), value)
        return self._name(op, value)

    def _segment(self, op: SegmentIds, at: tuple[Index, ...]) -> Tile:
        """How many segments end at or before the row: a binary search."""
        t = self.tiles
        (row,) = at
        count = add(op.offsets.shape[0], -1)
        low, high, middle, past = (t.names.fresh(n) for n in ("low", "high", "middle", "past"))
        block = any(a.slot is not None for a in row.axes)
        with t.hoisted(row.axes):
            segments = t.tile(t.size(count)).text
            t.line(f"{low} = " + (f"tl.zeros({t.shape(row.axes)}, dtype=tl.int32)" if block else "0"))
            t.line(f"{high} = {low} + {segments}")
            step = Axis(middle)
            condition = f"tl.max({high} - {low}) > 0" if block else f"{low} < {high}"
            with t.loop(Loop(step, f"while {condition}:")):
                t.line(f"{middle} = tl.minimum(({low} + {high}) // 2, {segments} - 1)")
                end = self.read(op.offsets, [Index(((Term(middle, 0, None, row.axes | {step}), 1),), 1)])
                t.line(f"{past} = {operand(t.tile(end))} <= {t.sum_text(row)}")
                t.line(f"{high} = tl.where({past}, {high}, {middle})")
                t.line(f"{low} = tl.where({past} & ({low} < {high}), {middle} + 1, {low})")
        return Tile(low, row.axes)

    # -- reductions

    def _reduce(self, op: Reduction, at: tuple[Index, ...]) -> Expression:
        kept = iter(at)
        index: list[Index | None] = []
        for a in range(op.x.tensor.rank):
            if a not in op.axes:
                index.append(next(kept))
                continue
            index.append(None)
            if op.keep:
                next(kept)
        with self.tiles.hoisted(frozenset[Axis]().union(*(i.axes for i in index if i is not None))):
            return self._reduced(op, index)

    def _reduced(self, op: Reduction, index: Sequence[Index | None]) -> Expression:
        t = self.tiles
        used = {a.slot for i in index if i is not None for a in i.axes}
        choices = [self.pieces(op.x.shape[a], used) for a in op.axes]
        identity = _IDENTITY[op.combine][0 if op.x.type.dtype.is_float else 1]
        parts: dict[frozenset[Axis], Tile] = {}
        for pieces in itertools.product(*choices):
            inner = iter(pieces)
            place = [next(inner).index if i is None else i for i in index]
            axes = frozenset(a for p in pieces for a in p.axes)
            loops = [p.loop for p in pieces if p.loop is not None]
            outer = t.scopes[-1]
            with ExitStack() as stack:
                for loop in loops:
                    stack.enter_context(t.loop(loop))
                part = self._part(op, t.tile(self.read(op.x, place)), axes, identity)
                if loops:
                    scalars = frozenset(loop.axis for loop in loops if loop.axis.slot is None)
                    part = self._accumulate(op, outer, part, scalars, identity)
            over = frozenset(a for a in axes & part.axes if a.slot is not None)
            parts[over] = self._both(op, parts[over], part) if over in parts else part
        total = self._total(op, parts)
        if any(parts):
            self.seen.fixed |= set(t.slots) - {a.slot for a in total.axes}
        return total

    def _total(self, op: Reduction, parts: Mapping[frozenset[Axis], Tile]) -> Tile:
        """The reduction of blocks, each along its axes."""
        t = self.tiles
        made = [self._over(op, part, over) for over, part in parts.items()]
        total = made[0]
        for other in made[1:]:
            total = self._both(op, total, other)
        if isinstance(op, Mean):
            total = t.tile(t.apply("div", total, number(float(int(op.extent)))))
        return total

    def pieces(self, extent: Dim, used: set[int | None]) -> list[Piece]:
        """The parts of an axis to reduce over, each in tile axes that nothing else uses, or in a loop."""
        if not isinstance(extent, int):
            raise CodegenError(f"a reduction over {dim_text(extent)} elements has no kernel: the number must be known")
        t = self.tiles
        free = [s for s in t.slots if s not in used and s != 0]
        found: list[Piece] = []
        for low, axes in ranges(extent, self.cuts):
            if len(axes) > len(free):
                if len(axes) == 1 and axes[0][0] == extent <= UNROLLED:
                    name = t.names.fresh("j")
                    axis = Axis(name, 0, extent - 1)
                    loop = Loop(axis, f"for {name} in tl.static_range({extent}):")
                    return [Piece(Index(((axis, 1),)), (axis,), loop)]
                raise NeedsAxis
            if len(axes) == 1 and axes[0][0] > WIDEST and not self.has(free[-1], axes[0][0]):
                loop = chunks(t, free[-1], axes[0][0])
                found.append(Piece(Index(((loop.axis, 1),), low), (loop.axis,), loop))
                used.add(free[-1])
                continue
            index, made = Index(constant=low), []
            for (size, factor), slot in zip(reversed(axes), reversed(free), strict=False):
                axis = self.axis(slot, size)
                made.append(axis)
                used.add(slot)
                index = index + Index(((axis, factor),))
            found.append(Piece(index, tuple(made)))
        return found

    def _part(self, op: Reduction, tile: Tile, axes: frozenset[Axis], identity: float) -> Tile:
        """A block of the operand without the elements that don't exist, and repeated as often as it stands for."""
        self.seen.elements = max(self.seen.elements, _elements(tile.axes))
        same = [a for a in axes if a not in tile.axes and a.slot is not None]
        if same and op.combine == "add":
            count = 1
            for a in same:
                count *= a.extent or 1
            factor = number(float(count)) if op.x.type.dtype.is_float else Tile(str(count), value=count)
            tile = self.tiles.tile(self.tiles.apply("mul", tile, factor))
        inside = self.tiles.mask(frozenset(a for a in axes if a in tile.axes and a.slot is not None))
        if not inside:
            return tile
        return Tile(
            f"tl.where({inside}, {tile.text}, {number(identity).text if isinstance(identity, float) else identity})",
            tile.axes,
        )

    def _both(self, op: Reduction, a: Tile, b: Tile) -> Tile:
        return self.tiles.tile(self.tiles.apply(op.combine, a, b))

    def _accumulate(self, op: Reduction, outer: Scope, part: Tile, loops: frozenset[Axis], identity: float) -> Tile:
        t = self.tiles
        name = t.names.fresh(_HINTS.get(op.name, op.name))
        axes = part.axes - loops
        dtype = element(op.x.type.dtype) if not op.x.type.dtype.is_float else "tl.float32"
        start = number(identity).text if isinstance(identity, float) else str(identity)
        if any(a.slot is not None for a in axes):
            start = f"tl.full({t.shape(axes)}, {start}, dtype={dtype})"
        outer.lines.append(f"{name} = {start}")
        t.line(f"{name} = {t.tile(t.apply(op.combine, Tile(name, axes), part)).text}")
        return Tile(name, axes)

    def _over(self, op: Reduction, tile: Tile, axes: frozenset[Axis]) -> Tile:
        """Reduce a block along tile axes."""
        t = self.tiles
        slots = sorted(a.slot for a in axes if a.slot is not None)
        left = tile.axes - axes
        function = "tl.sum" if op.combine == "add" else "tl.max"
        if not slots:
            return Tile(tile.text, left, tile.atom, tile.value)
        if not any(a.slot is not None for a in left):
            return t.bind(Tile(f"{function}({tile.text})", left), _HINTS.get(op.name, op.name))
        text = tile.text
        for slot in slots:
            text = f"{function}({text}, {t.slots.index(slot)}, keep_dims=True)"
        return t.bind(Tile(text, left), _HINTS.get(op.name, op.name))


def chunks(t: Tiles, slot: int, extent: int) -> Loop:
    """The values `0 .. extent-1` along a tile axis, a chunk in each round of a loop."""
    name, start, chunk = t.names.fresh("c"), t.names.fresh("start"), CHUNK
    inside = t.names.fresh(f"{name}_in") if extent % chunk else ""
    first = [f"{name} = {start} + {t.place(slot, f'tl.arange(0, {chunk})')}"]
    if inside:
        first.append(f"{inside} = {name} < {extent}")
    axis = Axis(name, 0, extent - 1, slot=slot, block=chunk, inside=inside)
    return Loop(axis, f"for {start} in tl.range(0, {extent}, {chunk}):", tuple(first))


def loads_first(lines: Sequence[str | Scope]) -> list[str | Scope]:
    """The lines with loads in front: a sum over a row waits for all warps, and would hold up the loads behind it."""
    loads, others = parted_loads(lines, r"\w+")
    return [*loads, *others]


def parted_loads(lines: Sequence[str | Scope], pointers: str) -> tuple[list[str | Scope], list[str | Scope]]:
    """The loads among lines from tensors of such names (a pattern) that wait for none of the other lines; and those.

    A line makes a value, under a name that no other line gives to another: what a loop changes was made before it.
    """
    loads: list[str | Scope] = []
    others: list[str | Scope] = []
    made: set[str] = set()
    for line in lines:
        name, _, text = line.partition(" = ") if isinstance(line, str) else ("", "", "")
        if re.match(rf"tl\.load\((?:{pointers})\b", text) and made.isdisjoint(re.findall(r"\w+", text)):
            loads.append(line)
        else:
            others.append(line)
            made.add(name)
    return loads, others


def viewed(value: Value) -> Value | None:
    """The argument that a value is another view of, if it is one."""
    value = storage_of(value)
    return value if value.op is None and isinstance(value.type, TensorType) else None


def _cut_at(where: Index, points: Sequence[int]) -> None:
    """Ask for axes that are cut where an index passes one of the points, if it is made of axes that can be."""
    terms = sorted(((t, f) for t, f in where.terms), key=lambda x: -abs(x[1]))
    if not all(isinstance(t, Axis) and t.cuttable and f > 0 for t, f in terms):
        return
    low, high = where.low, where.high
    assert low is not None and high is not None
    for term, factor in terms:
        extent = (term.high or 0) + 1
        found: set[int] = set()
        for point in points:
            if low < point <= high:
                place, left = divmod(point - where.constant, factor)
                found.add(place)
                if left:
                    found.add(place + 1)
        inner = tuple(sorted(p for p in found if 0 < p < extent))
        if inner and len(inner) <= 16:
            raise Cut(extent, points=inner)


def _elements(axes: frozenset[Axis]) -> int:
    count = 1
    for a in axes:
        count *= a.block if a.slot not in (None, 0) else 1
    return count
