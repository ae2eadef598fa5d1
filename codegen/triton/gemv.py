"""Products of one row: each element of the result is a sum over a row of the weight, which is read straight into registers.

Nothing is tiled and nothing runs on tensor cores: with one row a product is bound by reading its weight, and what counts is how much of
it is on its way. So a program takes a few rows of the weight whole and asks for all of them at once, before it waits for the kernel that
makes the other operand. The product becomes a multiplication and a sum (`as_sums`), and the file is generated as a row kernel's is: row
work in front of the product (a norm, a gate) and pointwise work behind it are part of the region, and an expert's weight is a gather.

Right for any number of rows, and meant for one of a dense product, and for rows that have an expert each: with each further row all of
the weight is read once more.
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
from ringc.codegen.triton.regions import Reader
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast, Mul
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.shape import Reshape, Transpose
from ringc.ir.ops.source import SegmentIds
from ringc.ir.symbols import dim_text, symbols_of
from ringc.ir.types import TensorType
from ringc.passes.front import before_product, in_front

PROGRAM = 16 << 10
"""Bytes of weights that a program reads, at most, where it reads several rows."""

PROGRAMS = 512
"""Programs wanted at least, about four to a processor."""

EXPERT = 8 << 10
"""Bytes of weights that a program reads of an expert: there are programs enough, and each costs its start.

H100, ring-mini's down product, us by bytes: of 16 tokens 89 with 4 KiB, 84 with 8, 85 with 16, 93 with 32; of one 12.9, 13.2, 13.5, 15.5.
"""

WARP = 4 << 10
"""Bytes of weights that a warp reads: eight loads of 16 bytes in each thread. Twice as many with row work in front, which all programs do.

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


def emit(kernel: Kernel) -> str:
    """The file of a product of one row.

    Raises:
        CodegenError: the region is no product with row work in front and pointwise work behind.
    """
    region = expanded(kernel.function.body)
    _check(kernel, region)
    body, weights = as_sums(region)
    tensors = Tensors(kernel, ("row", "column", "column_in", "program"))
    size = weights[0].type.dtype.bytes
    columns, inner = (int(d) for d in weights[0].shape[-2:])
    front = any(isinstance(op, MatMul) and op.a.op is not None for op in region.ops)
    experts = isinstance(weights[0].op, Gather)
    shape = _shape(kernel, columns, inner * size * len(weights), experts=experts, front=front)
    early = frozenset(kernel.function.notes.get("early", ()))
    tiles, symbols = _written(partial(_body, body, weights, tensors, shape, early), inner)
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
        w(f"grid = ({count} * {-(-columns // shape.columns)},)")
        w(f"{kernel.name}[grid]({', '.join([*tensors.all, *sizes])}, **pinned(JOBS[0]))")
    return w.text()


def _check(kernel: Kernel, region: Block) -> None:
    anchors = [op for op in region.ops if isinstance(op, MatMul | SegmentMatMul)]
    if not anchors:
        raise CodegenError(f"@{kernel.name} has no product")
    refused = before_product(region) if isinstance(anchors[0], MatMul) else ""
    if refused:
        raise CodegenError(f"@{kernel.name}: {refused}", help="leave what stands in front to a row kernel")
    front = in_front(region, anchors[0].inputs()[0])
    for op in region.ops:
        if op not in front and op not in anchors and not (isinstance(op, Elementwise) and op.pointwise):
            raise CodegenError(f"@{kernel.name}: '{op.name}' behind the product isn't pointwise")


