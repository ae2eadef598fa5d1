"""Types as manifests write them, `f32[N / B, 128]`, and the shapes that they stand for: what a launch must be given.

Looking at an artifact needs neither torch nor the compiler, so this reads the text alone.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType

from ringc.runtime.names import TORCH_NAMES

SYMBOLS = frozenset({"N", "B", "R", "P", "S"})
"""Sizes that a type may speak of: tokens, sequences, wanted rows, slots of a pool, rows of a cache."""

_TYPE = re.compile(
    r"(?P<state>state<)?(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\](?(state)>)(?:@(?P<axis>\d+)x(?P<size>\d+))?"
)
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.USub, ast.Constant, ast.Name, ast.Load, ast.Call,
)  # fmt: skip
_LONGEST = 1000
"""Characters of a type's text: what is longer was not written by the compiler."""


@dataclass(frozen=True)
class Signature:
    """A tensor's element type and the sizes of its axes: numbers, or expressions of the symbols.

    `block`: axis and size of a blocked layout. `state`: a pool, whose first axis is that of the slots.
    """

    dtype: str
    dims: tuple[int | CodeType, ...]
    block: tuple[int, int] | None = None
    state: bool = False

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the storage where the symbols have these values."""
        known = {"__builtins__": {}, "min": min, "max": max}
        shape = [d if isinstance(d, int) else int(eval(d, known, dict(sizes))) for d in self.dims]  # noqa: S307 - `_dim` looked at it
        if self.block is not None:
            axis, size = self.block
            shape[axis] = -(-shape[axis] // size)
            shape.append(size)
        return tuple(shape)


@functools.cache
def read_signature(text: str) -> Signature | None:
    """The signature that a type's text stands for; None if it is no type."""
    found = _TYPE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or found["dtype"] not in TORCH_NAMES:
        return None
    # `N / B` are N rows in B segments: how they are cut says nothing of the shape.
    written = [d.split(" / ")[0].strip() for d in _parted(found["dims"].replace(";", ","))]
    dims = [_dim(d) for d in written if d]
    block = (int(found["axis"]), int(found["size"])) if found["axis"] else None
    if block is not None and (block[0] >= len(dims) or not block[1]):
        return None
    known = tuple(d for d in dims if d is not None)
    return Signature(found["dtype"], known, block, bool(found["state"])) if len(known) == len(dims) else None


def _parted(text: str) -> Sequence[str]:
    """A list's items; commas in parentheses belong to an item."""
    items, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            items.append("")
        else:
            items[-1] += c
    return items


def _dim(text: str) -> int | CodeType | None:
    """A size: a number, or an expression of the symbols with sums, products, floor division, `min` and `max`."""
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return None
    for node in ast.walk(tree):
        named = not isinstance(node, ast.Name) or node.id in SYMBOLS | {"min", "max"}
        called = not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and not node.keywords)
        whole = not isinstance(node, ast.Constant) or type(node.value) is int
        if not (isinstance(node, _NODES) and named and called and whole):
            return None
    return compile(tree, "<size>", "eval")
