"""Where a tile of an expert product lies: its expert, its rows, and what it reads of the left operand.

Which rows a program works on it finds from the offsets, so that no map of tiles has to be made before. Tiles of expert e are numbered
from `offsets[e] // step + e`: with `step` the rows of a tile, that leaves room for every tile and skips at most one number an expert;
with `step` 1 and no `+ e` there is one number for each row, of which those count that begin a tile. The host takes the numbering that has
fewer numbers: the second where there are fewer rows than experts (decode), the first for more.
"""

from __future__ import annotations

from ringc.codegen.triton.elements import Axis, Index, Tiles, power_of_two
from ringc.codegen.triton.matmul import Product, Tiling
from ringc.codegen.triton.regions import Reader, viewed
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.products import SegmentMatMul


def experts_of(p: Product) -> tuple[int, str]:
    """How many experts there are, and the pointer of their rows' offsets.

    Raises:
        CodegenError: the region is no expert product, or its offsets are no argument.
    """
    anchors = [a for a in p.anchors if isinstance(a, SegmentMatMul)]
    if not anchors:
        raise CodegenError(f"@{p.name} has no expert product")
    offsets, *others = {viewed(a.offsets) for a in anchors}
    if offsets is None or others:
        raise CodegenError(f"@{p.name}: the offsets are no argument")
    return int(anchors[0].w.shape[0]), p.pointers[offsets]


def find_tile(p: Product, step: str, tiling: Tiling) -> str:
    """Lines that find which expert a program works on, and which of its rows: `first .. end`.

    Args:
        step: `step`, a number that is given at run time and may be 1, or the rows of a tile.
        tiling: of the columns.
    """
    experts, offsets = experts_of(p)
    padded = power_of_two(experts)
    mask, before = "", "(keys <= tile)"
    if padded > experts:
        mask, before = f", mask=experts < {experts}, other=0", f"((keys <= tile) & (experts < {experts}))"
    own, begins = "{}", ""
    if step == "step":
        own, begins = "tl.where(step > 1, {}, 0)", "(place % ROWS != 0) | "
    return f"""column_tiles = {-(-p.columns // tiling.columns)}
tile = tl.program_id(0) // column_tiles
experts = tl.arange(0, {padded})
offset = tl.load({offsets} + experts{mask})
keys = offset // {step} + {own.format("experts")}
expert = tl.sum({before}.to(tl.int32)) - 1
first = tl.load({offsets} + expert)
end = tl.load({offsets} + expert + 1)
place = (tile - first // {step} - {own.format("expert")}) * {step}
if {begins}(first + place >= end):
    return
first = first + place"""


def axes(p: Product, tiling: Tiling) -> tuple[Axis, Axis]:
    """The rows `row` and the columns `column` of a tile."""
    row = Axis("row", 0, None, wide=True, slot=0, block=tiling.rows, inside="row_in")
    return row, p.column_axis([tiling])


def left(p: Product, t: Tiles, reader: Reader, row: Axis) -> str:
    """The places where the left operand's rows begin.

    Raises:
        CodegenError: they are neither an argument's nor gathered from one.
    """
    value: Value = p.left
    number: Index = Index(((row, 1),))
    if isinstance(value.op, Gather):
        number = t.index(reader.read(value.op.ids, [number]))
        value = value.op.x
        at = f"{t.sum_text(number)}.to(tl.int64)"
    else:
        at = "row"
    source = viewed(value)
    if source is None:
        raise CodegenError(f"@{p.name}: the rows are neither an argument nor gathered from one")
    return f"{p.pointers[source]} + {at} * {p.inner}"
