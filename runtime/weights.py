"""Published tensors into prepared ones, and back.

A checkpoint is read shard by shard and tensor by tensor; each goes straight to its place, so the peak is one tensor above the model.
Or they are drawn, `random:SEED` or `initial:SEED`: `ringc.runtime.drawn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ringc.codegen.packing import read_part, storage_shape, write_part
from ringc.errors import CheckpointError, Place, did_you_mean, reason
from ringc.json_file import read_json
from ringc.runtime.backends import DTYPES
from ringc.runtime.blocks import zeros
from ringc.runtime.drawn import draw_of
from ringc.runtime.memory import available_bytes, check_memory
from ringc.units import size

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DOWNLOAD = "download it, or the checkpoint anew"
_GIVE_FOLDER = "give the folder that holds the safetensors files"

Weights = str | Path | Mapping[str, torch.Tensor]
"""A checkpoint's folder or file, `random:SEED` or `initial:SEED`, or tensors by published name."""

_QUANTIZED = "use the checkpoint in bf16: quantized weights aren't read"

Progress = Callable[[int, int], None]
"""Told how many published tensors are loaded, and how many there are."""


@dataclass(frozen=True)
class Part:
    """Where a published tensor goes: `key`'s region, after `steps`. `index`: its place in a stack, or None."""

    key: str
    shape: tuple[int, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    region: tuple[tuple[int, int], ...]
    index: int | None


class Preparation:
    """The manifest's map between published and prepared tensors."""

    def __init__(self, prepare: Mapping[str, Mapping[str, Any]]) -> None:
        self.entries = prepare
        self.parts: dict[str, list[Part]] = {}
        for key, entry in prepare.items():
            for part in entry.get("parts", ()):
                for name, found in _unstacked(key, part):
                    self.parts.setdefault(name, []).append(found)

    def bytes(self, narrow: torch.dtype | None = None) -> int:
        """Bytes of all prepared tensors."""
        return sum(
            math.prod(storage_shape(e["shape"], e.get("blocks", ()))) * stored_dtype(e, narrow).itemsize
            for e in self.entries.values()
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Published name -> shape, for every tensor that the model needs."""
        return {name: parts[0].shape for name, parts in self.parts.items()}

    def empty(self, device: torch.device, narrow: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Memory for the prepared tensors; tables are filled in."""
        shapes = {
            key: (storage_shape(entry["shape"], entry.get("blocks", ())), stored_dtype(entry, narrow))
            for key, entry in self.entries.items()
        }
        made = zeros(shapes, device)  # what fills up a block stays zero; all else is written
        for key, entry in self.entries.items():
            blocks, storage, dtype = entry.get("blocks", ()), made[key], made[key].dtype
            if "table" in entry:
                table = torch.tensor(entry["table"], dtype=dtype).reshape(entry["shape"])
                write_part(storage, blocks, [(0, n) for n in entry["shape"]], table)
            if dtype != DTYPES[entry["dtype"]]:
                storage.ringc_read_as = DTYPES[entry["dtype"]]  # type: ignore[attr-defined] # see Binder.launch
        return made

    def put(self, prepared: Mapping[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
        """Store a published tensor wherever it goes."""
        for part in self.parts[name]:
            blocks = self.entries[part.key].get("blocks", ())
            write_part(prepared[part.key], blocks, part.region, _moved(tensor, part))

    def published(self, prepared: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """A published tensor read back out of the prepared ones: the inverse of `put`."""
        first = prepared[self.parts[name][0].key]
        whole = torch.empty(self.parts[name][0].shape, dtype=first.dtype, device=first.device)
        for part in self.parts[name]:
            blocks = self.entries[part.key].get("blocks", ())
            # The steps are views, so what is written through them lands where it was read from.
            _moved(whole, part, views=True).copy_(read_part(prepared[part.key], blocks, part.region))
        return whole


def stored_dtype(entry: Mapping[str, Any], narrow: torch.dtype | None) -> torch.dtype:
    """The type that a prepared tensor is kept in: matrices may be kept narrower than kernels read them.

    A table of which kernels read single rows is not: widening all of it for a few rows would cost more than it saves.
    """
    dtype = DTYPES[entry["dtype"]]
    is_matrix = len(entry["shape"]) >= 2 and "parts" in entry and not entry.get("gathered", False)
    return narrow if narrow is not None and is_matrix and narrow.itemsize < dtype.itemsize else dtype


def load_weights(
    prepare: Mapping[str, Mapping[str, Any]],
    weights: Weights,
    device: torch.device,
    *,
    ignored: Sequence[str] = (),
    narrow: torch.dtype | None = None,
    room: int = 0,
    progress: Progress = lambda _done, _total: None,
) -> dict[str, torch.Tensor]:
    """The prepared tensors of a model, by key.

    Args:
        prepare: the manifest's map.
        weights: where the published tensors come from.
        device: where the prepared ones go.
        ignored: parts of names of tensors in a checkpoint that are no parameters.
        narrow: keep matrices in this type, and widen them when they are used: half the memory, slower.
        room: bytes that must be left beside them.
        progress: told how far it is.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of the wrong shape or not finite, or a file can't be read.
        RunError: there isn't enough memory; nothing was loaded.
    """
    preparation = Preparation(prepare)
    tensors = _published(weights, preparation, ignored, device)
    _check_fits(preparation, device, narrow, room)
    prepared = preparation.empty(device, narrow)
    missing = set(preparation.parts)
    for name, given, place in tensors:
        tensor = given.to(device)  # what is done to it is done there
        _check_tensor(name, tensor, preparation.parts[name][0].shape, place)
        preparation.put(prepared, name, tensor)
        missing.discard(name)
        progress(len(preparation.parts) - len(missing), len(preparation.parts))
    assert not missing, "each source checks its names before it gives the first tensor"
    return prepared


def _check_fits(preparation: Preparation, device: torch.device, narrow: torch.dtype | None, room: int) -> None:
    """Raise unless the weights fit, and as much beside them as is asked for."""
    free, needed = available_bytes(device), preparation.bytes(narrow)
    if narrow is None and preparation.bytes(torch.bfloat16) + room <= free:
        remedy = "keep the weights in bf16: --weights-dtype bf16"
    elif needed <= free:
        remedy = "ask for fewer tokens or sequences, or use a larger machine"
    else:
        remedy = "use a smaller model, or a larger machine"
    what = f"the model's weights ({size(needed)}) and the cache ({size(room)})" if room else "the model's weights"
    check_memory(needed + room, device, what, remedy)


class PublishedTensors(Mapping[str, torch.Tensor]):
    """The published tensors of a model by name, each made or read when it is asked for: for who needs them as they are published.

    Args:
        prepare: the manifest's map.
        weights: where they come from.
        device: where they go.
        ignored: parts of names of tensors in a checkpoint that are no parameters.

    Raises:
        CheckpointError: a tensor is missing or superfluous, or a file can't be read.
    """

    def __init__(
        self,
        prepare: Mapping[str, Mapping[str, Any]],
        weights: Weights,
        device: torch.device,
        ignored: Sequence[str] = (),
    ) -> None:
        self._preparation = Preparation(prepare)
        self._device = device
        self._given = weights if isinstance(weights, Mapping) else {}
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._draw = draw_of(weights, device)
        if isinstance(weights, Mapping):
            _check_names(weights, self._preparation, ignored, None)
        elif self._draw is None:
            self._files = {name: file for file, listed in _shards(Path(weights)).items() for name in listed}
            _check_names(self._files, self._preparation, ignored, Place(Path(weights)))

    def __getitem__(self, name: str) -> torch.Tensor:
        part = self._preparation.parts[name][0]
        if self._draw is not None:
            return self._draw(name, part.shape)
        if name in self._given:
            return self._given[name].to(self._device)
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _opened(file)
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor.to(self._device)

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        return sum(math.prod(shape) for shape in self._preparation.shapes().values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._preparation.parts)

    def __len__(self) -> int:
        return len(self._preparation.parts)


_Tensors = Iterator[tuple[str, torch.Tensor, Place | None]]


def _published(weights: Weights, preparation: Preparation, ignored: Sequence[str], device: torch.device) -> _Tensors:
    """The needed tensors, after a check that the source has them all and no others."""
    if isinstance(weights, Mapping):
        _check_names(weights, preparation, ignored, None)
        return ((name, weights[name], None) for name in preparation.parts)
    draw = draw_of(weights, device)
    if draw is not None:
        return ((name, draw(name, shape), None) for name, shape in preparation.shapes().items())
    files = _shards(Path(weights))
    names = {name: file for file, listed in files.items() for name in listed}
    _check_names(names, preparation, ignored, Place(Path(weights)))
    return _read_shards(files, preparation)


def _check_names(
    found: Mapping[str, Any], preparation: Preparation, ignored: Sequence[str], place: Place | None
) -> None:
    missing = [n for n in preparation.parts if n not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"the checkpoint lacks the tensor {missing[0]}{more}",
            place=place,
            help=did_you_mean(missing[0], [n for n in found if n not in preparation.parts])
            or "is it of this architecture? `ringc import` makes a spec of its config.json",
        )
    extra = [n for n in found if n not in preparation.parts and not any(part in n for part in ignored)]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(
            f"the checkpoint has a tensor that the model hasn't: {extra[0]}{more}",
            place=place,
            help=(_QUANTIZED if "scale" in extra[0] else did_you_mean(extra[0], missing))
            or "is it a checkpoint of this architecture? `ringc import` makes a spec of its config.json",
        )


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], place: Place | None) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name} has the shape {list(tensor.shape)}, and the model's is {list(shape)}",
            place=place,
            help="is it a checkpoint of this architecture? `ringc import` makes a spec of its config.json",
        )
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        raise CheckpointError(
            f"{name} holds numbers of type {str(tensor.dtype).removeprefix('torch.')}, which are no weights",
            place=place,
            help=_QUANTIZED,
        )
    # Kernels compute in float32 at most: what only a double can hold is infinite there.
    values = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not bool(torch.isfinite(values).all()):
        what = "NaN" if bool(values.isnan().any()) else "infinite numbers"
        raise CheckpointError(f"{name} holds {what}", place=place, help="is the file damaged, or did training diverge?")


def _shards(path: Path) -> dict[Path, list[str]]:
    """Safetensors file -> the names in it, without reading a tensor."""
    try:
        return _found_in(path)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise CheckpointError(
            f"the checkpoint can't be read: {reason(error)}", place=Place(path), help=_GIVE_FOLDER
        ) from error


def _found_in(path: Path) -> dict[Path, list[str]]:
    if path.is_file():
        return {path: _names_in(path)}
    if not path.is_dir():
        raise CheckpointError("there is no such folder", place=Place(path), help=_GIVE_FOLDER)
    if (path / INDEX).is_file():
        return _indexed(path / INDEX)
    if (path / SINGLE).is_file():
        return {path / SINGLE: _names_in(path / SINGLE)}
    pickled = sorted(p for ending in ("bin", "pt", "pth", "ckpt") for p in path.glob(f"*.{ending}"))
    raise CheckpointError(
        f"the folder holds neither {SINGLE} nor {INDEX}",
        place=Place(path),
        help=f"convert {pickled[0].name} to safetensors: nothing else is read" if pickled else _GIVE_FOLDER,
    )


def _indexed(index: Path) -> dict[Path, list[str]]:
    _, read = read_json(index, "the index", CheckpointError, _DOWNLOAD)
    listed = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError("the index has no 'weight_map' from tensors to files", place=Place(index), help=_DOWNLOAD)
    by_file: dict[str, list[str]] = {}
    for name, file in listed.items():
        by_file.setdefault(file, []).append(name)
    found: dict[Path, list[str]] = {}
    for file, names in by_file.items():
        path = index.parent / file
        if Path(file).name != file or file in ("", "..") or "\0" in file:
            raise CheckpointError(
                f"the index names a file outside the folder: {file!r}", place=Place(index), help=_DOWNLOAD
            )
        if not path.is_file():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"the shard {file} is missing, with {names[0]}{more}",
                place=Place(path),
                help=_DOWNLOAD,
            )
        inside = set(_names_in(path))
        lost = [n for n in names if n not in inside]
        if lost:
            raise CheckpointError(
                f"the index says that {lost[0]} is in {file}, and it isn't", place=Place(path), help=_DOWNLOAD
            )
        found[path] = names
    return found


