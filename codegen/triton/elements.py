"""The scalar arithmetic of the Triton back end: element rules (`ringc.ir.elements`) become text over tiles.

A tile axis is a dimension of the blocks that a program works on; an `Axis` is one range of values along it. Every expression knows which
axes it varies over, and every block has the kernel's full rank with 1 where it doesn't vary, so that broadcasting needs no code. Index
arithmetic is kept as linear forms of axes whose ranges are known: `(h * 64 + d) // 64` becomes `h`. Where a range doesn't decide it, `Cut`
asks for a finer iteration space: a range cut into two axes, or into pieces, and the kernel is written again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ringc.codegen.names import Names
from ringc.codegen.triton.jobs import element
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.symbols import Dim, dim_text, symbols_of
from ringc.ir.types import DType, TensorType

_WIDE = 1 << 31


class Cut(Exception):
    """The iteration space is too coarse: axes of `extent` values must be cut in `factor` (inner size) or at `points`."""

    def __init__(self, extent: int, factor: int = 0, points: tuple[int, ...] = ()) -> None:
        super().__init__(extent, factor, points)
        self.extent, self.factor, self.points = extent, factor, points


class NeedsAxis(Exception):
    """One more tile axis is needed."""


@dataclass(frozen=True)
class Term:
    """Something that an index is a sum of: an axis, or a number that the kernel computes or loads (`name` is its text)."""

    name: str
    low: int | None = None
    high: int | None = None
    over: frozenset[Axis] = frozenset()
    wide: bool = False
    """Whether it is of 64 bits already."""

    @property
    def axes(self) -> frozenset[Axis]:
        return self.over


@dataclass(frozen=True)
class Axis(Term):
    """Values `0 .. high` along tile axis `slot` (None: one value, the same in the whole program).

    `block` is how many values a program holds at once, `inside` the text of the mask where the last ones don't exist.
    """

    slot: int | None = None
    block: int = 1
    inside: str = ""
    cuttable: bool = False
    """Whether `Cut` may ask for a finer one."""

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset((self,))

    @property
    def extent(self) -> int | None:
        return None if self.high is None else self.high + 1


@dataclass(frozen=True)
class Index:
    """`constant + sum of factor * term`: an integer."""

    terms: tuple[tuple[Term, int], ...] = ()
    constant: int = 0

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset(a for t, _ in self.terms for a in t.axes)

    @property
    def low(self) -> int | None:
        ends = [t.low if f > 0 else t.high for t, f in self.terms]
        return _linear(self.constant, ends, [f for _, f in self.terms])

    @property
    def high(self) -> int | None:
        ends = [t.high if f > 0 else t.low for t, f in self.terms]
        return _linear(self.constant, ends, [f for _, f in self.terms])

    def __add__(self, other: Index) -> Index:
        factors: dict[Term, int] = dict(self.terms)
        for term, factor in other.terms:
            factors[term] = factors.get(term, 0) + factor
        return Index(tuple((t, f) for t, f in factors.items() if f), self.constant + other.constant)

    def __mul__(self, factor: int) -> Index:
        return Index(tuple((t, f * factor) for t, f in self.terms if factor), self.constant * factor)


def _linear(constant: int, ends: Sequence[int | None], factors: Sequence[int]) -> int | None:
    total = constant
    for end, factor in zip(ends, factors, strict=True):
        if end is None:
            return None
        total += end * factor
    return total


@dataclass(frozen=True)
class Tile:
    """An expression's text, and the axes it varies over. `value` is the number that it is, where that is known."""

    text: str
    axes: frozenset[Axis] = frozenset()
    atom: bool = True
    value: float | int | bool | None = None


Expression = Index | Tile


@dataclass(eq=False)
class Scope:
    """Lines of a block of the kernel; `axis` is what a loop runs over, `head` its first line."""

    head: str = ""
    axis: Axis | None = None
    lines: list[str | Scope] = field(default_factory=list)
    bound: dict[str, Tile] = field(default_factory=dict)
    values: dict[tuple[Value, tuple[Index, ...]], Expression] = field(default_factory=dict)

    def write(self, w: Writer) -> None:
        for line in self.lines:
            if isinstance(line, str):
                w(line)
            else:
                with w.block(line.head):
                    line.write(w)


