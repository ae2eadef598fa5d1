"""Products of one row: each element of the result is a sum over a row of the weight, which is read straight into registers.

Nothing is tiled and nothing runs on tensor cores: with one row a product is bound by reading its weight, and what counts is how much of
it is on its way. So a program takes a few rows of the weight whole and asks for all of them at once, before it waits for the kernel that
makes the other operand. The product becomes a multiplication and a sum (`as_sums`), and the file is generated as a row kernel's is: row
work in front of the product (a norm, a gate) and pointwise work behind it are part of the region, an expert's weight is a gather, and so is
the sum over a row's experts.

Right for any number of rows, and meant for one of a dense product, where with each further row all of the weight is read once more, and for
rows that name experts of their own. Programs of one column follow each other, so that an expert that several rows name is read from memory
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.triton.elements import Axis, Cut, Index, NeedsAxis, Tiles, power_of_two
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.overlap import READ_EARLY, READ_LATE
from ringc.codegen.triton.regions import Reader, loads_first, parted_loads, viewed
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast, Mul
from ringc.ir.ops.products import GatherMatMul, MatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.shape import Reshape, Transpose, storage_of
from ringc.ir.symbols import dim_text, symbols_of
from ringc.ir.types import TensorType
from ringc.passes.front import before_product, in_front

PROGRAM = 16 << 10
"""Bytes of weights that a program reads, at most, where it reads several rows."""

PROGRAMS = 512
"""Programs wanted at least, about four to a processor."""

EXPERT, EXPERTS = 16 << 10, 8 << 10
"""Bytes of weights that a program reads of one expert, and of all experts of a row together: it holds the rows beside them.

H100, ten layers of ring-mini by (columns, warps) of the up and of the down product, us of a step of one sequence and of 16: (2, 2), (1, 1)
698 and 2620; (1, 1), (1, 1) 706 and 2585; (1, 1), (4, 2) 710 and 2641; (2, 1), (1, 1) 712 and 2620; (1, 1), (1, 2) 717 and 2655. Sums over
several warps wait for each other, eight times in the down product.
"""

WARP = 4 << 10
"""Bytes of weights that a warp reads: eight loads of 16 bytes in each thread. Twice as many with row work in front, which all programs do,
and of experts.

