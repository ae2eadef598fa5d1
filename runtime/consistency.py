"""Whether a manifest agrees with itself: what one entry says must be what the others take for granted.

A hash says that a manifest is as it was signed, not that it makes sense. What is found here is what no compiler writes; what can only be
seen when the host program runs (`ringc.runtime.execute`) is said in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ringc.runtime.signature import read_signature

INPUTS = {
    "ids": "i32[N / B]", "positions": "i32[N / B]", "slots": "i32[B]", "offsets": "i32[B + 1]", "rows": "i32[R / B]",
    "row_offsets": "i32[B + 1]",
}  # fmt: skip
"""What the runtime hands to entry points, beside the states."""

ENDS = ("bos", "eos", "pad")
"""Tokens of a vocabulary that mean something."""


def contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest whose entries have the right types, in half a sentence each."""
    yield from _sizes(manifest)
    for name, state in manifest["states"].items():
        if not all(d == "S" or (isinstance(d, int) and d > 0) for d in state["shape"]):
            yield f"the state {name} has a size that is neither a number above 0 nor S"
    yield from _entries(manifest)
    for name, entry in manifest["kernels"].items():
        yield from _kernel(name, entry)
    for name, entry in manifest["prepare"].items():
        yield from (f"the prepared tensor {name} {what}" for what in _prepared(entry))


def _sizes(manifest: Mapping[str, Any]) -> Iterator[str]:
    vocabulary = manifest["vocabulary"]
    if vocabulary["size"] < 1:
        yield f"the vocabulary has {vocabulary['size']} tokens"
    for end in ENDS:
        if vocabulary.get(end) is not None and not 0 <= vocabulary[end] < vocabulary["size"]:
            yield f"the token {end} is outside the vocabulary"
    if manifest["max_positions"] < 1:
        yield f"the model has {manifest['max_positions']} positions"
    if not manifest["kernels"]:
        yield "there are no kernels"
    if "arch" in manifest["target"] and manifest["target"]["name"] != f"sm_{manifest['target']['arch']}":
        yield "the target's name is not that of its architecture"


def _entries(manifest: Mapping[str, Any]) -> Iterator[str]:
    pools = {name: _pool(state) for name, state in manifest["states"].items()}
    for entry, versions in manifest["entries"].items():
        names = [v["name"] for v in versions]
        if len(set(names)) < len(names):
            yield f"two versions of {entry} have one name"
        for version in versions:
            if not version["name"].startswith(f"{entry}."):
                yield f"a version of {entry} is called {version['name']!r}"
            if any(n < 1 for n in version["typical"].values()):
                yield f"{version['name']} has a typical size below 1"
            if version["inputs"] != versions[0]["inputs"]:
                yield f"{version['name']} has other inputs than {names[0]}"
        for given in versions[0]["inputs"]:
            if len(given) != 2:
                yield f"an input of {entry} is no pair of a name and a type"
            elif {**INPUTS, **pools}.get(given[0]) != given[1]:
                yield f"an input of {entry} is {given[0]!r}, of type {given[1]!r}, which the runtime doesn't hand out"
        taken = [given[0] for given in versions[0]["inputs"] if given]
        lost = [name for name in pools if name not in taken]
        if lost:
            yield f"{entry} doesn't take the state {lost[0]}"
        if len(set(taken)) < len(taken):
            yield f"{entry} takes an input twice"


def _pool(state: Mapping[str, Any]) -> str:
    """The type of a pool, as entry points take it."""
    return f"state<{state['dtype']}[P; {', '.join(map(str, state['shape']))}]>"


def _kernel(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    if name.rpartition("_")[0] != entry["family"]:
        yield f"the kernel {name} is of the family {entry['family']!r}"
    stem = f"kernels/{name}"
    if entry["source"] != f"{stem}.py":
        yield f"the source of the kernel {name} is {entry['source']!r}"
    for ending, path in entry["built"].items():
        if path != stem + ending:
            yield f"the kernel {name} has {path!r} for its {ending!r}"
    for type in (*entry["inputs"], *entry["outputs"], *entry["workspace"]):
        if read_signature(type) is None:
            yield f"the kernel {name} takes a tensor of type {type[:60]!r}, which is none"


def _prepared(entry: Mapping[str, Any]) -> Iterator[str]:
    shape = entry["shape"]
    if not all(n > 0 for n in shape):
        yield "has a size below 1"
    for block in entry.get("blocks", ()):
        if len(block) != 2 or not 0 <= block[0] < len(shape) or block[1] < 1:
            yield f"is cut into blocks of {block}"
    if len(entry.get("blocks", ())) > 1:
        yield "is cut into blocks along more than one axis"
    if ("table" in entry) == ("parts" in entry):
        yield "must be made of either a table or parts"
    if "table" in entry and len(entry["table"]) != prod(shape):
        yield f"has a table of {len(entry['table'])} numbers for the shape {shape}"
    for part in entry.get("parts", ()):
        yield from _part(shape, part)
    covered = sum(prod(b - a for a, b in part["region"]) for part in entry.get("parts", ()) if _is_region(part))
    if "parts" in entry and covered != prod(shape):
        yield "is not what its parts cover"


def _part(shape: Sequence[int], part: Mapping[str, Any]) -> Iterator[str]:
    region, stack = part["region"], part.get("stack", 0)
    if stack < 0 or (stack > 0) != ("*" in part["source"]):
        yield f"has a stack of {stack} tensors called {part['source']!r}"
    elif not all(n > 0 for n in part["shape"]):
        yield f"has a part of the shape {part['shape']}"
    elif not _is_region(part) or len(region) != len(shape):
        yield f"has a part in the region {region}"
    elif not all(0 <= a < b <= n for (a, b), n in zip(region, shape, strict=True)):
        yield f"has a part outside its shape: {region}"
    elif _moved([*([stack] if stack else []), *part["shape"]], part.get("steps", ()), stack) != [
        b - a for a, b in region
    ]:
        yield f"has a part of the shape {part['shape']} for the region {region}"


def _moved(shape: list[int], steps: Sequence[Sequence[Any]], stack: int) -> list[int] | None:
    """The shape of a tensor after a part's steps; None where one of them is impossible, or moves the axis of a stack."""
    for step in steps:
        match step:
            case ["permute", [*axes]] if set(axes) == set(range(len(shape))) and len(axes) == len(shape):
                shape = [shape[axis] for axis in axes]
                kept = not stack or axes[0] == 0
            case ["slice", [int(axis), int(start), int(stop)]] if (
                axis in range(len(shape)) and 0 <= start < stop <= shape[axis]
            ):
                shape = [*shape[:axis], stop - start, *shape[axis + 1 :]]
                kept = not stack or axis > 0
            case ["reshape", [int(first), *_] as sizes] if all(isinstance(n, int) and n > 0 for n in sizes) and prod(
                sizes
            ) == prod(shape):
                shape = list(sizes)
                kept = not stack or first == stack
            case _:
                return None
        if not kept:
            return None
    return shape


def _is_region(part: Mapping[str, Any]) -> bool:
    return all(len(pair) == 2 for pair in part["region"])
