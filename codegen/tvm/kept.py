"""Which values of a region are kept: outputs, reductions, and what is dear and read more often than it has elements.

Everything else is written where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from ringc.errors import CodegenError
from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.pointwise import Pointwise
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.rows import Rope
from ringc.ir.ops.shape import Concat
from ringc.ir.ops.source import SegmentIds
from ringc.ir.ops.state import StateAppend
from ringc.ir.symbols import Dim, evaluate, product, symbols_of
from ringc.ir.types import DType, StateType

_ROW_BYTES = 16384
"""A row's intermediate larger than this is computed again rather than kept."""

_COST = {"exp": 8, "sigmoid": 8, "log": 30, "cos": 30, "sin": 30, "sqrt": 5, "rsqrt": 6, "div": 4}
_DEAR = 5


def chosen_stages(body: Block) -> list[Value]:
    """The values of a region that are kept, in the order in which they are made.

    Raises:
        CodegenError: an operation is neither element-wise nor a reduction nor an append.
    """
    for op in body.ops:
        if not isinstance(op, Elementwise | Reduction | SegmentIds | StateAppend):
            raise CodegenError(f"a row kernel of TVM has no form for {op.name}")
    kept = {v for v in body.outputs if v.op is not None and not isinstance(v.type, StateType)}
    kept |= {op.result for op in body.ops if isinstance(op, Reduction | SegmentIds)}
    weight: dict[Value, int] = dict.fromkeys(body.args, 0)
    for op in body.ops:
        for value in op.results:
            if isinstance(value.type, StateType):
                continue
            own = _own_cost(op)
            # What is smaller than the result is kept by itself, if it is dear.
            taken = (
                [v for v in op.inputs() if not isinstance(v.type, StateType) and _count(v) >= _count(value)]
                if own
                else op.inputs()
            )
            weight[value] = 0 if value in kept else own + sum(weight[v] for v in taken)
    reads: dict[Value, float] = {}
    for op in reversed(body.ops):
        for value in op.results:
            if value in kept or not isinstance(op, Elementwise):
                continue
            dear = weight[value] >= _DEAR and value.type.dtype.is_float
            if dear and reads.get(value, 0) > _count(value) and _row_bytes(value) <= _ROW_BYTES:
                kept.add(value)
        for value in op.inputs():
            if not isinstance(value.type, StateType):
                reads[value] = reads.get(value, 0) + _reads(op, value, kept, reads)
    return [v for op in body.ops for v in op.results if v in kept]


def _own_cost(op: Op) -> int:
    """About how many instructions an element takes; nothing for what moves elements."""
    match op:
        case Rope():
            return 6
        case Pointwise() if op.inputs():
            return int(op.element([0] * op.result.tensor.rank, lambda _operand, _at: 0, _Cost()))
        case _:
            return 0


class _Cost:
    """Element rules over costs: an expression is worth what computes it from what was read."""

    def literal(self, _value: float, _dtype: DType) -> int:
        return 0

    def size(self, _dim: Dim) -> int:
        return 0

    def apply(self, function: str, *arguments: int) -> int:
        return _COST.get(function, 1) + sum(arguments)

    def cast(self, value: int, _dtype: DType) -> int:
        return value + 1


def _reads(op: Op, value: Value, kept: set[Value], reads: Mapping[Value, float]) -> float:
    """How often an operation reads elements of an operand."""
    if isinstance(op, StateAppend):
        return _count(op.rows) if value is op.rows else _count(op.slots)
    if isinstance(op, Reduction):
        return _count(value)
    times = _count(op.result) if op.result in kept else reads.get(op.result, 0)
    if isinstance(op, Rope) and value is op.x:
        return 2 * times
    if isinstance(op, Concat):
        return times * _count(value) / max(_count(op.result), 1)
    return times


def _count(value: Value) -> float:
    """Elements of a value, sizes that aren't known taken for 64."""
    elements = product(value.shape)
    return evaluate(elements, dict.fromkeys(symbols_of([elements]), 64))


def _row_bytes(value: Value) -> float:
    elements = product(value.shape[1:])
    return 4 * elements if isinstance(elements, int) else _ROW_BYTES + 1
