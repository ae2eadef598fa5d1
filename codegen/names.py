"""Python identifiers for the values of a block, the same ones each time."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection

from ringc.ir.core import Block, Value

_FOREIGN = re.compile(r"\W")


class Names:
    """Gives each value a Python identifier of its own, from its name in the IR where it has one.

    Args:
        taken: identifiers that mean something else in the generated file.
    """

    def __init__(self, taken: Collection[str] = ()) -> None:
        self._taken = set(taken)
        self._of: dict[Value, str] = {}
        self._count = 0

    def fresh(self, hint: str) -> str:
        """An identifier that nothing has yet: the hint, with a number behind it where the hint is taken."""
        hint = _FOREIGN.sub("_", hint) or "t"
        hint = f"t{hint}" if hint[0].isdigit() else hint
        name, number = hint, 1
        while name in self._taken or keyword.iskeyword(name):
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def __getitem__(self, value: Value) -> str:
        if value not in self._of:
            named = value.name and not value.name.isdigit()
            self._of[value] = self.fresh(value.name) if named else self._numbered()
        return self._of[value]

    def _numbered(self) -> str:
        self._count += 1
        return self.fresh(f"t{self._count}")

    def __setitem__(self, value: Value, name: str) -> None:
        self._of[value] = name

    def __contains__(self, value: Value) -> bool:
        return value in self._of


def argument_names(block: Block, names: Names) -> list[str]:
    """Identifiers of a block's arguments, in order; those that have one keep it."""
    for i, arg in enumerate(block.args):
        if arg in names:
            continue
        if not arg.name or arg.name.isdigit():
            names[arg] = names.fresh(f"in{i}")
    return [names[arg] for arg in block.args]
