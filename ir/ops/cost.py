"""The bytes that a region moves when what lies between its operations stays on chip."""

from __future__ import annotations

from ringc.ir.core import Block, Value
from ringc.ir.ops.index import Gather
from ringc.ir.symbols import Dim, add, mul
from ringc.ir.types import StateType


def region_bytes(body: Block) -> Dim:
    """Each argument and output once; a table that is only gathered from counts by the rows taken, a pool by what its operations say."""
    total: Dim = 0
    for arg in body.args:
        if not isinstance(arg.type, StateType):
            total = add(total, _taken(arg))
    for value in body.outputs:
        if not isinstance(value.type, StateType):
            total = add(total, value.type.bytes)
    for op in body.ops:
        pools = [v for v in op.inputs() if isinstance(v.type, StateType)]
        if pools:
            # The traffic of a state operation is its own count less the tensors that stay inside the region.
            inside = [v for v in (*op.inputs(), *op.results) if not isinstance(v.type, StateType)]
            moved = op.bytes()
            for value in inside:
                moved = add(moved, mul(-1, value.type.bytes))
            total = add(total, moved)
    return total


def _taken(arg: Value) -> Dim:
    users = arg.users()
    if users and all(isinstance(u, Gather) and u.x is arg for u in users):
        total: Dim = 0
        for user in users:
            total = add(total, user.results[0].type.bytes)
        return total
    return arg.type.bytes
