"""Row work inside a kernel whose tasks are heads: the rows of one token and one head, as loops.

`ringc.passes.front` says which work that can be. What is kept (`ringc.codegen.tvm.kept`) of one token and head lives in scalars and small
buffers of the loop around it; everything else is written where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ringc.codegen.tvm.elements import STORED, Expr
from ringc.codegen.tvm.kept import chosen_stages
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.row import local
from ringc.codegen.tvm.stages import Stages, Target
from ringc.ir.core import Block, Value
from ringc.ir.ops.reduce import Reduction


@dataclass(frozen=True)
class Row:
    """A row that is wanted.

    Attributes:
        value: `[N, H, D]`.
        start: its first column.
        width: how many columns of it.
        store: the statement that keeps an element, from its column less `start` and its value, as text.
    """

    value: Value
    start: Expr
    width: int
    store: Callable[[str, str], str]


def write_head_rows(stages: Stages, body: Block, at: Sequence[Expr], rows: Sequence[Row]) -> None:
    """Write rows of the token and the head `at`.

    Args:
        stages: where the arguments are read; what is written goes to its writer.
        body: the row work; its outputs are the rows' values.
        at: token and head.
        rows: what is wanted.
    """
    math, lead = stages.math, body.outputs[0].shape[:2]
    for value in chosen_stages(body):
        # An output that is no reduction is made where it is stored; what isn't of one head is made where it is read.
        if value.shape[:2] != lead or (value in body.outputs and not isinstance(value.op, Reduction)):
            continue
        place, target = local(stages, value, len(lead))
        if isinstance(value.op, Reduction):
            stages.reduction(value.op, at, target)
        else:
            stages.pointwise(value, at, target)
        stages.place(value, place)
    for row in rows:
        column = math.variable(stages.role("c"), 0, row.width - 1)

        def store(index: Sequence[Expr], e: str, row: Row = row) -> str:
            return row.store(text(math.apply("sub", index[-1], row.start)), e)

        index = [*at, math.apply("add", row.start, column)]
        stages.part(row.value, index, {column: row.width}, Target(store, STORED[row.value.type.dtype]))