def _names_in(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _opened(path: Path) -> Any:
    try:
        with path.open("rb"):
            pass  # safetensors says "no such file" whatever the reason
    except OSError as error:
        raise CheckpointError(
            f"the safetensors file can't be read: {reason(error)}", place=Place(path), help="check its permissions"
        ) from error
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the safetensors file can't be read: {_short(error)}",
            place=Place(path),
            help="it is truncated or damaged: download it anew",
        ) from error


def _short(error: Exception) -> str:
    """The reader's reason, without its list of everything that it would have taken."""
    return (reason(error) if isinstance(error, OSError) else str(error)).partition(", expected one of")[0]


def _read_shards(files: Mapping[Path, Sequence[str]], preparation: Preparation) -> _Tensors:
    for path, names in files.items():
        with _opened(path) as file:
            for name in names:
                if name in preparation.parts:
                    try:
                        tensor = file.get_tensor(name)
                    except (SafetensorError, OSError, ValueError) as error:
                        raise CheckpointError(
                            f"{name} can't be read: {_short(error)}", place=Place(path), help=_DOWNLOAD
                        ) from error
                    yield name, tensor, Place(path)


def _unstacked(key: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Part]]:
    """The part as the manifest has it, or one for each tensor that its `*` stands for."""
    region = tuple((int(a), int(b)) for a, b in entry["region"])
    steps = tuple((str(name), tuple(int(n) for n in numbers)) for name, numbers in entry.get("steps", ()))
    shape = tuple(entry["shape"])
    stack = entry.get("stack", 0)
    if not stack:
        yield entry["source"], Part(key, shape, steps, region, None)
        return
    for i in range(stack):
        first = region[0][0] + i
        yield entry["source"].replace("*", str(i)), Part(key, shape, steps, ((first, first + 1), *region[1:]), i)


def _moved(tensor: torch.Tensor, part: Part, *, views: bool = False) -> torch.Tensor:
    """A published tensor after the part's steps. One of a stack goes through them as a stack of one."""
    if part.index is not None:
        tensor = tensor.unsqueeze(0)
    for name, numbers in part.steps:
        match name:
            case "permute":
                tensor = tensor.permute(numbers)
            case "slice":
                tensor = tensor.narrow(numbers[0], numbers[1], numbers[2] - numbers[1])
            case "reshape":
                shape = numbers if part.index is None else (1, *numbers[1:])
                tensor = tensor.view(shape) if views else tensor.reshape(shape)
            case _:
                raise CheckpointError(f"the manifest moves weights by '{name}', which is unknown")
    return tensor