@dataclass(frozen=True)
class Loop:
    """A loop over the values of `axis`: its head, and the lines that it begins with."""

    axis: Axis
    head: str
    first: tuple[str, ...] = ()


_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "ge": ">=", "gt": ">", "and": "&", "or": "|",
}  # fmt: skip

_CALLS = {
    "abs": "tl.abs", "exp": "tl.exp", "log": "tl.log", "sqrt": "tl.sqrt", "rsqrt": "tl.rsqrt", "sigmoid": "tl.sigmoid",
    "cos": "tl.cos", "sin": "tl.sin", "maximum": "tl.maximum", "minimum": "tl.minimum", "where": "tl.where",
}  # fmt: skip

_FOLD: dict[str, Callable[..., float | int | bool]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "neg": lambda a: -a, "abs": abs,
    "maximum": max, "minimum": min, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "eq": lambda a, b: a == b,
    "ge": lambda a, b: a >= b, "gt": lambda a, b: a > b, "not": lambda a: not a, "and": lambda a, b: a and b,
    "or": lambda a, b: a or b, "where": lambda c, a, b: a if c else b, "exp": math.exp, "log": math.log, "sqrt": math.sqrt,
    "rsqrt": lambda a: 1 / math.sqrt(a), "sigmoid": lambda a: 1 / (1 + math.exp(-a)), "cos": math.cos, "sin": math.sin,
    "div": lambda a, b: a / b, "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b,
}  # fmt: skip