Medians of an H100 for one row of ring-mini, cold weights, launches overlapping, against `triton.matmul` in us: 2048 -> 8192 12.6 (13.3),
SwiGLU of 512 2.9 (8.4), 512 -> 2048 1.8 (3.4), a gate and 2048 -> 2048 5.4 (8.8), a norm and SwiGLU of 5120 15.8 (18.1), 8 experts' up and
down products 15.6 and 8.8 (18.8 and 11.0). Where a program reads 8 to 32 KiB in 2 to 8 warps hardly matters.
"""

MOST_AXES = 6


@dataclass(frozen=True)
class Programs:
    """Rows of the weight that a program takes, and its warps."""

    columns: int
    warps: int


@dataclass(frozen=True)
class Choices:
    """How many experts a row names, and whether a program takes all of them, to add them up, or one."""

    count: int
    summed: bool

    @property
    def together(self) -> int:
        """How many a program takes."""
        return self.count if self.summed else 1

    @staticmethod
    def of(body: Block, weight: Value) -> Choices | None:
        """Those of a product; None of one with a weight for all rows."""
        if not isinstance(weight.op, Gather):
            return None
        return Choices(int(weight.shape[1]), body.outputs[0].tensor.rank == 2)


def emit(kernel: Kernel) -> str:
    """The file of a product of one row.

    Raises:
        CodegenError: the region is no product with row work in front and pointwise work behind.
    """
    region = expanded(kernel.function.body)
    _check(kernel, region)
    body, weights = as_sums(region)
    tensors = Tensors(kernel, ("row", "choice", "column", "column_in", "program"))
    size = weights[0].type.dtype.bytes
    columns, inner = (int(d) for d in weights[0].shape[-2:])
    front = any(isinstance(op, MatMul | GatherMatMul) and _is_made(op.inputs()[0]) for op in region.ops)
    choices = Choices.of(body, weights[0])
    each = inner * size * len(weights) * (choices.together if choices else 1)
    shape = _shape(kernel, columns, each, choices, front=front)
    early = frozenset(kernel.function.notes.get("early", ()))
    write = partial(_body, body, weights, tensors, shape, choices, early)
    # A row's experts one by one: along a tile axis, each thread would hold what says which they are for each of its elements.
    apart = () if choices is None else tuple(range(1, choices.together))
    tiles, symbols = _written(write, inner, {len(apart) + 1: Cut(len(apart) + 1, points=apart)} if apart else {})
    rows = body.outputs[0].shape[0]
    sizes = sorted(symbols | symbols_of([rows]))

    w = Writer()
    head(w)
    w("\n")
    w(decorator(sizes))
    with w.block(f"def {kernel.name}({', '.join([*tensors.all, *sizes])}):"):
        tiles.scopes[0].write(w)
    w("\n")
    w(jobs_text([Job(kernel.name, tensors.signature(tensors.all, sizes), {}, shape.warps, 1)]))
    w("\n")
    with w.block(f"def launch({', '.join(tensors.all)}):"):
        for line in tensors.size_lines(sizes):
            w(line)
        count = dim_text(rows) if dim_text(rows).isidentifier() else f"({dim_text(rows)})"
        programs = -(-columns // shape.columns) * (choices.count // choices.together if choices else 1)
        w(f"grid = ({count} * {programs},)")
        w(f"{kernel.name}[grid]({', '.join([*tensors.all, *sizes])}, **pinned(JOBS[0]))")
    return w.text()


def _check(kernel: Kernel, region: Block) -> None:
    anchors = [op for op in region.ops if isinstance(op, MatMul | GatherMatMul)]
    if not anchors:
        raise CodegenError(f"@{kernel.name} has no product")
    refused = before_product(region)
    if refused:
        raise CodegenError(f"@{kernel.name}: {refused}", help="leave what stands in front to a row kernel")
    front = in_front(region, anchors[0].inputs()[0])
    for op in region.ops:
        sums = (
            isinstance(op, Sum) and op.axes == (1,) and op.x.tensor.rank == 3 and isinstance(anchors[0], GatherMatMul)
        )
        if op not in front and op not in anchors and not sums and not (isinstance(op, Elementwise) and op.pointwise):
            raise CodegenError(f"@{kernel.name}: '{op.name}' behind the product isn't pointwise")


def _shape(kernel: Kernel, columns: int, each: int, choices: Choices | None, *, front: bool) -> Programs:
    """From the number of the weights' rows, the bytes of each, whether they are experts', and whether there is row work in front."""
    if choices is None:
        most = min(4, PROGRAM // each, columns // PROGRAMS)
    else:
        most = min(columns, (EXPERTS if choices.summed else EXPERT) // each)
    block = power_of_two(max(1, most) + 1) // 2
    warps = max(1, min(8, power_of_two(-(-block * each // (WARP if choices is None and not front else 2 * WARP)))))
    given = kernel.implementation
    return Programs(int(given.get("columns", block)), int(given.get("warps", warps)))


def _written(
    write: Callable[[dict[int, Cut], int], tuple[Tiles, set[str]]], inner: int, cuts: dict[int, Cut]
) -> tuple[Tiles, set[str]]:
    """The body, for these cuts, those that it asks for, and as many tile axes as it turns out to need; and the sizes that it asks for."""
    axes = 2
    while True:
        try:
            tiles, symbols = write(cuts, axes)
        except NeedsAxis:
            axes += 1
            if axes > MOST_AXES:
                raise CodegenError("the region needs more axes than a kernel has") from None
            continue
        except Cut as cut:
            if cut.extent in cuts:
                raise CodegenError(f"an axis of {cut.extent} elements is cut in two ways") from cut
            cuts[cut.extent] = cut
            continue
        half = power_of_two(inner) // 2
        rest = inner - half
        if inner >= 64 and rest < half and rest & (rest - 1) == 0 and inner not in cuts:
            # 5120 elements are a block of 4096 and one of 1024 rather than one of 8192.
            cuts[inner] = Cut(inner, points=(half,))
            continue
        return tiles, symbols


def _body(
    body: Block,
    weights: Sequence[Value],
    tensors: Tensors,
    shape: Programs,
    choices: Choices | None,
    early: frozenset[int],
    cuts: dict[int, Cut],
    axes: int,
) -> tuple[Tiles, set[str]]:
    """One way to write it; raises `Cut` or `NeedsAxis` where it takes others."""
    columns = int(weights[0].shape[-2])
    symbols: set[str] = set()
    t = Tiles(Names((*RESERVED, *tensors.all, *tensors.taken)), tensors.pointers(body.args), range(axes), symbols.add)
    reader = Reader(t, cuts)
    made, first = _place(t, body, shape, choices, columns)
    t.line(f"column = {first} + {t.place(0, f'tl.arange(0, {shape.columns})')}")
    inside = ""
    if columns % shape.columns:
        inside = "column_in"
        t.line(f"{inside} = column < {columns}")
    # Columns lie along the outermost tile axis, so that reductions take the others.
    column = Index(((Axis("column", 0, columns - 1, slot=0, block=shape.columns, inside=inside), 1),))
    # Which expert's a weight is, a kernel before says: the one in front, or an earlier one (`ringc.passes.early`).
    known = choices is None or all(_names(body, weight) & early for weight in weights)
    if not known:
        t.line(READ_LATE)
    for weight in weights:
        _ask(reader, weight, made, column, choices)
    lines = t.scopes[0].lines
    asked = len(lines)
    for value, pointer in zip(body.outputs, tensors.outputs, strict=True):
        assert isinstance(value.type, TensorType)
        at = (*made, column)
        t.store(pointer, value.type.dtype, at, value.shape, t.tile(reader.read(value, at)))
    rest = lines[asked:]
    if known:
        # Beside its weights those of norms, say, which come from memory, too.
        there = "|".join(name for i, name in enumerate(tensors.arguments) if i in early)
        given, rest = parted_loads(rest, there) if there else ([], rest)
        rest = [*given, READ_EARLY, *loads_first(rest)]
    else:
        rest = loads_first(rest)
    lines[asked:] = rest
    return t, symbols


def _place(
    t: Tiles, body: Block, shape: Programs, choices: Choices | None, columns: int
) -> tuple[tuple[Index, ...], str]:
    """Write which part of the result a program makes: its leading indices, and its first column as text."""
    count = -(-columns // shape.columns)
    times = f" * {shape.columns}" if shape.columns > 1 else ""
    row = Index(((Axis("row", 0, None, wide=True), 1),))
    if choices is None:
        t.line(f"# A program for one row and {shape.columns} of {columns} columns.")
        t.line("program = tl.program_id(0)")
        t.line(f"row = (program // {count}).to(tl.int64)")
        return (row,), f"program % {count}{times}"
    rows = t.tile(t.size(body.outputs[0].shape[0])).text
    if choices.summed:
        t.line(f"# A program for one row, all of its experts, and {shape.columns} of {columns} columns.")
        t.line("program = tl.program_id(0)")
        t.line(f"row = (program % {rows}).to(tl.int64)")
        return (row,), f"program // {rows}{times}"
    t.line(f"# A program for one row, one of its experts, and {shape.columns} of {columns} columns.")
    t.line(f"program = tl.program_id(0) // {choices.count}")
    t.line(f"choice = tl.program_id(0) % {choices.count}")
    t.line(f"row = (program % {rows}).to(tl.int64)")
    choice = Index(((Axis("choice", 0, choices.count - 1), 1),))
    return (row, choice), f"program // {rows}{times}"


def _ask(reader: Reader, weight: Value, made: tuple[Index, ...], column: Index, choices: Choices | None) -> None:
    """Read all of a weight that the program needs, in front of what it waits for: loads on their way at once are what counts."""
    places: list[tuple[Index, ...]] = [(column,) if choices is None else (*made, column)]
    if choices is not None and choices.summed:
        places = [(*made, piece.index, column) for piece in reader.pieces(choices.count, {0})]
    if choices is not None:
        assert isinstance(weight.op, Gather)
        for place in places:  # all of them at once, as each load of a weight waits for one
            reader.read(weight.op.ids, place[:-1])
    for place in places:
        used = {axis.slot for index in place for axis in index.axes}
        for piece in reader.pieces(int(weight.shape[-1]), used):
            if piece.loop is None:
                reader.read(weight, (*place, piece.index))


def _names(body: Block, weight: Value) -> set[int]:
    """The number of the argument that says which experts are taken."""
    assert isinstance(weight.op, Gather)
    return {body.args.index(source) for source in [viewed(weight.op.ids)] if source is not None}


def as_sums(body: Block) -> tuple[Block, list[Value]]:
    """A copy of a region with `sum_k w[c, k] x[n, k]` in the place of its products; and their weights, [c, k] or [n, j, c, k]."""
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    b = Builder(copy)
    weights: list[Value] = []
    for op in body.ops:
        clone = op.clone(mapping)
        if isinstance(clone, MatMul | GatherMatMul):
            x, *_ = clone.inputs()
            if _is_made(x):
                # A kernel in front would round it in memory: rounded here, it is the same for one row as for many.
                x = b(Cast(x, x.tensor.dtype))
            weights.append(_weight(b, clone))
            *lead, inner = x.shape
            lead += [1] * (weights[-1].tensor.rank - 1 - len(lead)) if isinstance(clone, GatherMatMul) else [1]
            products = b(Mul(weights[-1], b(Reshape(x, (*lead, inner)))))
            total = b(Sum(products, (products.tensor.rank - 1,)))
            out = clone.out or (x.tensor.dtype if _is_summed(op) else None)  # rounded, as above
            made: Sequence[Value] = (total if out is None else b(Cast(total, out)),)
        else:
            made = b.insert(clone).results
        for old, new in zip(op.results, made, strict=True):
            new.name = new.name or old.name
            mapping[old] = new
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy, weights


def _is_made(value: Value) -> bool:
    """Whether a value is computed, and not read."""
    return storage_of(value).op is not None


def _is_summed(op: Op) -> bool:
    """Whether a product's result goes into a sum over a row's experts."""
    users = op.results[0].users()
    return any(isinstance(u, Sum) or (isinstance(u, Elementwise) and _is_summed(u)) for u in users)


def _weight(b: Builder, op: MatMul | GatherMatMul) -> Value:
    if isinstance(op, MatMul):
        return op.b if op.transpose_b else b(Transpose(op.b, (1, 0)))
    return b(Gather(op.w, op.ids))
