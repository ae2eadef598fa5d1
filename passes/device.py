"""The device description: what one device was measured to reach, in the place of the constants of its target.

It is one JSON file for one target, which `ringc calibrate` writes and `--device` reads. The file is data that people may read and edit:
what it holds is checked when it is read. It says nothing of when it was measured, so that equal measurements give equal files.

```
{
 "bandwidth": 3.01e+12,
 "device": "NVIDIA H100 80GB HBM3",
 "format_version": 1,
 "launch": 1.8e-06,
 "matrix_rate": 7.05e+14,
 "measured_with": {"driver": "580.95.05", "torch": "2.11.0+cu130", "triton": "3.6.0"},
 "target": "sm_90",
 "vector_rate": 5.1e+13,
 "width": 132
}
```
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringc.errors import DeviceError, Place
from ringc.json_file import check_version, misfit, read_json, write_whole

FORMAT_VERSION = 1

_REMEDY = "make one with `ringc calibrate -o FILE`"

LIMITS: dict[str, tuple[float, float, str]] = {
    "bandwidth": (1e6, 1e18, "bytes a second"),
    "matrix_rate": (1e6, 1e21, "operations a second"),
    "vector_rate": (1e6, 1e21, "operations a second"),
    "launch": (1e-12, 1.0, "seconds"),
    "width": (1, 1 << 20, "pieces of work side by side"),
}
"""Least and greatest value of each number, and its unit: what lies outside is a mistake, and would make costs that no float holds."""


@dataclass(frozen=True)
class Device:
    """What a device was measured to reach; the numbers mean what they mean in `Target`.

    Attributes:
        target: the name of what is compiled for.
        name: the device's.
        bandwidth: bytes a second of a kernel that streams memory.
        matrix_rate: operations a second of a large product, bf16 on a GPU and fp32 on a CPU.
        vector_rate: operations a second outside products.
        launch: seconds of one more kernel.
        width: pieces of work that run side by side: processors of a GPU, cores of a CPU.
        measured_with: what measured it, and its version, sorted by name.
        sha256: of the file that it was read from; of the file that it would be, where it was read from none.
    """

    target: str
    name: str
    bandwidth: float
    matrix_rate: float
    vector_rate: float
    launch: float
    width: int
    measured_with: tuple[tuple[str, str], ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.text().encode()).hexdigest())

    def text(self) -> str:
        """The file: keys sorted, so that equal numbers give equal text."""
        data = {
            "format_version": FORMAT_VERSION,
            "target": self.target,
            "device": self.name,
            "measured_with": dict(self.measured_with),
            **{key: getattr(self, key) for key in LIMITS},
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    def save(self, path: Path) -> None:
        """Write the file beside its name and rename it: there is the old one or the new one, whole.

        Raises:
            DeviceError: it can't be written.
        """
        write_whole(path, self.text().encode(), "the device description", DeviceError, "choose another with -o")


def load_device(path: str | Path, target: str | None = None) -> Device:
    """Read a device description and check all of it.

    Args:
        path: of the file.
        target: what it must describe a device of; None for any.

    Raises:
        DeviceError: it can't be read, is no description, is of another format version or target, or a number is wrong.
    """
    path = Path(path)
    place = Place(path)
    data, found = read_json(path, "the device description", DeviceError, _REMEDY)
    # A tuning record has a format version too: what tells them apart is a rate.
    if not isinstance(found, dict) or not {"format_version", "bandwidth"} <= found.keys():
        raise DeviceError(
            "the file is no device description: it says no format_version or no bandwidth", place=place, help=_REMEDY
        )
    remedy = "calibrate again with this ringc"
    check_version(found, FORMAT_VERSION, "the device description", DeviceError, place, remedy)
    problem = misfit(found, _SHAPE) or _wrong(found)
    if problem:
        raise DeviceError(f"the device description {problem}", place=place, help=f"mend it, or {_REMEDY}")
    if target is not None and found["target"] != target:
        raise DeviceError(
            f"the device description is of target {found['target'][:40]}, and this is target {target}",
            place=place,
            help=f"calibrate for it, on a machine that runs it: `ringc calibrate --target {target} -o FILE`",
        )
    return Device(
        found["target"],
        found["device"],
        bandwidth=float(found["bandwidth"]),
        matrix_rate=float(found["matrix_rate"]),
        vector_rate=float(found["vector_rate"]),
        launch=float(found["launch"]),
        width=found["width"],
        measured_with=tuple(sorted(found["measured_with"].items())),
        sha256=hashlib.sha256(data).hexdigest(),
    )


_SHAPE = {
    "target": str, "device": str, "measured_with": dict, "width": int,
    **{key: (int, float) for key in LIMITS if key != "width"},
}  # fmt: skip


def _wrong(found: dict[str, Any]) -> str:
    """Which number or version is none; nothing where all is right."""
    for key, (least, most, unit) in LIMITS.items():
        value = found[key]
        if isinstance(value, bool) or not least <= value <= most:  # NaN is in no range
            return f"has {key} = {str(value)[:40]}, which is no number of {unit} from {least:g} to {most:g}"
    for name, version in found["measured_with"].items():
        if not isinstance(version, str):
            return f"has no version of '{name[:40]}' in measured_with"
    return ""


def check_output(path: Path, target: str) -> None:
    """Raise unless a description of a target may be written there: now, not when all has been measured.

    Raises:
        DeviceError: no file can be written there, or one is there that is no description of the target.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DeviceError(
            "no device description can be written here", place=Place(path), help="name a file in a folder that is there"
        )
    if os.path.lexists(path):
        try:
            load_device(path, target)
        except DeviceError as error:
            raise DeviceError(
                f"what is there is not replaced: {error.message}",
                place=error.place,
                help=f"choose another file with -o: a description of target {target} alone is replaced",
            ) from error
