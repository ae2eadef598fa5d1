"""Templates `tvm.linear_recurrent` and `tvm.linear_chunked`: linear attention over a pool of states, by TVM.

`ringc.codegen.tvm.linear_segments` runs the same blocks on segments of a sequence side by side.

A task is one head of one sequence, or a slice of its value columns. Both forms walk over groups of a few rows of the state S, which stay
in registers while all tokens of a block of the sequence pass by; each token's output collects what the groups contribute.

* recurrent: `o = (q k) v + lam q S; S = lam S + k v` for each token: three operations on each vector of S. The block is the sequence.
* chunked: within a block, S is kept divided by `lam^t`, so that it needs no decay: `o = (q k) v + (q lam^t) S; S += (k lam^-t) v`, and
  `S *= lam^L` at the block's end: two operations. The powers stay representable while `slope * chunk` is small; a head that decays
  faster takes the recurrent form, whose states and outputs are the same.

In front of the recurrent form there may be row work (`ringc.passes.front`): then a task makes the rows of q, k and v that it needs by
itself, token by token, in memory of its own. The state goes through registers once for each token: decoding has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.tvm.elements import Arithmetic
from ringc.codegen.tvm.function import RESERVED, argument_place, memory_shape
from ringc.codegen.tvm.head_rows import Row, write_head_rows
from ringc.codegen.tvm.row import LIBRARY
from ringc.codegen.tvm.script import LANES, Script, only
from ringc.codegen.tvm.stages import Stages
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.symbols import symbols_of
from ringc.ir.types import DType
from ringc.passes.front import front_of, why_not_in_front
from ringc.passes.schedules.linear_attention import slices

STEEPEST = 60.0
"""Largest `slope * chunk` of the chunked form: e^60 k v is far from the end of f32's range."""

BLOCK = 64
"""Tokens that the chunked kernel's recurrent path takes at a time, so that they stay in the first-level cache."""

ROWS = 4
COLUMNS = 64
"""A group of the state: so many rows of so many columns are 16 registers of 16 lanes."""

LOCALS = (
    "task", "b", "h", "left", "slot", "first", "tokens", "t", "n", "g", "c", "l", "y", "lam",
    "qs", "ks", "vs", "os", "seen", "seen_lanes", "fade", *(f"S{r}" for r in range(ROWS)),
)  # fmt: skip
"""What the body calls its own."""


