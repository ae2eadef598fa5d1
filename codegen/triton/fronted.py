"""Products of one row that make their left operand themselves: a norm or a gate in front of a dense product, generated from the region.

As in `matmul` for few rows, a program takes a few rows of the weight whole, which is the left operand of the dot. The other operand's
piece of each step is not loaded but computed from what stands in front, in f32, and rounded to the type in which a kernel of its own would
have stored it. All programs compute it again, from rows that lie in the second-level cache: that costs less than a launch where there are
few rows. Reductions in front take all of a row, or groups of neighbours (`ringc.passes.front` says what else may stand there):

* a group of at most `STEP` elements is a step, of one tile or several, and is reduced in the registers that they are made from;
* a whole row's may only scale it, as a norm's does: then the product is scaled (`scale`), and the reduction is made beside it;
* others are reduced before the steps that need them, in a pass of its own over the row or the group.

A program makes one row, and repeats it for the dot. That is right for any number of rows, and meant for one: with each further row all of
the weight is read once more. Making 16 rows in a program, the width of a dot, was slower for 2 to 16 rows than two kernels, but for a norm
in front of one product.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.elements import Axis, Cut, Index, Loop, NeedsAxis, Tile, Tiles, operand, power_of_two
from ringc.codegen.triton.jobs import Job, element, jobs_text
from ringc.codegen.triton.matmul import FEW, LOCALS, PROCESSORS, Product, Tiling, columns_of
from ringc.codegen.triton.regions import Held, Reader
from ringc.codegen.triton.scale import reductions, scaled_behind
from ringc.codegen.triton.signature import decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.elements import Elementwise
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.shape import Slice
from ringc.ir.types import DType
from ringc.passes.front import before_product, in_front, reduced_extent

STEP = 512
"""Most elements of a row that are held for a reduction within a step."""

TILE = 8192
"""Elements that are reduced at once: 64 registers of each thread."""

FLYING = 64 << 10
"""Bytes of the weights that a program keeps on their way, about: 132 processors then have 8 MB in flight."""

ROOM = 192 << 10
"""Bytes of shared memory for all that is on its way, of 227 KiB of a processor: the rest is for reductions and changes of layout."""


@dataclass(frozen=True)
class Steps:
    """How K is walked through: in `groups` of `extent` elements, each a step if `whole`, else in steps of one tile of `tiling.inner`."""

    groups: int
    extent: int
    whole: bool
    tiling: Tiling

    @property
    def stepped(self) -> bool:
        """Whether a group takes several steps."""
        return not self.whole and self.extent > self.tiling.inner

    @property
    def tiles(self) -> list[int]:
        """Where in a step its tiles begin."""
        return list(range(0, self.extent, self.tiling.inner)) if self.whole else [0]

    @property
    def counts(self) -> dict[str, int]:
        """The lengths of the loops, which are arguments: one that the compiler knows is unrolled whole."""
        long = {"depth": self.extent} if self.stepped else {}
        return long | ({"groups": self.groups} if self.groups > 1 else {})

    @property
    def uneven(self) -> bool:
        return self.extent % self.tiling.inner > 0


def emit(kernel: Kernel) -> str:
    """The file of a dense product with row work in front.

    Raises:
        CodegenError: what stands in front can't be computed piece by piece, or what stands behind is not pointwise.
    """
    p = Product(kernel, (*LOCALS, "groups", "k", "k_in", "left", "left_tile"))
    _check(p)
    scaled = scaled_behind(p.body) if reduced_extent(in_front(p.body, p.left)) > STEP else None
    p = Product(kernel, p.taken, scaled) if scaled is not None else p
    plan = steps(p)
    tiles, symbols = _body(p, plan)
    numbers = [*plan.counts, *sorted(symbols)]

    w = Writer()
    head(w)
    w("\n")
    w(decorator(numbers))
    constants = ", ".join(f"{c}: tl.constexpr" for c in plan.tiling.constants)
    with w.block(f"def {p.name}({', '.join([*p.tensors.all, *numbers])}, {constants}):"):
        tiles.scopes[0].write(w)
    signature = p.tensors.signature(p.tensors.all, numbers)
    # ptxas makes 48 registers of it and spills, unless it is told that it may take more.
    job = Job(p.name, signature, plan.tiling.constants, plan.tiling.warps, plan.tiling.stages, {"maxnreg": 255})
    w("\n")
    w(jobs_text([job]))
    w("\n")
    with w.block(f"def launch({', '.join(p.tensors.all)}):"):
        for line in p.tensors.size_lines(sorted(symbols)):
            w(line)
        given = ", ".join([*p.tensors.all, *(str(plan.counts.get(n, n)) for n in numbers)])
        grid = f"{p.tensors.outputs[0]}.shape[0] * {-(-p.columns // plan.tiling.columns)}"
        w(f"{p.name}[({grid},)]({given}, **pinned(JOBS[0]))")
    return w.text()


def _check(p: Product) -> None:
    refused = before_product(p.body)
    if refused:
        raise CodegenError(f"@{p.name}: {refused}", help="leave what stands in front to a row kernel")
    front = in_front(p.body, p.left)
    for op in p.body.ops:
        if not isinstance(op, MatMul) and op not in front and not (isinstance(op, Elementwise) and op.pointwise):
            raise CodegenError(f"@{p.name}: '{op.name}' behind the product isn't pointwise")


def steps(p: Product) -> Steps:
    """The walk through K, and the configuration: about as many programs as processors, and `FLYING` bytes of weights in flight.

    Tiles are 256 long: a vector of 256 is 4 bytes of each thread, the least that can be on its way asynchronously.
    """
    anchors = len(p.anchors)
    columns = next((c for c in ((64, 32) if anchors == 1 else (32,)) if p.columns // c >= PROCESSORS), 16)
    columns = max(16, min(columns, power_of_two(p.columns)))
    reduced = reduced_extent(in_front(p.body, p.left))
    extent = reduced or p.inner
    each = columns * p.bytes * anchors + _row_bytes(p)  # bytes that a step loads for each place of K
    whole = 0 < reduced <= STEP and reduced * each <= ROOM
    inner = longest = max(16, 512 // max(2, p.bytes))
    if not whole:
        even = extent & -extent
        inner = max(16, min(longest, power_of_two(extent), even if even >= 32 else longest))
        while inner > 16 and inner * each > ROOM:
            inner //= 2
    elif extent % longest:
        inner = max(16, power_of_two(extent))
    length = extent if whole else inner
    step = columns * length * p.bytes * anchors
    stages = max(2, min(6, 1 + FLYING // step, 1 + ROOM // (step + length * _row_bytes(p))))
    return Steps(p.inner // extent, extent, whole, Tiling(FEW, columns, inner, 4, stages))


def _row_bytes(p: Product) -> int:
    """Bytes of each place of a row that are loaded for it: of every argument that has rows, and of each piece cut out of it."""
    found = 0
    front = in_front(p.body, p.left) + _behind(p)
    for arg in p.body.args:
        users = [u for u in arg.users() if u in front]
        if users and arg.type.shape[:1] == p.left.shape[:1]:
            found += max(1, sum(isinstance(u, Slice) for u in users)) * arg.type.dtype.bytes
    return max(1, found)


def _body(p: Product, plan: Steps) -> tuple[Tiles, set[str]]:
    t, symbols = p.new_tiles((1, 0))
    tiling, whole = plan.tiling, p.columns % plan.tiling.columns == 0
    column_tiles = -(-p.columns // tiling.columns)
    t.line(
        "# A program for one row and COLUMNS rows of the weight. ROWS, the width of a dot, repeat the row; the first is stored."
    )
    t.line("program = tl.program_id(0)")
    columns_of(t, f"(program % {column_tiles})", p.columns, whole=whole)
    t.line(f"first = (program // {column_tiles}).to(tl.int64)")
    t.line("row = (first + tl.arange(0, ROWS))[None, :]")
    t.line("row_in = row == first")
    t.line("inner = tl.arange(0, INNER)")
    row = Axis("row", 0, None, wide=True, slot=0, block=tiling.rows, inside="row_in")
    accumulators = p.begin(t, "[COLUMNS, ROWS]")
    cuts = {plan.extent: Cut(plan.extent, points=tuple(plan.tiles[1:]))} if len(plan.tiles) > 1 else {}
    ahead = max(2, min(4, 1 + ROOM // (TILE * _row_bytes(p))))
    reader = Reader(t, cuts, held=Held(TILE, TILE, ahead))
    _steps(p, t, reader, plan, accumulators, row)
    t.line("column = columns[:, None]")
    inside = "" if whole else f"(column < {p.columns})"
    column = Axis("column", 0, p.columns - 1, slot=1, block=tiling.columns, inside=inside)
    p.epilogue(t, reader, accumulators, row, column)
    return t, symbols


def _steps(p: Product, t: Tiles, reader: Reader, plan: Steps, accumulators: list[str], row: Axis) -> None:
    """The loops over K: a piece of each weight, the left operand's piece, their product."""
    here = Index(((Axis("first", 0, None, wide=True), 1),))
    outer = t.scopes[-1]
    place = "start + inner" if plan.stepped else "inner"
    k_in = "k_in" if plan.uneven else ""
    one = len(plan.tiles) == 1
    k = Axis("k", 0, (plan.extent if one else plan.tiling.inner) - 1, slot=1, block=plan.tiling.inner, inside=k_in)
    lines = [f"k = {place}[:, None]"]
    lines += [f"k_in = k < {plan.extent}"] if k_in else []
    group = Axis("group", 0, plan.groups - 1)
    first = Index(((k, 1),))
    start: list[str] = []
    riding: dict[Reduction, Tile] = {}  # what is collected beside the product, for the work behind it
    with ExitStack() as stack:
        if plan.groups > 1:
            first = Index(((group, plan.extent), (k, 1)))
            start.append(f"group * {plan.extent}")
            stages = "" if plan.stepped else ", num_stages=STAGES"
            stack.enter_context(t.loop(Loop(group, f"for group in tl.range(0, groups{stages}):")))
        if plan.stepped:
            start.append("start")
            if reduced_extent(in_front(p.body, p.left)):
                _define_row(t, reader, plan)
            steps_of = "for start in tl.range(0, depth, INNER, num_stages=STAGES):"
            stack.enter_context(t.loop(Loop(k, steps_of, tuple(lines))))
        else:
            t.scopes[0].lines += lines
            reader.define(k, (k.high or 0) + 1)
        mask = f", mask=({place} < {plan.extent})[None, :], other=0.0" if k_in else ""
        for low in plan.tiles:
            from_ = " + ".join([*start, *([str(low)] if low or not start else [])])
            for line in p.loads(accumulators, f"({from_})" if " + " in from_ else from_, mask):
                t.line(line)
            t.line(f"left = {_left(p, t, reader, [here, first + Index(constant=low)], k_in)}")
            t.line("left = tl.broadcast_to(left, [INNER, ROWS])")
            for line in p.dots(accumulators, "left", swapped=True):
                t.line(line)
        riding = {op: reader.ride(op, [here, first], k, outer) for op in _behind(p)}
    for op, collected in riding.items():
        reader.arrive(op, collected, k, [Index(((row, 1),)), *([Index()] if op.keep else [])])


