"""Products of one left operand with several published weights become one product, and slices of it.

Queries, keys, values and the gate are read by the same kernel then. The weights are laid end to end; `prepare` does that once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.pointwise import Cast, Mul
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.routing import Route
from ringc.ir.ops.rows import RmsNorm, Rope, Silu
from ringc.ir.ops.shape import Concat, Reshape, Slice
from ringc.ir.ops.source import Param
from ringc.ir.ops.state import StateAppend


@dataclass(frozen=True)
class _Product:
    """A product with a weight, and what its columns are for: 0 queries, 1 keys, 2 values, 3 anything else."""

    op: MatMul
    role: int


def merge_projections(block: Block) -> int:
    """Merge the products of a block; gives back how many became part of another.

    Left alone: the router's product (it has a precision of its own), and the two of a SwiGLU, which are one kernel with two sums.
    """
    groups: dict[Hashable, list[_Product]] = {}
    for op in block.ops:
        if isinstance(op, MatMul) and _is_weight(op.b) and isinstance(_columns(op), int) and not _stays_alone(op):
            key = (op.a, op.transpose_b, op.out, op.b.type.dtype)
            groups.setdefault(key, []).append(_Product(op, _role(op.result)))
    merged = 0
    for products in groups.values():
        if len(products) > 1:
            _merge(block, products)
            merged += len(products) - 1
    return merged


def _is_weight(value: Value) -> bool:
    """A published matrix, or what is made of such alone."""
    op = value.op
    return (
        isinstance(op, Param | Cast | Concat | Slice | Reshape)
        and value.tensor.rank == 2
        and all(map(_from_params, op.inputs()))
    )


def _from_params(value: Value) -> bool:
    op = value.op
    return isinstance(op, Param | Cast | Concat | Slice | Reshape) and all(map(_from_params, op.inputs()))


def _columns(op: MatMul) -> object:
    return op.result.shape[-1]


def _stays_alone(op: MatMul) -> bool:
    return any(isinstance(u, Route) for u in _forward(op.result, (Cast, Reshape))) or _is_gate_or_up(op.result)


def _is_gate_or_up(value: Value) -> bool:
    """Whether a product is one of the two in `silu(x Wg) * (x Wu)`."""
    for user in value.users():
        if isinstance(user, Silu):
            gated = [u for u in user.result.users() if isinstance(u, Mul)]
            if any(isinstance(v.op, MatMul) for u in gated for v in u.inputs()):
                return True
        elif isinstance(user, Mul):
            for other in user.inputs():
                if isinstance(other.op, Silu) and isinstance(other.op.x.op, MatMul):
                    return True
    return False


def _forward(value: Value, through: tuple[type[Op], ...]) -> list[Op]:
    """What takes a value, directly or through operations of these classes."""
    found: list[Op] = []
    pending = value.users()
    while pending:
        op = pending.pop(0)
        found.append(op)
        if isinstance(op, through):
            pending += op.result.users()
    return found


def _role(value: Value) -> int:
    takers: list[tuple[Op, Value]] = []
    pending = [value]
    while pending:
        v = pending.pop()
        for user in v.users():
            if isinstance(user, Slice | Reshape | Cast | RmsNorm | Rope | Silu):
                pending += user.results
            else:
                takers.append((user, v))
    roles = [_role_in(op, v) for op, v in takers]
    return min(roles, default=3)


def _role_in(op: Op, value: Value) -> int:
    match op:
        case LinearAttention():
            return next((i for i, v in enumerate((op.q, op.k, op.v)) if v is value), 3)
        case Attention():
            return 0 if op.q is value else 3
        case StateAppend():
            readers = [u for u in op.result.users() if isinstance(u, Attention)]
            return 1 if any(u.keys is op.result for u in readers) else 2 if readers else 3
    return 3


def _merge(block: Block, products: list[_Product]) -> None:
    first = products[0].op
    ordered = [p.op for p in sorted(products, key=lambda p: p.role)]
    for product in ordered:
        _hoist(block, product.b, first)
    b = Builder(block, before=first, scope=first.scope)
    axis = 0 if first.transpose_b else 1
    weight = b(Concat(tuple(p.b for p in ordered), axis))
    whole = b(MatMul(first.a, weight, first.transpose_b, first.out))
    start = 0
    for product in ordered:
        stop = start + int(product.result.shape[-1])
        part = b(Slice(whole, whole.tensor.rank - 1, start, stop), product.result.name)
        block.replace_uses(product.result, part)
        start = stop
    for product in ordered:
        block.erase(product)


def _hoist(block: Block, value: Value, before: Op) -> None:
    """Move what makes a weight in front of an operation, if it stands behind it. It depends on parameters alone."""
    op = value.op
    assert op is not None
    for v in op.inputs():
        _hoist(block, v, before)
    at = block.ops.index(before)
    if block.ops.index(op) > at:
        block.ops.remove(op)
        block.ops.insert(at, op)
