"""Choices: where a program may be computed in several ways, and what of them is open. `select` makes them, `ringc tune` measures them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ringc.ir.core import Block, Function, Module
from ringc.ir.ops.call import Alternatives, Fused
from ringc.ir.ops.source import Constant
from ringc.ir.symbols import symbols_of
from ringc.ir.types import StateType
from ringc.passes.record import Sizes
from ringc.passes.schedules.candidates import Service, candidates, service, typical_sizes
from ringc.passes.schedules.model import Candidate, Rows
from ringc.passes.target import Target


@dataclass(frozen=True)
class Region:
    """A region whose implementation is to be chosen, for the rows of one version.

    Attributes:
        key: its family and structural hash, by which a tuning record knows it.
        family: of its kernel.
        body: what it computes.
        rows: that the version serves.
        serves: the version's entry point.
        each: the most tokens of a sequence in the version; 0 for no limit.
        sizes: the typical ones of the version, of the symbols that the region has.
        candidates: in no particular order, illegal ones among them.
    """

    key: str
    family: str
    body: Block
    rows: Rows
    serves: str
    each: int
    sizes: Sizes
    candidates: tuple[Candidate, ...]

    @property
    def what(self) -> str:
        """The region in a line."""
        return describe(self.body)

    @property
    def typical(self) -> dict[str, int]:
        """The sizes at which candidates are compared, of all symbols."""
        return typical_sizes(self.rows, self.serves, self.each)

    @property
    def legal(self) -> list[Candidate]:
        return [c for c in self.candidates if not c.illegal]


class Regions:
    """The regions of a program. Layers of one kind are equal: what is known of one is worked out once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: dict[tuple[str, Service], Region] = {}

    def of(self, op: Fused, function: Function) -> Region:
        """The region of an operation that stands in a function, or in a way of one of its `alternatives`."""
        served = service(function)
        key = f"{op.family} {op.body.structural_hash()[:16]}"
        if (key, served) not in self._known:
            sizes = sizes_of(op.body, served)
            found = tuple(candidates(op.family, op.body, served[0], self.target))
            self._known[key, served] = Region(key, op.family, op.body, *served, sizes, found)
        return self._known[key, served]


@dataclass(frozen=True)
class Choice:
    """What is open at one place: legal ways, each with a label and its regions."""

    what: str
    sizes: Sizes
    ways: tuple[tuple[str, tuple[Region, ...]], ...]

    @property
    def regions(self) -> list[Region]:
        return [region for _, way in self.ways for region in way]

    @property
    def count(self) -> int:
        """How many ways there are, with all implementations of their regions."""
        return sum(prod(len(region.legal) for region in way) for _, way in self.ways)


def choices(module: Module, target: Target, entry: str | None = None) -> list[Choice]:
    """Every distinct place of a module, as it is before `select`, where more than one implementation is legal.

    Args:
        module: with regions and alternatives.
        target: what it is compiled for.
        entry: leave out what doesn't serve this entry point.
    """
    regions = Regions(target)
    found: dict[tuple[object, ...], Choice] = {}
    for function in module.functions.values():
        if entry in (None, service(function)[1]):
            for choice in _of_function(function, regions):
                same = tuple((label, *((r.key, r.sizes) for r in way)) for label, way in choice.ways)
                found.setdefault(same, choice)
    return [choice for choice in found.values() if choice.count > 1]


def _of_function(function: Function, regions: Regions) -> Iterator[Choice]:
    for op in function.body.ops:
        if isinstance(op, Fused):
            region = regions.of(op, function)
            yield Choice(describe(op.body), region.sizes, (("", (region,)),))
        elif isinstance(op, Alternatives):
            ways = [
                (label, tuple(regions.of(inner, function) for inner in way.ops if isinstance(inner, Fused)))
                for label, way in zip(op.labels, op.ways, strict=True)
            ]
            legal = tuple((label, way) for label, way in ways if all(r.legal for r in way))
            yield Choice(describe(op.ways[0]), sizes_of(op.ways[0], service(function)), legal)


def sizes_of(body: Block, served: Service) -> Sizes:
    """The typical sizes of a version, of those symbols that a kernel with this body can read off its tensors."""
    names: set[str] = set()
    for value in (*body.args, *body.outputs):
        type = value.type
        names |= symbols_of((type.slots, *type.shape) if isinstance(type, StateType) else type.shape)
    return tuple(sorted((k, v) for k, v in typical_sizes(*served).items() if k in names))


def describe(body: Block) -> str:
    """A region, or a way with its regions, in a line: `matmul, silu: f32[N, 64], f32[48, 64] -> f32[N, 48]`."""
    ops = ", ".join(dict.fromkeys(op.name for op in body.walk() if not isinstance(op, Constant | Fused)))
    takes, gives = (", ".join(str(v.type) for v in values) for values in (body.args, body.outputs))
    return f"{ops}: {takes} -> {gives}"
