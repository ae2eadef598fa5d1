"""Some launches of a program, to be timed alone on what the launches in front of them made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ringc
from ringc.runtime.cache import Key
from ringc.runtime.execute import Bound


def part_of(
    model: ringc.Model,
    key: Key,
    longest: int,
    inputs: Mapping[str, Sequence[int]],
    which: Callable[[Bound], tuple[int, int]],
) -> Bound:
    """A program's steps from one to another, after all up to the last of them have run once.

    Programs of a model share the memory of what they make: a part is to be timed before the next is made.

    Args:
        model: whose program.
        key: the program, bound to a cache of its own: states that another run left behind would have this one choose other experts.
        longest: tokens that a sequence may have.
        inputs: of the program.
        which: the first step, and the one behind the last.
    """
    bound = model.bound(key, model.new_cache(key.batch, longest))
    start, end = which(bound)
    bound.inputs.write(inputs)
    for step in bound.steps[:end]:
        step.run()
    return replace(bound, steps=bound.steps[start:end])
