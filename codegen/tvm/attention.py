"""Template `tvm.attention`: softmax attention of packed tokens over a pool of caches, by TVM.

A task is a tile of tokens of one sequence and one key-value head, with all the query heads that share it: its *rows* are tokens times
heads. Keys pass by in blocks, with a running maximum and sum for each row (online softmax, arXiv 1805.02867). There are two ways through:

* many rows: a row is a lane of a vector. Scores are products of a key's element, broadcast, with the rows' transposed queries, so that
  neither a maximum nor a sum is taken across lanes, and the caches are read as they lie.
* few rows (decoding): a vector lies along the head, and a score is summed across its lanes.
"""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.script import LANES, Script, floor_multiple, only
from ringc.errors import CodegenError
from ringc.ir.ops.mixers import Attention
from ringc.ir.types import DType

ROWS = 32
"""Rows of a tile where heads allow: two vectors, which the broadcast elements are shared by."""

BLOCK = 64
"""Keys that pass by at a time."""

FEW = 16
"""Up to this many rows go the way of decoding."""

MASKED = -1e30
"""Score of a key that a row doesn't see."""


def emit(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region is no single attention on f32.
    """
    return _Emitter(kernel).text()


def _divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to a limit."""
    return max(d for d in range(1, max(1, limit) + 1) if n % d == 0)


class _Emitter:
    def __init__(self, kernel: Kernel) -> None:
        op = only(kernel, Attention)
        assert isinstance(op, Attention)
        if len(kernel.function.body.ops) != 1:
            raise CodegenError(f"@{kernel.name}: {kernel.implementation.template} makes an attention and nothing else")
        if op.q.tensor.dtype is not DType.F32 or op.cache.dtype is not DType.F32:
            raise CodegenError(
                f"@{kernel.name}: kernels on the CPU compute in f32, and this one takes {op.q.tensor.dtype}"
            )
        inputs = (op.q, op.keys, op.values, op.slots, op.offsets, op.positions)
        names = dict(zip(inputs, ("q", "keys", "values", "slots", "offsets", "positions"), strict=True))
        if len(names) != len(inputs):
            raise CodegenError(f"@{kernel.name}: an operand is given twice")
        self.script = Script(kernel, {**names, op.result: "o"})
        self.op = op
        _, shared, d = op.cache.shape
        self.shared, self.d = int(shared), int(d)
        self.group = int(op.q.shape[1]) // self.shared
        self.tokens = max(1, ROWS // self.group)
        self.rows = self.tokens * self.group
        self.width = floor_multiple(self.rows, LANES)
        self.scale = f"T.float32({op.scale!r})"

    def text(self) -> str:
        out, tokens, shared = self.script, self.tokens, self.shared
        out("import tvm")
        out("from tvm.script import tirx as T\n")
        if self.group <= FEW:
            out("from ringc.codegen.tvm.lanes import load")
            out("from ringc.codegen.tvm.lanes import sums as sums_of")
        out("from ringc.codegen.tvm.library import exp")
        out("\n")
        with out.main():
            out(f"# Segment b has the tiles offsets[b] // {tokens} + b and following, some of them empty.")
            with out.block(f"for task in T.parallel((N // {tokens} + B) * {shared}):"):
                out(f'tiles: T.let = T.Cast("int32", N // {tokens} + B)')
                out(f'i: T.let = T.Cast("int32", task) // {shared}')
                out(f'g: T.let = T.Cast("int32", task) % {shared}')
                out("# A thread has a run of tasks: early tiles, with few keys to see, alternate with late ones.")
                out("tile: T.let = T.Select(i % 2 == 0, i // 2, tiles - 1 - i // 2)")
                out.scratch("low", (1,), "int32")
                out.scratch("high", (1,), "int32")
                out("low[0] = 0")
                out('high[0] = T.Cast("int32", B)')
                with out.block("while low[0] + 1 < high[0]:"):
                    with out.block(
                        f"if offsets[(low[0] + high[0]) // 2] // {tokens} + (low[0] + high[0]) // 2 <= tile:"
                    ):
                        out("low[0] = (low[0] + high[0]) // 2")
                    with out.block("else:"):
                        out("high[0] = (low[0] + high[0]) // 2")
                out("b: T.let = low[0]")
                out("slot: T.let = slots[b]")
                out(f"first: T.let = offsets[b] + (tile - offsets[b] // {tokens} - b) * {tokens}")
                out(f"count: T.let = T.min({tokens}, offsets[b + 1] - first)")
                rows = f"for row in T.serial(T.max(count, 0) * {self.group}):"
                with out.block("if slot < 0:"), out.block(rows):
                    row = f"first + row // {self.group}, g * {self.group} + row % {self.group}"
                    out.vectors(self.d, f"o[{row}, @] = T.float32(0)")
                if self.group <= FEW and self.tokens > 1:
                    with out.block(f"elif count <= {FEW // self.group}:"):
                        self.few()
                    with out.block("else:"):
                        self.many()
                elif self.group <= FEW:
                    with out.block("else:"):
                        self.few()
                else:
                    with out.block("elif count > 0:"):
                        self.many()
        return out.text()

    # -- a row is a lane

    def many(self) -> None:
        out, d, width, group = self.script, self.d, self.width, self.group
        out.scratch("qt", (d, width))
        out.scratch("acc", (d, width))
        out.scratch("x", (BLOCK, width))
        out.scratch("at", (width,), "int32")
        for name in ("top", "total", "new", "fade"):
            out.scratch(name, (width,))
        out.scratch("last", (1,), "int32")
        out("last[0] = 0")
        if width > 1:
            out("# Rows of no token are copies of the last one.")
        with out.block(f"for row in T.serial({width}):"):
            out(f"u: T.let = T.min(row // {group}, count - 1)")
            out("at[row] = positions[first + u]")
            out("last[0] = T.max(last[0], at[row])")
            with out.block(f"for d in T.serial({d}):"):
                out(f"qt[d, row] = q[first + u, g * {group} + row % {group}, d] * {self.scale}")
        with out.block(f"for d in T.serial({d}):"):
            out.vectors(width, "acc[d, @] = T.float32(0)")
        out.vectors(width, f"top[@] = T.float32({MASKED})", "total[@] = T.float32(0)")
        with out.block(f"for block in T.serial(last[0] // {BLOCK} + 1):"):
            out(f"n: T.let = T.min({BLOCK}, last[0] + 1 - block * {BLOCK})")
            self.many_scores()
            out.vectors(width, "new[@] = top[@]")
            with out.block("for j in T.serial(n):"):
                out.vectors(width, "new[@] = T.max(new[@], x[j, @])")
            out.vectors(
                width,
                "fade[@] = exp(top[@] - new[@])",
                "top[@] = new[@]",
                "total[@] = total[@] * fade[@]",
            )
            with out.block("for j in T.serial(n):"):
                out.vectors(
                    width,
                    "x[j, @] = exp(x[j, @] - new[@])",
                    "total[@] = total[@] + x[j, @]",
                )
            self.many_values()
        out.vectors(width, "total[@] = T.float32(1) / total[@]")
        with out.block(f"for row in T.serial(count * {group}):"), out.block(f"for d in T.serial({d}):"):
            out(f"o[first + row // {group}, g * {group} + row % {group}, d] = acc[d, row] * total[row]")

    def many_scores(self) -> None:
        """x[j, row]: the score of key j of the block."""
        out, width = self.script, self.width
        keys = range(max(1, min(8, 24 * LANES // width)))
        many = len(keys)
        with out.block(f"for part in T.serial((n + {many - 1}) // {many}):"):
            for j in keys:
                out.scratch(f"s{j}", (width,))
            out.vectors(width, *(f"s{j}[@] = T.float32(0)" for j in keys))
            out("# The last part may have fewer keys: it takes the last one again.")
            for j in keys:
                out(f"key{j}: T.let = T.min(block * {BLOCK} + part * {many} + {j}, last[0])")
            with out.block(f"for d in T.serial({self.d}):"):
                out.vectors(
                    width,
                    *(f"s{j}[@] = s{j}[@] + keys[slot, key{j}, g, d] * qt[d, @]" for j in keys),
                )
            for j in keys:
                seen = f"block * {BLOCK} + part * {many} + {j}"
                out.vectors(
                    width,
                    (f"x[part * {many} + {j}, @] = T.Select({seen} <= at[@], s{j}[@], T.float32({MASKED}))"),
                )

    def many_values(self) -> None:
        """acc[d, row]: faded, and the block's values added."""
        out, width = self.script, self.width
        columns = range(_divisor(self.d, min(8, 24 * LANES // width)))
        many = len(columns)
        with out.block(f"for part in T.serial({self.d // many}):"):
            for j in columns:
                out.scratch(f"a{j}", (width,))
            out.vectors(width, *(f"a{j}[@] = acc[part * {many} + {j}, @] * fade[@]" for j in columns))
            with out.block("for j in T.serial(n):"):
                value = f"values[slot, block * {BLOCK} + j, g, part * {many} + %d]"
                out.vectors(width, *(f"a{j}[@] = a{j}[@] + {value % j} * x[j, @]" for j in columns))
            out.vectors(width, *(f"acc[part * {many} + {j}, @] = a{j}[@]" for j in columns))

    # -- a vector lies along the head

    def few(self) -> None:
        out, d, group = self.script, self.d, self.group
        heads = _divisor(group, min(LANES, 16 * LANES // floor_multiple(d, LANES)))
        row = f"part * {heads} + %d" if heads < group else "%d"
        each = range(heads)
        out.scratch("weights", (group, BLOCK + LANES))
        out.scratch("sums", (group, d))
        for name in ("most", "norm", "old"):
            out.scratch(name, (group,))
        out.scratch("lanes", (LANES,))
        with out.block("for u in T.serial(count):"):
            out("token: T.let = first + u")
            out("end: T.let = positions[token] + 1")
            with out.block(f"for r in T.serial({group}):"):
                out(f"most[r] = T.float32({MASKED})")
                out("norm[r] = T.float32(0)")
                out.vectors(d, "sums[r, @] = T.float32(0)")
            with out.block(f"for block in T.serial((end + {BLOCK - 1}) // {BLOCK}):"):
                out(f"n: T.let = T.min({BLOCK}, end - block * {BLOCK})")
                with out.block(f"for part in T.serial({group // heads}):"):
                    self.few_scores(heads, row)
                with out.block(f"for r in T.serial({group}):"):
                    self.softmax()
                with out.block(f"for part in T.serial({group // heads}):"):
                    for r in each:
                        out.scratch(f"a{r}", (d,))
                    out.vectors(d, *(f"a{r}[@] = sums[{row % r}, @] * old[{row % r}]" for r in each))
                    with out.block("for j in T.serial(n):"):
                        value = f"values[slot, block * {BLOCK} + j, g, @]"
                        out.vectors(
                            d,
                            *(f"a{r}[@] = a{r}[@] + weights[{row % r}, j] * {value}" for r in each),
                        )
                    out.vectors(d, *(f"sums[{row % r}, @] = a{r}[@]" for r in each))
            with out.block(f"for r in T.serial({group}):"):
                out.vectors(d, f"o[token, g * {group} + r, @] = sums[r, @] / norm[r]")

    def few_scores(self, heads: int, row: str) -> None:
        """weights[r, j]: the score of key j for some heads; 16 scores at a time, whose lanes are summed together."""
        out = self.script
        keys = LANES // heads
        pairs = [(r, j) for r in range(heads) for j in range(keys)]
        with out.block(f"for run in T.serial((n + {keys - 1}) // {keys}):"):
            out("# The last run may have fewer keys: it takes the last one again.")
            for j in range(keys):
                out(f"key{j}: T.let = T.min(block * {BLOCK} + run * {keys} + {j}, end - 1)")
            for r, j in pairs:
                out.scratch(f"p{r}_{j}", (LANES,))
            out.lanes(LANES, *(f"p{r}_{j}[l] = T.float32(0)" for r, j in pairs))
            out.vectors(
                self.d,
                *(
                    (
                        f"p{r}_{j}[l] = p{r}_{j}[l] + q[token, g * {self.group} + {row % r}, @] * keys[slot, key{j}, g, @]"
                    )
                    for r, j in pairs
                ),
            )
            names = [f"p{r}_{j}" for r, j in pairs]
            names += names[:1] * (LANES - len(names))
            out(f"lanes[T.Ramp(0, 1, {LANES})] = sums_of([{', '.join(f'load({n})' for n in names)}])")
            for r in range(heads):
                out.vectors(
                    keys,
                    (f"weights[{row % r}, run * {keys} + @] = lanes[{r * keys} + @] * {self.scale}"),
                )

    def softmax(self) -> None:
        """Row r of `weights`: scores become weights under the row's new maximum; `old` is what `sums` fade by."""
        out = self.script
        vectors = f"for c in T.serial((n + {LANES - 1}) // {LANES}):"
        here, seen = f"weights[r, c * {LANES} + l]", f"c * {LANES} + l < n"
        out.lanes(LANES, "lanes[l] = most[r]")
        with out.block(vectors):
            out.lanes(LANES, f"lanes[l] = T.max(lanes[l], T.Select({seen}, {here}, T.float32({MASKED})))")
        for lanes in (8, 4, 2):
            out.lanes(lanes, f"lanes[l] = T.max(lanes[l], lanes[l + {lanes}])")
        out("old[r] = most[r]")
        out("most[r] = T.max(lanes[0], lanes[1])")
        out("old[r] = exp(old[r] - most[r])")
        out.lanes(LANES, "lanes[l] = T.float32(0)")
        with out.block(vectors):
            out.lanes(
                LANES,
                f"{here} = T.Select({seen}, exp({here} - most[r]), T.float32(0))",
                f"lanes[l] = lanes[l] + {here}",
            )
        for lanes in (8, 4, 2):
            out.lanes(lanes, f"lanes[l] = lanes[l] + lanes[l + {lanes}]")
        out("norm[r] = norm[r] * old[r] + (lanes[0] + lanes[1])")