def emit_recurrent(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region is no linear attention on f32 with, at most, row work in front that stays within a head.
    """
    return (_Fronted if len(kernel.function.body.ops) > 1 else Emitter)(kernel).text(0)


def emit_chunked(kernel: Kernel) -> str:
    """The file's body; the configuration's `chunk` is the length of a block.

    Raises:
        CodegenError: the region is no single linear attention on f32.
    """
    return Emitter(kernel).text(kernel.implementation["chunk"])


@dataclass(frozen=True)
class _Tiles:
    """How a head's state is cut: `slices` of `width` columns make tasks, groups of `rows` rows stay in registers."""

    slices: int
    width: int
    rows: int


def _tiles(dk: int, dv: int, heads: int, columns: int) -> _Tiles:
    """The cut for heads of these sizes, with slices of at most `columns`."""
    cut = slices(heads, dv, columns)
    vectors = -(-dv // cut // LANES)
    rows = max(r for r in range(1, ROWS + 1) if dk % r == 0 and (r == 1 or r * vectors <= ROWS * COLUMNS // LANES))
    return _Tiles(cut, dv // cut, rows)


class Emitter:
    """Writes both forms: a task walks over the tokens `first .. first + tokens` of head `h`."""

    def __init__(self, kernel: Kernel) -> None:
        op = only(kernel, LinearAttention)
        assert isinstance(op, LinearAttention)
        if op.q.tensor.dtype is not DType.F32 or op.pool.dtype is not DType.F32:
            raise CodegenError(
                f"@{kernel.name}: kernels on the CPU compute in f32, and this one takes {op.q.tensor.dtype}"
            )
        self.op = op
        self.heads, self.dk, self.dv = (int(d) for d in op.pool.shape)
        self.tiles = _tiles(self.dk, self.dv, self.heads, int(kernel.implementation.get("columns", COLUMNS)))
        self.script = Script(kernel, self.names(kernel))

    def names(self, kernel: Kernel) -> dict[Value, str]:
        """Names of the arguments and of the output."""
        op, body = self.op, kernel.function.body
        if len(body.ops) != 1:
            raise CodegenError(
                f"@{kernel.name}: {kernel.implementation.template} makes a linear_attention and nothing else"
            )
        inputs = (op.q, op.k, op.v, op.slopes, op.state, op.slots, op.offsets)
        names = dict(zip(inputs, ("q", "k", "v", "slopes", "state", "slots", "offsets"), strict=True))
        if len(names) != len(inputs):
            raise CodegenError(f"@{kernel.name}: an operand is given twice")
        return {**names, op.results[0]: "o"}

    def text(self, chunk: int) -> str:
        out = self.script
        with out.main(), self.tasks("b", "B"):
            out("slot: T.let = slots[b]")
            out('first: T.let = T.Cast("int64", offsets[b])')
            out('tokens: T.let = T.Cast("int64", offsets[b + 1]) - first')
            if not chunk:
                self.recurrent()
            else:
                with out.block(f"if slot >= 0 and {self.flat(chunk)}:"):
                    self.chunked(chunk)
                with out.block("else:"):
                    # Without a slot there is no memory to keep the state in between blocks: one block.
                    out(f"step: T.let = T.Select(slot >= 0, T.int64({BLOCK}), T.max(tokens, T.int64(1)))")
                    with out.block("for block in T.serial((tokens + step - 1) // step):"):
                        self.recurrent("first + block * step", "T.min(step, tokens - block * step)")
        return self.file(["exp"] if chunk else self.functions())

    def file(self, functions: Sequence[str]) -> str:
        """What is written, with its imports: these functions of the library, and the one that `own` calls."""
        library = f"from ringc.codegen.tvm.library import {', '.join(sorted({*functions, 'lanes_sum'}))}"
        return f"import tvm\nfrom tvm.script import tirx as T\n\n{library}\n\n\n{self.script.text()}"

    @contextmanager
    def tasks(self, whose: str, count: str) -> Iterator[None]:
        """A task for each of `count` sequences (or segments), head `h` and slice of columns, beginning at `left`."""
        out, slices = self.script, self.tiles.slices
        each = self.heads * slices
        with out.block(f"for task in T.parallel({count} * {each}):"):
            out(f"{whose}: T.let = task // {each}")
            out(f"h: T.let = task % {each} // {slices}" if slices > 1 else f"h: T.let = task % {each}")
            if slices > 1:
                out(f"left: T.let = task % {slices} * {self.tiles.width}")
            yield

    @staticmethod
    def flat(chunk: int) -> str:
        """Whether the head decays so little within a block that the chunked form is safe."""
        return f"slopes[h] * T.float32({chunk}) < T.float32({STEEPEST})"

    def functions(self) -> list[str]:
        """Functions of the library that the recurrent form calls."""
        return []

    def column(self) -> str:
        """A column of the slice, as a column of the head."""
        return "left + @" if self.tiles.slices > 1 else "@"

    def pool(self) -> str:
        """An element of the sequence's state."""
        return f"state[slot, h, #, {self.column()}]"

    def state(self) -> str:
        """An element of the state that a task begins with and leaves."""
        return self.pool()

    def group(self) -> None:
        """Registers of a group of rows: one buffer for each row, as only small ones with constant indices are kept in registers."""
        for r in range(self.tiles.rows):
            self.script.scratch(f"S{r}", (self.tiles.width,))

    def each_row(self, *statements: str, before: str = "", after: str = "") -> None:
        """Statements on each row and column of a group, between two on each column.

        In their text `S` is the row's buffer, `#` the row's number in the state, `@` the column.
        """
        rows = self.tiles.rows
        number = f"g * {rows} + %d" if rows > 1 else "g"
        each = [
            re.sub(r"\bS\b", f"S{r}", text).replace("#", number % r if rows > 1 else number)
            for r in range(rows)
            for text in statements
        ]
        self.script.vectors(self.tiles.width, *filter(None, (before, *each, after)))

    def own(self, o: str, q: str, k: str, v: str) -> None:
        """A token's output begins with what it sees of itself, `(q k) v`.

        So the rounding of this product of a query and a key is one factor for all columns, and a norm of one head takes it out again where
        nothing came before. If the state were to take `k v` in first, each column would be rounded for itself, and where a first token's
        query and key happen to be nearly orthogonal, that norm would enlarge the differences.
        """
        out = self.script
        out.scratch("seen_lanes", (LANES,))
        out.lanes(LANES, "seen_lanes[l] = T.float32(0)")
        out.vectors(self.dk, f"seen_lanes[l] = seen_lanes[l] + {q} * {k}")
        out(f"seen: T.let = lanes_sum(seen_lanes) * T.float32({self.op.scale!r})")
        out.vectors(self.tiles.width, f"{o} = seen * {v}")

    def token(self, o: str, q: str, k: str, v: str, *, fades: bool) -> None:
        """What a group gives to a token, and then the token to the group, which `fades` first; without an `o` the latter alone."""
        grow = f"S[@] = S[@]{' * lam[0]' if fades else ''} + {k} * {v}"
        if not o:
            self.each_row(grow)
            return
        self.script.scratch("y", (self.tiles.width,))
        # A group's sum begins at zero: its few terms are rounded at their own size, not at that of the whole.
        see, give = f"y[@] = y[@] + {q} * S[@]", f"{o} = {o} + {'fade[0] * ' if fades else ''}y[@]"
        self.each_row(see, grow, before="y[@] = T.float32(0)", after=give)

    def recurrent(self, start: str = "first", length: str = "tokens", outputs: bool = True) -> None:
        """Tokens `start .. start + length`, from the state in the slot to the state in the slot."""
        out, tiles, column = self.script, self.tiles, self.column()
        self.decay()
        o, q, k, v = (f"{x}[n, h, %s]" for x in "oqkv")
        if outputs:
            with out.block(f"for t in T.serial({length}):"):
                out(f"n: T.let = {start} + t")
                self.own(o % column, q % "@", k % "@", v % column)
        with out.block(f"for g in T.serial({self.dk // tiles.rows}):"):
            self.group()
            self.load()
            with out.block(f"for t in T.serial({length}):"):
                out(f"n: T.let = {start} + t")
                self.token(o % column if outputs else "", q % "#", k % "#", v % column, fades=True)
            self.store()

    def load(self) -> None:
        """A group as it is before the sequence: zero without a slot."""
        with self.script.block("if slot >= 0:"):
            self.each_row(f"S[@] = {self.state()}")
        with self.script.block("else:"):
            self.each_row("S[@] = T.float32(0)")

    def store(self) -> None:
        """A group goes back to where it was loaded from, if anywhere."""
        with self.script.block("if slot >= 0:"):
            self.each_row(f"{self.state()} = S[@]")

    def decay(self) -> None:
        """`lam`, and `fade`: the factor of what a token sees of the state before it."""
        out = self.script
        out.scratch("lam", (1,))
        out.scratch("fade", (1,))
        out("lam[0] = T.exp(T.float32(0) - slopes[h])")
        out(f"fade[0] = lam[0] * T.float32({self.op.scale!r})")

    def chunked(self, chunk: int, outputs: bool = True) -> None:
        """All tokens in blocks of `chunk`, whose rows are copied side by side, q and k scaled by the decay."""
        out, tiles = self.script, self.tiles
        width, rows, dk = tiles.width, tiles.rows, self.dk
        if outputs:
            out.scratch("up", (chunk,))
        out.scratch("down", (chunk,))
        out.scratch("decay", (1,))
        up = f'up[@] = exp(T.float32(0) - slopes[h] * T.Cast("float32", @ + 1)) * T.float32({self.op.scale!r})'
        down = 'down[@] = exp(slopes[h] * T.Cast("float32", @ + 1))'
        out(f"# {'up[t] = lam^(t + 1), with the scale of q; ' if outputs else ''}down[t] = lam^-(t + 1)")
        out.vectors(chunk, *((up, down) if outputs else (down,)))
        if outputs:
            out.scratch("qs", (chunk, dk))
        out.scratch("ks", (chunk, dk))
        out.scratch("vs", (chunk, width))
        if outputs:
            out.scratch("os", (chunk, width))
        with out.block(f"for block in T.serial((tokens + {chunk - 1}) // {chunk}):"):
            out(f"start: T.let = first + block * {chunk}")
            out(f'length: T.let = T.Cast("int32", T.min(T.int64({chunk}), tokens - block * {chunk}))')
            with out.block("for t in T.serial(length):"):
                q, k = "qs[t, @] = q[start + t, h, @] * up[t]", "ks[t, @] = k[start + t, h, @] * down[t]"
                out.vectors(dk, *((q, k) if outputs else (k,)))
                out.vectors(width, f"vs[t, @] = v[start + t, h, {self.column()}]")
                if outputs:
                    self.own("os[t, @]", "q[start + t, h, @]", "k[start + t, h, @]", "vs[t, @]")
            out('decay[0] = exp(T.float32(0) - slopes[h] * T.Cast("float32", length))')
            with out.block(f"for g in T.serial({dk // rows}):"):
                self.group()
                self.each_row(f"S[@] = {self.state()}")
                with out.block("for t in T.serial(length):"):
                    self.token("os[t, @]" if outputs else "", "qs[t, #]", "ks[t, #]", "vs[t, @]", fades=False)
                self.each_row(f"{self.state()} = S[@] * decay[0]")
            if outputs:
                with out.block("for t in T.serial(length):"):
                    out.vectors(width, f"o[start + t, h, {self.column()}] = os[t, @]")


class _Fronted(Emitter):
    """The recurrent form with row work in front."""

    def __init__(self, kernel: Kernel) -> None:
        self.math = Arithmetic()
        super().__init__(kernel)
        op, body = self.op, kernel.function.body
        ops = [o for o in body.ops if o is not op]
        others = (op.slopes, op.state, op.slots, op.offsets)
        if not set(body.outputs) <= set(op.results) or not all(v in body.args for v in others):
            raise CodegenError(
                f"@{kernel.name}: {kernel.implementation.template} makes a linear_attention and what is in front of q, k and v"
            )
        if why := why_not_in_front(op, ops):
            raise CodegenError(
                f"@{kernel.name}: {kernel.implementation.template} can't take the work in front of its linear_attention: {why}"
            )
        self.front, taken = front_of(op, ops)
        names = {own: self.script.names[given] for own, given in zip(self.front.args, taken, strict=True)}
        self.places = {own: argument_place(self.math, name, own.type) for own, name in names.items()}

    def names(self, kernel: Kernel) -> dict[Value, str]:
        op, body = self.op, kernel.function.body
        symbols = symbols_of(d for v in body.args for d in memory_shape(v.type))
        names = Names({*RESERVED, *LOCALS, *symbols})
        own = {op.slopes: "slopes", op.state: "state", op.slots: "slots", op.offsets: "offsets", op.results[0]: "o"}
        for value, name in own.items():
            names[value] = names.fresh(name)
        argument_names(body, names)
        return {v: names[v] for v in (*body.args, op.results[0])}

    def functions(self) -> list[str]:
        return [f for f in LIBRARY if f in self.math.functions]

    def recurrent(self, start: str = "first", length: str = "tokens", outputs: bool = True) -> None:
        out, tiles, dk = self.script, self.tiles, self.dk
        self.decay()
        for name, width in (("qs", dk), ("ks", dk), ("vs", tiles.width), ("os", tiles.width)):
            out.scratch(name, (width,))
        groups, o = f"for g in T.serial({dk // tiles.rows}):", f"o[n, h, {self.column()}]"
        with out.block("if slot >= 0:"), out.block(f"for t in T.serial({length}):"):
            out(f"n: T.let = {start} + t")
            self.rows()
            self.own("os[@]", "qs[@]", "ks[@]", "vs[@]")
            with out.block(groups):
                self.group()
                self.each_row(f"S[@] = {self.state()}")
                self.token("os[@]", "qs[#]", "ks[#]", "vs[@]", fades=True)
                self.each_row(f"{self.state()} = S[@]")
            out.vectors(tiles.width, f"{o} = os[@]")
        # Without a slot there is no memory to keep the state in between tokens: each group makes all rows once more.
        with out.block("else:"), out.block(groups):
            self.group()
            self.each_row("S[@] = T.float32(0)")
            with out.block(f"for t in T.serial({length}):"):
                out(f"n: T.let = {start} + t")
                self.rows()
                with out.block("if g == 0:"):
                    self.own(o, "qs[@]", "ks[@]", "vs[@]")
                self.token(o, "qs[#]", "ks[#]", "vs[@]", fades=True)

    def rows(self) -> None:
        """Rows of the token n."""
        math, tiles = self.math, self.tiles
        inside = Names({*LOCALS, *RESERVED, *self.script.names.values()} - {"c", "l"})
        stages = Stages(inside, math, self.script.out, dict(self.places))
        n = math.variable("n", 0, None, "int64")
        h = math.variable("h", 0, self.heads - 1, "int64") if self.heads > 1 else math.number(0)
        start = math.variable("left", 0, self.dv - tiles.width, "int64") if tiles.slices > 1 else math.number(0)
        q, k, v = self.front.outputs
        rows = [
            Row(value, first, width, partial("{0}[{1}] = {2}".format, name))
            for name, value, first, width in (
                ("qs", q, math.number(0), self.dk),
                ("ks", k, math.number(0), self.dk),
                ("vs", v, start, tiles.width),
            )
        ]
        write_head_rows(stages, self.front, [n, h], rows)
        known = symbols_of(
            d for value in self.script.names for d in memory_shape(value.type) if not isinstance(d, int) and d.is_Symbol
        )
        if missing := math.symbols - known:
            raise CodegenError(
                f"@{self.script.kernel.name}: no argument says how large {', '.join(sorted(missing))} is"
            )
