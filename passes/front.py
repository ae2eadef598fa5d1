"""Which row work may stand in front of linear attention, inside of its recurrent kernel.

There a task is one head of one sequence: it makes the rows q[n, h], k[n, h] and v[n, h] of one token after the other for itself. Row work
fits that if it reads nothing of other tokens, and if no head has to reduce again what another head reduces: a norm of each head's row
fits, one over the rows of all heads doesn't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product as tuples

from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import primitive
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.reduce import Reduction
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import Dim, evaluate, symbols_of
from ringc.ir.types import DType

SIZE = 3
"""What every symbol is taken for while reads are traced: it has a first, a middle and a last token."""

TOKEN = 1
"""The token whose reads are traced."""

Element = tuple[Value, tuple[int | None, ...]]
"""An element of a value; an index that depends on data is None."""


def front_of(op: LinearAttention, ops: Collection[Op]) -> tuple[Block, list[Value]]:
    """Row work in front of an operation as a block of its own, with composite operations written out.

    Args:
        op: what it is in front of.
        ops: the row work, in the order of its block.

    Returns:
        The block, whose outputs are q, k and v, and which value each of its arguments is.
    """
    inside = set(ops)
    read = dict.fromkeys([v for o in ops for v in o.inputs()] + [op.q, op.k, op.v])
    outside = [v for v in read if v.op not in inside]
    scalars = [v.op for v in outside if isinstance(v.op, Constant) and not v.op.shape]
    taken = [v for v in outside if v.op not in scalars]
    whole = Block()
    whole.args, whole.ops, whole.outputs = taken, [*scalars, *ops], (op.q, op.k, op.v)
    return primitive(whole), taken


def why_not_in_front(op: LinearAttention, ops: Collection[Op]) -> str:
    """Why row work can't stand in front of an operation in its recurrent kernel; empty if it can.

    That is found by tracing element rules at concrete numbers: which elements of the arguments the rows of a token and a head read, by
    themselves and through reductions.

    Args:
        op: what the row work is in front of.
        ops: the row work, in the order of its block. What it reads from elsewhere are arguments of the kernel.
    """
    body, _ = front_of(op, ops)
    for inner in body.ops:
        if not isinstance(inner, Elementwise | Reduction):
            return f"{inner.name} is no work on rows"
    heads, dk, dv = (int(d) for d in op.pool.shape)
    values = [*body.args, *(r for o in body.ops for r in o.results)]
    trace = _Trace(symbols_of(d for v in values for d in v.shape))
    rows = op.q.shape[0]
    read: list[set[Element]] = []
    reduced: list[set[Element]] = []
    for head in sorted({0, min(1, heads - 1), heads - 1}):
        wanted: list[Element] = [
            (value, (TOKEN, head, c))
            for value, width in zip(body.outputs, (dk, dk, dv), strict=True)
            for c in range(width)
        ]
        try:
            own, folded = trace.leaves(wanted)
        except NotImplementedError as error:
            return str(error)
        for element in own | folded:
            if not trace.is_of_token(element, rows):
                return f"it reads {_named(element)} at other tokens"
        read.append(own)
        reduced.append(folded)
    for own, mine in zip(read, reduced, strict=True):
        for others in reduced:
            if others is not mine and (again := (mine - own) & others):
                return f"it reduces {_named(next(iter(again)))} across heads, and each head would do it again"
    return ""


def _named(element: Element) -> str:
    return f"%{element[0].name}" if element[0].name else "an argument"


@dataclass(frozen=True)
class _Traced:
    """A scalar in an element rule: its value, if it is an index that doesn't depend on data, and the operands' elements that it takes."""

    value: int | None = None
    takes: frozenset[Element] = frozenset()


class _Trace:
    """`Elements` that say what is read."""

    def __init__(self, symbols: Collection[str]) -> None:
        self._symbols = dict.fromkeys(symbols, SIZE)
        self._made: dict[Element, _Traced] = {}

    def leaves(self, wanted: Sequence[Element]) -> tuple[set[Element], set[Element]]:
        """The elements of arguments that some elements are made of: those read by themselves, and those read through reductions."""
        found: tuple[set[Element], set[Element]] = (set(), set())
        seen: tuple[set[Element], set[Element]] = (set(), set())
        pending = [(element, False) for element in wanted]
        while pending:
            element, folded = pending.pop()
            if element in seen[folded]:
                continue
            seen[folded].add(element)
            if element[0].op is None:
                found[folded].add(element)
            folded = folded or isinstance(element[0].op, Reduction)
            pending += [(e, folded) for e in self._element(element).takes]
        return found

    def _element(self, element: Element) -> _Traced:
        if element not in self._made:
            self._made[element] = self._traced(*element)
        return self._made[element]

    def _traced(self, value: Value, at: tuple[int | None, ...]) -> _Traced:
        op = value.op
        if op is None:
            return _Traced()
        if isinstance(op, Reduction):
            return _Traced(takes=frozenset((op.x, index) for index in self._reduced(op, at)))
        assert isinstance(op, Elementwise)
        operands = op.inputs()

        def read(k: int, index: Sequence[_Traced]) -> _Traced:
            element = (operands[k], tuple(i.value for i in index))
            # Only integers are worth to know: they may be indices.
            known = None if operands[k].type.dtype.is_float else self._element(element).value
            return self._with(_Traced(known, frozenset({element})), index)

        made: _Traced = op.element([_Traced(i) for i in at], read, self)
        return made

    def _reduced(self, op: Reduction, at: Sequence[int | None]) -> Iterator[tuple[int | None, ...]]:
        """Indices of the elements that make one element of a reduction."""
        left = iter([i for axis, i in enumerate(at) if not (op.keep and axis in op.axes)])
        kept = [None if axis in op.axes else next(left) for axis in range(op.x.tensor.rank)]
        for inner in tuples(*(range(evaluate(op.x.shape[a], self._symbols)) for a in op.axes)):
            index = list(kept)
            for axis, i in zip(op.axes, inner, strict=True):
                index[axis] = i
            yield tuple(index)

    @staticmethod
    def _with(made: _Traced, parts: Sequence[_Traced]) -> _Traced:
        """A scalar that also depends on what its index, or its condition, is made of."""
        return _Traced(made.value, made.takes.union(*(p.takes for p in parts)))

    def is_of_token(self, element: Element, rows: Dim) -> bool:
        """Whether an element belongs to the token that is traced, or to something that has no tokens: a weight, a table."""
        value, index = element
        if not value.shape or not symbols_of([rows]) or not symbols_of(value.shape[:1]) >= symbols_of([rows]):
            return True
        each, rest = divmod(evaluate(value.shape[0], self._symbols), evaluate(rows, self._symbols))
        return index[0] is not None and not rest and index[0] // each == TOKEN

    # -- the arithmetic of element rules

    def literal(self, value: float, dtype: DType) -> _Traced:
        return _Traced(None if dtype.is_float else int(value))

    def size(self, dim: Dim) -> _Traced:
        return _Traced(evaluate(dim, self._symbols))

    def cast(self, value: _Traced, dtype: DType) -> _Traced:
        return self._with(_Traced(None if dtype.is_float else value.value), [value])

    def apply(self, function: str, *arguments: _Traced) -> _Traced:
        known = [a.value for a in arguments]
        if function == "where" and known[0] is not None:
            return self._with(arguments[1] if known[0] else arguments[2], arguments[:1])
        value = None
        if function in _INTEGER and None not in known:
            value = int(_INTEGER[function](*known))
        return self._with(_Traced(value), arguments)


_INTEGER: dict[str, Callable[..., int]] = {
    "neg": operator.neg, "abs": abs, "not": operator.not_, "add": operator.add, "sub": operator.sub, "mul": operator.mul,
    "floordiv": operator.floordiv, "mod": operator.mod, "maximum": max, "minimum": min, "and": operator.and_, "or": operator.or_,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq,
}  # fmt: skip
"""What can be said of indices."""
