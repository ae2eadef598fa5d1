"""Select: give every region its implementation, a template and its configuration: the fastest legal one for the rows that it serves.

How fast one is, the tuning record says, else the cost model. A region is settled by the record where each of its legal candidates has an
entry for the typical sizes of the version, and by the model otherwise: a measured time is never compared with a predicted one.

Where several ways are open (`alternatives`), each is priced with its own best implementations, and the cheapest way stays: by measured
times where the record settles all parts of all legal ways, else by predicted ones, as if there were no record. What lost is noted with
what won, for `ringc explain`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import sympy

from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Function, Module
from ringc.ir.ops.call import Alternatives, Fused
from ringc.passes.choices import Regions, sizes_of
from ringc.passes.framework import Pass
from ringc.passes.record import Record, Sizes, load_record, sizes_text
from ringc.passes.schedules.candidates import Service, service, typical_sizes
from ringc.passes.schedules.model import Candidate, at, cost_text
from ringc.passes.target import Target


@dataclass(frozen=True)
class Select(Pass):
    """Choose among the candidates of every region by measured or predicted time at the typical sizes of its version."""

    name = "select"
    record: str | Record = ""

    def apply(self, module: Module, target: Target) -> None:
        record = load_record(self.record, target.name) if self.record and isinstance(self.record, str) else self.record
        chooser = _Chooser(Regions(target), record or Record(target.name, ""))
        for function in module.functions.values():
            chooser.run(function)


@dataclass(frozen=True)
class _Ranking:
    """The candidates of a region, the best legal one first; which is the best by the model alone; the seconds of the legal ones where the
    record has them all.
    """

    candidates: list[Candidate]
    by_model: Candidate
    measured: dict[str, float]
    sizes: Sizes

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True)
class _Price:
    """A way as one candidate, the sum of its regions' best, and its seconds: measured ones or predicted ones."""

    way: Candidate
    seconds: float


@dataclass
class _Chooser:
    """Chooses, one function after the other."""

    regions: Regions
    record: Record
    known: dict[tuple[str, Service], _Ranking] = field(default_factory=dict)
    function: Function = field(init=False)

    def run(self, function: Function) -> None:
        self.function = function
        for op in list(function.body.ops):
            if isinstance(op, Alternatives):
                self.settle(op)
            elif isinstance(op, Fused):
                self.configure(op)

    def predicted(self, candidate: Candidate) -> float:
        return at(candidate.seconds, typical_sizes(*service(self.function)))

    def ranked(self, op: Fused) -> _Ranking:
        region = self.regions.of(op, self.function)
        # Layers of one kind in several versions are equal: costs are worked out once.
        key = (region.key, service(self.function))
        if key not in self.known:
            legal = [c.implementation for c in region.legal]
            measured = self.record.times(region.key, region.sizes, legal)
            if len(measured) < len(legal):
                measured = {}

            by_model = sorted(region.candidates, key=lambda c: (bool(c.illegal), self.predicted(c)))
            found = sorted(by_model, key=lambda c: measured.get(c.implementation, math.inf))
            self.known[key] = _Ranking(found, by_model[0], measured, region.sizes)
        return self.known[key]

    def configure(self, op: Fused) -> None:
        """Write the choice into a region.

        Raises:
            CodegenError: all candidates are illegal.
        """
        ranking = self.ranked(op)
        best, *others = ranking.candidates
        if best.illegal:
            reasons = "; ".join(c.illegal for c in (best, *others))
            raise CodegenError(f"no {op.family} kernel is legal on {self.regions.target.name}: {reasons}")
        op.implementation, op.seconds, op.workspace = best.implementation, cost_text(best.seconds), best.workspace
        op.lost = tuple((c.implementation, cost_text(c.seconds), c.illegal, op.seconds) for c in others)
        op.measured = tuple(
            (sizes_text(ranking.sizes), name, _text(seconds), _text(ranking.measured[best.implementation]))
            for name, seconds in sorted(ranking.measured.items(), key=lambda item: item[1])
        )

    def settle(self, op: Alternatives) -> None:
        """Put the cheapest legal way in the place of the choice."""
        rankings = [[self.ranked(inner) for inner in way.ops if isinstance(inner, Fused)] for way in op.ways]
        by_record = all(r.measured for way in rankings if not _illegal(way) for r in way)
        prices = [self.price(label, way, by_record) for label, way in zip(op.labels, rankings, strict=True)]
        best = min(range(len(prices)), key=lambda i: (bool(prices[i].way.illegal), prices[i].seconds))
        body, way = self.function.body, op.ways[best]
        build = Builder(body, before=op, scope=op.scope)
        mapping = dict(zip(way.args, op.arguments, strict=True))
        made: list[Fused] = []
        for inner in way.ops:
            copy = build.insert(inner.clone(mapping))
            mapping.update(zip(inner.results, copy.results, strict=True))
            if isinstance(copy, Fused):  # else it is a view between regions
                self.configure(copy)
                made.append(copy)
        won, others = prices[best], [p for p in prices if p is not prices[best]]
        # Noted with the kernel that the choice is about, not with row work in front of it.
        chosen = next((region for region in made if region.family != "row"), made[0])
        chosen.lost += tuple(
            (p.way.implementation, cost_text(p.way.seconds), p.way.illegal, cost_text(won.way.seconds)) for p in others
        )
        if by_record:
            sizes = sizes_text(sizes_of(way, service(self.function)))
            legal = [p for p in others if not p.way.illegal]
            chosen.measured += tuple((sizes, p.way.implementation, _text(p.seconds), _text(won.seconds)) for p in legal)
        for old, output in zip(op.results, way.outputs, strict=True):
            mapping[output].name = old.name
            body.replace_uses(old, mapping[output])
        body.erase(op)

    def price(self, label: str, way: list[_Ranking], by_record: bool) -> _Price:
        """What a way costs; by the model, each of its regions is what the model would make of it."""
        best = [r.best if by_record else r.by_model for r in way]
        name = f"{label}: {' + '.join(c.implementation for c in best)}"
        whole = Candidate(name, sympy.Add(*(c.seconds for c in best)), _illegal(way))
        if by_record and not whole.illegal:
            return _Price(whole, sum(r.measured[r.best.implementation] for r in way))
        return _Price(whole, self.predicted(whole))


def _illegal(way: list[_Ranking]) -> str:
    """Why a way may not be taken, if so: it has a region without a legal candidate."""
    return next((r.best.illegal for r in way if r.best.illegal), "")


def _text(seconds: float) -> str:
    return f"{seconds:.4g}"
