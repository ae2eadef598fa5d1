"""Sequences that join and leave a decoder at random, and the same ones alone: what the tests of both kinds of devices compare."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from ringc.runtime.cache import Cache
from ringc.runtime.decoding import Decoder
from ringc.runtime.model import Model
from ringc.runtime.sample import Sampling

SLOTS = 8
ROOM = 40
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.8, top_k=20, top_p=0.9),
    Sampling(temperature=1.3, top_p=0.7),
    Sampling(temperature=0.7, top_k=5),
)


@dataclass
class Sequence:
    """A prompt, how it is continued, and what came out.

    Attributes:
        tokens: of the continuation, the first drawn from the prompt's logits.
        logits: what each token but the first was drawn from, [V] each.
    """

    prompt: list[int]
    sampling: Sampling
    seed: int
    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


def enter(model: Model, cache: Cache, decoder: Decoder, row: int, slot: int, one: Sequence) -> None:
    """Put a new sequence into a row."""
    logits = model.prefill([one.prompt], cache, slots=[slot])
    one.tokens.append(int(decoder.enter(row, slot, logits, one.sampling, seed=one.seed)))


def together(model: Model, batch: int, steps: int, seed: int) -> list[Sequence]:
    """Random sequences in `batch` rows, for so many steps. Some leave for good, some come back later, in another row."""
    rng = random.Random(seed)
    cache = model.new_cache(SLOTS, ROOM)
    decoder = model.decoder(cache, batch)
    rows: dict[int, tuple[int, Sequence]] = {}
    waiting: list[tuple[int, Sequence]] = []
    everyone: list[Sequence] = []
    for step in range(steps):
        empty = [row for row in range(batch) if row not in rows]
        used = {slot for slot, _ in (*rows.values(), *waiting)}
        free = [slot for slot in range(SLOTS) if slot not in used]
        if empty and waiting and rng.random() < 0.3:
            row, (slot, one) = rng.choice(empty), waiting.pop()
            decoder.enter(row, slot, one.tokens[-1], one.sampling, seed=one.seed)
            rows[row] = slot, one
        elif empty and free and rng.random() < 0.3:
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 12))]
            one = Sequence(prompt, rng.choice(SAMPLINGS), rng.randrange(1 << 40))
            everyone.append(one)
            row, slot = rng.choice(empty), rng.choice(free)
            enter(model, cache, decoder, row, slot, one)
            rows[row] = slot, one
        drawn = decoder.step()
        assert torch.equal(decoder.history[step % len(decoder.history)], drawn)
        for row, token in enumerate(drawn.tolist()):
            assert (token == -1) == (row not in rows)
            if row in rows:
                rows[row][1].tokens.append(token)
                rows[row][1].logits.append(decoder.logits[row].clone())
        for row, (slot, one) in list(rows.items()):
            full = cache.length(slot) == ROOM
            if full or rng.random() < 0.05:
                decoder.leave(row)
                del rows[row]
                if not full and rng.random() < 0.5:
                    waiting.append((slot, one))
                else:
                    cache.free(slot)
    assert len(everyone) > steps / 50
    return everyone


def alone(model: Model, batch: int, sequences: list[Sequence]) -> list[Sequence]:
    """The same sequences one after another, each in a decoder of as many rows that nobody else is in."""
    cache = model.new_cache(SLOTS, ROOM)
    decoder = model.decoder(cache, batch)
    made = []
    for i, other in enumerate(sequences):
        one = Sequence(other.prompt, other.sampling, other.seed)
        row, slot = i % batch, i % SLOTS
        enter(model, cache, decoder, row, slot, one)
        for _ in other.logits:
            one.tokens.append(int(decoder.step()[row]))
            one.logits.append(decoder.logits[row].clone())
        decoder.leave(row)
        cache.free(slot)
        made.append(one)
    return made


def assert_equal(made: list[Sequence], wanted: list[Sequence]) -> None:
    """Bit by bit."""
    for i, (a, b) in enumerate(zip(made, wanted, strict=True)):
        assert a.tokens == b.tokens, i
        assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True)), i
