"""The model that an artifact and weights make: logits, prefill, decode, generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ringc.errors import CheckpointError, RunError, UsageError
from ringc.runtime.artifact import Artifact, open_artifact
from ringc.runtime.backends import Kernels, run_file
from ringc.runtime.cache import Cache, Key
from ringc.runtime.decoding import Decoder
from ringc.runtime.execute import FEWER_TOKENS, Arena, Bound, Inputs, Numbers, Sizes, bind
from ringc.runtime.memory import check_memory
from ringc.runtime.routing import NONE, Routing, of_all
from ringc.runtime.sample import Sampling
from ringc.runtime.weights import Preparation, Progress, Weights, load_weights

if TYPE_CHECKING:
    from ringc.runtime.replay import Meanings, RoutingReplay

KEEP_LOGITS = 1 << 26
"""Bytes of logits above which a bound prefill is not kept: its result would be, too."""

PREFILL = 2048
"""Tokens of a prompt that `generate` takes at a time: more need more memory and are no faster."""

Ids = torch.Tensor | Sequence[int] | Sequence[Sequence[int]]


def load(
    folder: str | Path,
    weights: Weights | Model,
    *,
    allow_edited: bool = False,
    weights_dtype: torch.dtype | None = None,
    room: int = 0,
    progress: Progress = lambda _done, _total: None,
) -> Model:
    """A model that runs an artifact. Load only artifacts that you trust: they hold code.

    Args:
        folder: what `ringc compile` wrote.
        weights: a checkpoint's folder (safetensors, sharded or not), `random:SEED`, `initial:SEED` (as before training), tensors by
            published name, or another model, whose weights both then use.
        allow_edited: run kernels that were edited since the compile.
        weights_dtype: keep matrices in this type (torch.bfloat16) and widen them when used: half the memory, slower. On a CPU alone: for
            a GPU they are of two bytes, and its kernels ask for weights before the launch that would widen them has ended. Another model's
            are as it keeps them.
        room: bytes that must be left beside the weights, as for a cache (`ringc.runtime.cache.cache_bytes`).
        progress: told how many of the weights are loaded; not of another model's.

    Raises:
        ArtifactError: the artifact is damaged, edited or for another machine.
        CheckpointError: the weights don't fit, or the other model's are laid out for other kernels, or on another device.
        RunError: there isn't enough memory.
        UsageError: `weights_dtype` for another model's weights.
    """
    artifact = open_artifact(folder, allow_edited=allow_edited)
    return Model(artifact, weights, weights_dtype=weights_dtype, room=room, progress=progress)


class Model(torch.nn.Module):
    """A compiled language model.

    Ids are integers in `0 .. vocabulary - 1`, of any integer type. A batch's sequences may differ in length: `lengths[b]` ids of row b
    count, the rest is filling. Logits are float32.
    """

    def __init__(
        self,
        artifact: Artifact,
        weights: Weights | Model,
        *,
        weights_dtype: torch.dtype | None = None,
        room: int = 0,
        progress: Progress = lambda _done, _total: None,
    ) -> None:
        super().__init__()
        manifest = artifact.manifest
        self.artifact = artifact
        self.vocabulary: Mapping[str, Any] = manifest["vocabulary"]
        self._kernels = Kernels(artifact)
        self.device = self._kernels.device
        if isinstance(weights, Model):
            if weights_dtype is not None:
                raise UsageError("another model's weights stay as it keeps them", help="leave weights_dtype out")
            _check_same_layout(artifact, self.device, weights)
            check_memory(room, self.device, "caches", "ask for fewer tokens or sequences, or use a larger machine")
            self._prepared: dict[str, torch.Tensor] = weights._prepared
        else:
            self._prepared = load_weights(
                manifest["prepare"],
                weights,
                self.device,
                ignored=manifest["ignored_tensors"],
                narrow=weights_dtype if self.device.type == "cpu" else None,
                room=room,
                progress=progress,
            )
        program = run_file(artifact, "program.py", defines=manifest["entries"])
        self._programs: dict[str, Callable[..., None]] = {name: program[name] for name in manifest["entries"]}
        self._arguments = {
            name: [argument for argument, _ in versions[0]["inputs"]] for name, versions in manifest["entries"].items()
        }
        self._arena = Arena(self.device)
        self._recordings: list[Routing] = []
        self._replay: RoutingReplay | None = None
        self._meanings: Meanings | None = None

    # -- what users call

    def forward(self, ids: Ids, *, lengths: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Logits of whole sequences: ids [B, T] -> [B, T, V]; zeros behind a sequence's length.

        Raises:
            RunError: an id is outside the vocabulary, or there are none.
        """
        tokens = self._checked(ids, 2, "[B, T]")
        cache = self.new_cache(tokens.shape[0], tokens.shape[1])
        return self.prefill(tokens, cache, lengths=lengths, all_logits=True)

    def new_cache(self, batch_size: int, max_len: int) -> Cache:
        """Memory for `batch_size` sequences of up to `max_len` tokens each.

        Raises:
            RunError: a size is below 1, or there isn't enough memory.
        """
        return Cache(self.artifact.manifest["states"], batch_size, max_len, self.device)

    def prefill(
        self,
        ids: Ids,
        cache: Cache,
        *,
        lengths: Sequence[int] | torch.Tensor | None = None,
        slots: Sequence[int] | torch.Tensor | None = None,
        all_logits: bool = False,
    ) -> torch.Tensor:
        """Run tokens after those that the slots hold; call it again to go on (chunked prefill).

        Args:
            ids: [B, T].
            cache: changed in place.
            lengths: how many ids of each row count, 1 .. T; None for T.
            slots: of each row; None for 0 .. B-1, which must be all of them.
            all_logits: of every token, not of the last ones alone.

        Returns:
            Logits of each sequence's last token [B, V], or of all tokens [B, T, V], zeros behind a sequence's length.

        Raises:
            RunError: ids outside the vocabulary, wrong shapes, lengths or slots, a full cache. The cache is unchanged then.
        """
        tokens = self._checked(ids, 2, "[B, T]")
        batch, longest = tokens.shape
        counts = _integers(lengths, batch, "lengths") if lengths is not None else [longest] * batch
        wrong = [n for n in counts if not 1 <= n <= longest]
        if wrong:
            raise RunError(f"a length of {wrong[0]}, with {longest} ids in a row", help=f"lengths are 1 .. {longest}")
        places = self._slots(cache, slots, batch)
        cache.check_room(places, counts)
        valid = torch.arange(longest) < torch.tensor(counts)[:, None]
        packed = tokens[valid]
        self._check_range(int(packed.min()), int(packed.max()))
        starts = torch.tensor([cache.length(s) for s in places])
        positions = (starts[:, None] + torch.arange(longest))[valid]
        offsets = torch.tensor([0, *counts]).cumsum(0)
        total = int(offsets[-1])
        rows = torch.arange(total) if all_logits else offsets[1:] - 1
        row_offsets = offsets if all_logits else torch.arange(batch + 1)
        inputs: dict[str, Numbers] = {
            "ids": packed.numpy(),
            "positions": positions.numpy(),
            "slots": places,
            "offsets": offsets.numpy(),
            "rows": rows.numpy(),
            "row_offsets": row_offsets.numpy(),
        }
        made = self._run("prefill", cache, inputs)
        cache.advance(places, counts)
        if not all_logits:
            return made
        if all(n == longest for n in counts):
            return made.view(batch, longest, -1)
        logits = made.new_zeros((batch, longest, made.shape[-1]))
        logits[valid.to(made.device)] = made
        return logits

    def decode(self, ids: Ids, cache: Cache, *, slots: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Run one token of each sequence: ids [B] -> logits [B, V].

        Raises:
            RunError: as for `prefill`.
        """
        tokens = self._checked(ids, 1, "[B]").tolist()
        self._check_range(min(tokens), max(tokens))
        batch = len(tokens)
        places = self._slots(cache, slots, batch)
        cache.check_room(places, [1] * batch)
        inputs: dict[str, Numbers] = {
            "ids": tokens,
            "positions": [cache.length(s) for s in places],
            "slots": places,
            "offsets": range(batch + 1),
        }
        made = self._run("decode", cache, inputs)
        cache.advance(places, [1] * batch)
        return made

    def decoder(self, cache: Cache, batch: int, *, history: int = 64) -> Decoder:
        """Rows that decode together, without the host between steps: on a GPU one CUDA graph a step, drawing included.

            decoder = model.decoder(cache, 8)
            logits = model.prefill(prompt, cache, slots=[3])
            first = decoder.enter(0, 3, logits, ringc.Sampling(temperature=0.7), seed=1)  # slot 3's sequence, in row 0
            tokens = decoder.step()  # int32 [8] on the device, -1 in empty rows
            decoder.leave(0)

        Sequences enter and leave between steps; nothing is compiled, bound or captured for it. A decoder that is made in a block of
        `record_routing` adds an entry for each step, of all rows, the empty ones too.

        Args:
            cache: where the sequences live. A slot must not be freed, filled or decoded by others while a row holds it.
            batch: number of rows: each step costs as much as if all of them were held.
            history: of how many steps the tokens are kept.

        Raises:
            RunError: a size is below 1, there isn't enough memory, or routing is being replayed.
        """
        self._check_no_replay()
        for name, value in (("batch", batch), ("history", history)):
            if not isinstance(value, int) or value < 1:
                raise RunError(f"{name} is {value!r}", help="give an integer of at least 1")
        records = bool(self._recordings)
        bound = self._bind(Key("decode", batch, batch, batch, records), cache)

        def recordings() -> list[Routing]:
            self._check_no_replay()
            return self._recordings

        # The decoder keeps this function, and with it the weights and the kernels.
        return Decoder(bound, cache, history, recordings, records=records)

    def generate(
        self,
        ids: Sequence[int] | torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[Sequence[int]] = (),
        end: int | None = -1,
        progress: Progress = lambda _done, _total: None,
    ) -> Iterator[int]:
        """Continue one sequence, token by token, as they are made.

        Args:
            ids: the prompt, at least one token.
            max_new_tokens: stop after so many.
            temperature, top_k, top_p: see `ringc.runtime.sample.Sampling`.
            seed: makes the draw repeatable.
            stop: end as soon as the new tokens end in one of these.
            end: the token that ends the text, which is not given back; -1 for the vocabulary's, None for none.
            progress: told how many tokens of the prompt are in.

        Raises:
            RunError: ids outside the vocabulary, an empty prompt, a parameter out of its range, or routing is being replayed.
        """
        self._check_no_replay()
        prompt = self._checked(ids, 1, "[T], of one sequence,")
        self._check_range(int(prompt.min()), int(prompt.max()))
        if max_new_tokens < 1:
            raise RunError(f"max_new_tokens is {max_new_tokens}", help="ask for at least 1")
        sampling = Sampling(temperature, top_k, top_p)
        return self._generate(prompt, max_new_tokens, sampling, seed, [list(s) for s in stop if len(s)], end, progress)

    def _generate(
        self,
        prompt: torch.Tensor,
        count: int,
        sampling: Sampling,
        seed: int | None,
        stop: Sequence[list[int]],
        end: int | None,
        progress: Progress,
    ) -> Iterator[int]:
        last = self.vocabulary.get("eos") if end == -1 else end
        cache = self.new_cache(1, len(prompt) + count)
        logits = torch.empty(0)
        for start in range(0, len(prompt), PREFILL):
            progress(start, len(prompt))
            logits = self.prefill(prompt[None, start : start + PREFILL], cache)
        # Loading the kernels of a decode step is part of the wait for the first token, not of the time for each.
        decoder = self.decoder(cache, 1)
        token = int(decoder.enter(0, 0, logits, sampling, seed=seed))
        made: list[int] = []
        while token != last:
            made.append(token)
            yield token
            if any(made[-len(s) :] == s for s in stop) or len(made) == count:
                return
            token = int(decoder.step())

    @contextmanager
    def record_routing(self) -> Iterator[Routing]:
        """Record the experts that tokens are given to, for as long as the block runs.

            with model.record_routing() as calls:
                model.prefill([[1, 2, 3], [4, 5, 6]], cache)
                model.decode([7, 8], cache)
            calls[0][2]  # prefill, third layer with experts: i32[6, k]

        Each call of the model, `prefill`, `decode` or a whole one, adds an entry: one tensor i32[N, k] for each layer that has
        experts, in order of layers, on the model's device. The N tokens are those of the first sequence, then those of the second,
        ..., without filling. The order within a row means nothing. A model without experts gives empty entries. Of the last layer a
        prefill makes only the rows whose logits are wanted: the others' experts are -1 there, unless it is asked for `all_logits`.

        Programs are bound apart for this: what isn't recorded costs nothing.
        """
        calls: Routing = []
        self._recordings.append(calls)
        try:
            yield calls
        finally:
            self._recordings = [other for other in self._recordings if other is not calls]

    @contextmanager
    def replay_routing(
        self, recording: Sequence[Sequence[torch.Tensor]], *, judge: bool = False
    ) -> Iterator[RoutingReplay]:
        """Take the experts from a recording in place of choosing them, for as long as the block runs. This needs the compiler.

            with model.record_routing() as calls:
                model.prefill(ids, cache)
            with model.replay_routing(cut(calls, [512] * 4)):  # ringc.runtime.routing.cut
                for part in ids.split(512, 1):
                    model.prefill(part, other)

        Each call of the model takes the next call of the recording, which must be of its tokens in the order that `record_routing` gives
        them; of the last layer a prefill looks at those alone whose logits are wanted. What a token's experts count is computed from this
        model's own scores. Recording goes on, and gives what was replayed. Programs are bound apart for this; what isn't replayed costs
        nothing. `generate` and decoders don't replay.

        Args:
            recording: what `record_routing` gave, or tensors like it.
            judge: keep, for each call, the scores and what they would have chosen: `choices` of what this gives. They take
                N * E * 4 bytes in each layer of a call.

        Raises:
            RunError: a replay is going on. In a call: the recording has no further one, or experts of another shape, or such as there
                aren't; nothing has run then.
            ArtifactError: the artifact's module can't be read.
        """
        from ringc.runtime.replay import Meanings, RoutingReplay

        self._check_no_replay()
        if self._meanings is None:
            self._meanings = Meanings(self.artifact, self.device)
        self._replay = RoutingReplay(list(recording), judge)
        try:
            yield self._replay
        finally:
            self._replay = None

    def _check_no_replay(self) -> None:
        if self._replay is not None:
            raise RunError(
                "routing is being replayed", help="only prefill, decode and whole calls replay; end its block first"
            )

    def state_dict(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:  # type: ignore[override] # has no prefix
        """Published name -> tensor, read back out of the layouts that the kernels use. A copy."""
        preparation = Preparation(self.artifact.manifest["prepare"])
        return {name: preparation.published(self._prepared, name) for name in preparation.parts}

    @property
    def prepared(self) -> Mapping[str, torch.Tensor]:
        """The weights as they are kept, by the keys of the manifest. Not copies."""
        return self._prepared

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take as they are kept."""
        return sum(w.numel() * w.element_size() for w in self._prepared.values())

    @property
    def intermediate_bytes(self) -> int:
        """Bytes of the block in which the intermediate results of all programs lie."""
        return self._arena.memory.numel()

    # -- running

    @torch.no_grad()
    def _run(self, entry: str, cache: Cache, inputs: Mapping[str, Numbers]) -> torch.Tensor:
        """Bind the entry point for these sizes, unless it is, and replay it."""
        tokens = len(inputs["ids"])
        rows = inputs.get("rows", range(tokens))
        replay = self._replay
        sizes = tokens, len(inputs["slots"]), len(rows)
        key = Key(entry, *sizes, bool(self._recordings), replay is not None)
        bound = self.bound(key, cache)
        if replay is not None:
            replay.give(bound.replayed, tokens, rows)
        bound.inputs.write(inputs)
        bound.run()
        if replay is not None:
            replay.note(bound.replayed, tokens, rows)
        for calls in self._recordings:
            calls.append(tuple(of_all(taken, tokens, rows, NONE) for taken in bound.experts))
        if entry != "decode" and bound.logits.numel() * 4 > KEEP_LOGITS:
            return bound.logits
        cache.keep(key, bound)
        return bound.logits.clone()

    def bound(self, key: Key, cache: Cache) -> Bound:
        """The program of these sizes, bound to a cache: the one that the cache keeps, which gives it up, or else a new one.

        `prefill` and `decode` write its inputs, run it and put it back with `cache.keep`.
        """
        bound = cache.bound.pop(key, None)
        if bound is None or bound.generation != self._arena.generation:
            bound = self._bind(key, cache)
        return bound

    def _bind(self, key: Key, cache: Cache) -> Bound:
        entry, tokens, batch, rows, record_routing, replay_routing = key
        counts = {"ids": tokens, "positions": tokens, "slots": batch, "offsets": batch + 1}
        counts |= {"rows": rows, "row_offsets": batch + 1}
        needed = rows * self.vocabulary["size"] * torch.float32.itemsize
        check_memory(needed, self.device, f"logits of {rows} tokens", FEWER_TOKENS)
        logits = torch.empty((rows, self.vocabulary["size"]), dtype=torch.float32, device=self.device)
        sizes = Sizes(tokens, batch, rows, cache.batch_size, cache.max_len)
        arguments = self._arguments[entry]
        return bind(
            self._programs[entry],
            arguments,
            Inputs(counts, self.device),
            cache.states,
            logits,
            sizes,
            self._prepared,
            self._kernels,
            self._arena,
            record_routing=record_routing,
            meanings=self._meanings if replay_routing else None,
        )

    # -- checks

    def _checked(self, ids: Ids, rank: int, shape: str) -> torch.Tensor:
        """Ids as a tensor of this rank, of a `shape` in words, on the CPU."""
        try:
            tokens = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"ids are no table of integers: {error}", help="fill up short rows, and give `lengths`"
            ) from error
        if tokens.numel() == 0:
            raise RunError("there are no ids", help="give at least one token of each sequence")
        if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
            raise RunError(f"ids of type {tokens.dtype}", help="ids are integers")
        if tokens.ndim != rank:
            raise RunError(f"ids of shape {list(tokens.shape)}", help=f"ids are {shape} here")
        return tokens.to("cpu", torch.int64)  # of unsigned ones torch can't even tell the least

    def _check_range(self, low: int, high: int) -> None:
        size = int(self.vocabulary["size"])
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise RunError(f"the id {wrong} is outside the vocabulary of {size}", help=f"ids are 0 .. {size - 1}")

    def _slots(self, cache: Cache, slots: Sequence[int] | torch.Tensor | None, batch: int) -> list[int]:
        if slots is None:
            if batch != cache.batch_size:
                raise RunError(
                    f"{batch} sequences for a cache of {cache.batch_size} slots",
                    help="say with `slots` where each of them lives",
                )
            return list(range(batch))
        places = _integers(slots, batch, "slots")
        cache.check_slots(places)
        return places


