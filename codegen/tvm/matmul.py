"""Template `tvm.matmul{rows,block}`: products of one left operand with packed weights, and the pointwise work behind them.

A weight `[M, K]` is stored as panels `[ceil(M / block), K, block]`. A task computes one panel's columns for up to `CHUNK` rows, `rows` rows
at a time, and reads the panel in the order in which it lies in memory. Sums over a part of K stay in registers (`Tile.multiply`: sums in
parts round less). The last panel is filled up with zeros, so that products need no condition; only what is stored is cut to M columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.tvm.elements import STORED, Arithmetic, Expr
from ringc.codegen.tvm.function import RESERVED, Head, argument_place
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.row import file_text, write_rows
from ringc.codegen.tvm.stages import Stages
from ringc.codegen.tvm.tile import Product, Tile
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Value
from ringc.ir.ops.composite import primitive
from ringc.ir.ops.pointwise import Mul
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.shape import Reshape, Transpose
from ringc.passes.front import in_front

CHUNK = 256
"""Rows of a task: those of the left operand stay in the second-level cache from panel to panel."""


def emit(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region isn't made of products of one left operand and pointwise work behind them.
    """
    body = primitive(kernel.function.body)
    if not all(_packed(op, kernel.implementation["block"]) for op in body.ops if isinstance(op, MatMul)):
        body = _as_sums(body)
    kernel = Kernel(Function(kernel.name, body, **kernel.function.notes), kernel.implementation)
    names, math, w = Names(RESERVED), Arithmetic(), Writer()
    head = Head(kernel, names, math)
    stages = Stages(names, math, w, head.places())
    with w.indented():
        anchors = [op for op in body.ops if isinstance(op, MatMul)]
        if anchors:
            # What stands in front is of few rows: waking a second thread for them takes longer than they do.
            left = prologue(stages, body, anchors[0].a, parallel=False)
            _Product(
                stages, body, anchors, left, head.outputs, kernel.implementation["rows"], kernel.implementation["block"]
            ).write()
        else:
            write_rows(stages, body, head.outputs, parallel=True)
    return file_text(head, w)


def _packed(op: MatMul, block: int) -> bool:
    return op.transpose_b and op.b.op is None and op.b.tensor.layout.blocks == ((0, block),)


def _as_sums(body: Block) -> Block:
    """Products with weights that aren't packed, as sums over rows of the weight: row work."""
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    b = Builder(copy)
    for op in body.ops:
        if isinstance(op, MatMul):
            left, weight = mapping[op.a], mapping[op.b]
            weight = weight if op.transpose_b else b(Transpose(weight, (1, 0)))
            rows, inner = left.shape
            spread = b(Mul(b(Reshape(left, (rows, 1, inner))), weight))
            mapping[op.result] = b(Sum(spread, axes=(2,)))
        else:
            made = b.insert(op.clone(mapping))
            mapping.update(zip(op.results, made.results, strict=True))
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy


def prologue(stages: Stages, body: Block, value: Value, parallel: bool) -> Value:
    """Compute what is in front of a product, if anything is, into a tensor of the function; gives back the value."""
    if value in stages.places:
        return value
    ops = in_front(body, value)
    front = Block()
    front.args, front.ops, front.outputs = body.args, ops, (value,)
    name = stages.names.fresh(value.name or "left")
    stages.allocate(name, [text(stages.math.size(d)) for d in value.shape], STORED[value.type.dtype])
    write_rows(stages, front, {0: name}, parallel, inside={name})
    stages.place(value, argument_place(stages.math, name, value.type))
    return value


class _Product:
    def __init__(self, stages: Stages, body: Block, anchors: Sequence[MatMul], left: Value, outputs: dict[int, str], rows: int, block: int
                 ) -> None:  # fmt: skip
        if any(a.a is not left for a in anchors) or len({a.result.shape for a in anchors}) > 1:
            raise CodegenError("the products of a matmul kernel have one left operand and one shape")
        self.stages, self.math, self.w, self.names = stages, stages.math, stages.w, stages.names
        self.body, self.anchors, self.left, self.outputs = body, anchors, left, outputs
        self.rows, self.block = rows, block
        count, self.inner = left.shape
        self.count = self.math.size(count)
        width = anchors[0].result.shape[1]
        if not isinstance(width, int):
            raise CodegenError("a product's columns are a known number")
        self.width = width

    def write(self) -> None:
        math, w = self.math, self.w
        panels = -(-self.width // self.block)
        task = math.variable(self.names.fresh("task"), 0, None, "int64")
        panel = math.variable(self.names.fresh("panel"), 0, panels - 1, "int64")
        first = math.variable(self.names.fresh("first"), 0, None, "int64")
        # Chunks are equal: threads get as many tasks each, and a short last chunk would leave one waiting.
        chunks = math.variable(self.names.fresh("chunks"), 1, None, "int64")
        chunk = math.variable(self.names.fresh("chunk"), 0, CHUNK + self.rows, "int64")
        w(f"{chunks.what}: T.let = {text(self._apply('maximum', self._ceil(self.count, CHUNK), 1))}")
        share = self._ceil(self._ceil(self.count, chunks), self.rows)
        w(f"{chunk.what}: T.let = {text(self._apply('mul', share, self.rows))}")
        with w.block(f"for {task.what} in T.parallel({text(self._apply('mul', chunks, panels))}):"):
            w(f"{panel.what}: T.let = {text(self._apply('mod', task, panels))}")
            w(f"{first.what}: T.let = {text(self._apply('mul', self._apply('floordiv', task, panels), chunk))}")
            left = self._apply("minimum", self._apply("sub", self.count, first), chunk)
            tiles = self._ceil(left, self.rows)
            tile = math.variable(self.names.fresh("tile" if self.rows > 1 else "n"), 0, None, "int64")
            with w.block(f"for {tile.what} in range({text(tiles)}):"):
                row = math.variable(self.names.fresh("row"), 0, None, "int64")
                w(f"{row.what}: T.let = {text(self._apply('add', first, self._apply('mul', tile, self.rows)))}")
                half = self.rows // 2
                if half < 4:
                    self._tile(panel, row, self.rows)
                    return
                # Half a tile serves the last few rows in half the time.
                with w.block(f"if {text(self.count)} - {row.what} > {half}:"):
                    self._tile(panel, row, self.rows)
                with w.block("else:"):
                    self._tile(panel, row, half)

    def _ceil(self, a: Expr, b: Expr | int) -> Expr:
        """a / b, rounded up."""
        less = b - 1 if isinstance(b, int) else self._apply("sub", b, 1)
        return self._apply("floordiv", self._apply("add", a, less), b)

    def _apply(self, function: str, a: Expr, b: Expr | int) -> Expr:
        return self.math.apply(function, a, self.math.number(b) if isinstance(b, int) else b)

    def _tile(self, panel: Expr, row: Expr, rows: int) -> None:
        """Rows from `row` on times a panel."""
        math = self.math
        i = math.variable(self.stages.role("i"), 0, rows - 1) if rows > 1 else math.number(0)
        here = math.apply("add", row, i)
        # Rows past the end read the last one; their results are not stored.
        source = math.apply("minimum", here, self._apply("sub", self.count, 1)) if rows > 1 else here
        tile = Tile(self.stages, rows, self.block, i, panel)
        products = [Product(a.result, partial(self.stages.element, a.b)) for a in self.anchors]
        tile.multiply(products, lambda k: self.stages.element(self.left, [source, k]), self.inner)
        tile.store(self.body, self.outputs, here, self.width, self.count if rows > 1 else None)
