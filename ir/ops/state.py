"""Reading and writing pools of per-sequence memory. A pool is threaded as a value; a slot of -1 is nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringc.ir.core import Effect, Env, Op, Value, operand, operation
from ringc.ir.symbols import Dim, add, mul, product
from ringc.ir.types import DType, StateType, TensorType, Type

if TYPE_CHECKING:
    import torch


class StateOp(Op):
    """Base of the operations on a pool."""

    state: Value
    slots: Value

    def pool(self) -> StateType:
        self.require(isinstance(self.state.type, StateType), "the first operand is no state")
        self.require(self.slots.tensor.rank == 1 and self.slots.tensor.dtype is DType.I32, "slots are i32[count]")
        assert isinstance(self.state.type, StateType)
        return self.state.type

    def slot_bytes(self) -> Dim:
        pool = self.pool()
        return mul(mul(self.slots.shape[0], product(pool.shape)), pool.dtype.bytes)


@operation("state_read")
class StateRead(StateOp):
    """What the slots hold: [count, *shape]; zeros for slot -1."""

    state: Value = operand()
    slots: Value = operand()
    effect = Effect.READS_STATE

    def infer(self) -> Sequence[Type]:
        pool = self.pool()
        return [TensorType(pool.dtype, (self.slots.shape[0], *pool.shape), self.slots.tensor.segments)]

    def bytes(self) -> Dim:
        return add(mul(2, self.slot_bytes()), self.slots.type.bytes)

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        state, slots = inputs
        held = state[slots.long().clamp(min=0)]
        return held.masked_fill((slots < 0).reshape(-1, *[1] * (held.ndim - 1)), 0)


@operation("state_write")
class StateWrite(StateOp):
    """The pool with the slots' content replaced; a write to slot -1 is dropped. Slots are distinct."""

    state: Value = operand()
    slots: Value = operand()
    content: Value = operand()
    effect = Effect.WRITES_STATE

    def infer(self) -> Sequence[Type]:
        pool, content = self.pool(), self.content.tensor
        self.require(content.shape == (self.slots.shape[0], *pool.shape), "the content doesn't fit the slots")
        self.require(content.dtype == pool.dtype, "the content's type differs from the pool's")
        return [pool]

    def bytes(self) -> Dim:
        return add(mul(2, self.slot_bytes()), self.slots.type.bytes)

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        state, slots, content = inputs
        used = slots >= 0
        made = state.clone()
        made[slots[used].long()] = content[used].to(state.dtype)
        return made


@operation("state_append")
class StateAppend(StateOp):
    """The pool with one row written for each token: `pool[slots[t], positions[t]] = rows[t]`; dropped for slot -1."""

    state: Value = operand()
    slots: Value = operand()
    positions: Value = operand()
    rows: Value = operand()
    effect = Effect.WRITES_STATE

    def infer(self) -> Sequence[Type]:
        pool, rows = self.pool(), self.rows.tensor
        self.require(self.positions.shape == self.slots.shape, "needs one position for each slot")
        self.require(self.positions.tensor.dtype is DType.I32, "positions are i32[count]")
        self.require(len(pool.shape) >= 1, "the pool's slots have no rows")
        self.require(rows.shape == (self.slots.shape[0], *pool.shape[1:]), f"rows {rows} don't fit the pool {pool}")
        self.require(rows.dtype == pool.dtype, "the rows' type differs from the pool's")
        return [pool]

    def bytes(self) -> Dim:
        return add(mul(2, self.rows.type.bytes), mul(2, self.slots.type.bytes))

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        state, slots, positions, rows = inputs
        used = slots >= 0
        made = state.clone()
        made[slots[used].long(), positions[used].long()] = rows[used].to(state.dtype)
        return made
