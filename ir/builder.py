"""Writes operations into a block, one call each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ringc.ir.core import Block, Op, Value


class Builder:
    """Inserts operations at the end of a block, or before a given operation.

    `scope` labels what is inserted with the part of the model that it belongs to (`layers.3`), for error messages and for the pass
    that outlines repeated layers.
    """

    def __init__(self, block: Block, before: Op | None = None, scope: str = "") -> None:
        self.block = block
        self.before = before
        self.scope = scope

    def insert(self, op: Op, name: str = "") -> Op:
        op.scope = op.scope or self.scope
        self.block.insert(op, self.before)
        if name:
            op.results[0].name = name
        return op

    def __call__(self, op: Op, name: str = "") -> Value:
        """Insert an operation with one result, and give that back."""
        return self.insert(op, name).result

    @contextmanager
    def within(self, scope: str) -> Iterator[None]:
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before
