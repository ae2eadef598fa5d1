"""Templates `tvm.grouped_few{block}` and `tvm.grouped_tiled{rows,block}`: products of rows sorted by expert with weights by expert.

Weights `[E, M, K]` are stored as panels `[E, ceil(M / block), K, block]`; offsets say where each expert's rows begin. With few rows each
row is a task of its own and looks up its expert. With many, every expert's rows are cut into tiles: the list of tiles is made first, by
the kernel itself, so that tasks are equal however the rows are spread over the experts. Rows that are gathered are read where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.tvm.elements import Arithmetic, Expr
from ringc.codegen.tvm.function import RESERVED, Head
from ringc.codegen.tvm.matmul import prologue
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.row import file_text
from ringc.codegen.tvm.stages import Place, Stages
from ringc.codegen.tvm.tile import Product, Tile
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Function, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import primitive
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Pointwise
from ringc.ir.ops.products import SegmentMatMul
from ringc.passes.front import in_front


def emit_few(kernel: Kernel) -> str:
    """The file's body for few rows: each with its own expert's weight.

    Raises:
        CodegenError: the region isn't made of products of the same rows, the gather of those, and pointwise work behind.
    """
    return _Grouped(kernel).few()


def emit_tiled(kernel: Kernel) -> str:
    """The file's body for many rows: tiles of the rows of each expert.

    Raises:
        CodegenError: the region isn't made of products of the same rows, the gather of those, and pointwise work behind.
    """
    return _Grouped(kernel).tiled()


class _Grouped:
    def __init__(self, kernel: Kernel) -> None:
        self.body = primitive(kernel.function.body)
        self.kernel = Kernel(Function(kernel.name, self.body, **kernel.function.notes), kernel.implementation)
        self.block = kernel.implementation["block"]
        self.names, self.math, self.w = Names(RESERVED), Arithmetic(), Writer()
        self.head = Head(self.kernel, self.names, self.math)
        self.stages = Stages(self.names, self.math, self.w, self.head.places())
        self.anchors = [op for op in self.body.ops if isinstance(op, SegmentMatMul)]
        self._check()
        first = self.anchors[0]
        self.left, self.offsets = first.x, first.offsets
        self.experts = first.w.shape[0]
        width = first.w.shape[1]
        assert isinstance(width, int)
        self.width = width
        self.panels = -(-width // self.block)

    def _check(self) -> None:
        if not self.anchors:
            raise CodegenError(f"@{self.kernel.name}: there is no product of rows by expert")
        shared = {(op.x, op.offsets, op.w.shape) for op in self.anchors}
        if len(shared) > 1:
            raise CodegenError(
                f"@{self.kernel.name}: the products of a grouped kernel take the same rows and weights of one shape"
            )
        if not all(isinstance(d, int) for d in self.anchors[0].w.shape):
            raise CodegenError(f"@{self.kernel.name}: the sizes of experts' weights are known numbers")

    # -- pieces

    def _apply(self, function: str, a: Expr, b: Expr | int) -> Expr:
        return self.math.apply(function, a, self.math.number(b) if isinstance(b, int) else b)

    def _variable(self, hint: str, high: int | None = None, dtype: str = "int32") -> Expr:
        return self.math.variable(self.names.fresh(hint), 0, high, dtype)

    def _let(self, hint: str, value: Expr, high: int | None = None) -> Expr:
        """A name for a value that isn't negative."""
        made = self._variable(hint, high, value.dtype)
        self.w(f"{made.what}: T.let = {text(value)}")
        return made

    def _offset(self, expert: Expr) -> Expr:
        return self.stages.element(self.offsets, [expert])

    def _front(self, parallel: bool) -> None:
        """What is in front of the products: moved elements are read where they lie, the rest is computed first."""
        ops = in_front(self.body, self.left)
        moves = all(
            isinstance(op, Elementwise) and not (isinstance(op, Pointwise) and op.result.type.dtype.is_float)
            for op in ops
        )
        if not moves:
            prologue(self.stages, self.body, self.left, parallel)

    def _weight(self, op: SegmentMatMul, expert: Expr) -> Place:
        def read(at: Sequence[Expr]) -> Expr:
            column, k = at
            if op.w.op is not None or op.w.tensor.layout.blocks != ((1, self.block),):
                # A weight as it was published: columns past the last one are computed from that one, and not stored.
                column = self._apply("minimum", column, self.width - 1)
            return self.stages.element(op.w, [expert, column, k])

        return read

    def _products(self, expert: Expr) -> list[Product]:
        return [Product(op.result, self._weight(op, expert)) for op in self.anchors]

    def _text(self) -> str:
        return file_text(self.head, self.w)

    # -- templates

    def few(self) -> str:
        math, w = self.math, self.w
        rows = math.size(self.left.shape[0])
        with w.indented():
            self._front(parallel=False)
            task = self._variable("task", dtype="int64")
            with w.block(f"for {task.what} in T.parallel({text(self._apply('mul', rows, self.panels))}):"):
                panel = self._let("panel", self._apply("mod", task, self.panels), self.panels - 1)
                row = self._let("row", self._apply("floordiv", task, self.panels))
                found = self.names.fresh("found")
                self.stages.allocate(found, ["1"], "int32")
                w(f"{found}[0] = 0")
                e = self._variable("e")
                with w.block(f"for {e.what} in range({self.experts}):"):
                    before = math.apply("le", self._offset(self._apply("add", e, 1)), row)
                    step = math.apply("where", before, math.number(1), math.number(0))
                    w(f"{found}[0] = {found}[0] + {text(step)}")
                w(f"{(expert := self._variable('expert')).what}: T.let = {found}[0]")
                tile = Tile(self.stages, 1, self.block, math.number(0), panel)
                tile.multiply(
                    self._products(expert), lambda k: self.stages.element(self.left, [row, k]), self.left.shape[1]
                )
                tile.store(self.body, self.head.outputs, row, self.width, None)
        return self._text()

    def tiled(self) -> str:
        math, w, names = self.math, self.w, self.names
        size = self.kernel.implementation["rows"]
        rows = math.size(self.left.shape[0])
        with w.indented():
            self._front(parallel=True)
            count, experts, starts = (names.fresh(n) for n in ("count", "tile_expert", "tile_start"))
            most = text(self._apply("add", self._apply("floordiv", rows, size), math.size(self.experts)))
            self.stages.allocate(count, ["1"], "int32")
            for name in (experts, starts):
                self.stages.allocate(name, [most], "int32")
            w(f"{count}[0] = 0")
            e, t = self._variable("e"), self._variable("t")
            with w.block(f"for {e.what} in range({self.experts}):"):
                here = self._offset(e)
                own = self._apply("sub", self._offset(self._apply("add", e, 1)), here)
                tiles = self._apply("floordiv", self._apply("add", own, size - 1), size)
                with w.block(f"for {t.what} in range({text(tiles)}):"):
                    w(f"{experts}[{count}[0]] = {e.what}")
                    w(f"{starts}[{count}[0]] = {text(self._apply('add', here, self._apply('mul', t, size)))}")
                    w(f"{count}[0] = {count}[0] + 1")
            total = self._variable("tiles")
            w(f"{total.what}: T.let = {count}[0]")
            task = self._variable("task")
            with w.block(f"for {task.what} in T.parallel({text(self._apply('mul', total, self.panels))}):"):
                # Panels of one tile follow each other: its rows stay in the first-level cache.
                panel = self._let("panel", self._apply("mod", task, self.panels), self.panels - 1)
                tile = self._let("tile", self._apply("floordiv", task, self.panels))
                expert, row, stop = (self._variable(n) for n in ("expert", "row", "stop"))
                w(f"{expert.what}: T.let = {experts}[{tile.what}]")
                w(f"{row.what}: T.let = {starts}[{tile.what}]")
                w(f"{stop.what}: T.let = {text(self._offset(self._apply('add', expert, 1)))}")
                half = size // 2
                if half < 4:
                    self._tile(size, expert, panel, row, stop)
                else:
                    # Half a tile serves the last few rows of an expert in half the time.
                    with w.block(f"if {stop.what} - {row.what} > {half}:"):
                        self._tile(size, expert, panel, row, stop)
                    with w.block("else:"):
                        self._tile(half, expert, panel, row, stop)
        return self._text()

    def _tile(self, rows: int, expert: Expr, panel: Expr, row: Expr, stop: Expr) -> None:
        """Rows from `row` on, but below `stop`, times a panel of an expert's weights."""
        math = self.math
        i = math.variable(self.stages.role("i"), 0, rows - 1) if rows > 1 else math.number(0)
        here = self._apply("add", row, i)
        source = self._apply("minimum", here, self._apply("sub", stop, 1)) if rows > 1 else here
        left = self.left
        gathered: Value | None = None
        if left not in self.stages.places and isinstance(left.op, Gather) and left.op.ids not in self.stages.places:
            gathered = left.op.ids
            self._look_up(gathered, rows, i, source)
        tile = Tile(self.stages, rows, self.block, i, panel)
        tile.multiply(self._products(expert), lambda k: self.stages.element(left, [source, k]), left.shape[1])
        if gathered is not None:
            del self.stages.places[gathered]
        tile.store(self.body, self.head.outputs, here, self.width, stop if rows > 1 else None)

    def _look_up(self, ids: Value, rows: int, i: Expr, source: Expr) -> None:
        """Which rows of its table a tile gathers."""
        name = self.names.fresh(ids.name or "source")
        self.stages.allocate(name, [str(rows)], "int32")
        with self.w.block(f"for {i.what} in T.unroll({rows}):"):
            self.w(f"{name}[{i.what}] = {text(self.stages.element(ids, [source]))}")
        self.stages.place(ids, lambda _at: self.math.load(name, [i], ids.type.dtype))
