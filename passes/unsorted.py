"""Unsorted: few rows take their experts' weights where they are, without being put in the experts' order.

An order brings rows of one expert together, so that its weights are read once for all of them. Few rows hardly share experts, and for them
the order is a launch and a detour: here each choice of a row reads the weights that it names (`gather_matmul`), in the place where the
row's results are added up. So sorting, and the two gathers into its order and out of it, are gone, and the sum can be the product's own.

```
%order, %offsets, %places = sort_by_key(reshape(%ids))
%e = gather(%x, floordiv(%order, 8))
%h = silu(segment_matmul(%e, %w, %offsets))         =>   %h = silu(gather_matmul(%x, %w, %ids))
%y = reshape(gather(%h, %places))                        %y = %h
```
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Module, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.index import Gather, SortByKey
from ringc.ir.ops.pointwise import FloorDiv
from ringc.ir.ops.products import GatherMatMul, SegmentMatMul
from ringc.ir.ops.shape import Reshape
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import mul
from ringc.passes.canonicalize.arithmetic import number
from ringc.passes.framework import Pass
from ringc.passes.raising.match import look
from ringc.passes.rewrite import NoMatch, drop_unused, need
from ringc.passes.schedules.products import ROWS_OF_EXPERTS
from ringc.passes.target import Target


@dataclass(frozen=True)
class Unsorted(Pass):
    """Undo the order of experts in versions for few rows, on a device whose products of few rows read weights row by row."""

    name = "unsorted"

    def apply(self, module: Module, target: Target) -> None:
        if target.backend != "triton":
            return  # a CPU's product of few rows takes an expert's rows together
        for function in module.functions.values():
            if 0 < function.notes.get("rows", (1, 0))[1] <= ROWS_OF_EXPERTS:
                for op in [op for op in function.body.ops if isinstance(op, SortByKey)]:
                    unsort(function.body, op)


def unsort(body: Block, sort: SortByKey) -> None:
    """Rewrite what a sort orders, if all of it can be."""
    try:
        order = _Order(body, sort)
        order.follow()
    except NoMatch:
        return
    order.replace()


class _Order:
    """What stands in a sort's order, and the same where it was.

    Raises:
        NoMatch: the keys aren't the choices of rows, or something else is done in their order.
    """

    def __init__(self, body: Block, sort: SortByKey) -> None:
        self.body, self.sort = body, sort
        self.choices = look(sort.keys, Reshape).x
        need(self.choices.tensor.rank == 2, "not the choices of rows")
        self.ordered: dict[Op, None] = {}
        self.back: list[Gather] = []

    def follow(self) -> None:
        """Find all that depends on the order, up to where it is undone."""
        order, offsets, places = self.sort.results
        inside, rows = {order, offsets}, set[Value]()
        for op in self.body.ops:
            if places in op.inputs():
                need(isinstance(op, Gather) and op.ids is places and op.x in rows, "not rows out of the order")
                assert isinstance(op, Gather)
                self.back.append(op)
            elif not inside.isdisjoint(op.inputs()):
                self.check(op, inside, rows)
                self.ordered[op] = None
                inside.update(op.results)
                rows.update(() if isinstance(op, FloorDiv) else op.results)
        need(not inside.intersection(self.body.outputs) and places not in self.body.outputs, "the order leaves")

    def check(self, op: Op, inside: set[Value], rows: set[Value]) -> None:
        """Raise `NoMatch` unless an operation does the same to each row wherever that stands; `rows` are those in the order."""
        order, offsets, _ = self.sort.results
        match op:
            case FloorDiv():
                need(op.a is order and number(op.b) == self.choices.shape[1], "not a choice's row")
                need(all(isinstance(u, Gather) and u.ids is op.result for u in op.result.uses), "not a gather of rows")
            case Gather():
                need(isinstance(op.ids.op, FloorDiv) and op.x not in inside, "not a gather of rows")
                need(op.x.tensor.rank == 2 and op.x.shape[0] == self.choices.shape[0], "not one row for each")
                need(all(isinstance(u, SegmentMatMul) and u.x is op.result for u in op.result.uses), "not for products")
            case SegmentMatMul():
                need(op.offsets is offsets and op.x in rows, "not of these segments")
            case Elementwise() if op.pointwise:
                others = (v for v in op.inputs() if v not in rows)
                need(all(isinstance(v.op, Constant) and not v.shape for v in others), "of other rows, too")
            case _:
                need(False, "not row by row")

    def replace(self) -> None:
        """Write all of it again, in the order of the choices, and drop what was."""
        made: dict[Value, Value] = {}
        # By way of the keys, which are rows of no sequence, as what comes back from the order is.
        build = Builder(self.body, before=self.sort, scope=self.sort.scope)
        choices = build(Reshape(self.sort.keys, self.choices.shape))
        for op in self.ordered:
            build = Builder(self.body, before=op, scope=op.scope)
            if isinstance(op, Gather):
                made[op.result] = op.x
            elif isinstance(op, SegmentMatMul):
                made[op.result] = build(GatherMatMul(made[op.x], op.w, choices, op.out), op.result.name)
            elif not isinstance(op, FloorDiv):
                made[op.results[0]] = build(op.clone(made), op.results[0].name)
        for gather in self.back:
            value = made[gather.x]
            n, k, *width = value.shape
            for user in list(gather.result.uses):
                if isinstance(user, Reshape) and user.result.shape == value.shape:
                    value.name = value.name or user.result.name
                    self.body.replace_uses(user.result, value)
                    self.body.erase(user)
            if gather.result.uses:
                flat = Builder(self.body, before=gather, scope=gather.scope)(Reshape(value, (mul(n, k), *width)))
                self.body.replace_uses(gather.result, flat)
        drop_unused(self.body, [*self.back, *reversed(self.ordered)])
