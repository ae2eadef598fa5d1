"""Templates `tvm.linear_recurrent` and `tvm.linear_chunked`: linear attention over a pool of states, by TVM.

A task is one head of one sequence, or a slice of its value columns. Both forms walk over groups of a few rows of the state S, which stay
in registers while all tokens of a block of the sequence pass by; each token's output collects what the groups contribute.

* recurrent: `S = lam S + k v; o += q S` for each token: three operations on each vector of S. The block is the sequence.
* chunked: within a block, S is kept divided by `lam^t`, so that it needs no decay: `S += (k lam^-t) v; o += (q lam^t) S`, and
  `S *= lam^L` at the block's end: two operations. The powers stay representable while `slope * chunk` is small; a head that decays
  faster takes the recurrent form, whose states and outputs are the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.script import LANES, Script, only
from ringc.errors import CodegenError
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.types import DType

STEEPEST = 60.0
"""Largest `slope * chunk` of the chunked form: e^60 k v is far from the end of f32's range."""

BLOCK = 64
"""Tokens that the chunked kernel's recurrent path takes at a time, so that they stay in the first-level cache."""

ROWS = 4
COLUMNS = 64
"""A group of the state: so many rows of so many columns are 16 registers of 16 lanes."""

HEADS = 4
"""With fewer heads than this, a head is cut into slices, so that one sequence occupies several threads."""


