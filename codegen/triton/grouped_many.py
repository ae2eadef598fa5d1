"""Expert products with many rows of an expert: what counts is how often processors read the weights from the second-level cache.

On an H100 a processor gets some 32 bytes a cycle from there; its tensor cores would take 49 at 128 rows of a tile, and 39 at 192. So a tile
has up to 192 rows, in two parts that share what is loaded of the weights, and an expert's last tile has only the parts that there are rows
for. Rows of two weights take turns in a tile: one wide dot makes both products, and a thread holds what belongs together.
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

WIDE = 256
"""Columns of a tile, of all weights together, where nothing else is said: it takes 224 KiB of shared memory on an H100."""

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
    columns = int(p.kernel.implementation.get("columns", WIDE))
    if p.bytes == 4:  # three products in tf32 leave registers for a quarter of the accumulators
        columns = min(columns, WIDE // 4)
    return p.tiling(ROWS, columns // len(p.anchors), 64, 8, 4 if columns == WIDE else 3)


def constants(chosen: Tiling) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {**chosen.constants, "MORE": MORE}


def text(p: Product, chosen: Tiling) -> tuple[str, list[str]]:
    """The kernel with its functions, and the sizes that it needs."""
    row, column = axes(p, chosen)
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
    fixed = [f"{c}: tl.constexpr" for c in constants(chosen)]
    left_of = _Function("left_of", given, ["row", "row_in"], _text(places), "Where rows of the left operand begin.")
    finish = _Function(
        "finish", given, ["acc", "row", "row_in", "first_column", "COLUMNS: tl.constexpr"], _text(behind),
        "What is done with the products of some rows, and the stores.",
    )  # fmt: skip
    multiply = _Function(
        "multiply", given, ["expert", "first", "end", "first_column", "depth", *fixed], _multiply(p, chosen, left_of, finish),
        "ROWS rows of an expert, and MORE behind them, with COLUMNS columns of its weights.",
    )  # fmt: skip

    def some(rows: str, more: str) -> str:
        return multiply.call(
            "expert", "first", "end", "first_column", "depth", rows, "COLUMNS", "INNER", "STAGES", more
        )

    w = Writer()
    for function in (left_of, finish, multiply):
        function.write(w)
    w("\n")
    w(decorator(["depth", *sizes]))
    with w.block(f"def {p.name}_many({', '.join([*p.tensors.all, 'depth', *sizes, *fixed])}):"):
        w(find_tile(p, "(ROWS + MORE)", chosen))
        w("first_column = tl.program_id(0) % column_tiles * COLUMNS")
        with w.block("if end - first > ROWS:"):
            w(some("ROWS", "MORE"))
        with w.block("elif end - first > MORE:"):
            w(some("ROWS", "0"))
        with w.block("else:"):
            w(some("MORE", "0"))
    return w.text(), sizes


class _Function:
    """A function of the file.

    Args:
        given: the kernel's tensors and sizes, of which it takes those that it uses.
        own: its further arguments.
    """

    def __init__(self, name: str, given: Sequence[str], own: Sequence[str], body: str, meaning: str) -> None:
        words = set(re.findall(r"\w+", body))
        self.name, self.own, self.body, self.meaning = name, own, body, meaning
        self.takes = [g for g in given if g in words]

    def call(self, *own: str) -> str:
        return f"{self.name}({', '.join([*self.takes, *own])})"

    def write(self, w: Writer) -> None:
        w("\n")
        w("@triton.jit")
        with w.block(f"def {self.call(*self.own)}:"):
            w(f'"""{self.meaning}"""')
            w(self.body)


def _multiply(p: Product, chosen: Tiling, left_of: _Function, finish: _Function) -> str:
    """The body of `multiply`."""
    first, *others = p.weights
    turns, width, column = "", "COLUMNS", "first_column + tl.arange(0, COLUMNS)"
    begin = f"{first.pointer} + expert.to(tl.int64) * {p.columns * p.inner}"
    if others:
        # The size of an element is asked of the pointer, as the interpreter runs the file in f32.
        size = f"({first.pointer}.dtype.element_ty.primitive_bitwidth // 8)"
        turns = f"""# Rows of the two weights take turns, which lie this many elements apart.
pair = tl.arange(0, 2 * COLUMNS)
apart = ({others[0].pointer}.to(tl.int64) - {first.pointer}.to(tl.int64)) // {size}
"""
        width, column = "2 * COLUMNS", "first_column + pair // 2"
        begin += f" + (pair % 2 * tl.multiple_of(apart, {16 // p.bytes}))[:, None]"
    if not p.whole([chosen]):
        column = f"tl.minimum({column}, {p.columns - 1})"
    if p.columns * p.inner >= 1 << 31:
        column = f"({column}).to(tl.int64)"
    inside = "(start + inner < depth)[None, :]" if p.uneven([chosen]) else ""
    and_inside = f" & {inside}" if inside else ""
    mask = f", mask={inside}, other=0.0" if inside else ""
    return f"""{turns}columns = {column}
inner = tl.arange(0, INNER)
w_at = {begin} + (columns[:, None] * {p.inner} + inner[None, :])
row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
row_in = row < end
x_at = {left_of.call("row", "row_in")} + inner[None, :]
acc = tl.zeros([ROWS, {width}], dtype=tl.float32)
if MORE:
    more = (first + ROWS + tl.arange(0, MORE)).to(tl.int64)[:, None]
    more_in = more < end
    more_at = {left_of.call("more", "more_in")} + inner[None, :]
    acc_more = tl.zeros([MORE, {width}], dtype=tl.float32)
for start in tl.range(0, depth, INNER, num_stages=STAGES):
    x_tile = tl.load(x_at + start, mask=row_in{and_inside}, other=0.0)
    w_tile = tl.load(w_at + start{mask})
    acc = tl.dot(x_tile, tl.trans(w_tile), acc{p.precision})
    if MORE:
        more_tile = tl.load(more_at + start, mask=more_in{and_inside}, other=0.0)
        acc_more = tl.dot(more_tile, tl.trans(w_tile), acc_more{p.precision})
{finish.call("acc", "row", "row_in", "first_column", "COLUMNS")}
if MORE:
    {finish.call("acc_more", "more", "more_in", "first_column", "COLUMNS")}"""


def _text(t: Tiles) -> str:
    w = Writer()
    t.scopes[0].write(w)
    return w.text()
