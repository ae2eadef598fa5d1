"""Template `tvm.row`: a region whose rows are independent of each other, as loops over rows.

A *phase* is one loop over rows with all the stages that need nothing but their own row of the stages before them in the same loop. A stage
that no output is and that only its own phase reads lives in scalars and row buffers of the loop; else in a tensor of the function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.tvm.elements import STORED, Arithmetic, Expr
from ringc.codegen.tvm.function import RESERVED, Head, argument_place, write_module
from ringc.codegen.tvm.kept import chosen_stages
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.stages import Place, Stages, Target
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Block, Function, Op, Value
from ringc.ir.ops.composite import primitive
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.source import SegmentIds
from ringc.ir.ops.state import StateAppend
from ringc.ir.symbols import Dim, product
from ringc.ir.types import StateType

LIBRARY = ("exp", "sigmoid", "lanes_sum", "lanes_max")


def emit(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region has an operation that a row kernel can't hold.
    """
    body = primitive(kernel.function.body)
    kernel = Kernel(Function(kernel.name, body, **kernel.function.notes), kernel.implementation)
    names, math, w = Names(RESERVED), Arithmetic(), Writer()
    head = Head(kernel, names, math)
    stages = Stages(names, math, w, head.places())
    with w.indented():
        write_rows(stages, body, head.outputs, parallel=bool(kernel.implementation.get("parallel", 0)))
    return file_text(head, w)


def file_text(head: Head, body: Writer) -> str:
    """A file's body around a function's statements."""
    head.check(head.math.symbols)
    w = Writer()
    w("import tvm")
    w("from tvm.script import tirx as T")
    used = [f for f in LIBRARY if f in head.math.functions]
    if used:
        w()
        w(f"from ringc.codegen.tvm.library import {', '.join(used)}")
    w("\n")
    head.write(w)
    w(body.text())
    write_module(w)
    return w.text()


@dataclass(eq=False)
class Item:
    """A stage, an append to a pool, or a copy of a value to a further output."""

    value: Value
    op: Op | None
    rows: Dim | None
    output: str | None = None
    argument: bool = False
    """Whether the output is a tensor of the caller's."""
    reads: list[tuple[Value, Sequence[Expr]]] = field(default_factory=list)


class _Probe:
    """Which kept values an item reads, and at which index."""

    def __init__(self, stages: Stages, kept: Sequence[Value]) -> None:
        self.found: list[tuple[Value, Sequence[Expr]]] = []
        self.stages = Stages(Names(RESERVED), stages.math, Writer(), dict(stages.places))
        for value in kept:
            self.stages.place(value, self._reader(value))

    def _reader(self, value: Value) -> Place:
        def read(index: Sequence[Expr]) -> Expr:
            self.found.append((value, list(index)))
            return self.stages.math.load(f"%{id(value)}", list(index), value.type.dtype)

        return read

    def reads(self, item: Item, row: Expr | None) -> list[tuple[Value, Sequence[Expr]]]:
        self.found.clear()
        lead = [] if row is None else [row]
        target = Target(lambda _at, _e: "", STORED[item.value.type.dtype])
        makes = item.op is not None and not isinstance(item.op, StateAppend)
        place = self.stages.places.pop(item.value) if makes else None
        if isinstance(item.op, StateAppend):
            for value in (item.op.slots, item.op.positions):
                self.stages.element(value, lead)
            self.stages.pointwise(item.op.rows, lead, target)
        elif isinstance(item.op, Reduction | SegmentIds):
            self.stages.reduction(item.op, lead, target)
        else:
            self.stages.pointwise(item.value, lead, target)
        if place is not None:
            self.stages.place(item.value, place)
        return list(self.found)


def write_rows(
    stages: Stages, body: Block, outputs: dict[int, str], parallel: bool, inside: Collection[str] = ()
) -> None:
    """Write the loops that compute a region's outputs.

    Args:
        stages: where the arguments are read.
        body: the region.
        outputs: result number -> tensor, for the results that are no state.
        parallel: whether rows are shared out among threads.
        inside: those outputs that are tensors of the function, not of the caller.
    """
    for phase in _phases(stages, _items(body, outputs, inside)):
        _write_phase(stages, body, phase, parallel)


def _items(body: Block, outputs: dict[int, str], inside: Collection[str]) -> list[Item]:
    kept = set(chosen_stages(body))
    names: dict[Value, str] = {}
    copies: list[Item] = []
    for i, name in outputs.items():
        value = body.outputs[i]
        if value.op is None or value in names:
            copies.append(Item(value, None, _rows(value), name, name not in inside))
        else:
            names[value] = name
    items: list[Item] = []
    for op in body.ops:
        if isinstance(op, StateAppend):
            items.append(Item(op.rows, op, op.slots.shape[0]))
        items += [
            Item(v, op, _rows(v), names.get(v), v in names and names[v] not in inside) for v in op.results if v in kept
        ]
    return items + copies


def _rows(value: Value) -> Dim | None:
    return value.shape[0] if value.shape else None


@dataclass(eq=False)
class Phase:
    """Items of one loop over rows; `private` are the values that nothing outside of the loop reads."""

    rows: Dim | None
    items: list[Item] = field(default_factory=list)
    private: set[Value] = field(default_factory=set)


def _row_index(stages: Stages, rows: Dim | None) -> Expr | None:
    """The number of the row in a phase's loop; None where values have no axes."""
    if rows is None:
        return None
    if rows == 1:
        return stages.math.number(0)
    name = stages.role("n")
    return (
        stages.math.variable(name, 0, rows - 1)
        if isinstance(rows, int)
        else stages.math.variable(name, 0, None, "int64")
    )


