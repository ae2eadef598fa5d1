"""Row kernels: any region of element-wise work, reductions within rows, gathers and appends to caches, generated from its IR.

Results that share work make a *part*; parts are independent and run side by side. A program computes a block of rows of one part: whole
rows where a reduction needs them, else a range of one axis too. Heads and groups are tile axes of their own, so that a norm of each head
reduces one axis of a block. An axis that a concatenation is made along, as in rotary positions, is cut where the parts meet: each piece
is a block of its own, and what is read for the norm is what the rotation uses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.triton.elements import Axis, Cut, Index, Loop, NeedsAxis, Tiles, power_of_two
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.regions import WIDEST, Cuts, Reader, chunks, ranges, viewed
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice, Transpose, storage_of
from ringc.ir.ops.source import Constant
from ringc.ir.ops.state import StateAppend
from ringc.ir.symbols import Dim, dim_text, shape_text, symbols_of
from ringc.ir.types import StateType, TensorType

ELEMENTS = 2048
"""Elements that a program works on: 16 for each of 128 threads, that is two 16-byte loads of bf16."""

HEAVY = 512
"""The same with sines and cosines, whose reduction of large angles takes 25 registers an element."""

MOST_ROWS = 64
MOST_WARPS = 16
MOST_AXES = 6


@dataclass(frozen=True)
class Root:
    """Something that a kernel writes: a result, or the rows that are appended to a pool."""

    value: Value
    pointer: str
    type: TensorType | StateType
    append: StateAppend | None = None

    @property
    def rows(self) -> Dim:
        return self.value.shape[0] if self.value.shape else 1

    @property
    def trailing(self) -> tuple[int, ...]:
        return tuple(int(d) for d in self.value.shape[1:])


@dataclass(frozen=True)
class Shape:
    """How a part's programs are shaped: rows of each, tile axes behind the rows, the axis that is divided between programs, warps."""

    rows: int = 2
    axes: int = 1
    divided: int | None = None
    block: int = 0
    programs: int = 1
    warps: int = 4


@dataclass
class Part:
    """Results that are computed together: how, and the body that does it."""

    name: str
    roots: Sequence[Root]
    shape: Shape
    tiles: Tiles
    symbols: list[str]

    def parameters(self, candidates: Sequence[str]) -> list[str]:
        """Those of the kernel's parameters that the body mentions."""
        w = Writer()
        self.tiles.scopes[0].write(w)
        mentioned = set(re.findall(r"[A-Za-z_]\w*", w.text()))
        return [c for c in candidates if c in mentioned]

    @property
    def blocks(self) -> str:
        """The number of programs, as text."""
        rows = dim_text(self.roots[0].rows)
        rows = rows if rows.isidentifier() or rows.isdigit() else f"({rows})"
        count = rows if self.shape.rows == 1 else f"({rows} + {self.shape.rows - 1}) // {self.shape.rows}"
        return count if self.shape.programs == 1 else f"{count} * {self.shape.programs}"


def emit(kernel: Kernel) -> str:
    """The file of a row kernel.

    Raises:
        CodegenError: the region holds an operation, or a size, that a row kernel can't.
    """
    tensors = Tensors(kernel)
    body = expanded(kernel.function.body)
    _round_as_stored(body)
    roots = _roots(body, tensors)
    if not roots:
        raise CodegenError(f"@{kernel.name} has no results")
    pointers = tensors.pointers(body.args)
    groups = _groups(roots)
    names = [kernel.name] if len(groups) == 1 else [f"{kernel.name}_part{i}" for i in range(len(groups))]
    parts = [_part(name, group, pointers, tensors) for name, group in zip(names, groups, strict=True)]
    symbols = sorted({s for p in parts for s in p.symbols})
    warps = max(p.shape.warps for p in parts)
    job = Job(kernel.name, tensors.signature(tensors.all, symbols), {}, warps, 2)

    w = Writer()
    head(w)
    for part in parts:
        w("\n")
        _write_part(w, part, tensors, symbols, alone=len(parts) == 1)
    if len(parts) > 1:
        w("\n")
        _write_dispatch(w, kernel.name, parts, tensors, symbols)
    w("\n")
    w(jobs_text([job]))
    w("\n")
    with w.block(f"def launch({', '.join(tensors.all)}):"):
        for line in tensors.size_lines(symbols):
            w(line)
        w(f"grid = ({' + '.join(p.blocks for p in parts)},)")
        w(f"{kernel.name}[grid]({', '.join((*tensors.all, *symbols))}, **pinned(JOBS[0]))")
    return w.text()


