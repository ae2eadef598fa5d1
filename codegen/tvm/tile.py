"""A tile of a product: some rows of the left operand times one panel of a packed weight, with what is done to the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

from ringc.codegen.tvm.elements import STORED, Expr
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.stages import LANES, Place, Stages
from ringc.errors import CodegenError
from ringc.ir.core import Block, Value
from ringc.ir.symbols import Dim

STACK = 1024
"""Bytes from which TVM takes a buffer from its pool. Sums are kept in smaller ones, which become registers: 5 % of 1024 rows' time."""


@dataclass(frozen=True)
class Product:
    """A product's result, and how its weight is read at `[column, k]`."""

    result: Value
    weight: Place


class Tile:
    """Writes the statements of one tile.

    Args:
        stages: reads what is in front of the products and behind them.
        rows: of the tile.
        block: columns of a panel.
        i: the row's number in the tile, a loop variable (0 where there is one row).
        panel: the panel's number.
    """

    def __init__(self, stages: Stages, rows: int, block: int, i: Expr, panel: Expr) -> None:
        self.stages, self.math, self.w, self.names = stages, stages.math, stages.w, stages.names
        self.rows, self.block, self.i, self.panel = rows, block, i, panel
        self.width = next(w for w in (block, block // 2, block // 4) if 4 * rows * w < STACK)
        self.sums: dict[Value, list[str]] = {}

    def multiply(self, products: Sequence[Product], left: Callable[[Expr], Expr], inner: Dim) -> None:
        """Sum `left(k) * weight(column, k)` over k for each product."""
        math, w = self.math, self.w
        if not isinstance(inner, int):
            raise CodegenError("the inner size of a product is a known number")
        k = math.variable(self.stages.role("k"), 0, inner - 1)
        lane = math.variable(self.stages.role("l"), 0, self.width - 1)
        panel = math.apply("mul", self.panel, math.number(self.block))
        terms: list[list[tuple[str, str]]] = []
        for product in products:
            value = product.result
            self.sums[value] = []
            terms.append([])
            for start in range(0, self.block, self.width):
                name = self.names.fresh(value.name if value.name and not value.name.isdigit() else "sums")
                self.sums[value].append(name)
                self.stages.allocate(name, [str(n) for n in (self.rows, self.width) if n > 1], "float32")
                mine = math.load(name, self._at(lane), value.type.dtype)
                column = math.apply("add", math.apply("add", panel, math.number(start)), lane)
                added = math.apply("add", mine, math.apply("mul", left(k), product.weight([column, k])))
                terms[-1].append((text(mine), f"{text(mine)} = {text(added)}"))
        with self._row():
            for mine_text, _ in chain(*terms):
                with w.block(f"for {lane.what} in T.vectorized({self.width}):"):
                    w(f"{mine_text} = T.float32(0)")
        # One row's sums fill few registers, so all products go through K together; more rows take a turn each.
        for together in [list(chain(*terms))] if self.rows == 1 else terms:
            with w.block(f"for {k.what} in range({inner}):"), self._row():
                for _, statement in together:
                    with w.block(f"for {lane.what} in T.vectorized({self.width}):"):
                        w(statement)

    def store(self, body: Block, outputs: Mapping[int, str], row: Expr, width: int, limit: Expr | None) -> None:
        """Store the region's outputs at a row, if it is below the limit, and the panel's columns, as far as there are any."""
        math, w = self.math, self.w
        below = w.block(f"if {text(row)} < {text(limit)}:") if limit is not None else nullcontext()
        with self._row(unroll=False), below:
            whole, rest = divmod(width, self.block)
            if whole == 0 or rest == 0:
                self._columns(body, outputs, row, self.panel, rest or self.block)
                return
            with w.block(f"if {self.panel.what} < {whole}:"):
                self._columns(body, outputs, row, self.panel, self.block)
            with w.block("else:"):
                self._columns(body, outputs, row, math.number(whole), rest)

    def _columns(self, body: Block, outputs: Mapping[int, str], row: Expr, panel: Expr, stop: int) -> None:
        """Store columns of a panel, in vectors of a power of two."""
        math = self.math
        base = math.apply("mul", panel, math.number(self.block))
        start = 0
        while start < stop:
            count = min(stop - start, self.width)
            lanes = count if count == self.width else min(LANES, 1 << (count.bit_length() - 1))
            lane = math.variable(self.stages.role("l"), 0, lanes - 1) if lanes > 1 else math.number(0)
            column = math.apply("add", math.apply("add", base, math.number(start)), lane)
            part, first = divmod(start, self.width)
            for value, names in self.sums.items():
                place = math.apply("add", math.number(first), lane)
                self.stages.place(value, self._reader(value, names[part], row, column, place))
            for i, output in outputs.items():
                value = body.outputs[i]
                target = f"{output}[{text(row)}, {text(column)}]"
                made = self.stages.element(value, [row, column])
                assign = partial("{} = {}".format, target)
                self.stages.statement(made, assign, lane if lanes > 1 else None, STORED[value.type.dtype])
            start += lanes

    def _reader(self, value: Value, name: str, row: Expr, column: Expr, place: Expr) -> Place:
        def read(at: Sequence[Expr]) -> Expr:
            if at[0] is not row or at[1] is not column:
                raise CodegenError("what follows a product must read it at its own place")
            return self.math.load(name, self._at(place), value.type.dtype)

        return read

    def _at(self, lane: Expr) -> list[Expr]:
        return [self.i, lane] if self.rows > 1 else [lane]

    @contextmanager
    def _row(self, unroll: bool = True) -> Iterator[None]:
        """A loop over the tile's rows."""
        if self.rows == 1:
            yield
            return
        kind = "T.unroll" if unroll else "range"
        with self.w.block(f"for {self.i.what} in {kind}({self.rows}):"):
            yield
