"""Select: give every region its implementation, a template and its configuration: the cheapest legal one for the rows that it serves.

Where several ways are open (`alternatives`), each is priced with its own cheapest implementations, and the cheapest way stays. What lost
is noted with what won, for `ringc explain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module
from ringc.ir.ops.call import Alternatives, Fused
from ringc.passes.framework import Pass
from ringc.passes.schedules.candidates import candidates, typical_sizes
from ringc.passes.schedules.model import Candidate, Rows, at
from ringc.passes.target import Target


@dataclass(frozen=True)
class Select(Pass):
    """Choose among the candidates of every region by predicted time at the typical sizes of its version."""

    name = "select"

    def apply(self, module: Module, target: Target) -> None:
        # Layers of one kind in several versions are equal: costs are worked out once.
        known: dict[tuple[str, Rows, str], list[Candidate]] = {}
        for function in module.functions.values():
            _Chooser(function, target, known).run()


@dataclass
class _Chooser:
    """Chooses for one function."""

    function: Function
    target: Target
    known: dict[tuple[str, Rows, str], list[Candidate]]
    rows: Rows = field(init=False)
    serves: str = field(init=False)

    def __post_init__(self) -> None:
        notes = self.function.notes
        self.rows, self.serves = notes.get("rows", (1, 0)), notes.get("serves", "prefill")
        self.sizes = typical_sizes(self.rows, self.serves)

    def run(self) -> None:
        for op in list(self.function.body.ops):
            if isinstance(op, Alternatives):
                self.settle(op)
            elif isinstance(op, Fused):
                self.configure(op)

    def ranked(self, op: Fused) -> list[Candidate]:
        """The candidates of a region, the cheapest legal one first."""
        key = (op.family + op.body.structural_hash(), self.rows, self.serves)
        if key not in self.known:
            found = candidates(op.family, op.body, self.rows, self.target)
            self.known[key] = sorted(found, key=lambda c: (bool(c.illegal), at(c.seconds, self.sizes)))
        return self.known[key]

    def configure(self, op: Fused) -> None:
        """Write the choice into a region.

        Raises:
            CodegenError: all candidates are illegal.
        """
        best, *others = self.ranked(op)
        if best.illegal:
            reasons = "; ".join(c.illegal for c in (best, *others))
            raise CodegenError(f"no {op.family} kernel is legal on {self.target.name}: {reasons}")
        op.implementation, op.seconds, op.workspace = best.implementation, str(best.seconds), best.workspace
        op.lost = tuple((c.implementation, str(c.seconds), c.illegal, op.seconds) for c in others)

    def settle(self, op: Alternatives) -> None:
        """Put the cheapest legal way in the place of the choice."""
        prices = [self.price(label, way) for label, way in zip(op.labels, op.ways, strict=True)]
        best = min(range(len(prices)), key=lambda i: (bool(prices[i].illegal), at(prices[i].seconds, self.sizes)))
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
        won, others = prices[best], (p for p in prices if p is not prices[best])
        made[0].lost += tuple((p.implementation, str(p.seconds), p.illegal, str(won.seconds)) for p in others)
        for old, output in zip(op.results, way.outputs, strict=True):
            mapping[output].name = old.name
            body.replace_uses(old, mapping[output])
        body.erase(op)

    def price(self, label: str, way: Block) -> Candidate:
        """A whole way as one candidate: the sum of its regions' cheapest."""
        best = [self.ranked(op)[0] for op in way.ops if isinstance(op, Fused)]
        illegal = next((c.illegal for c in best if c.illegal), "")
        seconds = sympy.Add(*(c.seconds for c in best))
        return Candidate(f"{label}: {' + '.join(c.implementation for c in best)}", seconds, illegal)