def _behind(p: Product) -> list[Reduction]:
    """The reductions that what is behind the product reads."""
    front = in_front(p.body, p.left)
    return [op for op in reductions(p.body, list(p.body.outputs)) if op not in front]


def _left(p: Product, t: Tiles, reader: Reader, at: list[Index], k_in: str) -> str:
    """The text of a tile of the left operand, in the type that it would be stored in."""
    try:
        left = t.tile(reader.read(p.left, at))
    except NeedsAxis:
        raise CodegenError(f"@{p.name}: a reduction in front of the product has no axis of its own") from None
    # A function of the zeros behind the last may be anything, which the weight's zeros wouldn't undo.
    if k_in:
        left = Tile(f"tl.where({k_in}, {left.text}, 0.0)")
    dtype = p.left.type.dtype
    return left.text if dtype is DType.F32 else f"{operand(left)}.to({element(dtype)})"


def _define_row(t: Tiles, reader: Reader, plan: Steps) -> None:
    """The axis of a reduction that is held whole; index arithmetic is never to cut it."""
    if plan.extent > reader.held.widest:
        return
    name, block = t.names.fresh("j"), power_of_two(plan.extent)
    t.scopes[0].lines.append(f"{name} = {t.place(1, f'tl.arange(0, {block})')}")
    inside = ""
    if block != plan.extent:
        inside = t.names.fresh(f"{name}_in")
        t.scopes[0].lines.append(f"{inside} = {name} < {plan.extent}")
    reader.define(Axis(name, 0, plan.extent - 1, slot=1, block=block, inside=inside), plan.extent)
