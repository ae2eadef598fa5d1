"""Dense products: one or two weights with the same left operand, and the pointwise work behind them.

Two kernels, of which the host takes one, and its configuration, by the number of rows. For few rows (decode) the product is bound by
reading the weight: it is the left operand of the dot, a program takes a few of its rows whole, as many programs as there are processors,
with enough loads in flight. For more rows both sides are tiled; programs that run together share rows of the operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.triton.elements import Axis, Index, Tile, Tiles, power_of_two
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.regions import Reader, viewed
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Block, Op
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.symbols import Dim
from ringc.ir.types import TensorType

FEW = 16
"""Rows up to which the weight is streamed: the narrowest side of a dot."""

PROCESSORS = 128
"""Programs wanted at least: about the number of processors of the GPUs in question (A100 108, H100 132, B200 148)."""

GROUP = 8
"""Row tiles that run together: with their column tiles they share the operands through the second-level cache."""


LOCALS = (
    "rows", "depth", "step", "ROWS", "COLUMNS", "INNER", "STAGES", "program", "column_tiles", "group", "height", "place", "row", "row_in",
    "columns", "column", "column_read", "spare", "inner", "start", "x_at", "x_tile", "w_tile", "w_tile0", "w_tile1",
    "w_at", "w_at0", "w_at1", "acc", "acc0", "acc1", "tile", "experts", "offset", "keys", "expert", "first", "end", "index",
)  # fmt: skip
"""Names of the kernels' variables, which no tensor may have."""


@dataclass(frozen=True)
class Weight:
    """The right operand of a product: name of its pointer, steps in memory along columns of the result and along the inner axis."""

    pointer: str
    column: int
    inner: int