MOVES = (Broadcast, Concat, Gather, Reshape, Slice, Transpose)
"""Operations that compute nothing: what they give has been rounded where what they are given has."""


def _round_as_stored(body: Block) -> None:
    """Round a result that the kernel reads again to its type first, as a kernel has it that reads it from memory.

    So a norm is the same behind a sum in its own kernel and in another one, and a text the same whichever of both a version takes.
    """
    for value in dict.fromkeys(storage_of(output) for output in body.outputs):
        readers = [u for u in value.users() if not isinstance(u, Reshape) or u.result.users()]
        if value.op is None or not readers or _is_rounded(value):
            continue
        behind = body.ops[body.ops.index(value.op) + 1]
        rounded = Builder(body, before=behind)(Cast(value, value.tensor.dtype))
        for reader in readers:
            reader.replace_input(value, rounded)


def _is_rounded(value: Value) -> bool:
    """Whether a value is as exact in the kernel as in memory."""
    op = value.op
    if op is None or isinstance(op, Cast) or not isinstance(value.type, TensorType):
        return True
    return not value.type.dtype.is_float or (isinstance(op, MOVES) and all(_is_rounded(v) for v in op.inputs()))


# -- which results are computed together


def _roots(body: Block, tensors: Tensors) -> list[Root]:
    found: list[Root] = []
    outputs = iter(tensors.outputs)
    written: set[Value] = set()
    for value in body.outputs:
        if isinstance(value.type, TensorType):
            found.append(Root(_unrounded(value), next(outputs), value.type))
        elif value.op is not None:
            append = value.op
            if not isinstance(append, StateAppend) or append.state.op is not None or append.state in written:
                raise CodegenError(f"a row kernel appends to a pool once, and does nothing else with it: %{value.name}")
            written.add(append.state)
            pointer = tensors.arguments[body.args.index(append.state)]
            found.append(Root(_unrounded(append.rows), pointer, value.type, append))
    for root in found:
        if not all(isinstance(d, int) for d in root.value.shape[1:]):
            shape = shape_text(root.value.shape)
            raise CodegenError(
                f"a row kernel needs known sizes behind the rows, not [{shape}]", help="leave it to torch.eager"
            )
    return found


def _unrounded(value: Value) -> Value:
    """The value without a rounding that storing it does anyway."""
    op = value.op
    if isinstance(op, Cast) and op.dtype.is_float and op.x.type.dtype.is_float:
        return op.x
    return value


def _groups(roots: Sequence[Root]) -> list[list[Root]]:
    """Results that share an operation are computed together, if they have the same shape."""
    groups: list[tuple[set[Op], list[Root]]] = []
    for root in roots:
        work = _work(root)
        joined = [root]
        left: list[tuple[set[Op], list[Root]]] = []
        for ops, members in groups:
            if ops & work and members[0].value.shape == root.value.shape:
                work, joined = work | ops, members + joined
            else:
                left.append((ops, members))
        groups = [*left, (work, joined)]
    return [members for _, members in sorted(groups, key=lambda g: roots.index(g[1][0]))]


def _work(root: Root) -> set[Op]:
    """The operations that a result is computed by, views of arguments left out."""
    found: set[Op] = set()
    pending = [root.value]
    while pending:
        value = pending.pop()
        if value.op is None or value.op in found or viewed(value) is not None or isinstance(value.op, Constant):
            continue
        found.add(value.op)
        pending += value.op.inputs()
    return found


# -- the shape of a part's programs


def _part(name: str, roots: Sequence[Root], pointers: dict[Value, str], tensors: Tensors) -> Part:
    cuts: dict[int, Cut] = {}
    shape = Shape(axes=max(len([d for d in r.trailing if d != 1]) for r in roots))
    written: tuple[Tiles, Reader, set[str]] | None = None
    while written is None:
        try:
            written = _write(roots, pointers, tensors, cuts, shape)
            uneven = _uneven(written[1], cuts)
            if uneven is not None:
                raise uneven
        except Cut as cut:
            if cut.extent in cuts:
                raise CodegenError(
                    f"an axis of {cut.extent} elements is cut in two ways, which a row kernel can't"
                ) from cut
            cuts[cut.extent] = cut
            written = None
        except NeedsAxis:
            shape = replace(shape, axes=shape.axes + 1)
            if shape.axes > MOST_AXES:
                raise CodegenError("the region needs more axes than a row kernel has") from None
    shape = _shape(roots, written[1], cuts, shape)
    tiles, _, symbols = _write(roots, pointers, tensors, cuts, shape)
    return Part(name, roots, shape, tiles, sorted(symbols | symbols_of([r.rows for r in roots])))


