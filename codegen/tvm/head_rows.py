"""Row work inside a kernel whose tasks are heads: what one head of one token needs, as loops.

It is generated backwards from the rows that are wanted: a kept value (`ringc.codegen.tvm.kept`) is computed below the leading part of the
indices at which it is read, as far as that is the same in a whole task. So the mean of a head's row is one number in a task, whether it is
read at `[n, h]` or, where heads share a row, at `[n, h // 4]`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ringc.codegen.names import Names
from ringc.codegen.tvm.elements import STORED, Expr, walk
from ringc.codegen.tvm.function import RESERVED
from ringc.codegen.tvm.kept import chosen_stages
from ringc.codegen.tvm.printing import text
from ringc.codegen.tvm.row import local
from ringc.codegen.tvm.stages import Place, Stages, Target
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Block, Value
from ringc.ir.ops.reduce import Reduction
from ringc.ir.symbols import product

Lead = list[Expr]
"""The leading part of an index, without variables of loops inside the task."""


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


class HeadRows:
    """Writes rows of the token n and the head h.

    Args:
        stages: where the arguments are read; what is written goes to its writer.
        body: element-wise operations and reductions.
        at: n and h.
        most: elements that a task may keep of a value which could as well be computed again where it is read.
    """

    def __init__(self, stages: Stages, body: Block, at: Sequence[Expr], most: int) -> None:
        self.stages, self.math, self.body, self.at, self.most = stages, stages.math, body, list(at), most
        self._fixed = set(at)
        self._inside: dict[tuple[Expr, int], Expr] = {}

    def write(self, rows: Sequence[Row]) -> None:
        """The statements; what they keep lives as long as the loop around them."""
        stages = self.stages
        self._fixed |= {x for row in rows for x in walk(row.start)}
        plan = self._plan(rows)
        for (outer, size), name in self._inside.items():
            stages.w(f"{name.what}: T.let = T.max(T.min({text(outer)}, {size - 1}), 0)")
        for value, leads in plan.items():
            made: list[tuple[Lead, Place]] = []
            for lead in leads:
                place, target = local(stages, value, len(lead))
                _compute(stages, value, lead, target)
                made.append((lead, place))
            stages.place(value, self._reader(value, made))
        for row in rows:
            self._write_row(stages, row)

    def _reader(self, value: Value, made: Sequence[tuple[Lead, Place]]) -> Place:
        def read(index: Sequence[Expr]) -> Expr:
            for lead, place in made:
                if self._lead(value, index[: len(lead)]) == lead:
                    return place(index)
            # Asked while a loop is still to be cut: what is written in the end was planned.
            return _unplaced(self.stages, value, index)

        return read

    def _write_row(self, stages: Stages, row: Row) -> None:
        math = self.math
        column = math.variable(stages.role("c"), 0, row.width - 1)
        index = [*self.at, math.apply("add", row.start, column)]
        target = Target(
            lambda at, e: row.store(text(math.apply("sub", at[-1], row.start)), e), STORED[row.value.type.dtype]
        )
        stages.part(row.value, index, {column: row.width}, target)

    # -- what is kept

    def _plan(self, rows: Sequence[Row]) -> dict[Value, list[Lead]]:
        """Values to keep, in order, and below which leading indices."""
        kept = chosen_stages(self.body)
        while True:
            found = self._wanted(rows, kept)
            large = {v for v, leads in found.items() if any(self._is_large(v, lead) for lead in leads)}
            if not large:
                return {v: found[v] for v in kept if v in found}
            kept = [v for v in kept if v not in large]

    def _is_large(self, value: Value, lead: Lead) -> bool:
        """Whether a value had better be computed again where it is read."""
        count = product(value.shape[len(lead) :])
        if not isinstance(value.op, Reduction):
            return not isinstance(count, int) or count > self.most
        if not isinstance(count, int):
            raise CodegenError(f"a task can't keep a row of %{value.name}, whose size isn't known")
        return False

    def _wanted(self, rows: Sequence[Row], kept: Sequence[Value]) -> dict[Value, list[Lead]]:
        found: dict[Value, list[Lead]] = {}
        for row in rows:
            if isinstance(row.value.op, Reduction):
                _add(found, row.value, self.at)
            else:
                self._reads(found, kept, row.value, partial(self._write_row, row=row))
        for value in reversed(kept):
            if value in found and any(row.value is value for row in rows):
                _add(found, value, self.at)
            for lead in found.get(value, ()):
                target = Target(lambda _at, _e: "", STORED[value.type.dtype])
                write = partial(_compute, value=value, lead=lead, target=target)
                self._reads(found, kept, value, write)
        return found

    def _reads(
        self, found: dict[Value, list[Lead]], kept: Sequence[Value], value: Value, write: Callable[[Stages], None]
    ) -> None:
        """Add what is read, of the values that are kept, to compute one of them."""
        probe = _Probe(self.stages, [v for v in kept if v is not value])
        write(probe)
        for other, index in probe.found:
            _add(found, other, self._lead(other, index))

    def _lead(self, value: Value, index: Sequence[Expr]) -> Lead:
        lead: Lead = []
        for i, size in zip(index, value.shape, strict=False):
            if any(self._varies(x) for x in walk(i)):
                break
            lead.append(self._valid(i, size) if isinstance(size, int) else i)
        return lead

    def _valid(self, i: Expr, size: int) -> Expr:
        """An index that is in the value, also where a condition says that what is read there isn't used."""
        low, high = i.range
        if low is not None and high is not None and low >= 0 and high < size:
            return i
        if (i, size) not in self._inside:
            name = self.stages.names.fresh("at")
            self._inside[i, size] = self.math.variable(name, 0, size - 1, i.dtype)
            self._fixed.add(self._inside[i, size])
        return self._inside[i, size]

    def _varies(self, x: Expr) -> bool:
        """Whether an expression is the variable of a loop in the task, or read from what the task keeps."""
        if x.op == "load":
            return str(x.what).startswith(_KEPT)
        return x.op == "var" and x not in self._fixed and str(x.what) not in self.math.symbols


