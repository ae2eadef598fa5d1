"""Fuse: cut every function into regions, each of which becomes one kernel.

A region has an *anchor*, the operation that decides its kernel family (a product, attention, routing, sorting), and takes in the
pointwise work before and behind it as far as the family allows; what no anchor takes becomes row kernels. Two rules hold for all of them:

* legality: a region is convex, that is, no value leaves it and comes back in through an operation outside;
* benefit: an operation joins the region that saves the bytes between them; an intermediate with users elsewhere is not recomputed. What
  stands between row work in front and row work behind joins those, for one kernel in the place of two: the experts' sum, the shared
  expert, the residual and the next norm.

| family | anchor | before it | behind it |
|---|---|---|---|
| matmul | products of one left operand | - | pointwise: residual, gate, SwiGLU over two products |
| grouped | expert products of the same rows | gather of the rows | pointwise: SwiGLU, routing weight; the sum over few rows' experts |
| | of one row, the shared expert's | - | SwiGLU; the experts' sum |
| attention | the mixer | - | - |
| linear_attention | the mixer | the cut of v out of a wider product, for a GPU's chunked form | - |
| route | the routing chain | the router's product, but for a GPU's one row | - |
| sort | sort_by_key | - | - |
| row | - | pointwise, row reductions, gathers, appends to caches | |

Row work in front of few rows of a product or of a recurrence is offered to its kernel by `ringc.passes.prologues`, which comes next.
A reshape that stands between regions is left alone: it is another view of the same memory and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx

from ringc.ir.core import Block, Module, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.index import Gather, SortByKey
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.products import GatherMatMul, MatMul, SegmentMatMul
from ringc.ir.ops.reduce import Reduction, Sum
from ringc.ir.ops.routing import Route
from ringc.ir.ops.rows import RmsNorm, Softmax
from ringc.ir.ops.shape import Pack, Reshape
from ringc.ir.ops.source import Constant, Param, SegmentIds
from ringc.ir.ops.state import StateAppend
from ringc.ir.symbols import Shape
from ringc.passes.framework import Pass
from ringc.passes.front import cut_of_values
from ringc.passes.regions import leaving, replace_by_region
from ringc.passes.rewrite import drop_unused
from ringc.passes.target import Target
from ringc.passes.versions import is_one_row


@dataclass(eq=False)
class Region:
    """Operations that become one kernel.

    Attributes:
        family, ops: the kernel's, and what it does.
        anchors: the operations that decided the family; empty for a row region.
    """

    family: str
    ops: list[Op] = field(default_factory=list)
    anchors: list[Op] = field(default_factory=list)

    @property
    def sums(self) -> bool:
        """Whether it is a product that adds up a row's experts."""
        return self.family == "grouped" and any(isinstance(op, Sum) for op in self.ops)


@dataclass(frozen=True)
class Fuse(Pass):
    """Replace the operations of every function by `fused` regions."""

    name = "fuse"
    epilogues: bool = True
    rows: bool = True

    def apply(self, module: Module, target: Target) -> None:
        for function in module.functions.values():
            if "family" not in function.notes:
                one_row = is_one_row(function, target)
                _Fuser(function.body, self, one_row=one_row, cuts=target.backend == "triton").run()


def is_weight(value: Value) -> bool:
    """A weight or a table, or something made of those alone: made once, before anything runs."""
    op = value.op
    if op is None:
        return False
    if isinstance(op, Param) or (isinstance(op, Constant) and bool(op.shape)):
        return True
    return bool(op.inputs()) and isinstance(op, Elementwise | Pack) and all(is_weight(v) for v in op.inputs())


def is_known(dense: Region) -> bool:
    """Whether the sizes of a product's weights are numbers."""
    return all(isinstance(size, int) for op in dense.anchors for size in op.inputs()[1].shape)


def is_row_op(op: Op) -> bool:
    """What a row kernel can hold."""
    return isinstance(op, Elementwise | Reduction | RmsNorm | Softmax | StateAppend | SegmentIds)


