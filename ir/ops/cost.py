"""The bytes that a region moves when what lies between its operations stays on chip."""

from __future__ import annotations

from ringc.ir.core import Block, Value
from ringc.ir.ops.index import Gather
from ringc.ir.ops.products import ExpertProduct
from ringc.ir.ops.shape import Reshape, Slice
from ringc.ir.symbols import Dim, add, mul
from ringc.ir.types import StateType


def region_bytes(body: Block) -> Dim:
    """Each argument and output once; of a table, a wide tensor or experts' weights, the part taken; of a pool, what its operations say."""
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


def _taken(value: Value) -> Dim:
    """The bytes of a value that its users read: of a table the rows gathered, of a wide product the columns cut out, of experts'
    weights those of as many experts as can have rows, else all.
    """
    users = value.users()
    total: Dim = 0
    for user in users:
        if isinstance(user, Gather) and user.x is value:
            total = add(total, user.result.type.bytes)
        elif isinstance(user, Slice | Reshape):
            total = add(total, _taken(user.result))
        elif isinstance(user, ExpertProduct) and user.w is value:
            total = add(total, user.weight_bytes())
        else:
            return value.type.bytes
    # Cuts that overlap are read once; a value that only leaves the region is counted there.
    whole = value.type.bytes
    known = isinstance(total, int) and isinstance(whole, int)
    return whole if not users or (known and total > whole) else total