def emit_recurrent(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region is no single linear attention on f32.
    """
    return _Emitter(kernel).text(0)


def emit_chunked(kernel: Kernel) -> str:
    """The file's body; the configuration's `chunk` is the length of a block.

    Raises:
        CodegenError: as for `emit_recurrent`.
    """
    return _Emitter(kernel).text(kernel.implementation["chunk"])


@dataclass(frozen=True)
class _Tiles:
    """How a head's state is cut: `slices` of `width` columns make tasks, groups of `rows` rows stay in registers."""

    slices: int
    width: int
    rows: int


def _tiles(dk: int, dv: int, heads: int, columns: int) -> _Tiles:
    """The cut for heads of these sizes, with slices of at most `columns`.

    A narrower slice reads q and k once more and costs 20 to 40 % in time, so there are several only where a group's rows don't fit into
    registers otherwise, where the configuration asks for them, and where a few heads would leave threads idle.
    """

    def fits(slices: int) -> bool:
        width = dv // slices
        return dv % slices == 0 and (slices == 1 or width % LANES == 0)

    slices = next((s for s in range(1, dv + 1) if fits(s) and dv // s <= columns), 1)
    while heads * slices < HEADS and fits(2 * slices):
        slices *= 2
    vectors = -(-dv // slices // LANES)
    rows = max(r for r in range(1, ROWS + 1) if dk % r == 0 and (r == 1 or r * vectors <= ROWS * COLUMNS // LANES))
    return _Tiles(slices, dv // slices, rows)


class _Emitter:
    def __init__(self, kernel: Kernel) -> None:
        op = only(kernel, LinearAttention)
        assert isinstance(op, LinearAttention)
        body = kernel.function.body
        if len(body.ops) != 1 or [op.q, op.k, op.v] != [v for v in (op.q, op.k, op.v) if v in body.args]:
            raise CodegenError(
                f"@{kernel.name}: {kernel.implementation.template} makes a linear_attention and nothing else"
            )
        if op.q.tensor.dtype is not DType.F32 or op.pool.dtype is not DType.F32:
            raise CodegenError(
                f"@{kernel.name}: kernels on the CPU compute in f32, and this one takes {op.q.tensor.dtype}"
            )
        self.op = op
        self.heads, self.dk, self.dv = (int(d) for d in op.pool.shape)
        self.tiles = _tiles(self.dk, self.dv, self.heads, int(kernel.implementation.get("columns", COLUMNS)))
        inputs = (op.q, op.k, op.v, op.slopes, op.state, op.slots, op.offsets)
        names = dict(zip(inputs, ("q", "k", "v", "slopes", "state", "slots", "offsets"), strict=True))
        if len(names) != len(inputs):
            raise CodegenError(f"@{kernel.name}: an operand is given twice")
        self.script = Script(kernel, {**names, op.results[0]: "o"})

    def text(self, chunk: int) -> str:
        out, tiles = self.script, self.tiles
        out("import tvm")
        out("from tvm.script import tirx as T")
        if chunk:
            out("\nfrom ringc.codegen.tvm.library import exp")
        out("\n")
        each = self.heads * tiles.slices
        with out.main(), out.block(f"for task in T.parallel(B * {each}):"):
            out(f"b: T.let = task // {each}")
            out(f"h: T.let = task % {each} // {tiles.slices}" if tiles.slices > 1 else f"h: T.let = task % {each}")
            if tiles.slices > 1:
                out(f"left: T.let = task % {tiles.slices} * {tiles.width}")
            out("slot: T.let = slots[b]")
            out('first: T.let = T.Cast("int64", offsets[b])')
            out('tokens: T.let = T.Cast("int64", offsets[b + 1]) - first')
            if not chunk:
                self.recurrent()
            else:
                with out.block(f"if slot >= 0 and slopes[h] * T.float32({chunk}) < T.float32({STEEPEST}):"):
                    self.chunked(chunk)
                with out.block("else:"):
                    # Without a slot there is no memory to keep the state in between blocks: one block.
                    out(f"step: T.let = T.Select(slot >= 0, T.int64({BLOCK}), T.max(tokens, T.int64(1)))")
                    with out.block("for block in T.serial((tokens + step - 1) // step):"):
                        self.recurrent("first + block * step", "T.min(step, tokens - block * step)")
        return out.text()

    def column(self) -> str:
        """A column of the slice, as a column of the head."""
        return "left + @" if self.tiles.slices > 1 else "@"

    def state(self) -> str:
        return f"state[slot, h, #, {self.column()}]"

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

    def token(self, o: str, k: str, q: str, v: str, decay: str = "") -> None:
        """What one token does to a group, and the group to the token."""
        self.script.scratch("y", (self.tiles.width,))
        self.each_row(
            f"S[@] = S[@]{decay} + {k} * {v}", f"y[@] = y[@] + {q} * S[@]", before=f"y[@] = {o}", after=f"{o} = y[@]"
        )

    def recurrent(self, start: str = "first", length: str = "tokens") -> None:
        """Tokens `start .. start + length`, from the state in the slot to the state in the slot."""
        out, tiles = self.script, self.tiles
        width, rows = tiles.width, tiles.rows
        out.scratch("lam", (1,))
        out("lam[0] = T.exp(T.float32(0) - slopes[h])")
        with out.block(f"for t in T.serial({length}):"):
            out.vectors(width, f"o[{start} + t, h, {self.column()}] = T.float32(0)")
        with out.block(f"for g in T.serial({self.dk // rows}):"):
            self.group()
            with out.block("if slot >= 0:"):
                self.each_row(f"S[@] = {self.state()}")
            with out.block("else:"):
                self.each_row("S[@] = T.float32(0)")
            with out.block(f"for t in T.serial({length}):"):
                out(f"n: T.let = {start} + t")
                column = self.column()
                q = f"(q[n, h, #] * T.float32({self.op.scale!r}))"
                self.token(f"o[n, h, {column}]", "k[n, h, #]", q, f"v[n, h, {column}]", " * lam[0]")
            with out.block("if slot >= 0:"):
                self.each_row(f"{self.state()} = S[@]")

    def chunked(self, chunk: int) -> None:
        """The whole sequence in blocks of `chunk` tokens, whose rows are copied side by side, q and k scaled by the decay."""
        out, tiles = self.script, self.tiles
        width, rows, dk = tiles.width, tiles.rows, self.dk
        out.scratch("up", (chunk,))
        out.scratch("down", (chunk,))
        out.scratch("decay", (1,))
        out("# up[t] = lam^(t + 1), with the scale of q; down[t] = lam^-(t + 1)")
        out.vectors(
            chunk,
            (f'up[@] = exp(T.float32(0) - slopes[h] * T.Cast("float32", @ + 1)) * T.float32({self.op.scale!r})'),
            'down[@] = exp(slopes[h] * T.Cast("float32", @ + 1))',
        )
        out.scratch("qs", (chunk, dk))
        out.scratch("ks", (chunk, dk))
        out.scratch("vs", (chunk, width))
        out.scratch("os", (chunk, width))
        with out.block(f"for block in T.serial((tokens + {chunk - 1}) // {chunk}):"):
            out(f"start: T.let = first + block * {chunk}")
            out(f'length: T.let = T.Cast("int32", T.min(T.int64({chunk}), tokens - block * {chunk}))')
            with out.block("for t in T.serial(length):"):
                out.vectors(
                    dk,
                    "qs[t, @] = q[start + t, h, @] * up[t]",
                    "ks[t, @] = k[start + t, h, @] * down[t]",
                )
                out.vectors(
                    width,
                    f"vs[t, @] = v[start + t, h, {self.column()}]",
                    "os[t, @] = T.float32(0)",
                )
            out('decay[0] = exp(T.float32(0) - slopes[h] * T.Cast("float32", length))')
            with out.block(f"for g in T.serial({dk // rows}):"):
                self.group()
                self.each_row(f"S[@] = {self.state()}")
                with out.block("for t in T.serial(length):"):
                    self.token("os[t, @]", "ks[t, #]", "qs[t, #]", "vs[t, @]")
                self.each_row(f"{self.state()} = S[@] * decay[0]")
            with out.block("for t in T.serial(length):"):
                out.vectors(width, f"o[start + t, h, {self.column()}] = os[t, @]")