class _Fuser:
    """One function's regions; `cuts`: whether the chunked form of linear attention reads its values where they lie in a wider product."""

    def __init__(self, body: Block, options: Fuse, *, one_row: bool, cuts: bool) -> None:
        self.body = body
        self.options = options
        self.one_row = one_row
        self.cuts = cuts
        self.region_of: dict[Op, Region] = {}
        self.regions: list[Region] = []
        self.order = {op: i for i, op in enumerate(body.ops)}
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from(body.ops)
        self.graph.add_edges_from((v.op, op) for op in body.ops for v in op.inputs() if v.op is not None)
        # A write of a pool stands behind every read of the old content.
        for op in body.ops:
            if op.effect != "pure":
                for value in op.inputs():
                    readers = [u for u in value.users() if u is not op and self.order[u] < self.order[op]]
                    self.graph.add_edges_from((u, op) for u in readers if any(r.type == value.type for r in op.results))

    def run(self) -> None:
        for op in self.body.ops:
            self.anchor(op)
        for region in self.regions:
            self.grow(region)
        if self.one_row and self.options.epilogues:
            self.accompany()
        self.take_loads()
        if self.options.rows:
            self.row_regions()
        for region in self.in_order():
            replace_by_region(self.body, sorted(region.ops, key=lambda o: self.order[o]), region.family)
        drop_unused(self.body, list(self.body.ops))  # scalars, of which every region has its own

    # -- anchors and what they take in

    def anchor(self, op: Op) -> None:
        if op in self.region_of:
            return
        match op:
            case Attention():
                self.start("attention", [op])
            case LinearAttention():
                self.start("linear_attention", [op])
            case Route():
                self.start("route", [op])
            case SortByKey():
                self.start("sort", [op])
            case MatMul() if op.a.tensor.rank == 2:
                self.start("matmul", self.siblings(op))
            case SegmentMatMul() | GatherMatMul():
                self.start("grouped", self.siblings(op))
            case _:
                pass

    def start(self, family: str, anchors: list[Op]) -> None:
        region = Region(family, list(anchors), list(anchors))
        self.regions.append(region)
        self.region_of.update((a, region) for a in anchors)

    def siblings(self, op: Op) -> list[Op]:
        """This product, and one of equal shape and left operand whose result meets this one's in pointwise work (gate and up)."""
        left = op.inputs()[0]
        for other in left.users():
            same = (
                type(other) is type(op)
                and other is not op
                and other not in self.region_of
                and other.inputs()[0] is left
            )
            if same and other.results[0].type == op.results[0].type and self.meet(op.results[0], other.results[0]):
                return [op, other]
        return [op]

    def meet(self, a: Value, b: Value) -> bool:
        def behind(value: Value) -> set[Op]:
            found: set[Op] = set()
            pending = [value]
            while pending:
                current = pending.pop()
                for user in current.users() if len(current.users()) == 1 else []:
                    if isinstance(user, Elementwise) and user.pointwise and user.result.type == value.type:
                        found.add(user)
                        pending.append(user.result)
            return found

        return bool(behind(a) & behind(b))

    def grow(self, region: Region) -> None:
        """Take in pointwise work behind the anchor, as long as nothing else needs what lies between, and the sum over a row's experts."""
        if region.family not in ("matmul", "grouped") or not self.options.epilogues:
            return
        shape = region.anchors[0].results[0].shape
        grown = True
        while grown:
            grown = False
            outputs = leaving(region.ops)
            for user in (u for v in outputs for u in v.users()):
                if (
                    not self.fits(region, user, shape)
                    or user in self.region_of
                    or not self.only_user(outputs, user)
                    or not self.convex([*region.ops, user])
                ):
                    continue
                self.join(region, user)
                shape = user.results[0].shape
                grown = True
                break
        for op in self.between_rows(region):
            region.ops.remove(op)
            del self.region_of[op]

    def fits(self, region: Region, user: Op, shape: Shape) -> bool:
        """Whether a product's kernel can do an operation behind it.

        Behind the sum over experts that is the rest of the layer for one row, whose next norm its readers make. Of several rows it is left
        to the norm's kernel, so that the shared expert has until then.
        """
        if isinstance(user, Sum):
            return user.axes == (1,) and not (user.keep or region.sums) and isinstance(region.anchors[0], GatherMatMul)
        alone = self.one_row or not region.sums or len(user.inputs()) == 1
        return isinstance(user, Elementwise) and user.pointwise and user.result.shape == shape and alone

    def accompany(self) -> None:
        """Put one row's dense products that accompany its experts into their kernels, one into each: the shared expert's.

        Its last product meets the experts' sum, and its first ones run beside the experts' of the same row, where as kernels of their own
        they would need a branch that joins in front of the experts. Where anything stands between, it is left as it is.
        """
        experts = [r for r in self.regions if r.family == "grouped" and isinstance(r.anchors[0], GatherMatMul)]
        for accompanies in (self.meets_sum, self.is_beside):
            for region in experts:
                dense = next((r for r in self.regions if r.family == "matmul" and accompanies(r, region)), None)
                if dense is not None:
                    self.regions.remove(dense)
                    region.anchors += dense.anchors
                    for op in dense.ops:
                        self.join(region, op)

    def meets_sum(self, dense: Region, experts: Region) -> bool:
        """Whether a product alone is wanted for nothing but what is behind the sum over a row's experts, element by element."""
        sums = [op for op in experts.ops if isinstance(op, Sum)]
        alone = len(dense.ops) == 1 and [op.result.shape for op in sums] == [dense.anchors[0].results[0].shape]
        users = {u for v in leaving(dense.ops) for u in v.uses}
        return alone and is_known(dense) and users <= set(experts.ops) and self.convex([*experts.ops, *dense.ops])

    def is_beside(self, dense: Region, experts: Region) -> bool:
        """Whether products of the experts' row are wanted behind the experts alone."""
        if experts.sums or not is_known(dense) or dense.anchors[0].inputs()[0] is not experts.anchors[0].inputs()[0]:
            return False
        behind = set().union(*(nx.descendants(self.graph, op) for op in experts.ops))
        users = [u for v in leaving(dense.ops) for u in v.uses]
        late = all(isinstance(u, Op) and not behind.isdisjoint(self.together(u)) for u in users)
        return late and self.convex([*experts.ops, *dense.ops])

    def together(self, op: Op) -> list[Op]:
        """The operations of the kernel that an operation is in, as far as it is known."""
        return self.region_of[op].ops if op in self.region_of else [op]

    def between_rows(self, region: Region) -> set[Op]:
        """What was taken in, and is better left to a row kernel: it stands between row work in front and row work behind.

        The experts' weighted sum, the shared expert, the residual and the next norm are an example: in the shared expert's product, the
        two additions would part the sum from the norm, at the price of one more kernel that reads and writes the residual.
        """
        behind = [op for op in region.ops if op not in region.anchors]
        shape = region.anchors[0].result.shape
        taken = {v.op for op in behind for v in op.inputs() if v.op is not None and v.shape == shape}
        readers = {u for op in behind for u in op.results[0].users() if self.free_row_work(u)}
        left: set[Op] = set()
        sums = {op for other in self.regions if other.sums and other is not region for op in other.ops}
        for source in (op for op in taken if self.free_row_work(op) or op in sums):
            follow = nx.descendants(self.graph, source)
            if any(reader in follow and self.convex([source, *behind, reader]) for reader in readers):
                left |= follow & set(behind)
        return left

    def free_row_work(self, op: Op) -> bool:
        """Whether an operation will be in a row kernel."""
        return op in self.order and op not in self.region_of and is_row_op(op) and not is_weight(op.results[0])

    def only_user(self, leaving: list[Value], user: Op) -> bool:
        return all(set(v.uses) == {user} for v in leaving if user in v.uses)

    def take_loads(self) -> None:
        """What is cheap to make again while loading: the gather of an expert product's rows, the router's product, the cut of values."""
        for region in list(self.regions):
            anchor = region.anchors[0]
            if isinstance(anchor, LinearAttention):
                if self.cuts:
                    self.take_cut(region, anchor)
                continue
            first = anchor.inputs()[0].op
            if first is None or first.block is not self.body:
                continue
            match region.family, first:
                case "grouped", Gather() if isinstance(anchor, SegmentMatMul):
                    self.take(region, first)
                    self.take(region, first.ids.op)
                # One row's product is a kernel that makes the norm in front of it, too.
                case "route", MatMul() if not self.one_row and self.feeds(first, anchor):
                    product = self.region_of[first]
                    if product.ops == [first]:
                        self.regions.remove(product)
                        self.region_of.pop(first)
                        self.take(region, first)
                case _:
                    pass

    def feeds(self, product: MatMul, anchor: Op) -> bool:
        """Whether a product is one of the regions' anchors, and nothing else reads it."""
        return product in self.region_of and self.only_user([product.result], anchor)

    def take_cut(self, region: Region, mixer: LinearAttention) -> None:
        """Put the cut of its values out of a matrix that is in memory anyway in front of a chunked mixer, if nothing else wants them."""
        cut, heads = cut_of_values(mixer), mixer.v.op
        if mixer.form != "chunked" or cut is None or heads is None or cut.block is not self.body:
            return
        there = cut.x.op is None or cut.x.op in self.region_of
        if there and mixer.v.uses == [mixer] and cut.result.uses == [heads]:
            self.join(region, heads)
            self.join(region, cut)

    def take(self, region: Region, op: Op | None) -> None:
        """Put an operation in front, if nothing else uses it."""
        if op is not None and op not in self.region_of and set(op.results[0].uses) <= set(region.ops):
            self.join(region, op)

    # -- row regions

    def row_regions(self) -> None:
        for op in self.body.ops:
            if op in self.region_of or not is_row_op(op) or all(is_weight(r) for r in op.results):
                continue
            if isinstance(op, Constant | Reshape):
                continue
            for region in self.neighbours(op):
                if region.family == "row" and self.same_rows(region, op) and self.convex([*region.ops, op]):
                    self.join(region, op)
                    break
            else:
                self.start_row(op)
        self.take_reshapes()
        self.merge_rows()
        self.sink()

    def take_reshapes(self) -> None:
        """A reshape inside a row region is index arithmetic; the others stay views."""
        for op in self.body.ops:
            if isinstance(op, Reshape) and op not in self.region_of:
                users = (
                    {self.region_of.get(u) for u in op.result.users()}
                    if op.result.users() == op.result.uses
                    else {None}
                )
                if len(users) == 1 and None not in users:
                    (user,) = users
                    if user is not None and user.family == "row":
                        self.join(user, op)

    def start_row(self, op: Op) -> None:
        region = Region("row", [op])
        self.regions.append(region)
        self.region_of[op] = region

    def neighbours(self, op: Op) -> list[Region]:
        """Regions that make an operand, or that read one too, latest first."""
        found: dict[Region, None] = {}
        for value in op.inputs():
            if value.op is not None and value.op in self.region_of:
                found[self.region_of[value.op]] = None
            if not is_weight(value) and value.type.shape:
                found.update((self.region_of[u], None) for u in value.users() if u in self.region_of and u is not op)
        return sorted(found, key=lambda r: -max(self.order[o] for o in r.ops))

    def merge_rows(self) -> None:
        """Join row regions of which one feeds the other."""
        changed = True
        while changed:
            changed = False
            for region in [r for r in self.regions if r.family == "row"]:
                for other in self.neighbours_of(region):
                    ops = [*region.ops, *other.ops]
                    together = self.rows_of(region) == self.rows_of(other) or self.only_feeds(region, other)
                    if other.family == "row" and together and self.convex(ops):
                        self.regions.remove(other)
                        for op in other.ops:
                            self.join(region, op)
                        changed = True
                        break
                if changed:
                    break

    def sink(self) -> None:
        """Element-wise work whose result only another row region reads is done there: nothing is written and read back between them."""
        for region in [r for r in self.regions if r.family == "row"]:
            for value in leaving(region.ops):
                users = (
                    {self.region_of.get(u) for u in value.users()}
                    if value.users() == list(dict.fromkeys(value.uses))
                    else {None}
                )
                user = users.pop() if len(users) == 1 else None
                if user is None or user.family != "row":
                    continue
                chain = self.chain(value, region)
                if chain and len(chain) < len(region.ops) and self.convex([*user.ops, *chain]):
                    region.ops = [op for op in region.ops if op not in chain]
                    for op in chain:
                        self.join(user, op)

    def chain(self, value: Value, region: Region) -> list[Op]:
        """The region's operations that make a value, if all are element-wise and make nothing else; else none."""
        found: list[Op] = []
        pending = [value.op]
        while pending:
            op = pending.pop()
            if op is None or op not in region.ops or op in found:
                continue
            if not isinstance(op, Elementwise) or (found and not set(op.results[0].uses) <= set(found)):
                return []
            found.append(op)
            pending += [v.op for v in op.inputs()]
        return found

    def only_feeds(self, region: Region, other: Region) -> bool:
        """Whether every element of a region can be made where the other region reads it, and nothing else wants it."""
        outputs = leaving(region.ops)
        inline = all(isinstance(op, Elementwise) for op in region.ops)
        return inline and all(set(v.uses) <= set(other.ops) for v in outputs)

    def neighbours_of(self, region: Region) -> list[Region]:
        users = [u for op in region.ops for r in op.results for u in r.users()]
        return [r for r in dict.fromkeys(self.region_of.get(u) for u in users) if r is not None and r is not region]

    def rows_of(self, region: Region) -> object:
        """The leading size of what leaves a region: all its outputs have the same."""
        sizes = {
            self.rows_of_op(op) for op in region.ops if any(u not in region.ops for r in op.results for u in r.uses)
        }
        return sizes.pop() if len(sizes) == 1 else sizes

    @staticmethod
    def rows_of_op(op: Op) -> object:
        if isinstance(op, StateAppend):
            return op.rows.shape[0]
        shape = op.results[0].shape
        return shape[0] if shape else 1

    def same_rows(self, region: Region, op: Op) -> bool:
        """The operation's result has the region's rows, or it reads a region of other rows that nothing else reads."""
        if self.rows_of_op(op) == self.rows_of(region):
            return not (isinstance(op, Reduction) and 0 in op.axes)
        return False

    # -- bookkeeping

    def join(self, region: Region, op: Op) -> None:
        if op not in region.ops:
            region.ops.append(op)
        self.region_of[op] = region

    def convex(self, ops: list[Op]) -> bool:
        """No path leaves the set and comes back; regions already made count as one node each."""
        inside = set(ops)
        reached: set[Op] = set()
        pending = [s for o in inside for s in self.graph.successors(o) if s not in inside]
        while pending:
            op = pending.pop()
            if op in inside:
                return False
            if op in reached:
                continue
            reached.add(op)
            region = self.region_of.get(op)
            together = region.ops if region is not None and not inside & set(region.ops) else [op]
            reached.update(together)
            pending += [s for o in together for s in self.graph.successors(o) if s not in reached]
        return True

    def in_order(self) -> list[Region]:
        """Regions in an order in which each comes after those that it uses."""
        deps = nx.DiGraph()
        for op in self.body.ops:
            deps.add_node(self.node(op), first=self.order[op])
        for a, b in self.graph.edges:
            if self.node(a) is not self.node(b):
                deps.add_edge(self.node(a), self.node(b))
        nodes = list(nx.lexicographical_topological_sort(deps, key=self.position))
        place = {n: i for i, n in enumerate(nodes)}
        self.body.ops.sort(key=lambda op: (place[self.node(op)], self.order[op]))
        return [n for n in nodes if isinstance(n, Region)]

    def node(self, op: Op) -> Region | Op:
        return self.region_of.get(op, op)

    def position(self, node: Region | Op) -> int:
        return min(self.order[o] for o in node.ops) if isinstance(node, Region) else self.order[node]
