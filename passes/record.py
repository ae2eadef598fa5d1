"""The tuning record: measured seconds of implementations, which `select` believes before the cost model.

A record is one JSON file for one target, measured on one device: times of two devices can't be compared. An entry is one implementation of
one region at given sizes. The region is named by its family and the beginning of its structural hash, so that equal regions of other
layers, versions and models share it. The file is data that people may read and edit: what it holds is checked when it is read.

```
{
 "format_version": 1,
 "target": "cpu",
 "device": "AMD EPYC avx512f, 2 cores",
 "entries": [
  {"region": "matmul 4f0c8d…", "what": "matmul, add: f32[N, 512], f32[512, 512], f32[N, 512] -> f32[N, 512]",
   "sizes": {"N": 8}, "implementation": "tvm.matmul{rows=8,block=32}", "seconds": 3.1e-05}
 ]
}
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringc.errors import Place, RecordError
from ringc.json_file import check_version, misfit, read_json, write_whole

FORMAT_VERSION = 1

_REMEDY = "make one with `ringc tune SPEC -o RECORD`"

LONGEST = 1e6
"""Seconds that a measurement may take: more, and infinities and numbers of hundreds of digits, are mistakes."""

Sizes = tuple[tuple[str, int], ...]
"""Values of symbols, sorted by name."""

Key = tuple[str, Sizes, str]


@dataclass(frozen=True)
class Entry:
    """How long one implementation of a region takes.

    Attributes:
        region: its family and structural hash.
        what: the region for people.
        sizes: at which it was measured, of the symbols that it has.
        implementation: as in `tvm.matmul{rows=8,block=32}`.
        seconds: median of a launch.
    """

    region: str
    what: str
    sizes: Sizes
    implementation: str
    seconds: float

    @property
    def key(self) -> Key:
        return self.region, self.sizes, self.implementation


@dataclass(frozen=True)
class Record:
    """A tuning record; as text (an option of `select`) it is the hash of its file.

    Attributes:
        target: the name of what was compiled for.
        device: what it was measured on.
        entries: each by its key.
        sha256: of the file that it was read from; of the file that it would be, where it was read from none.
    """

    target: str
    device: str
    entries: Mapping[Key, Entry] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.text().encode()).hexdigest())

    def __str__(self) -> str:
        return self.sha256

    def times(self, region: str, sizes: Sizes, implementations: Iterable[str]) -> dict[str, float]:
        """Seconds of those implementations of a region that were measured at these sizes."""
        keys = {name: (region, sizes, name) for name in implementations}
        return {name: self.entries[key].seconds for name, key in keys.items() if key in self.entries}

    def merged(self, entries: Iterable[Entry], without: Iterable[Key] = ()) -> Record:
        """A record with these entries, in the place of those of the same keys, and none of the keys in `without`."""
        dropped = set(without)
        kept = {key: entry for key, entry in self.entries.items() if key not in dropped}
        return Record(self.target, self.device, kept | {entry.key: entry for entry in entries})

    def text(self) -> str:
        """The file: entries sorted, so that equal numbers give equal text."""
        entries = [
            {
                "region": e.region,
                "what": e.what,
                "sizes": dict(e.sizes),
                "implementation": e.implementation,
                "seconds": e.seconds,
            }
            for _, e in sorted(self.entries.items())
        ]
        head = {"format_version": FORMAT_VERSION, "target": self.target, "device": self.device, "entries": entries}
        return json.dumps(head, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the file beside its name and rename it: there is the old one or the new one, whole.

        Raises:
            RecordError: it can't be written.
        """
        write_whole(path, self.text().encode(), "the tuning record", RecordError, "choose another with -o")


def sizes_text(sizes: Sizes) -> str:
    """`B=1, N=8`; nothing where there are none."""
    return ", ".join(f"{name}={value}" for name, value in sizes)


def load_record(path: str | Path, target: str) -> Record:
    """Read a record and check all of it.

    Args:
        path: of the file.
        target: what it must have been measured for.

    Raises:
        RecordError: it can't be read, is no record, is of another format version or target, or an entry is wrong.
    """
    path = Path(path)
    place = Place(path)
    data, found = read_json(path, "the tuning record", RecordError, _REMEDY)
    if not isinstance(found, dict) or "format_version" not in found:
        raise RecordError("the file is no tuning record: it says no format_version", place=place, help=_REMEDY)
    check_version(found, FORMAT_VERSION, "the tuning record", RecordError, place, "tune again with this ringc")
    problem = misfit(found, {"target": str, "device": str, "entries": list})
    if problem:
        raise RecordError(f"the tuning record {problem}", place=place, help=_REMEDY)
    if found["target"] != target:
        raise RecordError(
            f"the tuning record is of target {found['target'][:40]}, and this is target {target}",
            place=place,
            help=f"tune for it: `ringc tune SPEC -o RECORD --target {target}`",
        )
    entries: dict[Key, Entry] = {}
    for number, value in enumerate(found["entries"], start=1):
        problem = _wrong(value)
        entry = None if problem else _entry(value)
        if entry is not None and entry.key in entries:
            problem = "is there twice"
        if entry is None or problem:
            raise RecordError(
                f"entry {number} of the tuning record{_named(value)} {problem}",
                place=place,
                help="mend or remove the entry, or tune again into another file",
            )
        entries[entry.key] = entry
    return Record(target, found["device"], entries, hashlib.sha256(data).hexdigest())


_ENTRY = {"region": str, "what": str, "sizes": dict, "implementation": str, "seconds": (int, float)}


def _wrong(value: Any) -> str:
    """What is wrong with an entry; nothing where all is right."""
    if not isinstance(value, dict):
        return "is no object"
    problem = misfit(value, _ENTRY)
    if problem:
        return problem
    seconds = value["seconds"]
    if isinstance(seconds, bool) or not 0 < seconds < LONGEST:
        return f"took {str(seconds)[:40]} seconds, which is no time"
    for name, size in value["sizes"].items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            return f"has the size {name[:40]} = {str(size)[:40]}, which is no size"
    return ""


def _named(value: Any) -> str:
    """The implementation and the region that an entry is of, as far as it says."""
    if not isinstance(value, dict):
        return ""
    said = [str(value[key])[:60] for key in ("implementation", "region") if isinstance(value.get(key), str)]
    return f" ({' of '.join(said)})" if said else ""


def _entry(value: Mapping[str, Any]) -> Entry:
    sizes = tuple(sorted(value["sizes"].items()))
    return Entry(value["region"], value["what"], sizes, value["implementation"], float(value["seconds"]))
