"""Expert products: rows sorted by expert, each expert's rows with its own weights; the gather before it and pointwise work behind it.

Two kernels, of which the host takes one by the mean number of rows of an expert: for few rows, where reading the weights is the bound, and
for many (`ringc.codegen.triton.grouped_many`).
"""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.triton import grouped_many
from ringc.codegen.triton.grouped_tile import axes, experts_of, find_tile, left
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.matmul import LOCALS, Product, Tiling, columns_of
from ringc.codegen.triton.regions import Reader
from ringc.codegen.triton.signature import decorator, head
from ringc.codegen.writer import Writer

FEW = 16
"""Rows of a tile for experts of a few rows."""

TO_MANY = 16
"""Mean rows of an expert from which there are many."""


def emit(kernel: Kernel) -> str:
    """The file of an expert product.

    Raises:
        CodegenError: the region is no expert product.
    """
    p = Product(kernel, (*LOCALS, *grouped_many.NAMES))
    experts, _ = experts_of(p)
    few, many = _few_tiling(p), grouped_many.tiling(p)
    few_text, few_sizes = _few(p, few)
    many_text, many_sizes = grouped_many.text(p, many)
    tensors = p.tensors.all
    few_numbers, many_numbers = ["depth", "step", *few_sizes], ["depth", *many_sizes]
    few_types, many_types = (p.tensors.signature(tensors, numbers) for numbers in (few_numbers, many_numbers))

    w = Writer()
    head(w)
    w(few_text)
    w(many_text)
    w("\n")
    w(
        jobs_text(
            [
                Job(f"{p.name}_few", few_types, few.constants, few.warps, few.stages),
                Job(f"{p.name}_many", many_types, grouped_many.constants(many), many.warps, many.stages),
            ]
        )
    )
    w("\n")
    # A loop whose length the compiler knows is unrolled whole, at many seconds of compiling for nothing.
    w(f"DEPTH = {p.inner}")
    w("\n")
    with w.block(f"def launch({', '.join(tensors)}):"):
        w(f"rows = {p.tensors.outputs[0]}.shape[0]")
        for line in p.tensors.size_lines(sorted({*few_sizes, *many_sizes})):
            w(line)
        with w.block(f"if rows < {TO_MANY * experts}:"):
            w(f"step = 1 if rows <= rows // {FEW} + {experts} else {FEW}")
            w(f"tiles = rows if step == 1 else rows // {FEW} + {experts}")
            w(_launch(p, "few", few, few_numbers, 0))
        with w.block("else:"):
            w(f"tiles = rows // {grouped_many.ROWS + grouped_many.MORE} + {experts}")
            w(_launch(p, "many", many, many_numbers, 1))
    return w.text()


def _few_tiling(p: Product) -> Tiling:
    """The configuration for few rows of an expert.

    H100, 256 experts of ring-mini, up of 32, 64, 128 and 256 tokens, us: 205.9, 262.9, 307.0, 334.4; with 128 of the inner axis in four
    stages 206.7, 265.5, 309.2, 337.6, which is what f32 has registers for. Down is within 1 % in all that were tried.
    """
    if len(p.anchors) == 1:
        return p.tiling(FEW, 64, 128, 4, 4)
    return p.tiling(FEW, 32, 256, 4, 3) if p.bytes < 4 else p.tiling(FEW, 32, 128, 4, 4)


def _launch(p: Product, kernel: str, tiling: Tiling, numbers: list[str], job: int) -> str:
    given = [*p.tensors.all, *("DEPTH" if n == "depth" else n for n in numbers)]
    columns = -(-p.columns // tiling.columns)
    return f"{p.name}_{kernel}[(tiles * {columns},)]({', '.join(given)}, **pinned(JOBS[{job}]))"


def _few(p: Product, tiling: Tiling) -> tuple[str, list[str]]:
    """The kernel for few rows of an expert, and the sizes that it needs."""
    t, symbols = p.new_tiles((0, 1))
    t.line(find_tile(p, "step", tiling))
    t.line("row = (first + tl.arange(0, ROWS).to(tl.int64))[:, None]")
    t.line("row_in = row < end")
    columns_of(t, "tl.program_id(0) % column_tiles", p.columns, whole=p.whole([tiling]))
    t.line("inner = tl.arange(0, INNER)")
    row, column = axes(p, tiling)
    reader = Reader(t, {})
    place = f"{left(p, t, reader, row)} + inner[None, :]"
    wide = f" + expert.to(tl.int64) * {p.columns * p.inner}"
    accumulators = p.loop(t, swapped=False, uneven=p.uneven([tiling]), x_at=place, x_mask="row_in", wide=wide)
    t.line("column = columns[None, :]")
    p.epilogue(t, reader, accumulators, row, column)

    w, sizes = Writer(), sorted(symbols)
    w("\n")
    w(decorator(["depth", "step", *sizes]))
    constants = [f"{c}: tl.constexpr" for c in tiling.constants]
    with w.block(f"def {p.name}_few({', '.join([*p.tensors.all, 'depth', 'step', *sizes, *constants])}):"):
        t.scopes[0].write(w)
    return w.text(), sizes
