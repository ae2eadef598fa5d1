"""Expert products with many rows of an expert: what counts is how often processors read the weights from the second-level cache.

On an H100 a processor gets some 32 bytes a cycle from there, and less than that is what keeps its tensor cores busy at 128 rows to a tile.
So a tile has up to 192 rows, in two parts that share what is loaded of the weights, and an expert's last tile has only the parts that there
are rows for. Rows of two weights take turns in a tile: one wide dot makes both products, and a thread holds what belongs together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ringc.codegen.triton.elements import Tiles
from ringc.codegen.triton.grouped_tile import axes, find_tile, left
from ringc.codegen.triton.matmul import Product, Tiling
from ringc.codegen.triton.regions import Reader
from ringc.codegen.triton.signature import decorator
from ringc.codegen.writer import Writer

ROWS, MORE = 128, 64
"""Rows of a tile's two parts."""

WIDE, NARROW = 256, 128
"""Columns of a tile, of all weights together: where a processor has 224 KiB of shared memory for them, and where it has 120."""

NAMES = (
    "MORE", "left_of", "finish", "multiply", "more", "more_in", "more_at", "more_tile", "acc_more", "pair", "apart", "first_column",
)  # fmt: skip
"""Names of the variables and functions, which no tensor may have."""


def tiling(p: Product) -> Tiling:
    """The configuration of the first part, with the implementation's number of `columns`.

    H100, 256 experts of ring-mini, medians in us of 1024, 2048, 4096, 8192, 16384 and 32768 tokens, spread as random weights do it (of 8192
    an expert gets none to 1100 rows): up and SwiGLU 383, 414, 453, 589, 1008, 1960; with tiles of 128 rows 386, 409, 448, 606, 1028, 2068;
    with a dot for each weight 4 % more. Down 201, 221, 252, 368, 655, 1254; with 128 by 128 in three stages 198, 216, 265, 393, 689, 1306.
    """
    # Accumulators of operands in f32 leave room for the three products in tf32.
    columns = int(p.kernel.implementation.get("columns", WIDE)) if p.bytes < 4 else NARROW // 2
    return p.tiling(ROWS, columns // len(p.anchors), 64, 8, 4 if columns == WIDE else 3)


def constants(tiling: Tiling) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {**tiling.constants, "MORE": MORE}


def text(p: Product, tiling: Tiling) -> tuple[str, list[str]]:
    """The kernel with its functions, and the sizes that it needs."""
    row, column = axes(p, tiling)
    places, symbols = p.new_tiles((0, 1))
    places.line(f"return {left(p, places, Reader(places, {}), row)}")
    behind, others = p.new_tiles((0, 1))
    made = ["acc"]
    if len(p.anchors) == 2:
        made = ["acc0", "acc1"]
        behind.line("acc0, acc1 = tl.split(tl.reshape(acc, [acc.shape[0], COLUMNS, 2]))")
    behind.line("column = (first_column + tl.arange(0, COLUMNS))[None, :]")
    p.epilogue(behind, Reader(behind, {}), made, row, column)

    sizes = sorted(symbols | others)
    given = [*p.tensors.all, *sizes]
    fixed = [f"{c}: tl.constexpr" for c in constants(tiling)]
    w = Writer()
    left_of = _function(w, "left_of", given, ["row", "row_in"], "Where rows of the left operand begin.", _text(places))
    finish = _function(
        w, "finish", given, ["acc", "row", "row_in", "first_column", "COLUMNS: tl.constexpr"],
        "What is done with the products of some rows, and the stores.", _text(behind),
    )  # fmt: skip
    multiply = _function(
        w, "multiply", given, ["expert", "first", "end", "first_column", "depth", *fixed],
        "ROWS rows of an expert, and MORE behind them, with COLUMNS columns of its weights.",
        _multiply(p, tiling, left_of, finish),
    )  # fmt: skip
    part = f"{multiply}expert, first, end, first_column, depth, {{}}, COLUMNS, INNER, STAGES, {{}})"
    w("\n")
    w(decorator(["depth", *sizes]))
    with w.block(f"def {p.name}_many({', '.join([*p.tensors.all, 'depth', *sizes, *fixed])}):"):
        w(find_tile(p, "(ROWS + MORE)", tiling))
        w("first_column = tl.program_id(0) % column_tiles * COLUMNS")
        with w.block("if end - first > ROWS:"):
            w(part.format("ROWS", "MORE"))
        with w.block("elif end - first > MORE:"):
            w(part.format("ROWS", "0"))
        with w.block("else:"):
            w(part.format("MORE", "0"))
    return w.text(), sizes


def _multiply(p: Product, tiling: Tiling, left_of: str, finish: str) -> str:
    """The body of `multiply`; `left_of` and `finish` are calls of these functions up to where their own arguments begin."""
    first, *others = p.weights
    turns, width, column = "", "COLUMNS", "first_column + tl.arange(0, COLUMNS)"
    begin = f"{first.pointer} + expert.to(tl.int64) * {p.columns * p.inner}"
    if others:
        turns = f"""# Rows of the two weights take turns, which lie this many elements apart.
pair = tl.arange(0, 2 * COLUMNS)
apart = ({others[0].pointer}.to(tl.int64) - {first.pointer}.to(tl.int64)) // {p.bytes}
"""
        width, column = "2 * COLUMNS", "first_column + pair // 2"
        begin += f" + (pair % 2 * tl.multiple_of(apart, {16 // p.bytes}))[:, None]"
    if p.columns % tiling.columns:
        column = f"tl.minimum({column}, {p.columns - 1})"
    inside = "(start + inner < depth)[None, :]" if p.uneven([tiling]) else ""
    and_inside = f" & {inside}" if inside else ""
    mask = f", mask={inside}, other=0.0" if inside else ""
    precision = "" if p.bytes < 4 else ', input_precision="tf32x3"'
    return f"""{turns}columns = {column}
inner = tl.arange(0, INNER)
w_at = {begin} + (columns[:, None] * {p.inner} + inner[None, :])
row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
row_in = row < end
x_at = {left_of}row, row_in) + inner[None, :]
acc = tl.zeros([ROWS, {width}], dtype=tl.float32)
if MORE:
    more = (first + ROWS + tl.arange(0, MORE)).to(tl.int64)[:, None]
    more_in = more < end
    more_at = {left_of}more, more_in) + inner[None, :]
    acc_more = tl.zeros([MORE, {width}], dtype=tl.float32)
for start in tl.range(0, depth, INNER, num_stages=STAGES):
    x_tile = tl.load(x_at + start, mask=row_in{and_inside}, other=0.0)
    w_tile = tl.load(w_at + start{mask})
    acc = tl.dot(x_tile, tl.trans(w_tile), acc{precision})
    if MORE:
        more_tile = tl.load(more_at + start, mask=more_in{and_inside}, other=0.0)
        acc_more = tl.dot(more_tile, tl.trans(w_tile), acc_more{precision})
{finish}acc, row, row_in, first_column, COLUMNS)
if MORE:
    {finish}acc_more, more, more_in, first_column, COLUMNS)"""


def _text(t: Tiles) -> str:
    w = Writer()
    t.scopes[0].write(w)
    return w.text()


def _function(w: Writer, name: str, given: Sequence[str], own: Sequence[str], meaning: str, body: str) -> str:
    """Write a function of what it uses of the kernel's tensors and sizes, and its own arguments; gives back how its call begins."""
    words = set(re.findall(r"\w+", body))
    used = [g for g in given if g in words]
    w("\n")
    w("@triton.jit")
    with w.block(f"def {name}({', '.join([*used, *own])}):"):
        w(f'"""{meaning}"""')
        w(body)
    return f"{name}({', '.join([*used, ''])}"