def _integers(values: Sequence[int] | torch.Tensor, count: int, what: str) -> list[int]:
    """A list of integers from a list or a tensor."""
    message = f"{what} are not {count} integers"
    help = "give one for each sequence, in a list or a tensor"
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:  # words, None, lists of different lengths
        raise RunError(f"{message}: {error}", help=help) from error
    if tensor.ndim != 1 or len(tensor) != count:
        raise RunError(f"{message}, but of shape {list(tensor.shape)}", help=help)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise RunError(f"{message}, but of type {tensor.dtype}", help=help)
    return [int(v) for v in tensor.tolist()]


def _check_same_layout(artifact: Artifact, device: torch.device, other: Model) -> None:
    """Raise unless an artifact keeps its weights as another one does, whose model has them."""
    mine, theirs = artifact.manifest, other.artifact.manifest
    name, source = artifact.folder, other.artifact.folder
    keys = sorted(mine["prepare"].keys() | theirs["prepare"].keys())
    differing = next((key for key in keys if mine["prepare"].get(key) != theirs["prepare"].get(key)), None)
    if device != other.device:
        reason = f"{name} runs on {device}, and the weights that it was given are on {other.device}"
    elif differing is not None:
        reason = f"{name} doesn't keep {differing} as {source} does, whose weights it was given"
    else:
        return
    raise CheckpointError(reason, help="load the weights from where they come")
