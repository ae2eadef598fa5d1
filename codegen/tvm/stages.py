"""From the operations of a region to loops in TVM script.

A *stage* is a value that is kept (`ringc.codegen.tvm.kept`); everything else is written where it is read, through its element rule. A
stage's loops are cut where the expression inside changes (`ringc.codegen.tvm.cuts`), so that a vector loop has no conditions, and its last
axis is computed in vectors. What is left over at the end of a row is covered by a vector that overlaps the one before it, or by smaller
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from ringc.codegen.names import Names
from ringc.codegen.tvm.cuts import question
from ringc.codegen.tvm.elements import Arithmetic, Expr, walk
from ringc.codegen.tvm.printing import text
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.reduce import Mean, Reduction
from ringc.ir.ops.source import SegmentIds

LANES = 16
"""Elements of a vector: 512 bits of f32; the compiler halves them where a processor has less."""

Place = Callable[[Sequence[Expr]], Expr]
"""Reads the element of a kept value at an index."""

_PIECES = 48
"""Loops that a stage is cut into at most; past that, conditions stay in the loop."""


@dataclass(frozen=True)
class Target:
    """Where a stage goes.

    Attributes:
        store: the statement that keeps an element, from the texts of its index and its value.
        dtype: type of the elements in memory.
        argument: whether it is a tensor that the caller gave. TVM may lay a tensor of the function into the memory of one that it is
            computed from, and then an element must not be computed twice.
    """

    store: Callable[[Sequence[Expr], str], str]
    dtype: str
    argument: bool = False


@dataclass(frozen=True)
class _Fold:
    """A reduction that is being written.

    Attributes:
        op: the reduction.
        rank: of its result.
        inside: the variables of the axes that it reduces.
        sizes: of all axes.
        target: where the result goes.
    """

    op: Op
    rank: int
    inside: Sequence[Expr]
    sizes: Mapping[Expr, object]
    target: Target


class Stages:
    """Writes the stages of a region.

    Attributes:
        places: how the values that are kept are read; `element` follows it.
    """

    def __init__(self, names: Names, math: Arithmetic, w: Writer, places: dict[Value, Place]) -> None:
        self.names, self.math, self.w = names, math, w
        self.places = places
        self._roles: dict[str, str] = {}
        self._memo: dict[tuple[object, ...], Expr] = {}
        self._hints: dict[Expr, str] = {}
        self._pieces = 0

    # -- expressions

    def element(self, value: Value, index: Sequence[Expr]) -> Expr:
        """An element of a value.

        Raises:
            CodegenError: it depends on an operation without an element rule.
        """
        if value in self.places:
            return self.places[value](index)
        key = (value, *index)
        if key in self._memo:
            return self._memo[key]
        op = value.op
        if not isinstance(op, Elementwise):
            raise CodegenError(f"a TVM kernel has no form for {op.name if op else 'an argument'} here")
        operands = op.inputs()
        try:
            made: Expr = op.element(list(index), lambda k, at: self.element(operands[k], list(at)), self.math)
        except NotImplementedError as error:
            raise CodegenError(f"a TVM kernel has no form for {op.name} here: {error}") from error
        self._memo[key] = made
        if value.name:
            self._hints.setdefault(made, value.name)
        return made

    def place(self, value: Value, place: Place) -> None:
        """From here on, read a value like this."""
        self.places[value] = place
        self._memo.clear()

    def role(self, hint: str) -> str:
        """The name that loops of one kind have everywhere in the function."""
        if hint not in self._roles:
            self._roles[hint] = self.names.fresh(hint)
        return self._roles[hint]

    def axes(self, shape: Sequence[object], hints: Sequence[str]) -> list[Expr]:
        """A loop variable for each axis; one whose size isn't known has no greatest value."""
        letters = list(hints)[-len(shape) :] if shape else []
        letters = [f"i{n}" for n in range(len(shape) - len(letters))] + letters
        return [
            self.math.variable(self.role(h), 0, d - 1)
            if isinstance(d, int)
            else self.math.variable(self.role(h), 0, None, "int64")
            for h, d in zip(letters, shape, strict=True)
        ]

    def allocate(self, name: str, sizes: Sequence[str], dtype: str) -> None:
        """Declare memory: on the stack where it is known to be under 1 KiB, else from TVM's pool."""
        self.w(f'{name} = T.alloc_buffer(({", ".join(sizes)}{"," * (len(sizes) == 1)}), "{dtype}", scope="global")')

    # -- stages

    def pointwise(self, value: Value, lead: Sequence[Expr], target: Target) -> None:
        """Compute every element of a value below the leading index."""
        axes = self.axes(value.shape[len(lead) :], "ghc")
        self.part(value, [*lead, *axes], dict(zip(axes, value.shape[len(lead) :], strict=True)), target)

    def part(self, value: Value, index: Sequence[Expr], sizes: Mapping[Expr, object], target: Target) -> None:
        """Compute the elements of a value at an index, for all values of the loop variables in `sizes`."""

        def leaf(axes: Sequence[Expr], index: Sequence[Expr]) -> None:
            for at, lane in self.vectors(axes, index, sizes, overlap=target.argument):
                self.statement(self.element(value, at), partial(target.store, at), lane, target.dtype)

        self._pieces = 0
        self.nest(list(sizes), index, lambda at: self.element(value, at), leaf)

    def reduction(self, op: Op, lead: Sequence[Expr], target: Target) -> None:
        """Compute a reduction's elements below the leading index."""
        result = op.results[0]
        kept = self.axes(result.shape[len(lead) :], "ghc")
        at = [*lead, *kept]
        if isinstance(op, SegmentIds):
            segment = self.axes((op.offsets.shape[0] - 1,), "b")
            inside, sizes = list(segment), dict(zip(segment, (op.offsets.shape[0] - 1,), strict=True))
            source = [*segment]
        else:
            assert isinstance(op, Reduction)
            inside = self.axes([op.x.shape[a] for a in op.axes], "ijk")
            sizes = dict(zip(inside, (op.x.shape[a] for a in op.axes), strict=True))
            left, reduced = iter(at), iter(inside)
            source = []
            for axis in range(op.x.tensor.rank):
                if axis in op.axes:
                    source.append(next(reduced))
                    if op.keep:
                        next(left)
                else:
                    source.append(next(left))
        fold = _Fold(op, len(at), inside, {**sizes, **dict(zip(kept, result.shape[len(lead) :], strict=True))}, target)
        across = isinstance(op, Reduction) and op.x.tensor.rank - 1 not in op.axes

        def leaf(axes: Sequence[Expr], index: Sequence[Expr]) -> None:
            if across and axes:
                self._across(fold, axes, index)
            else:
                self._along(fold, axes, index)

        self._pieces = 0
        self.nest(kept, [*at, *source], partial(self._term, fold), leaf)

    def _term(self, fold: _Fold, index: Sequence[Expr]) -> Expr:
        """What is reduced, at the index of the result and of what is reduced."""
        op = fold.op
        if isinstance(op, Reduction):
            return self.element(op.x, index[fold.rank :])
        assert isinstance(op, SegmentIds)
        end = self.element(op.offsets, [self.math.apply("add", index[fold.rank], self.math.number(1))])
        return self.math.apply("where", self.math.apply("le", end, index[0]), self.math.number(1), self.math.number(0))

    def _along(self, fold: _Fold, axes: Sequence[Expr], index: Sequence[Expr]) -> None:
        """A reduction along the last axis: one partial result a lane."""
        op, target = fold.op, fold.target
        last = fold.inside[-1].range[1]
        lanes = _lanes(last + 1) if last is not None else 1
        with ExitStack() as stack:
            for axis in axes:
                stack.enter_context(self.loop(axis, fold.sizes))
            partials, dtype = self._accumulator(op, lanes)

            def leaf(axes: Sequence[Expr], at: Sequence[Expr]) -> None:
                for piece, lane in self.vectors(axes, at, fold.sizes, most=lanes):
                    mine = self.math.load(partials, [lane or self.math.number(0)], op.results[0].type.dtype)
                    self._accumulate(fold, mine, piece, lane, dtype)

            self.nest(fold.inside, list(index), partial(self._term, fold), leaf)
            total = self._finished(op, partials, lanes, dtype)
            self.statement(total, partial(target.store, index[: fold.rank]), None, target.dtype)

    def _across(self, fold: _Fold, axes: Sequence[Expr], index: Sequence[Expr]) -> None:
        """A reduction along other axes than the last: one result a lane."""
        op, target = fold.op, fold.target
        for start, lane in self.vectors(axes, index, fold.sizes, overlap=target.argument):
            partials, dtype = self._accumulator(op, self._width(lane))
            mine = self.math.load(partials, [lane or self.math.number(0)], op.results[0].type.dtype)
            add = partial(self._accumulate_all, fold, mine, lane, dtype)
            self.nest(fold.inside, list(start), partial(self._term, fold), add)
            self.statement(self._mean(op, mine), partial(target.store, start[: fold.rank]), lane, target.dtype)

    def _accumulate_all(
        self, fold: _Fold, mine: Expr, lane: Expr | None, dtype: str, axes: Sequence[Expr], at: Sequence[Expr]
    ) -> None:
        with ExitStack() as stack:
            for axis in axes:
                stack.enter_context(self.loop(axis, fold.sizes))
            self._accumulate(fold, mine, at, lane, dtype)

    def _accumulate(self, fold: _Fold, mine: Expr, at: Sequence[Expr], lane: Expr | None, dtype: str) -> None:
        made = self._combined(fold.op, mine, self._term(fold, at))
        self.statement(made, partial("{} = {}".format, text(mine)), lane, dtype)

    def _accumulator(self, op: Op, lanes: int) -> tuple[str, str]:
        """Declares partial results and sets them to the reduction's neutral element."""
        dtype = self.math.literal(0, op.results[0].type.dtype).dtype
        name = self.names.fresh(f"{op.results[0].name or op.name}_lanes")
        self.allocate(name, [str(lanes)], dtype)
        low = _combine(op) == "maximum"
        start = (
            f'T.min_value("{dtype}")'
            if low and dtype.startswith("int")
            else f'T.{dtype}("-inf")'
            if low
            else f"T.{dtype}(0)"
        )
        if lanes == 1:
            self.w(f"{name}[0] = {start}")
        else:
            lane = self.role("l")
            with self.w.block(f"for {lane} in T.vectorized({lanes}):"):
                self.w(f"{name}[{lane}] = {start}")
        return name, dtype

    def _combined(self, op: Op, a: Expr, b: Expr) -> Expr:
        return self.math.apply(_combine(op), a, self.math.convert(b, a.dtype))

    def _finished(self, op: Op, partial: str, lanes: int, dtype: str) -> Expr:
        """The result of partial results."""
        if lanes == 1:
            return self._mean(op, self.math.load(partial, [self.math.number(0)], op.results[0].type.dtype))
        function = "lanes_max" if _combine(op) == "maximum" else "lanes_sum"
        self.math.functions.add(function)
        return self._mean(op, self.math.call(function, [self.math.scalar(partial, dtype)], dtype))

    def _mean(self, op: Op, total: Expr) -> Expr:
        if not isinstance(op, Mean):
            return total
        return self.math.apply("div", total, self.math.convert(self.math.size(op.extent), total.dtype))

    # -- loops

    def nest(self, axes: Sequence[Expr], index: Sequence[Expr], make: Callable[[Sequence[Expr]], Expr],
             leaf: Callable[[Sequence[Expr], Sequence[Expr]], None]) -> None:  # fmt: skip
        """Call `leaf(axes, index)` for pieces of the loops in which `make(index)` needs no further cut."""
        fixed = {a: self.math.number(a.range[0]) for a in axes if a.range[0] is not None and a.range[0] == a.range[1]}
        if fixed:
            index = [self.math.replace(i, fixed) for i in index]
            axes = [a for a in axes if a not in fixed]
        asked = question(make(index), axes, self.math) if self._pieces < _PIECES else None
        if asked is None:
            leaf(axes, index)
            return
        variable = asked.variable
        low, high = variable.range
        assert low is not None and high is not None
        name = str(variable.what)
        where = list(axes).index(variable)
        parts: list[tuple[list[Expr], Expr]] = []
        if asked.kind == "cut":
            self._pieces += 1
            for first, last in ((low, asked.at - 1), (asked.at, high)):
                piece = self.math.variable(name, first, last)
                parts.append(([piece], piece))
        else:
            taken = {str(a.what) for a in axes}
            number = next(n for n in range(1, 99) if f"{name}{n}" not in taken)
            block = self.math.variable(self.role(f"{name}{number}"), 0, (high - low + 1) // asked.at - 1)
            within = self.math.variable(name, 0, asked.at - 1)
            start = self.math.apply(
                "add", self.math.apply("mul", block, self.math.number(asked.at)), self.math.number(low)
            )
            parts.append(([block, within], self.math.apply("add", start, within)))
        for loops, value in parts:
            inner = [*axes[:where], *loops, *axes[where + 1 :]]
            self.nest(inner, [self.math.replace(i, {variable: value}) for i in index], make, leaf)

    @contextmanager
    def loop(self, axis: Expr, sizes: Mapping[Expr, object]) -> Iterator[None]:
        """A serial loop over an axis."""
        low, high = axis.range
        if high is None:
            size = self.math.size(sizes[axis])  # type: ignore[arg-type]
            head = f"for {axis.what} in range({text(size)}):"
        else:
            head = f"for {axis.what} in range({f'{low}, ' if low else ''}{high + 1}):"
        with self.w.block(head):
            yield

    def vectors(
        self,
        axes: Sequence[Expr],
        index: Sequence[Expr],
        sizes: Mapping[Expr, object],
        *,
        overlap: bool = False,
        most: int = LANES,
    ) -> Iterator[tuple[list[Expr], Expr | None]]:
        """Loops over all axes, the last in vectors of at most so many lanes: gives index and lane of each piece, to write what is inside.

        What is left over at the end is done by a vector that overlaps the one before it, or else by smaller vectors. The lane is None
        where there is no vector.
        """
        math = self.math
        with ExitStack() as stack:
            for axis in axes[:-1]:
                stack.enter_context(self.loop(axis, sizes))
            last = axes[-1] if axes else None
            if last is None or most == 1 or last.range[0] is None or last.range[1] is None:
                if last is not None:
                    stack.enter_context(self.loop(last, sizes))
                yield list(index), None
                return
            low, left = last.range[0], last.range[1] - last.range[0] + 1
            while left:
                width = min(most, _lanes(left))
                laps = overlap and left % width != 0
                times = -(-left // width) if laps else left // width
                lane = math.variable(self.role("l"), 0, width - 1) if width > 1 else math.number(0)
                with ExitStack() as inner:
                    start = math.number(low)
                    if times > 1:
                        step = math.variable(self.role("v"), 0, times - 1)
                        inner.enter_context(self.loop(step, {}))
                        start = math.apply("mul", step, math.number(width))
                        if laps:
                            at = math.apply(
                                "add", math.apply("minimum", start, math.number(left - width)), math.number(low)
                            )
                            start = math.variable(str(last.what), low, low + left - width)
                            self.w(f"{start.what}: T.let = {text(at)}")
                        else:
                            start = math.apply("add", start, math.number(low))
                    value = math.apply("add", start, lane)
                    yield [math.replace(i, {last: value}) for i in index], lane if width > 1 else None
                if laps:
                    return
                low, left = low + times * width, left - times * width

    @contextmanager
    def lanes(self, lane: Expr | None) -> Iterator[None]:
        """A vector loop, or none."""
        if lane is None:
            yield
            return
        with self.w.block(f"for {lane.what} in T.vectorized({self._width(lane)}):"):
            yield

    @staticmethod
    def _width(lane: Expr | None) -> int:
        return 1 if lane is None or lane.range[1] is None else lane.range[1] + 1

    # -- statements

    def statement(self, e: Expr, store: Callable[[str], str], lane: Expr | None, dtype: str) -> None:
        """Keep a value; what occurs in it several times gets a name."""
        e = self.math.convert(e, dtype)
        named: dict[Expr, str] = {}
        lines: list[str] = []
        for part in repeated(e):
            name = self.names.fresh(self._hints.get(part) or "t")
            if lane is None:
                lines.append(f"{name}: T.let = {text(part, named)}")
                named[part] = name
            else:
                self.allocate(name, [str(self._width(lane))], part.dtype)
                lines.append(f"{name}[{lane.what}] = {text(part, named)}")
                named[part] = f"{name}[{lane.what}]"
        with self.lanes(lane):
            for line in lines:
                self.w(line)
            self.w(store(text(e, named)))


def _combine(op: Op) -> str:
    return op.combine if isinstance(op, Reduction) else "add"


def _lanes(count: int) -> int:
    """The largest power of two that is at most `count` and the width of a vector."""
    return min(LANES, 1 << (count.bit_length() - 1))


def repeated(e: Expr) -> list[Expr]:
    """Values inside of an expression that occur several times and are worth a name, each after those that it contains.

    What a condition on indices guards is left where it is: elsewhere it may read outside of a tensor.
    """
    uses: dict[Expr, int] = {}
    order: list[Expr] = []

    def visit(current: Expr) -> None:
        uses[current] = uses.get(current, 0) + 1
        if uses[current] > 1:
            return
        guarded = current.op == "where" and not current.args[0].data
        for inner in current.args[:1] if guarded else current.args:
            visit(inner)
        order.append(current)

    visit(e)
    return [x for x in order if uses[x] > 1 and x is not e and x.data and not x.is_index and _work(x) > 1]


def _work(e: Expr) -> int:
    """Operations in an expression, those that compute indices left out."""
    free = ("const", "var", "load", "cast")
    return sum(3 if x.op == "call" else 1 for x in walk(e) if x.op not in free and (x.data or not x.is_index))