def _uneven(reader: Reader, cuts: Cuts) -> Cut | None:
    """Whole rows of, say, 5120 elements are a block of 4096 and one of 1024 rather than a block of 8192."""
    for (slot, extent), axis in reader.axes.items():
        high = axis.block // 2
        rest = extent - high
        if (
            slot in reader.seen.fixed
            and extent >= 64
            and axis.block > 1.25 * extent
            and rest & (rest - 1) == 0
            and extent not in cuts
        ):
            return Cut(extent, points=(high,))
    return None


def _shape(roots: Sequence[Root], reader: Reader, cuts: Cuts, shape: Shape) -> Shape:
    """Rows, division between programs and warps, from what a row of the part needs."""
    pieces = [_pieces(root, cuts, shape.axes) for root in roots]
    elements = max([reader.seen.elements, *(sum(_product([a[1] for a in p.axes]) for p in ps) for ps in pieces)])
    most = HEAVY if reader.seen.heavy else ELEMENTS
    if elements > most:
        common = [_extents(ps) for ps in pieces]
        for slot in sorted(common[0]):
            extent = common[0][slot]
            if slot in reader.seen.fixed or not extent or any(c.get(slot) != extent for c in common):
                continue
            share = -(-elements // most)
            block = max(1, power_of_two(extent) // power_of_two(share))
            even = extent & -extent  # the largest power of two that divides it
            if block // 4 <= even < block:
                block = even
            if block < extent:
                shape = replace(shape, divided=slot, block=block, programs=-(-extent // block))
                elements = elements * block // power_of_two(extent)
                break
    rows = max(1, min(MOST_ROWS, most // elements))
    rows = 1 << (rows.bit_length() - 1)
    warps = max(1, min(MOST_WARPS, power_of_two(min(elements, WIDEST) * rows * (ELEMENTS // most) // 512)))
    return replace(shape, rows=rows, warps=warps)


@dataclass(frozen=True)
class Place:
    """A piece of a result: for each axis behind the rows its first value, and the tile axes `(slot, extent, factor, axis number)`."""

    first: tuple[int, ...]
    axes: tuple[tuple[int, int, int, int], ...]


def _pieces(root: Root, cuts: Cuts, axes: int) -> list[Place]:
    """A result in pieces that are blocks; tile axes are filled from the innermost."""
    found: list[Place] = []
    for pieces in itertools.product(*(ranges(d, cuts) for d in root.trailing)):
        flat = [(extent, factor, n) for n, (_, parts) in enumerate(pieces) for extent, factor in parts]
        if len(flat) > axes:
            raise NeedsAxis
        slots = range(axes - len(flat) + 1, axes + 1)
        found.append(
            Place(
                tuple(low for low, _ in pieces), tuple((s, e, f, n) for s, (e, f, n) in zip(slots, flat, strict=True))
            )
        )
    return found


def _extents(pieces: Sequence[Place]) -> dict[int, int]:
    """Tile axis -> its extent, 0 where pieces differ."""
    found: dict[int, int] = {}
    for piece in pieces:
        here = {slot: extent for slot, extent, _, _ in piece.axes}
        for slot in {*found, *here}:
            found[slot] = here.get(slot, 0) if slot not in found or found[slot] == here.get(slot) else 0
    return found


def _product(extents: Iterable[int]) -> int:
    count = 1
    for e in extents:
        count *= power_of_two(min(e, WIDEST))
    return count


# -- the body


def _write(
    roots: Sequence[Root], pointers: dict[Value, str], tensors: Tensors, cuts: Cuts, shape: Shape
) -> tuple[Tiles, Reader, set[str]]:
    """The body of a part; also the reader that wrote it, and the sizes that it needs."""
    symbols: set[str] = set()
    names = Names(
        (*RESERVED, *tensors.all, "block", "part", "program", *symbols_of([d for r in roots for d in r.value.shape]))
    )
    slots = [*([0] if shape.rows > 1 else []), *range(1, shape.axes + 1)]
    tiles = Tiles(names, pointers, slots, symbols.add)
    reader = Reader(tiles, cuts)
    row = _row_axis(tiles, roots[0].rows, shape)
    if shape.divided is not None:
        extent = next(e for p in _pieces(roots[0], cuts, shape.axes) for s, e, _, _ in p.axes if s == shape.divided)
        _divided_axis(tiles, reader, shape, extent)
    for root in roots:
        for piece in _pieces(root, cuts, shape.axes):
            _write_piece(tiles, reader, root, piece, row)
    return tiles, reader, symbols


def _row_axis(t: Tiles, rows: Dim, shape: Shape) -> Axis:
    name = t.names.fresh("row")
    high = rows - 1 if isinstance(rows, int) else None
    if shape.rows == 1:
        t.line(f"{name} = block.to(tl.int64)")
        return Axis(name, 0, high, wide=True)
    t.line(f"{name} = block.to(tl.int64) * {shape.rows} + {t.place(0, f'tl.arange(0, {shape.rows})')}")
    inside = t.names.fresh("row_in")
    t.line(f"{inside} = {name} < {t.tile(t.size(rows)).text}")
    return Axis(name, 0, high, wide=True, slot=0, block=shape.rows, inside=inside)


def _divided_axis(t: Tiles, reader: Reader, shape: Shape, extent: int) -> None:
    assert shape.divided is not None
    name = t.names.fresh(f"i{shape.divided}")
    t.line(f"{name} = part * {shape.block} + {t.place(shape.divided, f'tl.arange(0, {shape.block})')}")
    inside = ""
    if extent % shape.block:
        inside = t.names.fresh(f"{name}_in")
        t.line(f"{inside} = {name} < {extent}")
    reader.define(Axis(name, 0, extent - 1, slot=shape.divided, block=shape.block, inside=inside), extent)


def _write_piece(t: Tiles, reader: Reader, root: Root, piece: Place, row: Axis) -> None:
    """Compute a piece of a result and store it."""
    at = [Index(constant=low) for low in piece.first]
    loops: list[Loop] = []
    for slot, extent, factor, n in piece.axes:
        if extent > WIDEST and not reader.has(slot, extent):
            loops.append(chunks(t, slot, extent))
            axis = loops[-1].axis
        else:
            axis = reader.axis(slot, extent)
        at[n] = at[n] + Index(((axis, factor),))
    index = [Index(((row, 1),)), *at] if root.value.shape else []
    with ExitStack() as stack:
        for loop in loops:
            stack.enter_context(t.loop(loop))
        value = t.tile(reader.read(root.value, index))
        if root.append is None:
            t.store(root.pointer, root.type.dtype, index, root.value.shape, value)
            return
        slot_of, place = (t.index(reader.read(v, index[:1])) for v in (root.append.slots, root.append.positions))
        assert isinstance(root.type, StateType)
        shape = (root.type.slots, *root.type.shape)
        t.store(root.pointer, root.type.dtype, [slot_of, place, *at], shape, value, f"({t.sum_text(slot_of)} >= 0)")


# -- the file


def _describe(part: Part) -> str:
    results = ", ".join(f"{r.pointer} [{shape_text(r.value.shape)}]" for r in part.roots)
    rows = f"{part.shape.rows} row{'s' if part.shape.rows > 1 else ''}"
    return f"# {results}: a program for {rows}" + (
        f" and {part.shape.block} of an axis" if part.shape.programs > 1 else ""
    )


def _write_part(w: Writer, part: Part, tensors: Tensors, symbols: Sequence[str], *, alone: bool) -> None:
    w(decorator(symbols if alone else []))
    parameters = [*tensors.all, *symbols]
    with w.block(f"def {part.name}({', '.join(parameters if alone else ['block', *part.parameters(parameters)])}):"):
        w(_describe(part))
        if alone:
            w("block = tl.program_id(0)")
        if part.shape.programs > 1:
            w(f"part = block % {part.shape.programs}")
            w(f"block = block // {part.shape.programs}")
        part.tiles.scopes[0].write(w)


def _write_dispatch(w: Writer, name: str, parts: Sequence[Part], tensors: Tensors, symbols: Sequence[str]) -> None:
    """The kernel itself: programs are numbered through the parts."""
    w(decorator(symbols))
    with w.block(f"def {name}({', '.join((*tensors.all, *symbols))}):"):
        w("block = tl.program_id(0)")
        for i, part in enumerate(parts[:-1]):
            w(f"end{i} = {f'end{i - 1} + ' if i else ''}{part.blocks}")
        for i, part in enumerate(parts):
            test = f"if block < end{i}:" if i == 0 else f"elif block < end{i}:" if i < len(parts) - 1 else "else:"
            with w.block(test):
                first = "block" if i == 0 else f"block - end{i - 1}"
                w(f"{part.name}({', '.join((first, *part.parameters([*tensors.all, *symbols])))})")
