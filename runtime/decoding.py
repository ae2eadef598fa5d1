"""Decoding without the host: a fixed number of rows, in which sequences come and go between steps.

A step is the decode program, the drawing of tokens, and the writing of what was drawn into the program's own inputs. All of it is on the
device, so the host only starts it, on a GPU as one CUDA graph, and may start the next before this one is done.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ringc.errors import RunError
from ringc.runtime.cache import Cache
from ringc.runtime.execute import Bound
from ringc.runtime.sample import Kind, Parameters, Sampling, draw
from ringc.runtime.uniform import stream_of, uniform

GREEDY = Sampling()


@dataclass
class _Held:
    """What the host knows of a row's sequence: where it lives, how many tokens are in, how it draws."""

    slot: int
    length: int
    sampling: Sampling


class Decoder:
    """Rows that decode together; made by `Model.decoder`. A row holds a sequence, or nobody.

    On a GPU nothing here waits for it, and a step allocates nothing; but the first step of each kind of sampling (`Kind`) makes its graph.
    Use one stream.

    Attributes:
        batch: number of rows B.
        logits: float32 [B, V], what the last step drew from; of empty rows without meaning. The next step overwrites it.
        history: int32 [K, B], what the last K steps drew: step s, counted from 0, at `s % K`; -1 for rows that were empty.
        steps: how many steps were started.
    """

    def __init__(
        self,
        bound: Bound,
        cache: Cache,
        history: int,
        recordings: Callable[[], Sequence[list[tuple[torch.Tensor, ...]]]],
        *,
        records: bool,
    ) -> None:
        self._bound = bound
        self._cache = cache
        self._graphs = bound.graphs
        self._captured: dict[Kind, torch.cuda.CUDAGraph] = {}
        self._recordings = recordings
        self._records = records
        inputs = bound.inputs.tensors
        self._ids, self._positions, self._slots = inputs["ids"], inputs["positions"], inputs["slots"]
        self.logits = bound.logits
        self.batch = batch = len(self._ids)
        self._held: list[_Held | None] = [None] * batch
        device = self._ids.device
        self._parameters = Parameters.of([GREEDY] * batch, device)
        self._streams = torch.zeros(batch, dtype=torch.int64, device=device)
        self._drawn = torch.full((batch,), -1, dtype=torch.int32, device=device)
        self._places = torch.arange(history, device=device)[:, None]
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self.history = torch.full((history, batch), -1, dtype=torch.int32, device=device)
        self.steps = 0
        bound.inputs.write(
            {"ids": [0] * batch, "positions": [0] * batch, "slots": [-1] * batch, "offsets": range(batch + 1)}
        )
        if self._graphs is not None:
            # Libraries set themselves up in a first run, which can't be captured. Nobody is there: it changes no state.
            self._work(Kind.GREEDY)
            self._place.zero_()

    @property
    def slots(self) -> list[int]:
        """The slot of each row's sequence; -1 for nobody."""
        return [-1 if held is None else held.slot for held in self._held]

    @torch.no_grad()
    def enter(
        self,
        row: int,
        slot: int,
        first: int | torch.Tensor,
        sampling: Sampling = GREEDY,
        *,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Put a sequence into an empty row, from the next step on.

        Args:
            row: 0 .. B-1.
            slot: of the cache, where the sequence's tokens are.
            first: the token that the next step puts in; or logits [V] or [1, V], as `prefill` gives them, to draw it from.
            sampling: how its tokens are drawn.
            seed: makes the draws repeatable. They depend on it and on tokens' positions, not on row, slot or other rows: a sequence that
                left and enters again with its seed goes on as if it hadn't. None for a random one.

        Returns:
            The first token, int32 [], on the device.

        Raises:
            RunError: there is no such row or slot, one of them is taken, `first` is neither a token nor such logits, or the seed is no
                integer.
        """
        if not isinstance(row, int) or not 0 <= row < self.batch:
            raise RunError(
                f"there is no row {row!r} in a decoder of {self.batch}", help=f"rows are 0 .. {self.batch - 1}"
            )
        if self._held[row] is not None:
            raise RunError(f"row {row} holds a sequence", help="let it leave first, or take an empty row")
        if not isinstance(slot, int) or not (seed is None or isinstance(seed, int)):
            raise RunError(f"slot {slot!r} and seed {seed!r}", help="both are integers")
        self._cache.check_slots([slot])
        if slot in self.slots:
            raise RunError(f"slot {slot} is in row {self.slots.index(slot)} already", help="give each sequence one row")
        size = self.logits.shape[1]
        if isinstance(first, torch.Tensor):
            if first.dtype != torch.float32 or list(first.shape) not in ([size], [1, size]):
                raise RunError(
                    f"logits of {first.dtype} {list(first.shape)}",
                    help=f"give float32 [{size}], or a token as an integer",
                )
        elif not isinstance(first, int) or not 0 <= first < size:
            raise RunError(f"the token is {first!r}", help=f"tokens are integers in 0 .. {size - 1}")
        length = self._cache.length(slot)
        # Numbers go along as arguments of tiny kernels: no memory of the host has to stay as it is until they are read.
        self._parameters.put(row, sampling)
        self._streams[row].fill_(stream_of(secrets.randbits(64) if seed is None else seed))
        self._positions[row].fill_(length)
        self._slots[row].fill_(slot)
        if isinstance(first, torch.Tensor):
            own = slice(row, row + 1)
            uniforms = uniform(self._streams[own], self._positions[own].long())
            rows = Parameters(*(p[own] for p in self._parameters))
            self._ids[own].copy_(draw(first.view(1, -1).to(self._ids.device), rows, uniforms, Kind.of([sampling])))
        else:
            self._ids[row].fill_(first)
        self._held[row] = _Held(slot, length, sampling)
        return self._ids[row].clone()

    def leave(self, row: int) -> None:
        """Empty a row, from the next step on. The sequence's tokens stay in its slot.

        Raises:
            RunError: the row is empty, or there is none.
        """
        if not isinstance(row, int) or not 0 <= row < self.batch or self._held[row] is None:
            raise RunError(f"row {row!r} holds no sequence", help=f"rows with one are {self._rows()}")
        self._held[row] = None
        for numbers, nobody in ((self._slots, -1), (self._ids, 0), (self._positions, 0)):
            numbers[row].fill_(nobody)

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """Put the last token of each row in, and draw the next.

        Returns:
            What was drawn, int32 [B], -1 for empty rows: always the same tensor, which the next step overwrites.

        Raises:
            RunError: a row's slot is full, or was changed by others. Nothing was started.
        """
        held = [one for one in self._held if one is not None]
        for one in held:
            if self._cache.length(one.slot) != one.length:
                raise RunError(
                    f"slot {one.slot} holds {self._cache.length(one.slot)} tokens, and its row {one.length}",
                    help="let a sequence leave before its slot is freed or filled by others",
                )
        slots, ones = [one.slot for one in held], [1] * len(held)
        self._cache.check_room(slots, ones)
        recordings = self._recordings()
        if recordings and not self._records:
            raise RunError(
                "this decoder doesn't record routing", help="make it in the block of `record_routing()` that it is for"
            )
        self._run(Kind.of(one.sampling for one in held))
        self.steps += 1
        self._cache.advance(slots, ones)
        for one in held:
            one.length += 1
        for calls in recordings:
            calls.append(tuple(taken.clone() for taken in self._bound.experts))
        return self._drawn

    def _rows(self) -> list[int]:
        return [row for row, held in enumerate(self._held) if held is not None]

    def _run(self, kind: Kind) -> None:
        if self._graphs is None:
            self._work(kind)
            return
        if kind not in self._captured:
            self._draw(kind)  # a first run of what wasn't run yet; what it draws isn't used
            self._captured[kind] = self._graphs.captured(lambda: self._work(kind))
        self._captured[kind].replay()

    def _work(self, kind: Kind) -> None:
        """All of a step that is on the device. It reads and writes memory that stays where it is."""
        self._bound.launch()
        tokens = self._draw(kind).int()
        nobody = self._slots < 0
        self._drawn.copy_(tokens.masked_fill(nobody, -1))
        self._ids.copy_(tokens.masked_fill(nobody, 0))
        self._positions.add_(~nobody)
        self.history.copy_(torch.where(self._places == self._place, self._drawn, self.history))
        self._place.add_(1).remainder_(len(self.history))

    def _draw(self, kind: Kind) -> torch.Tensor:
        uniforms = None if kind is Kind.GREEDY else uniform(self._streams, self._positions.long() + 1)
        return draw(self.logits, self._parameters, uniforms, kind)