def _phases(stages: Stages, items: list[Item]) -> list[Phase]:
    kept = [i.value for i in items if i.op is not None and not isinstance(i.op, StateAppend)]
    probe = _Probe(stages, kept)
    phases: list[Phase] = []
    phase_of: dict[Value, Phase] = {}
    readers: dict[Value, set[Phase | None]] = {}
    for item in items:
        row = _row_index(stages, item.rows)
        item.reads = probe.reads(item, row)
        current = phases[-1] if phases else None
        fits = current is not None and current.rows == item.rows
        if fits:
            fits = all(phase_of[v] is not current or row is None or at[0] is row for v, at in item.reads)
        if not fits or current is None:
            current = Phase(item.rows)
            phases.append(current)
        current.items.append(item)
        if item.value in kept and not isinstance(item.op, StateAppend) and item.op is not None:
            phase_of[item.value] = current
        for value, _ in item.reads:
            readers.setdefault(value, set()).add(current)
    for item in items:
        if item.output is None and item.value in phase_of and readers.get(item.value, set()) <= {phase_of[item.value]}:
            phase_of[item.value].private.add(item.value)
    return phases


def _write_phase(stages: Stages, body: Block, phase: Phase, parallel: bool) -> None:
    math = stages.math
    for item in phase.items:  # tensors that later phases read
        if (
            item.output is None
            and item.op is not None
            and not isinstance(item.op, StateAppend)
            and item.value not in phase.private
        ):
            item.output = stages.names.fresh(item.value.name or "t")
            stages.allocate(item.output, [text(math.size(d)) for d in item.value.shape], STORED[item.value.type.dtype])
    row = _row_index(stages, phase.rows)
    with _row_loop(stages, phase.rows, row, parallel):
        for item in phase.items:
            if isinstance(item.op, StateAppend):
                _append(stages, body, item.op, row)
            else:
                _write_item(stages, item, [] if row is None else [row])


@contextmanager
def _row_loop(stages: Stages, rows: Dim | None, row: Expr | None, parallel: bool) -> Iterator[None]:
    """The loop over rows; none where there is one row."""
    if row is None or row.op != "var" or rows is None:
        yield
        return
    count = text(stages.math.size(rows))
    with stages.w.block(
        f"for {row.what} in T.parallel({count}):" if parallel else f"for {row.what} in range({count}):"
    ):
        yield


def _write_item(stages: Stages, item: Item, lead: list[Expr]) -> None:
    value, math = item.value, stages.math
    dtype = value.type.dtype
    if item.output is not None:
        name = item.output
        place = argument_place(math, name, value.type)
        target = Target(lambda at, e: f"{name}[{', '.join(map(text, at)) or '()'}] = {e}", STORED[dtype], item.argument)
    else:
        place, target = local(stages, value, 1)
    if isinstance(item.op, Reduction | SegmentIds):
        stages.reduction(item.op, lead, target)
    else:
        stages.pointwise(value, lead, target)
    if item.op is not None:
        stages.place(value, place)


def local(stages: Stages, value: Value, leading: int) -> tuple[Place, Target]:
    """Where the part of a value below so many leading axes is kept that only the loop around it reads: a scalar, or a small buffer."""
    math, dtype = stages.math, value.type.dtype
    name = stages.names.fresh(value.name or _hint(value.op))
    if product(value.shape[leading:]) == 1:
        computed = math.literal(0, dtype).dtype
        scalar = math.scalar(name, computed)
        return lambda _at: scalar, Target(lambda _at, e: f"{name}: T.let = {e}", computed)
    wide = [axis for axis in range(leading, value.tensor.rank) if value.shape[axis] != 1]
    stages.allocate(name, [text(math.size(value.shape[axis])) for axis in wide], STORED[dtype])

    def store(at: Sequence[Expr], e: str) -> str:
        return f"{name}[{', '.join(text(at[i]) for i in wide)}] = {e}"

    return lambda at: math.load(name, [at[i] for i in wide], dtype), Target(store, STORED[dtype])


def _hint(op: Op | None) -> str:
    return {"rsqrt": "scale", "mean": "mean", "exp": "e"}.get(op.name, op.name) if op is not None else "t"


def _append(stages: Stages, body: Block, op: StateAppend, row: Expr | None) -> None:
    """Write a row into a pool, unless its slot is nobody's."""
    assert row is not None
    w, names = stages.w, stages.names
    slot, position = names.fresh("slot"), names.fresh("position")
    w(f"{slot}: T.let = {text(stages.element(op.slots, [row]))}")
    w(f"{position}: T.let = {text(stages.element(op.positions, [row]))}")
    origin: Value = op.state
    while isinstance(origin.op, StateAppend):
        origin = origin.op.state
    if origin not in body.args or not isinstance(origin.type, StateType):
        raise CodegenError("a row kernel appends to pools that are its arguments")
    pool = names[origin]
    with w.block(f"if {slot} >= 0:"):

        def store(at: Sequence[Expr], e: str) -> str:
            return f"{pool}[{', '.join([slot, position, *map(text, at[1:])])}] = {e}"

        target = Target(store, STORED[origin.type.dtype], argument=True)
        if op.rows.tensor.rank == 1:
            stages.statement(stages.element(op.rows, [row]), lambda e: store([row], e), None, target.dtype)
        else:
            stages.pointwise(op.rows, [row], target)