def _shape(kernel: Kernel, columns: int, each: int, *, experts: bool, front: bool) -> Programs:
    """From the number of the weights' rows, the bytes of each, whether they are experts', and whether there is row work in front."""
    most = max(1, min(columns, EXPERT // each) if experts else min(4, PROGRAM // each, columns // PROGRAMS))
    block = power_of_two(most + 1) // 2
    warps = max(1, min(8, power_of_two(-(-block * each // (2 * WARP if front else WARP)))))
    given = kernel.implementation
    return Programs(int(given.get("columns", block)), int(given.get("warps", warps)))


def _written(write: Callable[[dict[int, Cut], int], tuple[Tiles, set[str]]], inner: int) -> tuple[Tiles, set[str]]:
    """The body, for such cuts and as many tile axes as it turns out to need; and the sizes that it asks for."""
    cuts: dict[int, Cut] = {}
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
    early: frozenset[int],
    cuts: dict[int, Cut],
    axes: int,
) -> tuple[Tiles, set[str]]:
    """One way to write it; raises `Cut` or `NeedsAxis` where it takes others."""
    columns, inner = (int(d) for d in weights[0].shape[-2:])
    symbols: set[str] = set()
    t = Tiles(Names((*RESERVED, *tensors.all, *tensors.taken)), tensors.pointers(body.args), range(axes), symbols.add)
    reader = Reader(t, cuts)
    count = -(-columns // shape.columns)
    t.line(f"# A program for one row and {shape.columns} of {columns} columns.")
    t.line("program = tl.program_id(0)")
    t.line(f"row = (program // {count}).to(tl.int64)")
    first = f"program % {count}" + (f" * {shape.columns}" if shape.columns > 1 else "")
    t.line(f"column = {first} + {t.place(0, f'tl.arange(0, {shape.columns})')}")
    inside = ""
    if columns % shape.columns:
        inside = "column_in"
        t.line(f"{inside} = column < {columns}")
    row = Index(((Axis("row", 0, None, wide=True), 1),))
    # Columns lie along the outermost tile axis, so that reductions take the others.
    column = Index(((Axis("column", 0, columns - 1, slot=0, block=shape.columns, inside=inside), 1),))
    asked = False
    for weight in weights:
        # Which expert's a weight is, a kernel before says: the one in front, or an earlier one (`ringc.passes.early`).
        place = (column,) if not isinstance(weight.op, Gather) else (row, column)
        if len(place) == 1 or _offsets(body, weight) in early:
            for piece in reader.pieces(inner, {0}):
                if piece.loop is None:
                    reader.read(weight, (*place, piece.index))
                    asked = True
    t.line(READ_EARLY if asked else READ_LATE)
    for value, pointer in zip(body.outputs, tensors.outputs, strict=True):
        assert isinstance(value.type, TensorType)
        t.store(pointer, value.type.dtype, (row, column), value.shape, t.tile(reader.read(value, (row, column))))
    return t, symbols


def _offsets(body: Block, weight: Value) -> int:
    """The number of the argument that says which rows an expert has, of a weight that is one expert's."""
    assert isinstance(weight.op, Gather)
    assert isinstance(weight.op.ids.op, SegmentIds)
    return list(body.args).index(weight.op.ids.op.offsets)


def as_sums(body: Block) -> tuple[Block, list[Value]]:
    """A copy of a region with `sum_k w[c, k] x[n, k]` in the place of its products; and their weights, [c, k] or [n, c, k]."""
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    b = Builder(copy)
    weights: list[Value] = []
    for op in body.ops:
        clone = op.clone(mapping)
        if isinstance(clone, MatMul | SegmentMatMul):
            x, *_ = clone.inputs()
            if _is_made(x):
                # A kernel in front would round it in memory: rounded here, it is the same for one row as for many.
                x = b(Cast(x, x.tensor.dtype))
            weights.append(_weight(b, clone))
            rows, inner = x.shape
            total = b(Sum(b(Mul(weights[-1], b(Reshape(x, (rows, 1, inner))))), (2,)))
            made: Sequence[Value] = (total if clone.out is None else b(Cast(total, clone.out)),)
        else:
            made = b.insert(clone).results
        for old, new in zip(op.results, made, strict=True):
            new.name = new.name or old.name
            mapping[old] = new
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy, weights


def _is_made(value: Value) -> bool:
    """Whether a value is computed, and not read."""
    while isinstance(value.op, Reshape | Gather):
        value = value.op.x
    return value.op is not None


def _weight(b: Builder, op: MatMul | SegmentMatMul) -> Value:
    if isinstance(op, MatMul):
        return op.b if op.transpose_b else b(Transpose(op.b, (1, 0)))
    return b(Gather(op.w, b(SegmentIds(op.offsets, op.x.shape[0]))))
