"""The memory of sequences: pools of linear-attention states and of keys and values, a slot for each sequence."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from ringc.errors import ArtifactError, RunError
from ringc.runtime.backends import DTYPES
from ringc.runtime.blocks import zeros
from ringc.runtime.execute import Bound
from ringc.runtime.memory import check_memory

KEPT = 16
"""Bound programs that a cache keeps, the latest used."""


class Key(NamedTuple):
    """What a bound program was bound for: the entry point, its numbers of tokens, sequences and wanted rows, whether it records
    routing, and whether it replays it.
    """

    entry: str
    tokens: int
    batch: int
    rows: int
    record_routing: bool = False
    replay_routing: bool = False


def cache_bytes(states: Mapping[str, Mapping[str, Any]], batch_size: int, max_len: int) -> int:
    """Bytes that a cache takes.

    Args:
        states: the manifest's.
        batch_size, max_len: the cache's.
    """
    return sum(batch_size * prod(_shape(s["shape"], max_len)) * DTYPES[s["dtype"]].itemsize for s in states.values())


class Cache:
    """State of `batch_size` sequences of up to `max_len` tokens each.

    Attributes:
        batch_size: number of slots.
        max_len: most tokens that a slot holds.
        states: pool name -> `[batch_size, *shape]`, updated in place by the model.
    """

    def __init__(
        self, states: Mapping[str, Mapping[str, Any]], batch_size: int, max_len: int, device: torch.device
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_len", max_len)):
            if not isinstance(value, int):
                raise RunError(f"{name} is {value!r}", help="give an integer")
        if batch_size < 1 or max_len < 1:
            raise RunError(
                f"a cache of {batch_size} slots of {max_len} tokens holds nothing", help="both are at least 1"
            )
        self.batch_size = batch_size
        self.max_len = max_len
        help = "use a shorter max_len or fewer slots"
        needed = cache_bytes(states, batch_size, max_len)
        check_memory(needed, device, f"caches of {batch_size} x {max_len} tokens", help)
        shapes = {name: _shape(s["shape"], max_len) for name, s in states.items()}
        dtypes = {name: DTYPES[s["dtype"]] for name, s in states.items()}
        # Zeros: a sequence starts from the empty state, and what masks multiply by 0 must not be NaN.
        self.states = zeros({name: ((batch_size, *shape), dtypes[name]) for name, shape in shapes.items()}, device)
        self._lengths = [0] * batch_size
        self._growing = {name for name, s in states.items() if "S" in s["shape"]}
        self.bound: OrderedDict[Key, Bound] = OrderedDict()

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens that each slot holds, int64 [batch_size]; a copy."""
        return torch.tensor(self._lengths)

    @property
    def bytes(self) -> int:
        """Bytes of all pools."""
        return sum(s.numel() * s.element_size() for s in self.states.values())

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._lengths[slot]

    def free(self, slot: int) -> None:
        """Forget a slot's sequence: the next one starts there from nothing.

        Raises:
            RunError: there is no such slot, or it is no integer.
        """
        if not isinstance(slot, int):
            raise RunError(f"the slot is {slot!r}", help="give one slot at a time, as an integer")
        self.check_slots([slot])
        for name, state in self.states.items():
            if name not in self._growing:  # rows of keys and values beyond the length are never read
                state[slot].zero_()
        self._lengths[slot] = 0

    def check_slots(self, slots: Sequence[int]) -> None:
        """Raise unless the slots are there and distinct.

        Raises:
            RunError: they aren't.
        """
        wrong = [s for s in slots if not 0 <= s < self.batch_size]
        if wrong:
            raise RunError(
                f"there is no slot {wrong[0]} in a cache of {self.batch_size}",
                help=f"slots are 0 .. {self.batch_size - 1}",
            )
        if len(set(slots)) != len(slots):
            twice = next(s for s in slots if list(slots).count(s) > 1)
            raise RunError(f"slot {twice} is given twice", help="each sequence of a batch has a slot of its own")

    def check_room(self, slots: Sequence[int], more: Sequence[int]) -> None:
        """Raise unless each slot can take so many more tokens.

        Raises:
            RunError: one can't; nothing was changed.
        """
        for slot, count in zip(slots, more, strict=True):
            if self._lengths[slot] + count > self.max_len:
                raise RunError(
                    f"slot {slot} holds {self._lengths[slot]} tokens and can't take {count} more: the cache is for {self.max_len}",
                    help="make a cache with a larger max_len, or free the slot",
                )

    def advance(self, slots: Sequence[int], more: Sequence[int]) -> None:
        """Count tokens that the model has put into slots."""
        for slot, count in zip(slots, more, strict=True):
            self._lengths[slot] += count

    def pretend(self, length: int) -> None:
        """Count as if every slot held `length` tokens, none of them computed: for measurements, whose time isn't the numbers'.

        What the slots hold stays as it is; `draw` makes numbers that look like it.

        Raises:
            RunError: the length is negative, or more than a slot holds.
        """
        if not 0 <= length <= self.max_len:
            raise RunError(f"no slot holds {length} tokens", help=f"a slot of this cache holds 0 .. {self.max_len}")
        self._lengths = [length] * self.batch_size

    def draw(self, seed: int) -> None:
        """Fill all pools with standard normal numbers, for measurements: normed keys and values have that size, and no logit is NaN."""
        for name, state in self.states.items():
            draw_state(name, state, seed)

    def keep(self, key: Key, bound: Bound) -> None:
        """Keep a bound program for the next call of these sizes."""
        self.bound[key] = bound
        while len(self.bound) > KEPT:
            self.bound.popitem(last=False)


def draw_state(name: str, state: torch.Tensor, seed: int) -> None:
    """Fill a pool in place with standard normal numbers that follow from its name and the seed, on one kind of device."""
    generator = torch.Generator(state.device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    state.normal_(generator=generator)


def _shape(dims: Sequence[int | str], max_len: int) -> tuple[int, ...]:
    made: list[int] = []
    for d in dims:
        if isinstance(d, str) and d != "S":
            raise ArtifactError(f"a state's size '{d}' is unknown", help="compile the artifact again")
        made.append(max_len if isinstance(d, str) else d)
    return tuple(made)
