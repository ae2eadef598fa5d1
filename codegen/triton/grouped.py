"""Expert products: rows sorted by expert, each expert's rows with its own weights; the gather before it and pointwise work behind it.

Which rows a program works on it finds from the offsets, so that no map of tiles has to be made before. Tiles of expert e are numbered
from `offsets[e] // step + e`: with `step` the block of rows, that leaves room for every tile and skips at most one number an expert;
with `step` 1 and no `+ e` there is one number for each row, of which those count that begin a tile. The host takes the numbering that has
fewer numbers: the second where there are fewer rows than experts (decode), the first for more.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.elements import Axis, Index, Tiles, power_of_two
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.matmul import Product, Tiling, columns_of
from ringc.codegen.triton.regions import Reader, viewed
from ringc.codegen.triton.signature import decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.products import SegmentMatMul

SMALL, MIDDLE, LARGE = 16, 64, 128
"""Rows of a tile: for experts of a few rows, of about a hundred, of several hundred."""

TO_MIDDLE, TO_LARGE = 16, 256
"""Mean rows of an expert from which tiles are of 64 and of 128 rows."""


def emit(kernel: Kernel) -> str:
    """The file of an expert product.

    Raises:
        CodegenError: the region is no expert product.
    """
    p = Product(kernel)
    anchor = p.anchors[0]
    if not isinstance(anchor, SegmentMatMul):
        raise CodegenError(f"@{kernel.name} has no expert product")
    experts = int(anchor.w.shape[0])
    small, middle, large = tilings(p)
    body, symbols = _body(p, anchor, experts, [small, middle, large])
    sizes = sorted(symbols)
    numbers = ["rows", "depth", "step", *sizes]

    w = Writer()
    head(w)
    w("\n")
    w(decorator(numbers))
    constants = ", ".join(f"{c}: tl.constexpr" for c in small.constants)
    with w.block(f"def {p.name}({', '.join([*p.tensors.all, *numbers])}, {constants}):"):
        body.scopes[0].write(w)
    signature = p.tensors.signature(p.tensors.all, numbers)
    jobs = [Job(p.name, signature, t.constants, t.warps, t.stages) for t in (small, middle, large)]
    w("\n")
    w(jobs_text(jobs))
    w("\n")
    # A loop whose length the compiler knows is unrolled whole, at many seconds of compiling for nothing.
    w(f"DEPTH = {p.inner}")
    w("\n")
    with w.block(f"def launch({', '.join(p.tensors.all)}):"):
        w(f"rows = {p.tensors.outputs[0]}.shape[0]")
        for line in p.tensors.size_lines(sizes):
            w(line)
        with w.block(f"if rows < {TO_MIDDLE * experts}:"):
            w(f"step = 1 if rows <= rows // {SMALL} + {experts} else {SMALL}")
            w(f"tiles = rows if step == 1 else rows // {SMALL} + {experts}")
            w(_launch(p, small, 0, "tiles", "step", sizes))
        with w.block(f"elif rows < {TO_LARGE * experts}:"):
            w(_launch(p, middle, 1, f"(rows // {MIDDLE} + {experts})", str(MIDDLE), sizes))
        with w.block("else:"):
            w(_launch(p, large, 2, f"(rows // {LARGE} + {experts})", str(LARGE), sizes))
    return w.text()


def tilings(p: Product) -> tuple[Tiling, Tiling, Tiling]:
    """Configurations for few rows of an expert, about a hundred, and several hundred.

    H100, 256 experts of ring-mini, medians in us of the best and of what was tried beside: up and SwiGLU of 8192 tokens 700 (with three
    stages 761, columns halved 1053, 64 rows 835), of 2048 tokens 428 (three stages 453, 128 rows 438); down 407 (256 columns 400, four
    stages 487, 64 rows 436) and 224 (four stages 227, 128 rows 236).
    """
    two = len(p.anchors) == 2
    small = p.tiling(SMALL, 32 if two else 64, 128, 4, 4)
    middle = p.tiling(MIDDLE, 128, 64, 8 if two else 4, 4 if two else 3)
    large = p.tiling(LARGE, 128, 64, 8, 4 if two else 3)
    return small, middle, large


def _launch(p: Product, tiling: Tiling, number: int, tiles: str, step: str, sizes: Sequence[str]) -> str:
    given = ", ".join([*p.tensors.all, "rows", "DEPTH", step, *sizes])
    columns = -(-p.columns // tiling.columns)
    return f"{p.name}[({tiles} * {columns},)]({given}, **pinned(JOBS[{number}]))"


def _body(p: Product, anchor: SegmentMatMul, experts: int, tilings: Sequence[Tiling]) -> tuple[Tiles, set[str]]:
    t, symbols = p.new_tiles((0, 1))
    uneven, whole = p.uneven(tilings), all(p.columns % c.columns == 0 for c in tilings)
    offsets = viewed(anchor.offsets)
    if offsets is None or any(isinstance(a, SegmentMatMul) and viewed(a.offsets) is not offsets for a in p.anchors):
        raise CodegenError(f"@{p.name}: the offsets are no argument")
    t.line(f"column_tiles = ({p.columns} + COLUMNS - 1) // COLUMNS")
    _find_tile(t, p.pointers[offsets], experts)
    t.line("row = (first + tl.arange(0, ROWS).to(tl.int64))[:, None]")
    t.line("row_in = row < end")
    columns_of(t, "tl.program_id(0) % column_tiles", p.columns, whole=whole)
    t.line("inner = tl.arange(0, INNER)")
    row = Axis("row", 0, None, wide=True, slot=0, block=tilings[0].rows, inside="row_in")
    reader = Reader(t, {})
    place = _left(p, t, reader, row)
    wide = f" + expert.to(tl.int64) * {p.columns * p.inner}"
    accumulators = p.loop(t, swapped=False, uneven=uneven, x_at=place, x_mask="row_in", wide=wide)
    t.line("column = columns[None, :]")
    column = Axis(
        "column", 0, p.columns - 1, slot=1, block=tilings[0].columns, inside="" if whole else f"(column < {p.columns})"
    )
    p.epilogue(t, reader, accumulators, row, column)
    return t, symbols


def _find_tile(t: Tiles, offsets: str, experts: int) -> None:
    """Which expert, and which of its rows, the program works on: `first .. end`."""
    t.line("tile = tl.program_id(0) // column_tiles")
    t.line(f"experts = tl.arange(0, {power_of_two(experts)})")
    t.line(f"offset = tl.load({offsets} + experts, mask=experts < {experts}, other=2147483647)")
    t.line("keys = offset // step + tl.where(step > 1, experts, 0)")
    t.line("expert = tl.sum((keys <= tile).to(tl.int32)) - 1" if power_of_two(experts) == experts else
           f"expert = tl.sum(((keys <= tile) & (experts < {experts})).to(tl.int32)) - 1")  # fmt: skip
    t.line(f"first = tl.load({offsets} + expert)")
    t.line(f"end = tl.load({offsets} + expert + 1)")
    t.line("place = (tile - first // step - tl.where(step > 1, expert, 0)) * step")
    t.line("if (place % ROWS != 0) | (first + place >= end):")
    t.line("    return")
    t.line("first = first + place")


def _left(p: Product, t: Tiles, reader: Reader, row: Axis) -> str:
    """The places of the left operand's rows."""
    value: Value = p.left
    number: Index = Index(((row, 1),))
    if isinstance(value.op, Gather):
        number = t.index(reader.read(value.op.ids, [number]))
        value = value.op.x
        name = t.sum_text(number)
        at = f"{name}.to(tl.int64) * {p.inner}"
    else:
        at = f"row * {p.inner}"
    source = viewed(value)
    if source is None:
        raise CodegenError(f"@{p.name}: the rows are neither an argument nor gathered from one")
    return f"{p.pointers[source]} + {at} + inner[None, :]"
