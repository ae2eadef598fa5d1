"""Composite operation of mixture-of-experts routing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Env, Value, attr, operand, operation, optional_operand
from ringc.ir.ops.composite import Composite
from ringc.ir.ops.index import Scatter, TakeAlong, TopK
from ringc.ir.ops.pointwise import Add, Div, Mul, Sigmoid, Where
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.rows import Softmax
from ringc.ir.ops.shape import Broadcast, Reshape
from ringc.ir.ops.source import Constant, scalar
from ringc.ir.symbols import Dim, mul
from ringc.ir.types import DType, Type

if TYPE_CHECKING:
    import torch


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
        p, biased = self._scores(b, *inputs)
        ids = self._best(b, biased)
        return [ids, self._weights(b, p, ids)]

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        if env.replay is None:
            return super().reference(env, *inputs)
        from ringc.ir.interpret import run_block

        taken = env.replay.take(env.shape(self.results[0].type.shape))
        # What is no expert at all is judged below; here it must only not be followed out of the tables.
        safe = taken.clamp(0, self.experts - 1)
        scores, own, weights = run_block(self._replaying, (*inputs, safe), env)
        env.replay.judge(self, scores, own, taken)
        return [safe, weights]

    @cached_property  # replaying a text runs it for each token
    def _replaying(self) -> Block:
        """What is computed of the inputs and given experts: the scores, the own choice, the weights of those given."""
        arguments = (*self.inputs(), self.results[0])
        block = Block([v.type for v in arguments], [v.name for v in arguments])
        b, given = Builder(block), block.args[-1]
        p, biased = self._scores(b, *block.args[:-1])
        block.set_outputs([biased, self._best(b, biased), self._weights(b, p, given)])
        return block

    def _scores(self, b: Builder, logits: Value, *bias: Value) -> tuple[Value, Value]:
        """(p, b)"""
        p = b(Sigmoid(logits) if self.score == "sigmoid" else Softmax(logits))
        return p, b(Add(p, *bias)) if bias else p

    def _best(self, b: Builder, biased: Value) -> Value:
        """The experts."""
        n, experts = biased.shape
        each = self.experts // self.groups
        if self.keep < self.groups:
            grouped = b(Reshape(biased, (n, self.groups, each)))
            score = b(Sum(b.insert(TopK(grouped, self.group_top)).results[0], axes=(2,)))
            best = b.insert(TopK(score, self.keep)).results[1]
            none = b(Broadcast(b(Constant((False,), DType.BOOL)), (n, self.groups)))
            one = b(Broadcast(b(Constant((True,), DType.BOOL)), (n, self.keep)))
            kept = b(Reshape(b(Scatter(none, best, one)), (n, self.groups, 1)))
            masked = b(Where(kept, grouped, b(scalar(self.dropped, biased.tensor.dtype))))
            biased = b(Reshape(masked, (n, experts)))
        return b.insert(TopK(biased, self.top_k)).results[1]

    def _weights(self, b: Builder, p: Value, ids: Value) -> Value:
        """What each of the experts counts."""
        dtype = p.tensor.dtype
        weights = b(TakeAlong(p, ids))
        if self.normalize:
            total = b(Add(b(Sum(weights, axes=(1,), keep=True)), b(scalar(self.eps, dtype))))
            weights = b(Div(weights, total))
        if self.factor != 1.0:
            weights = b(Mul(weights, b(scalar(self.factor, dtype))))
        return weights

    def flops(self) -> Dim:
        """About one pass over the logits for each selected expert and group."""
        return mul(self.logits.tensor.elements, 2 + self.top_k)
