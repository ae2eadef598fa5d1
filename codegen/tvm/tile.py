"""A tile of a product: some rows of the left operand times one panel of a packed weight, with what is done to the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

from sympy import divisors

from ringc.codegen.tvm.elements import STORED, Expr
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.stages import LANES, Place, Stages
from ringc.errors import CodegenError
from ringc.ir.core import Block, Value
from ringc.ir.symbols import Dim

STACK = 1024
"""Bytes from which TVM takes a buffer from its pool. Smaller ones can become registers, as sums of a part do: 5 % of 1024 rows' time."""


def part_length(inner: int) -> int:
    """How many terms of a sum over `inner` are added up before they join the rest: the least divisor that isn't below the square root.

    A sum of n terms in parts of b rounds at most b + n / b - 1 times in a row, fewest at b = sqrt(n) (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd edition, 3.1). At 512 to 2048 terms the error is a third to a fifth, for 1 to 3 % of the time. A size without
    a divisor near the root, such as a prime or twice a prime, gains little; models have none.
    """
    return next(int(n) for n in divisors(inner) if n * n >= inner)


@dataclass(frozen=True)
class Product:
    """A product's result, and how its weight is read at `[column, k]`."""

    result: Value
    weight: Place


@dataclass(frozen=True)
class _Sum:
    """A vector of sums as script: over all of K, over a part of it, and the latter with one more term."""

    whole: str
    piece: str
    added: str


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
        """Sum `left(k) * weight(column, k)` over k for each product, in parts of `part_length` terms."""
        math, w = self.math, self.w
        if not isinstance(inner, int):
            raise CodegenError("the inner size of a product is a known number")
        length = part_length(inner)
        part = math.variable(self.stages.role("part"), 0, inner // length - 1)
        step = math.variable(self.stages.role("k"), 0, length - 1)
        k = math.apply("add", math.apply("mul", part, math.number(length)), step)
        lane = math.variable(self.stages.role("l"), 0, self.width - 1)
        panel = math.apply("mul", self.panel, math.number(self.block))
        turns: list[list[_Sum]] = []
        for product in products:
            value = product.result
            self.sums[value] = []
            turns.append([])
            for start in range(0, self.block, self.width):
                column = math.apply("add", math.apply("add", panel, math.number(start)), lane)
                term = math.apply("mul", left(k), product.weight([column, k]))
                name = self._allocate(value.name if value.name and not value.name.isdigit() else "sums")
                names = (name, self._allocate(f"{name}_part"))
                whole, piece = (math.load(n, self._at(lane), value.type.dtype) for n in names)
                turns[-1].append(_Sum(text(whole), text(piece), text(math.apply("add", piece, term))))
                self.sums[value].append(name)
        # One row's sums fill few registers, so all products go through K together; more rows take a turn each.
        for sums in [list(chain(*turns))] if self.rows == 1 else turns:
            self._lanes(lane, (f"{s.whole} = T.float32(0)" for s in sums))
            with w.block(f"for {part.what} in range({inner // length}):"):
                self._lanes(lane, (f"{s.piece} = T.float32(0)" for s in sums))
                with w.block(f"for {step.what} in range({length}):"):
                    self._lanes(lane, (f"{s.piece} = {s.added}" for s in sums))
                self._lanes(lane, (f"{s.whole} = {s.whole} + {s.piece}" for s in sums))

    def _lanes(self, lane: Expr, statements: Iterable[str]) -> None:
        """Statements of a vector, for each of the tile's rows."""
        with self._row():
            for statement in statements:
                with self.w.block(f"for {lane.what} in T.vectorized({self.width}):"):
                    self.w(statement)

    def _allocate(self, hint: str) -> str:
        name = self.names.fresh(hint)
        self.stages.allocate(name, [str(n) for n in (self.rows, self.width) if n > 1], "float32")
        return name

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
