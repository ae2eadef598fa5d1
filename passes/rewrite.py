"""Patterns: rules that replace one operation, found by its class, with something better.

A rule is a function `rule(op, rewriter)` under `@pattern(OpClass)`. It either calls `rewriter.replace` or raises `NoMatch` with the
reason, which costs nothing and answers the question why something did not fuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Effect, Op, Value


class NoMatch(Exception):
    """Why a rule doesn't apply."""


def no_match(why: str) -> NoReturn:
    """Give up on the operation."""
    raise NoMatch(why)


def need(condition: bool, why: str) -> None:
    """Go on only if the condition holds."""
    if not condition:
        raise NoMatch(why)


@dataclass(frozen=True)
class Rule:
    """A rewrite rule and the operations that it starts from."""

    name: str
    starts: tuple[type[Op], ...]
    function: Callable[[Any, Rewriter], None]


def pattern(*starts: type[Op]) -> Callable[[Callable[[Any, Rewriter], None]], Rule]:
    """Decorator: make a function a rule that is tried on each operation of these classes."""

    def made(function: Callable[[Any, Rewriter], None]) -> Rule:
        return Rule(function.__name__, starts, function)

    return made


@dataclass
class Rewriter:
    """What a rule changes a block with. New operations go before the one that the rule started from.

    A rule looks first and changes last: once it has replaced something it may no longer raise `NoMatch`.
    """

    block: Block
    root: Op
    added: list[Op] = field(default_factory=list)
    replaced: list[Op] = field(default_factory=list)
    touched: dict[Op, None] = field(default_factory=dict)

    def __call__(self, op: Op, name: str = "") -> Value:
        """Insert an operation with one result."""
        return self.insert(op, name).result

    def insert(self, op: Op, name: str = "") -> Op:
        self.added.append(op)
        return Builder(self.block, before=self.root, scope=self.root.scope).insert(op, name)

    def replace(self, old: Op, *new: Value) -> None:
        """Let the users of an operation's results take these values instead. Operations that nobody uses any more are dropped.

        Raises:
            NoMatch: the types differ (mostly, in their segments), so that the users would no longer be what they say.
        """
        self.replace_values(*zip(old.results, new, strict=True))

    def replace_values(self, *pairs: tuple[Value, Value]) -> None:
        """Let the users of each pair's first value, a result of some operation, take the second instead.

        Raises:
            NoMatch: the types of a pair differ.
        """
        for before, after in pairs:
            need(before.type == after.type, f"%{before.name} is a {before.type}, its replacement a {after.type}")
        for before, after in pairs:
            if before.name and not after.name:
                after.name = before.name
            self.touched |= dict.fromkeys(before.users())
            self.block.replace_uses(before, after)
            if before.op is not None:
                self.replaced.append(before.op)


def apply_rules(block: Block, rules: Sequence[Rule], limit: int = 100_000) -> Counter[str]:
    """Try the rules on every operation of a block until none applies; gives back how often each did.

    The order is fixed by the block alone: equal graphs give equal results.

    Raises:
        RuntimeError: the rules did not come to rest, which is a mistake in them.
    """
    hits: Counter[str] = Counter()
    by_class: dict[type[Op], list[Rule]] = {}
    work = list(reversed(block.ops))
    queued = set(work)
    while work:
        op = work.pop()
        queued.discard(op)
        if op.block is not block:
            continue
        if type(op) not in by_class:
            by_class[type(op)] = [r for r in rules if issubclass(type(op), r.starts)]
        for rule in by_class[type(op)]:
            rewriter = Rewriter(block, op)
            try:
                rule.function(op, rewriter)
            except NoMatch:
                drop_unused(block, rewriter.added)
                continue
            hits[rule.name] += 1
            if hits.total() > limit:
                raise RuntimeError(f"the rules don't come to rest: {hits.most_common(3)}")
            again = rewriter.touched | dict.fromkeys(rewriter.added) | drop_unused(block, [*rewriter.replaced, op])
            again |= dict.fromkeys(u for new in rewriter.added for r in new.results for u in r.users())
            for t in (*again, op):
                if t.block is block and t not in queued:
                    work.append(t)
                    queued.add(t)
            break
    return hits


def drop_unused(block: Block, ops: Iterable[Op]) -> dict[Op, None]:
    """Erase these operations if unused and without effect, then what they alone used.

    Gives back the users that the operands of what was erased still have: a rule that wants a single user may apply now.
    """
    pending = list(ops)
    left: dict[Op, None] = {}
    while pending:
        op = pending.pop()
        if op.block is block and op.effect is not Effect.WRITES_STATE and not any(r.uses for r in op.results):
            taken = op.inputs()
            block.erase(op)
            pending += [v.op for v in taken if v.op is not None]
            left |= dict.fromkeys(u for v in taken if len(v.uses) < 4 for u in v.users())
    return left


def single_user(value: Value) -> Op:
    """The one operation that takes a value.

    Raises:
        NoMatch: it has several users, or leaves the block.
    """
    need(len(value.uses) == 1 and isinstance(value.uses[0], Op), f"%{value.name} has other users")
    user = value.uses[0]
    assert isinstance(user, Op)
    return user