@dataclass(frozen=True)
class Tiling:
    """A kernel's configuration: the block of rows, of columns and of the inner axis, warps, stages of the loads' pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLUMNS": self.columns, "INNER": self.inner, "STAGES": self.stages}


class Product:
    """What the product kernels of a region share: its anchors, sizes, and the text of their inner loop."""

    def __init__(self, kernel: Kernel, taken: tuple[str, ...] = LOCALS, body: Block | None = None) -> None:
        self.kernel = kernel
        self.name = kernel.name
        self.taken = taken
        self.tensors = Tensors(kernel, taken)
        self.body: Block = body or expanded(kernel.function.body)
        self.pointers = self.tensors.pointers(self.body.args)
        self.anchors: list[Op] = [op for op in self.body.ops if isinstance(op, MatMul | SegmentMatMul)]
        if not 1 <= len(self.anchors) <= 2 or len({op.inputs()[0] for op in self.anchors}) != 1:
            raise CodegenError(f"@{kernel.name} is no product of one left operand with one or two weights")
        self.left = self.anchors[0].inputs()[0]
        self.columns = _known(self.anchors[0].result.shape[-1])
        self.inner = _known(self.left.shape[-1])
        self.rows: Dim = self.left.shape[0]
        self.weights = [self._weight(op) for op in self.anchors]
        self.bytes = self.left.type.dtype.bytes
        for value in self.body.outputs:
            if not isinstance(value.type, TensorType) or value.shape != self.anchors[0].result.shape:
                raise CodegenError(f"@{kernel.name} has a result that isn't the product's shape: {value}")

    def _weight(self, op: Op) -> Weight:
        source = viewed(op.inputs()[1])
        if source is None:
            raise CodegenError(f"@{self.name}: the weight is no argument")
        straight = not isinstance(op, MatMul) or op.transpose_b
        return Weight(self.pointers[source], *((self.inner, 1) if straight else (1, self.columns)))

    def tiling(self, rows: int, columns: int, inner: int, warps: int, stages: int) -> Tiling:
        """A configuration cut to the sizes; `inner` counts elements of two bytes."""
        inner = inner * 2 // max(2, self.bytes)
        even = self.inner & -self.inner
        if even >= 32:
            inner = min(inner, even)
        inner = max(16, min(inner, power_of_two(self.inner)))
        columns = max(16, min(columns, power_of_two(self.columns)))
        return Tiling(rows, columns, inner, warps, stages)

    def uneven(self, tilings: Sequence[Tiling]) -> bool:
        """Whether the inner axis is no multiple of some block of it."""
        return any(self.inner % t.inner for t in tilings)

    def whole(self, tilings: Sequence[Tiling]) -> bool:
        """Whether the columns are a multiple of every block of them."""
        return all(self.columns % t.columns == 0 for t in tilings)

    def column_axis(self, tilings: Sequence[Tiling]) -> Axis:
        """The columns of a tile, as `column`."""
        inside = "" if self.whole(tilings) else f"(column < {self.columns})"
        return Axis("column", 0, self.columns - 1, slot=1, block=tilings[0].columns, inside=inside)

    @property
    def precision(self) -> str:
        """What a dot of its operands is told, behind its other arguments."""
        return "" if self.bytes < 4 else ', input_precision="tf32x3"'

    def new_tiles(self, slots: Sequence[int]) -> tuple[Tiles, set[str]]:
        """A body, and the sizes that it will have asked for."""
        symbols: set[str] = set()
        names = Names((*RESERVED, *self.tensors.all, *self.taken))
        return Tiles(names, self.pointers, slots, symbols.add), symbols

    def loop(self, t: Tiles, *, swapped: bool, uneven: bool, x_at: str, x_mask: str, wide: str = "") -> list[str]:
        """Lines of the inner loop; gives back the accumulators. `swapped`: the weight is the dot's left operand.

        The body has defined `column_read`, the columns that a program reads; `x_at` are the places of the left operand's rows at inner
        index 0; `wide` is added to the weights' pointers.
        """
        accumulators = self.begin(t, "[COLUMNS, ROWS]" if swapped else "[ROWS, COLUMNS]", wide)
        t.line(f"x_at = {x_at}")
        inner_along = "[:, None]" if swapped else "[None, :]"
        x_masks = [m for m in (x_mask, f"(start + inner < depth){inner_along}" if uneven else "") if m]
        w_mask = ", mask=(start + inner < depth)[None, :], other=0.0" if uneven else ""
        t.line("for start in tl.range(0, depth, INNER, num_stages=STAGES):")
        x_load = _load(x_masks)
        t.line(f"    x_tile = {x_load}")
        for line in self.loads(accumulators, "start", w_mask) + self.dots(accumulators, "x_tile", swapped=swapped):
            t.line(f"    {line}")
        return accumulators

    def begin(self, t: Tiles, sizes: str, wide: str = "") -> list[str]:
        """The weights' pointers and the accumulators, of these sizes; gives back the accumulators."""
        read = "column_read.to(tl.int64)" if self.columns * self.inner >= 1 << 31 else "column_read"
        accumulators = [f"acc{i}" for i, _ in enumerate(self.weights)] if len(self.weights) > 1 else ["acc"]
        for acc, weight in zip(accumulators, self.weights, strict=True):
            # A weight's block is always columns x inner, as it lies in memory.
            step = f"{read}[:, None]{_times(weight.column)} + inner[None, :]{_times(weight.inner)}"
            t.line(f"{acc.replace('acc', 'w_at')} = {weight.pointer}{wide} + ({step})")
            t.line(f"{acc} = tl.zeros({sizes}, dtype=tl.float32)")
        return accumulators

    def loads(self, accumulators: Sequence[str], start: str, mask: str) -> list[str]:
        """Lines that load a block of each weight from an inner index on."""
        return [
            f"{acc.replace('acc', 'w_tile')} = tl.load({acc.replace('acc', 'w_at')} + {start}{_times(weight.inner)}{mask})"
            for acc, weight in zip(accumulators, self.weights, strict=True)
        ]

    def dots(self, accumulators: Sequence[str], x: str, *, swapped: bool) -> list[str]:
        """Lines that multiply the loaded blocks with a tile of the left operand."""
        made: list[str] = []
        for acc in accumulators:
            w = acc.replace("acc", "w_tile")
            operands = f"{w}, {x}" if swapped else f"{x}, tl.trans({w})"
            made.append(f"{acc} = tl.dot({operands}, {acc}{self.precision})")
        return made

    def epilogue(self, t: Tiles, reader: Reader, accumulators: Sequence[str], row: Axis, column: Axis) -> None:
        """The work behind the products, and the stores."""
        both = frozenset((row, column))
        for op, name in zip(self.anchors, accumulators, strict=True):
            reader.given[op.result] = Tile(name, both)
        index = [Index(((row, 1),)), Index(((column, 1),))]
        for value, pointer in zip(self.body.outputs, self.tensors.outputs, strict=True):
            assert isinstance(value.type, TensorType)
            t.store(pointer, value.type.dtype, index, value.shape, t.tile(reader.read(value, index)))


