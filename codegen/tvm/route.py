"""Template `tvm.route`: the choice of each token's experts, with the router's product before it, by TVM.

The configuration's `parallel` shares tokens out between threads. Few tokens are chosen for by one thread; then a large router's product is
shared out by experts, as it is bound by reading the weight.

Choices are made by vectors of 16 experts, each lane with its own best so far, and the lanes folded at the end: of equal scores the lower
number wins, in a lane because it comes first, between lanes by comparing.
"""

from __future__ import annotations

import math

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.script import LANES, Script, floor_multiple, only
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.routing import Route
from ringc.ir.types import DType

TOKENS = 4
"""Tokens of a tile: a weight is read once for all of them."""

LARGE = 1 << 17
"""Elements of a router's weight from which two threads read it in less time than it takes to wake one."""

LOWEST = 'T.min_value("float32")'
"""Score of what is no candidate (any more)."""

LEAST = -3e38
"""What a candidate's score is at least, so that it is still one where it's -inf."""


def emit(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region is no `route`, or `matmul` and `route`, on f32.
    """
    return _Emitter(kernel).text()


class _Emitter:
    def __init__(self, kernel: Kernel) -> None:
        op = only(kernel, Route)
        assert isinstance(op, Route)
        self.op = op
        self.kernel = kernel
        body = kernel.function.body
        product = op.logits.op
        names: dict[Value, str] = {}
        self.product: MatMul | None = None
        if isinstance(product, MatMul) and len(body.ops) == 2:
            self.product = product
            self.weight, self.inner = self._operands(product)
            names |= {product.a: "x", product.b: "w"}
        elif len(body.ops) == 1:
            names[op.logits] = "logits"
        else:
            raise CodegenError(f"@{kernel.name}: tvm.route makes a route and the product before it, nothing else")
        if op.logits.tensor.dtype is not DType.F32:
            raise CodegenError(
                f"@{kernel.name}: kernels on the CPU compute in f32, and these logits are {op.logits.tensor.dtype}"
            )
        if op.bias is not None:
            names[op.bias] = "bias"
        if set(names) != set(body.args) or set(body.outputs) != set(op.results):
            raise CodegenError(
                f"@{kernel.name}: tvm.route takes a route's operands and gives its results, nothing else"
            )
        names |= dict(zip(op.results, ("ids", "weights"), strict=True))
        self.script = Script(kernel, names)
        self.width = floor_multiple(op.experts, LANES)
        self.parallel = bool(kernel.implementation["parallel"])

    def _operands(self, product: MatMul) -> tuple[Value, int]:
        w = product.b
        packed = w.tensor.layout.blocks
        plain = (
            product.transpose_b
            and w.tensor.rank == 2
            and product.a.tensor.rank == 2
            and product.a.tensor.dtype is DType.F32
        )
        if not plain or (packed and (len(packed) != 1 or packed[0][0] != 0)):
            raise CodegenError(f"@{self.kernel.name}: tvm.route multiplies rows f32[N, K] by a weight f32[E, K]")
        return w, int(w.shape[1])

    def text(self) -> str:
        out = self.script
        out("import tvm")
        out("from tvm.script import tirx as T\n")
        if self.product is not None and not self.weight.tensor.layout.blocks:
            out("from ringc.codegen.tvm.lanes import load, sums")
        out("from ringc.codegen.tvm.library import exp")
        out("\n")
        with out.main():
            if self.product is None:
                with out.block(f"for n in T.{'parallel' if self.parallel else 'serial'}(N):"):
                    self.route("logits[n, %s]", self.op.experts)
            elif not self.parallel and self.inner * self.op.experts >= LARGE:
                self.by_experts()
            else:
                with out.block(
                    f"for tile in T.{'parallel' if self.parallel else 'serial'}((N + {TOKENS - 1}) // {TOKENS}):"
                ):
                    out(f"first: T.let = tile * {TOKENS}")
                    out(f"count: T.let = T.min(T.int64({TOKENS}), N - first)")
                    out.scratch("scores", (TOKENS, self.width))
                    tiles = self.width // self.columns(1)
                    with out.block("if count == 1:"), out.block(f"for e in T.serial({tiles}):"):
                        self.multiply(1, "first", "scores[%s, %s]")
                    with out.block("else:"), out.block(f"for e in T.serial({self.width // self.columns(TOKENS)}):"):
                        self.multiply(TOKENS, "first", "scores[%s, %s]")
                    with out.block("for u in T.serial(count):"):
                        out("n: T.let = first + u")
                        self.route("scores[u, %s]", self.width)
        return out.text()

    def by_experts(self) -> None:
        """The product by all threads, then the choice by one."""
        out = self.script
        out(f'scores = T.alloc_buffer((N, {self.width}), "float32", scope="global")')
        with out.block(f"for e in T.parallel({self.width // self.columns(1)}):"), out.block("for n in T.serial(N):"):
            self.multiply(1, "n", "scores[n + %s, %s]")
        with out.block("for n in T.serial(N):"):
            self.route("scores[n, %s]", self.width)

    # -- the product

    def columns(self, tokens: int) -> int:
        """Experts that are multiplied for at a time. They divide `width`."""
        blocks = self.weight.tensor.layout.blocks
        if not blocks:
            return LANES // tokens
        return math.gcd(blocks[0][1], self.width)

    def multiply(self, tokens: int, first: str, target: str) -> None:
        """Scores of some tokens for the e-th run of experts; a token or expert beyond the last is the last again."""
        out, many = self.script, self.columns(tokens)
        rows = [first if u == 0 else f"T.min({first} + {u}, N - 1)" for u in range(tokens)]
        for u, row in enumerate(rows):
            out(f"n{u}: T.let = {row}")
        if self.weight.tensor.layout.blocks:
            self.multiply_packed(tokens, many, target)
            return
        pairs = [(u, j) for u in range(tokens) for j in range(many)]
        for j in range(many):
            out(f"e{j}: T.let = T.min(e * {many} + {j}, {self.op.experts - 1})")
        for u, j in pairs:
            out.scratch(f"p{u}_{j}", (LANES,))
        out.lanes(LANES, *(f"p{u}_{j}[l] = T.float32(0)" for u, j in pairs))
        out.vectors(
            self.inner,
            *(f"p{u}_{j}[l] = p{u}_{j}[l] + x[n{u}, @] * w[e{j}, @]" for u, j in pairs),
            unroll=False,
        )
        out.scratch("all", (LANES,))
        out(f"all[T.Ramp(0, 1, {LANES})] = sums([{', '.join(f'load(p{u}_{j})' for u, j in pairs)}])")
        for u in range(tokens):
            out.vectors(many, f"{target % (u, f'e * {many} + @')} = all[{u * many} + @]")

    def multiply_packed(self, tokens: int, many: int, target: str) -> None:
        """The weight as `[E / block, K, block]`: a vector of experts for each k, and some sums side by side that wait for no other."""
        out, block = self.script, self.weight.tensor.layout.blocks[0][1]
        steps = 4 if tokens == 1 and self.inner % 4 == 0 else 1
        accumulators = [(u, i) for u in range(tokens) for i in range(steps)]
        for u, i in accumulators:
            out.scratch(f"p{u}_{i}", (many,))
        out.vectors(many, *(f"p{u}_{i}[@] = T.float32(0)" for u, i in accumulators))
        runs = block // many
        run, start = ("e", "") if runs == 1 else (f"e // {runs}", f"e % {runs} * {many} + ")
        with out.block(f"for k in T.serial({self.inner // steps}):"):
            out.vectors(
                many,
                *(
                    (f"p{u}_{i}[@] = p{u}_{i}[@] + x[n{u}, k * {steps} + {i}] * w[{run}, k * {steps} + {i}, {start}@]")
                    for u, i in accumulators
                ),
            )
        for u in range(tokens):
            out.vectors(
                many,
                (f"{target % (u, f'e * {many} + @')} = {' + '.join(f'p{u}_{i}[@]' for i in range(steps))}"),
            )

    # -- the choice

    def route(self, logit: str, width: int) -> None:
        """Experts and weights of token n, whose logits may be read up to `width`."""
        out, op, experts = self.script, self.op, self.op.experts
        out.scratch("score", (self.width,))
        out.scratch("biased", (self.width,))
        self.probabilities(logit, width)
        bias = " + bias[@]" if op.bias is not None else ""
        out.vectors(
            experts,
            f"biased[@] = T.max(score[@]{bias}, T.float32({LEAST}))",
            unroll=False,
        )
        for e in range(experts, self.width):
            out(f"biased[{e}] = {LOWEST}")
        out.scratch("best", (LANES,))
        out.scratch("which", (LANES,), "int32")
        if op.keep < op.groups:
            self.groups()
        out.scratch("total", (1,))
        out.scratch("chosen", (op.top_k,))
        out("total[0] = T.float32(0)")
        with out.block(f"for r in T.serial({op.top_k}):"):
            self.largest("biased", self.width)
            out("ids[n, r] = which[0]")
            out("chosen[r] = score[which[0]]")
            out("total[0] = total[0] + score[which[0]]")
            out(f"biased[which[0]] = {LOWEST}")
        share = f"chosen[r] / (total[0] + T.float32({op.eps!r}))" if op.normalize else "chosen[r]"
        with out.block(f"for r in T.serial({op.top_k}):"):
            out(f"weights[n, r] = {share}" + (f" * T.float32({op.factor!r})" if op.factor != 1.0 else ""))

    def probabilities(self, logit: str, width: int) -> None:
        """score[e]: that of expert e."""
        out, experts = self.script, self.op.experts
        if self.op.score == "sigmoid":
            out.vectors(
                width,
                f"score[@] = T.float32(1) / (T.float32(1) + exp(T.float32(0) - {logit % '@'}))",
                unroll=False,
            )
            return
        for name, start, step in (
            ("top", LOWEST, "top[0] = T.max(top[0], %s)"),
            ("norm", "T.float32(0)", "norm[0] = norm[0] + %s"),
        ):
            out.scratch(name, (1,))
            out(f"{name}[0] = {start}")
            if name == "norm":
                out.vectors(experts, f"score[@] = exp({logit % '@'} - top[0])", unroll=False)
            with out.block(f"for e in T.serial({experts}):"):
                out(step % (logit % "e" if name == "top" else "score[e]"))
        out.vectors(experts, "score[@] = score[@] / norm[0]", unroll=False)

    def groups(self) -> None:
        """Experts of groups that aren't kept get the score of dropped ones."""
        out, op = self.script, self.op
        groups, each = op.groups, op.experts // op.groups
        width = floor_multiple(groups, LANES)
        tops = range(op.group_top)
        out.scratch("group", (width,))
        out.scratch("dropped", (width,), "int32")
        out.scratch("left", (width,))
        for i in tops:
            out.scratch(f"top{i}", (width,))
            out.vectors(width, f"top{i}[@] = {LOWEST}")
        with out.block(f"for i in T.serial({each}):"):
            out.vectors(
                groups,
                f"left[@] = biased[(@) * {each} + i]",
                *(
                    statement
                    for i in tops
                    for statement in (
                        f"best[l] = T.min(top{i}[@], left[@])",
                        f"top{i}[@] = T.max(top{i}[@], left[@])",
                        "left[@] = best[l]",
                    )
                ),
            )
        out.vectors(width, f"group[@] = {LOWEST}", "dropped[@] = 1")
        total = " + ".join(f"top{i}[@]" for i in tops)
        out.vectors(groups, f"group[@] = T.max({total}, T.float32({LEAST}))")
        with out.block(f"for r in T.serial({op.keep}):"):
            self.largest("group", width)
            out("dropped[which[0]] = 0")
            out(f"group[which[0]] = {LOWEST}")
        score = max(op.dropped, LEAST)
        with out.block(f"for g in T.serial({groups}):"), out.block("if dropped[g] == 1:"):
            out.vectors(each, f"biased[g * {each} + @] = T.float32({score!r})", unroll=False)

    def largest(self, name: str, width: int) -> None:
        """which[0]: the number of the largest of `width` elements, the lowest of equals."""
        out = self.script
        out.lanes(LANES, f"best[l] = {name}[l]", "which[l] = l")
        if width > LANES:
            at = f"v * {LANES} + {LANES} + l"
            with out.block(f"for v in T.serial({width // LANES - 1}):"):
                out.lanes(
                    LANES,
                    f"which[l] = T.Select({name}[{at}] > best[l], {at}, which[l])",
                    f"best[l] = T.max(best[l], {name}[{at}])",
                )
        for half in (8, 4, 2, 1):
            other = f"l + {half}"
            equal = f"T.And(best[{other}] == best[l], which[{other}] < which[l])"
            out.lanes(
                half,
                f"which[l] = T.Select(T.Or(best[{other}] > best[l], {equal}), which[{other}], which[l])",
                f"best[l] = T.max(best[l], best[{other}])",
            )