def _compute(stages: Stages, value: Value, lead: Lead, target: Target) -> None:
    """Compute what is below a leading index."""
    if isinstance(value.op, Reduction):
        stages.reduction(value.op, lead, target)
    else:
        stages.pointwise(value, lead, target)


def _add(found: dict[Value, list[Lead]], value: Value, lead: Lead) -> None:
    """Note a leading index, unless what is below it is part of what is noted."""
    have = found.setdefault(value, [])
    if not any(lead[: len(known)] == known for known in have):
        have[:] = [known for known in have if known[: len(lead)] != lead] + [lead]


_KEPT = "%"
"""Begins the name of a buffer that stands for a kept value."""


def _unplaced(stages: Stages, value: Value, index: Sequence[Expr]) -> Expr:
    return stages.math.load(f"{_KEPT}{id(value)}", list(index), value.type.dtype)


class _Probe(Stages):
    """Stages that are not written: which kept values they read, and at which indices, in the statements that they end up as."""

    def __init__(self, stages: Stages, kept: Collection[Value]) -> None:
        super().__init__(Names(RESERVED), stages.math, Writer(), dict(stages.places))
        self.found: list[tuple[Value, Sequence[Expr]]] = []
        self._kept: Mapping[str, Value] = {f"{_KEPT}{id(v)}": v for v in kept}
        for value in kept:
            self.place(value, lambda index, value=value: _unplaced(self, value, index))  # type: ignore[misc]

    def statement(self, e: Expr, store: Callable[[str], str], lane: Expr | None, dtype: str) -> None:
        loads = [x for x in walk(e) if x.op == "load"]
        self.found += [(self._kept[str(x.what)], x.args) for x in loads if x.what in self._kept]
