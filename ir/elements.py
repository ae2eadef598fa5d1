"""What one element of a result is, in terms of elements of the operands: the meaning that row kernels are generated from.

An operation whose result can be said element by element is `Elementwise`: it implements `element`, once, against the small arithmetic
`Elements`, and each back end brings its own `Elements` (TVM expressions, Triton text). Indices are expressions of the same arithmetic, so
slices, reshapes, gathers and concatenations are index arithmetic and need no code of their own in a back end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from ringc.ir.core import Op
from ringc.ir.symbols import Dim, Shape, mul, product
from ringc.ir.types import DType

E = Any
"""A scalar expression of the back end at hand."""

Read = Callable[[int, Sequence[E]], E]
"""`read(k, index)`: element of the k-th operand (`inputs()` order) at an index."""


class Elements(Protocol):
    """A back end's scalar arithmetic. `apply` knows the functions listed in `FUNCTIONS`."""

    def literal(self, value: float | int | bool, dtype: DType) -> E:
        """A constant."""

    def size(self, dim: Dim) -> E:
        """A size, as an index expression."""

    def apply(self, function: str, *arguments: E) -> E:
        """One of `FUNCTIONS`."""

    def cast(self, value: E, dtype: DType) -> E:
        """Conversion between element types."""


FUNCTIONS = frozenset({
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "cos", "sin", "not",
    "add", "sub", "mul", "div", "maximum", "minimum", "floordiv", "mod", "lt", "le", "eq", "ge", "gt", "and", "or",
    "where",
})  # fmt: skip
"""The arithmetic that every back end brings: unary, binary, and `where(condition, a, b)`."""


class Elementwise(Op):
    """An operation with one result whose elements are independent of each other."""

    pointwise: ClassVar[bool] = False
    """The element at an index depends on the operands' elements at that same (broadcast) index only."""

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        """The result's element at index `at`."""
        raise NotImplementedError(f"{self.name} has no element rule")


def broadcast_index(at: Sequence[E], shape: Shape, math: Elements) -> list[E]:
    """The index into an operand of `shape` that numpy broadcasting reads for the result's index `at`."""
    tail = list(at)[len(at) - len(shape) :]
    return [math.literal(0, DType.I32) if d == 1 else i for i, d in zip(tail, shape, strict=True)]


def regroup(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """Cut two shapes of equal size into the shortest matching runs of axes, so that a reshape is index arithmetic within each run.

    `[N, 512]` and `[N, 8, 64]` give `(0..0, 0..0), (1..1, 1..2)`: the symbolic axis takes no part in any division.
    """
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        i0, j0 = i, j
        left: Dim = source[i] if i < len(source) else 1
        right: Dim = target[j] if j < len(target) else 1
        i, j = min(i + 1, len(source)), min(j + 1, len(target))
        while left != right:
            if _smaller(left, right) and i < len(source):
                left, i = mul(left, source[i]), i + 1
            elif j < len(target):
                right, j = mul(right, target[j]), j + 1
            elif i < len(source):
                left, i = mul(left, source[i]), i + 1
            else:
                raise ValueError(f"shapes of different size: {source} and {target}")
        groups.append((range(i0, i), range(j0, j)))
    return groups


def _smaller(a: Dim, b: Dim) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return isinstance(a, int) or (
        not isinstance(b, int) and len(b.free_symbols) >= len(a.free_symbols) and (b / a).is_integer is True
    )


def reshaped_index(at: Sequence[E], source: Shape, target: Shape, math: Elements) -> list[E]:
    """The index into `source` of the element at index `at` of its reshape to `target`."""
    index: list[E] = []
    for old, new in regroup(source, target):
        if [source[i] for i in old] == [target[j] for j in new]:
            index += [at[j] for j in new]
            continue
        flat: E = None
        for j in new:
            flat = at[j] if flat is None else math.apply("add", math.apply("mul", flat, math.size(target[j])), at[j])
        if flat is None:
            flat = math.literal(0, DType.I32)
        for n, i in enumerate(old):
            inner = product(source[k] for k in old[n + 1 :])
            part = flat if inner == 1 else math.apply("floordiv", flat, math.size(inner))
            index.append(part if n == 0 else math.apply("mod", part, math.size(source[i])))
    return index