class Tiles:
    """`Elements` of the Triton back end; collects the lines of a kernel's body as expressions are made.

    Args:
        names: of the kernel's variables.
        pointers: argument or result -> name of its pointer.
        slots: tile axes of this body, outermost first. Blocks have one dimension for each.
        sizes: called with the name of each symbol that the text needs.
        once: the pointers whose elements leave the caches first.
    """

    def __init__(
        self,
        names: Names,
        pointers: Mapping[Value, str],
        slots: Sequence[int],
        sizes: Callable[[str], None] = lambda _: None,
        *,
        once: Collection[str] = (),
    ) -> None:
        self.names = names
        self.pointers = pointers
        self.slots = tuple(slots)
        self.sizes = sizes
        self.once = once
        self.scopes = [Scope()]

    # -- constants, sizes

    def literal(self, value: float | int | bool, dtype: DType) -> Expression:
        if dtype is DType.BOOL:
            return Tile(str(bool(value)), value=bool(value))
        if not dtype.is_float:
            return Index(constant=int(value))
        return number(float(value))

    def size(self, dim: Dim) -> Expression:
        if isinstance(dim, int):
            return Index(constant=dim)
        for name in sorted(symbols_of([dim])):
            self.sizes(name)
        text = dim_text(dim)
        # A product stays bare: behind a 64-bit number it is computed in 64 bits.
        product = "+" not in text and "-" not in text and "//" not in text
        return Index(((Term(text if text.isidentifier() or product else f"({text})", 0), 1),))

    # -- arithmetic

    def cast(self, value: Expression, dtype: DType) -> Expression:
        if isinstance(value, Index) and dtype in (DType.I32, DType.I64):
            return value
        tile = self.tile(value)
        if tile.value is not None:
            return self.literal(
                int(tile.value) if not dtype.is_float and dtype is not DType.BOOL else tile.value, dtype
            )
        if dtype is DType.BOOL:
            return Tile(f"{operand(tile)} != 0", tile.axes, atom=False)
        converted = f"{operand(tile)}.to({element(dtype)})"
        # Everything is computed in f32: a narrower type is only a rounding.
        if dtype.is_float and dtype is not DType.F32:
            converted += ".to(tl.float32)"
        return Tile(converted, tile.axes)

    def apply(self, function: str, *arguments: Expression) -> Expression:
        if all(isinstance(a, Index) for a in arguments):
            made = self._integers(function, [a for a in arguments if isinstance(a, Index)])
            if made is not None:
                return made
        tiles = [self.tile(a) for a in arguments]
        values = [t.value for t in tiles]
        if all(v is not None for v in values):
            folded = _fold(function, values)
            if folded is not None:
                return folded
        if function == "where" and values[0] is not None:
            return arguments[1] if values[0] else arguments[2]
        axes = frozenset[Axis]().union(*(t.axes for t in tiles))
        texts = [operand(t) for t in tiles]
        if function in _BINARY:
            return Tile(f"{texts[0]} {_BINARY[function]} {texts[1]}", axes, atom=False)
        if function in _CALLS:
            return Tile(f"{_CALLS[function]}({', '.join(t.text for t in tiles)})", axes)
        if function == "neg":
            return Tile(f"-{texts[0]}", axes, atom=False)
        if function == "not":
            return Tile(f"{texts[0]} == 0", axes, atom=False)
        if function in ("floordiv", "mod"):
            return self._divide(function, arguments[0], arguments[1])
        raise CodegenError(f"Triton kernels have no function '{function}'")

    def _integers(self, function: str, arguments: list[Index]) -> Expression | None:
        """Index arithmetic, where it stays linear or its outcome is known."""
        a, b = arguments[0], arguments[-1]
        divisor = b.constant if not b.terms else 0
        match function:
            case "add":
                return a + b
            case "sub":
                return a + b * -1
            case "neg":
                return a * -1
            case "mul" if not b.terms:
                return a * b.constant
            case "mul" if not a.terms:
                return b * a.constant
            case "floordiv" if divisor > 0:
                return self._quotient(a, divisor)
            case "mod" if divisor > 0:
                rest = self._split(a, divisor)[1]
                return rest if _below(rest, divisor) else None
            case "lt" | "le" | "ge" | "gt":
                return _decided(function, a + b * -1)
            case _:
                return None

    def _split(self, a: Index, divisor: int) -> tuple[Index, Index]:
        """`a` as `divisor * whole + rest`, with as little in the rest as can be."""
        whole = Index(tuple((t, f // divisor) for t, f in a.terms if f % divisor == 0), a.constant // divisor)
        rest = Index(tuple((t, f) for t, f in a.terms if f % divisor), a.constant % divisor)
        if _below(rest, divisor):
            return whole, rest
        for term, factor in rest.terms:
            # An axis that runs over the divisor's multiples is cut in two, of which the inner one stays below it.
            inner = divisor // factor if factor > 0 and divisor % factor == 0 else 0
            if (
                isinstance(term, Axis)
                and term.cuttable
                and 1 < inner < (term.extent or 0)
                and (term.extent or 0) % inner == 0
            ):
                raise Cut(term.extent or 0, factor=inner)
        return whole, rest

    def _quotient(self, a: Index, divisor: int) -> Index:
        whole, rest = self._split(a, divisor)
        if _below(rest, divisor):
            return whole
        tile = self._divide("floordiv", rest, Index(constant=divisor))
        return whole + self.index(tile, 0 if rest.low is not None and rest.low >= 0 else None)

    def _divide(self, function: str, a: Expression, b: Expression) -> Tile:
        """Rounded down, as the IR has it; Triton's own division rounds toward zero."""
        left, right = self.tile(a), self.tile(b)
        axes = left.axes | right.axes
        x, y = operand(left), operand(right)
        divisor = int(right.value) if right.value is not None else 0
        if isinstance(a, Index) and a.low is not None and a.low >= 0 and divisor > 0:
            return Tile(f"{x} {'//' if function == 'floordiv' else '%'} {y}", axes, atom=False)
        if divisor > 0 and divisor & (divisor - 1) == 0:
            shifted = f"{x} >> {divisor.bit_length() - 1}" if function == "floordiv" else f"{x} & {divisor - 1}"
            return Tile(shifted, axes, atom=False)
        rest = f"({x} % {y} + {y}) % {y}"
        return Tile(rest if function == "mod" else f"({x} - ({rest})) // {y}", axes, atom=False)

    # -- between indices and tiles

    def index(self, value: Expression, low: int | None = None) -> Index:
        """An integer as an index."""
        if isinstance(value, Index):
            return value
        if value.value is not None:
            return Index(constant=int(value.value))
        named = self.bind(value, "index")
        return Index(((Term(named.text, low, None, named.axes), 1),))

    def tile(self, value: Expression) -> Tile:
        """An expression as text; indices as values are of 32 bits."""
        if isinstance(value, Tile):
            return value
        if not value.terms:
            return Tile(str(value.constant), value=value.constant)
        text = self.sum_text(value)
        if any(t.wide for t, _ in value.terms):
            return Tile(f"({text}).to(tl.int32)", value.axes)
        return Tile(text, value.axes, atom=text.isidentifier())

    def sum_text(self, value: Index) -> str:
        """`h * 128 + d + 32`."""
        parts = [t.name if f == 1 else f"{t.name} * {f}" for t, f in value.terms]
        parts += [str(value.constant)] if value.constant or not parts else []
        return " + ".join(parts)

    # -- lines

    def bind(self, tile: Tile, hint: str) -> Tile:
        """Give an expression a name, in the outermost block that knows all it varies over. Equal texts get one name."""
        if tile.value is not None or tile.text.isidentifier():
            return tile
        for scope in reversed(self.scopes):
            if tile.text in scope.bound:
                return scope.bound[tile.text]
        home = self.home(tile.axes)
        name = self.names.fresh(hint)
        home.lines.append(f"{name} = {tile.text}")
        home.bound[tile.text] = made = Tile(name, tile.axes)
        return made

    def home(self, axes: frozenset[Axis]) -> Scope:
        """The outermost open block in which these axes have their values."""
        for scope in reversed(self.scopes):
            if scope.axis is not None and scope.axis in axes:
                return scope
        return self.scopes[0]

    def line(self, text: str) -> None:
        """A statement where the kernel is being written."""
        self.scopes[-1].lines.append(text)

    @contextmanager
    def loop(self, loop: Loop) -> Iterator[Scope]:
        """What is made inside and varies over the loop's axis stands in the loop; the rest before it."""
        scope = Scope(loop.head, loop.axis, list(loop.first))
        self.scopes.append(scope)
        yield scope
        self.scopes.pop()
        self.scopes[-1].lines.append(scope)

    @contextmanager
    def hoisted(self, axes: frozenset[Axis]) -> Iterator[Scope]:
        """Write where all these axes have their values, rather than in the innermost loop."""
        home, inner = self.home(axes), self.scopes
        self.scopes = inner[: inner.index(home) + 1]
        yield home
        self.scopes = inner

    # -- memory

    def address(self, pointer: str, at: Sequence[Index], shape: Sequence[Dim]) -> str:
        """Where an element of a contiguous tensor lies: 64-bit bases, 32-bit offsets behind them."""
        strides: list[Dim] = []
        total: Dim = 1
        for dim in reversed(shape):
            strides.insert(0, total)
            total = total * dim if isinstance(total, int) and isinstance(dim, int) else _times(total, dim)
        flat = Index()
        wide: list[str] = []
        for i, stride in zip(at, strides, strict=True):
            if isinstance(stride, int):
                flat = flat + i * stride
            elif i != Index():
                step = self.size(stride)
                assert isinstance(step, Index)
                text = f"({self.sum_text(i)})" if len(i.terms) > 1 or i.constant else i.terms[0][0].name
                text += "" if all(t.wide for t, _ in i.terms) and i.terms else ".to(tl.int64)"
                wide.append(
                    f"{text} * {step.terms[0][0].name}" if i.terms else f"{self.sum_text(i)} * {step.terms[0][0].name}"
                )
        narrow: list[tuple[Term, int]] = []
        for term, factor in flat.terms:
            if term.wide or (term.high is not None and abs(factor) * term.high < _WIDE):
                if not term.wide:
                    narrow.append((term, factor))
                    continue
                text = term.name
            else:
                text = f"{term.name if term.name.isidentifier() else f'({term.name})'}.to(tl.int64)"
            wide.append(text if factor == 1 else f"{text} * {factor}")
        offset = Index(tuple(narrow), flat.constant)
        parts = [pointer, *wide]
        if offset != Index():
            parts.append(
                f"({self.sum_text(offset)})" if len(offset.terms) + bool(offset.constant) > 1 else self.sum_text(offset)
            )
        return " + ".join(parts)

    def mask(self, axes: frozenset[Axis], *extra: str) -> str:
        """Which elements exist; empty when all do."""
        conditions = [*dict.fromkeys(a.inside for a in sorted(axes, key=_order) if a.inside), *(e for e in extra if e)]
        return " & ".join(conditions)

    def load(self, pointer: str, type: TensorType, at: Sequence[Index], shape: Sequence[Dim], hint: str) -> Tile:
        """Elements of a tensor, converted to what they are computed in. Elements that don't exist are 0."""
        axes = frozenset[Axis]().union(*(i.axes for i in at)) if at else frozenset[Axis]()
        mask = self.mask(axes)
        zero = "0.0" if type.dtype.is_float else "0"
        policy = ', eviction_policy="evict_first"' if pointer in self.once else ""
        text = f"tl.load({self.address(pointer, at, shape)}{f', mask={mask}, other={zero}' if mask else ''}{policy})"
        if type.dtype is DType.BOOL:
            return self.bind(Tile(f"{text} != 0", axes, atom=False), hint)
        if type.dtype.is_float and type.dtype is not DType.F32:
            text += ".to(tl.float32)"
        return self.bind(Tile(text, axes), hint)

    def store(
        self, pointer: str, dtype: DType, at: Sequence[Index], shape: Sequence[Dim], value: Tile, condition: str = ""
    ) -> None:
        """Write elements."""
        axes = frozenset[Axis]().union(*(i.axes for i in at)) if at else frozenset[Axis]()
        mask = self.mask(axes, condition)
        narrow = dtype.is_float and dtype is not DType.F32 and value.value is None
        written = f"{operand(value)}.to({element(dtype)})" if narrow else value.text
        self.line(f"tl.store({self.address(pointer, at, shape)}, {written}{f', mask={mask}' if mask else ''})")

    # -- axes

    def place(self, slot: int, text: str) -> str:
        """One-dimensional `text` laid along a tile axis."""
        if len(self.slots) == 1:
            return text
        return f"{text}[{', '.join(':' if s == slot else 'None' for s in self.slots)}]"

    def shape(self, axes: frozenset[Axis]) -> list[int]:
        """The shape of a block that varies over these axes."""
        sizes = {a.slot: a.block for a in axes}
        return [sizes.get(s, 1) for s in self.slots]


def number(value: float) -> Tile:
    """A floating-point constant."""
    text = repr(value) if math.isfinite(value) else f'float("{value}")'
    return Tile(text, atom=not text.startswith("-"), value=value)


def operand(tile: Tile) -> str:
    """The text of an expression as part of another."""
    return tile.text if tile.atom else f"({tile.text})"


def power_of_two(value: int) -> int:
    """The least power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def _fold(function: str, values: Sequence[float | int | bool | None]) -> Expression | None:
    try:
        value = _FOLD[function](*values)
    except (ArithmeticError, ValueError, KeyError):
        return None
    if isinstance(value, bool):
        return Tile(str(value), value=value)
    return Index(constant=value) if isinstance(value, int) else number(value)


def _decided(function: str, difference: Index) -> Tile | None:
    """Whether `difference` compares so to 0, where its range tells."""
    low, high = difference.low, difference.high
    yes = {"lt": high is not None and high < 0, "le": high is not None and high <= 0, "gt": low is not None and low > 0,
           "ge": low is not None and low >= 0}  # fmt: skip
    no = {"lt": yes["ge"], "le": yes["gt"], "gt": yes["le"], "ge": yes["lt"]}
    return Tile(str(yes[function]), value=yes[function]) if yes[function] or no[function] else None


def _below(rest: Index, divisor: int) -> bool:
    return rest.low is not None and rest.high is not None and rest.low >= 0 and rest.high < divisor


def _times(a: Dim, b: Dim) -> Dim:
    from ringc.ir.symbols import mul

    return mul(a, b)


def _order(axis: Axis) -> tuple[int, str]:
    return (-1 if axis.slot is None else axis.slot, axis.name)
