"""Composite operation of mixture-of-experts routing."""

from __future__ import annotations

from collections.abc import Sequence

from ringc.ir.builder import Builder
from ringc.ir.core import Value, attr, operand, operation, optional_operand
from ringc.ir.ops.composite import Composite
from ringc.ir.ops.index import Scatter, TakeAlong, TopK
from ringc.ir.ops.pointwise import Add, Div, Mul, Sigmoid, Where
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.rows import Softmax
from ringc.ir.ops.shape import Broadcast, Reshape
from ringc.ir.ops.source import Constant, scalar
from ringc.ir.symbols import Dim, mul
from ringc.ir.types import DType, Type


@operation("route")
class Route(Composite):
    """Group-limited top-k routing without an auxiliary loss (arXiv 2412.19437, sec. 2.1.2; the bias is for selection alone).

    `p = score(logits)`, `b = p + bias`. The experts stand in `groups` runs; a group's score is the sum of its `group_top` largest b;
    the `keep` best groups stay, b elsewhere becomes `dropped` (-inf, or 0 in implementations that say so); the `top_k` largest b are
    the token's experts; their weights are p, divided by their sum + `eps` when `normalize`, times `factor`.

    logits f32[N, E], bias f32[E] -> experts i32[N, k], weights f32[N, k].
    """

    logits: Value = operand()
    bias: Value | None = optional_operand(default=None)
    top_k: int = attr(default=1)
    score: str = attr(default="sigmoid")
    groups: int = attr(default=1)
    keep: int = attr(default=1)
    group_top: int = attr(default=2)
    dropped: float = attr(default=float("-inf"))
    normalize: bool = attr(default=True)
    eps: float = attr(default=1e-20)
    factor: float = attr(default=1.0)

    def infer(self) -> Sequence[Type]:
        logits = self.logits.tensor
        self.require(logits.rank == 2 and isinstance(logits.shape[1], int), "logits are [N, experts]")
        self.require(logits.dtype.is_float, "logits are floating-point numbers")
        experts = logits.shape[1]
        if self.bias is not None:
            self.require(self.bias.shape == (experts,), "needs one bias for each expert")
            self.require(self.bias.tensor.dtype == logits.dtype, "logits and bias of different types")
        self.require(self.score in ("sigmoid", "softmax"), f"there is no score '{self.score}'")
        self.require(self.top_k >= 1 and self.groups >= 1, "chooses nothing")
        self.require(
            int(experts) % self.groups == 0 and 1 <= self.keep <= self.groups, "the groups don't fit the experts"
        )
        each = int(experts) // self.groups
        self.require(
            self.keep == self.groups or 1 <= self.group_top <= each, f"a group has {each} experts, not {self.group_top}"
        )
        self.require(self.top_k <= self.keep * each, "fewer experts are kept than chosen")
        chosen = logits.with_shape((logits.shape[0], self.top_k))
        return [chosen.with_dtype(DType.I32), chosen]

    @property
    def experts(self) -> int:
        return int(self.logits.shape[1])

    def decompose(self, b: Builder, *inputs: Value) -> Sequence[Value]:
        logits = inputs[0]
        n, experts = logits.shape
        each = self.experts // self.groups
        dtype = logits.tensor.dtype
        p = b(Sigmoid(logits) if self.score == "sigmoid" else Softmax(logits))
        biased = p if self.bias is None else b(Add(p, inputs[1]))
        if self.keep < self.groups:
            grouped = b(Reshape(biased, (n, self.groups, each)))
            score = b(Sum(b.insert(TopK(grouped, self.group_top)).results[0], axes=(2,)))
            best = b.insert(TopK(score, self.keep)).results[1]
            none = b(Broadcast(b(Constant((False,), DType.BOOL)), (n, self.groups)))
            one = b(Broadcast(b(Constant((True,), DType.BOOL)), (n, self.keep)))
            kept = b(Reshape(b(Scatter(none, best, one)), (n, self.groups, 1)))
            masked = b(Where(kept, grouped, b(scalar(self.dropped, dtype))))
            biased = b(Reshape(masked, (n, experts)))
        ids = b.insert(TopK(biased, self.top_k)).results[1]
        weights = b(TakeAlong(p, ids))
        if self.normalize:
            total = b(Add(b(Sum(weights, axes=(1,), keep=True)), b(scalar(self.eps, dtype))))
            weights = b(Div(weights, total))
        if self.factor != 1.0:
            weights = b(Mul(weights, b(scalar(self.factor, dtype))))
        return [ids, weights]

    def flops(self) -> Dim:
        """About one pass over the logits for each selected expert and group."""
        return mul(self.logits.tensor.elements, 2 + self.top_k)
