"""The loop over a sequence: what every recurrent layer means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringc.ir.core import Block, Env, Op, Value, operand, operands, operation, region
from ringc.ir.symbols import Dim, add, mul
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


@operation("scan")
class Scan(Op):
    """Runs a body over the rows of each segment, carrying a state.

    For segment b with rows t: `state, *ys[t] = body(state, *xs[t], *constants)`, starting from `initial[b]`.

    initial [B, *s], xs [N / B, *x] each, constants of any shape, offsets i32[B + 1]
    -> final [B, *s], ys [N / B, *y] each, where the body gives back (state [*s], y [*y] ...).
    """

    initial: Value = operand()
    xs: tuple[Value, ...] = operands()
    constants: tuple[Value, ...] = operands()
    offsets: Value = operand()
    body: Block = region()

    def infer(self) -> Sequence[Type]:
        initial, offsets = self.initial.tensor, self.offsets.tensor
        self.require(offsets.dtype is DType.I32 and offsets.shape == (initial.shape[0] + 1,), "offsets are i32[B + 1]")
        self.require(bool(self.xs), "there is nothing to run over")
        rows = self.xs[0].shape[0]
        for x in self.xs:
            self.require(
                x.shape[0] == rows and x.tensor.segments == initial.shape[0], f"{x} is not [rows / segments, ...]"
            )
        state = TensorType(initial.dtype, initial.shape[1:])
        expected = [
            state,
            *(TensorType(x.tensor.dtype, x.shape[1:]) for x in self.xs),
            *(c.type for c in self.constants),
        ]
        given = [a.type for a in self.body.args]
        self.require(
            given == expected, f"the body takes {[str(t) for t in given]}, but gets {[str(t) for t in expected]}"
        )
        self.require(
            bool(self.body.outputs) and self.body.outputs[0].type == state, f"the body must give back a {state} first"
        )
        ys = [v.tensor for v in self.body.outputs[1:]]
        return [initial, *(TensorType(y.dtype, (rows, *y.shape), initial.shape[0]) for y in ys)]

    def flops(self) -> Dim:
        each: Dim = 0
        for op in self.body.walk():
            each = add(each, op.flops())
        return mul(self.xs[0].shape[0], each)

    def reference(self, env: Env, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import torch

        from ringc.ir.interpret import run_block

        initial, xs = inputs[0], inputs[1 : 1 + len(self.xs)]
        constants, offsets = inputs[1 + len(self.xs) : -1], inputs[-1].tolist()
        finals: list[torch.Tensor] = []
        rows: list[list[torch.Tensor]] = [[] for _ in self.results[1:]]
        for state, start, stop in zip(initial, offsets[:-1], offsets[1:], strict=True):
            for t in range(start, stop):
                state, *made = run_block(self.body, [state, *(x[t] for x in xs), *constants], env)
                for column, y in zip(rows, made, strict=True):
                    column.append(y)
            finals.append(state)
        shapes = [env.shape(r.shape) for r in self.results[1:]]
        ys = [torch.stack(c) if c else initial.new_zeros(s) for c, s in zip(rows, shapes, strict=True)]
        return (torch.stack(finals), *ys)