def _load(masks: Sequence[str]) -> str:
    mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
    return f"tl.load(x_at + start{mask})"


def _times(step: int) -> str:
    return "" if step == 1 else f" * {step}"


def _known(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise CodegenError(f"a product needs known inner and column sizes, not {dim}")
    return dim


def emit(kernel: Kernel) -> str:
    """The file of a dense product.

    Raises:
        CodegenError: the region is no product with pointwise work behind it.
    """
    p = Product(kernel)
    source = viewed(p.left)
    if source is None:
        raise CodegenError(f"@{kernel.name}: the left operand is no argument")
    x = p.pointers[source]
    few, tiers = tilings(p)
    names = {"few": f"{p.name}_few", "tiled": f"{p.name}_tiled"}
    few_body, few_symbols = _few_body(p, x, few)
    body, symbols = _tiled_body(p, x, [t for t, _ in tiers])
    sizes = sorted(few_symbols | symbols)
    parameters = [*p.tensors.all, "rows", "depth", *sizes]

    w = Writer()
    head(w)
    for name, tiles, note in (
        (names["few"], few_body, f"# At most {FEW} rows: a program for COLUMNS rows of the weight."),
        (names["tiled"], body, "# Tiles of ROWS x COLUMNS."),
    ):
        w("\n")
        w(decorator(["rows", "depth", *sizes]))
        constants = ", ".join(f"{c}: tl.constexpr" for c in few.constants)
        with w.block(f"def {name}({', '.join(parameters)}, {constants}):"):
            w(note)
            tiles.scopes[0].write(w)
    signature = p.tensors.signature(p.tensors.all, ["rows", "depth", *sizes])
    jobs = [Job(names["few"], signature, few.constants, few.warps, few.stages)]
    jobs += [Job(names["tiled"], signature, t.constants, t.warps, t.stages) for t, _ in tiers]
    w("\n")
    w(jobs_text(jobs))
    w("\n")
    # A loop whose length the compiler knows is unrolled whole, at 20 s of compiling for nothing.
    w(f"DEPTH = {p.inner}")
    w("\n")
    with w.block(f"def launch({', '.join(p.tensors.all)}):"):
        w(f"rows = {p.tensors.outputs[0]}.shape[0]")
        for line in p.tensors.size_lines(sizes):
            w(line)
        given = ", ".join("DEPTH" if n == "depth" else n for n in parameters)
        with w.block(f"if rows <= {FEW}:"):
            w(f"{names['few']}[({-(-p.columns // few.columns)},)]({given}, **pinned(JOBS[0]))")
        for number, (tiling, limit) in enumerate(tiers, start=1):
            with w.block(f"elif rows <= {limit}:" if limit else "else:"):
                w(f"{names['tiled']}[({_grid(p, tiling)},)]({given}, **pinned(JOBS[{number}]))")
    return w.text()


def tilings(p: Product) -> tuple[Tiling, list[tuple[Tiling, int]]]:
    """The configuration for few rows, and those of tiles, each with the rows up to which it is taken (0: no limit).

    Measured on an H100 with the weights cold, in CUDA graphs, at ring-mini's shapes: up to 16 rows within 6 % of cuBLAS; 2048 -> 2048 with
    a residual takes 119 us for 8192 rows in tiles of 128 x 256, 126 in 256 x 128; 128 x 128 is best where that leaves processors without a
    tile, as 64 rows do below.
    """
    two = len(p.anchors) == 2
    columns = next((c for c in ((32,) if two else (64, 32)) if p.columns // c >= PROCESSORS), 16)
    # Loads in flight of a program: 48 to 80 KiB, so that 132 processors keep several MB on the way.
    inner, stages = (128, 4) if columns > 16 else (128, 6) if two else (256, 4)
    few = p.tiling(FEW, columns, inner, 4, stages)
    across = -(-p.columns // 128)
    if two:
        return few, [(p.tiling(64, 64, 64, 4, 5), _rows_for(100, across, 128)), (p.tiling(128, 128, 64, 8, 3), 0)]
    wide, narrow = p.tiling(64, 128, 64, 4, 4), p.tiling(64, 64, 128, 4, 4)
    if p.inner < 1024:
        # Bound by what lies behind the product: two programs on a processor hide each other's loads.
        return few, [(narrow, _rows_for(60, across, 128)), (wide, 0)]
    some, to_some, to_medium = (
        wide if p.columns >= 4096 else narrow,
        _rows_for(60, across, 128),
        _rows_for(120, across, 256),
    )
    read = sum(a.type.shape == p.anchors[0].result.shape and a is not viewed(p.left) for a in p.body.args)
    if read > 1:  # the accumulators of the largest tiles leave no registers for two more tiles
        return few, [(some, to_some), (p.tiling(128, 128, 64, 8, 4), 0)]
    middle = [(p.tiling(128, 128, 64, 8, 4), to_medium)] if to_medium > to_some else []
    large = (128, 256) if p.columns % 256 == 0 else (256, 128)
    return few, [(some, to_some), *middle, (p.tiling(*large, 64, 8, 3), 0)]


def _rows_for(tiles: int, across: int, height: int) -> int:
    """The most rows that make fewer than so many tiles of a height; 128 at least."""
    return max(128, height * (-(-tiles // across) - 1))


def _grid(p: Product, tiling: Tiling) -> str:
    return f"triton.cdiv(rows, {tiling.rows}) * {-(-p.columns // tiling.columns)}"


def columns_of(t: Tiles, tile: str, columns: int, *, whole: bool) -> None:
    """The columns of a tile; those behind the last are read as the last, and not stored."""
    t.line(f"columns = {tile} * COLUMNS + tl.arange(0, COLUMNS)")
    t.line("column_read = columns" if whole else f"column_read = tl.minimum(columns, {columns - 1})")


def _few_body(p: Product, x: str, tiling: Tiling) -> tuple[Tiles, set[str]]:
    t, symbols = p.new_tiles((1, 0))
    uneven = p.uneven([tiling])
    columns_of(t, "tl.program_id(0)", p.columns, whole=p.whole([tiling]))
    t.line("row = tl.arange(0, ROWS)[None, :]")
    t.line("row_in = row < rows")
    t.line("inner = tl.arange(0, INNER)")
    place = f"{x} + (row * {p.inner} + inner[:, None])"
    accumulators = p.loop(t, swapped=True, uneven=uneven, x_at=place, x_mask="row_in")
    t.line("column = columns[:, None]")
    row = Axis("row", 0, FEW - 1, slot=0, block=tiling.rows, inside="row_in")
    column = p.column_axis([tiling])
    p.epilogue(t, Reader(t, {}), accumulators, row, column)
    return t, symbols


def _tiled_body(p: Product, x: str, tilings: Sequence[Tiling]) -> tuple[Tiles, set[str]]:
    t, symbols = p.new_tiles((0, 1))
    uneven, whole = p.uneven(tilings), p.whole(tilings)
    t.line("program = tl.program_id(0)")
    t.line(
        f"column_tiles = {p.columns} // COLUMNS" if whole else f"column_tiles = ({p.columns} + COLUMNS - 1) // COLUMNS"
    )
    t.line(f"group = program // ({GROUP} * column_tiles)")
    t.line(f"height = tl.minimum(tl.cdiv(rows, ROWS) - group * {GROUP}, {GROUP})")
    t.line(f"place = program % ({GROUP} * column_tiles)")
    t.line(f"row = ((group * {GROUP} + place % height).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]")
    t.line("row_in = row < rows")
    columns_of(t, "place // height", p.columns, whole=whole)
    t.line(
        "# Rows behind the last are read as some of the first, and not stored: all programs at once would ask the same memory for one."
    )
    t.line(f"spare = tl.arange(0, ROWS) & tl.where(rows < ROWS, {FEW - 1}, ROWS - 1)")
    t.line("inner = tl.arange(0, INNER)")
    place = f"{x} + tl.where(row_in, row, spare[:, None]) * {p.inner} + inner[None, :]"
    accumulators = p.loop(t, swapped=False, uneven=uneven, x_at=place, x_mask="")
    t.line("column = columns[None, :]")
    row = Axis("row", 0, None, wide=True, slot=0, block=tilings[0].rows, inside="row_in")
    column = p.column_axis(tilings)
    p.epilogue(t, Reader(t, {}), accumulators, row, column)
    return t, symbols
