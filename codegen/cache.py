"""A content-addressed cache of compiled kernels, shared by all processes of a user.

One entry is one file: a checksum, a small JSON table of contents, then the compressed members (binaries, texts,
resource counts). Writers write beside the final name and rename, so a reader sees a whole entry or none, and two
compiles of the same kernel only cost time. An entry that doesn't match its checksum counts as a miss and is removed.
Entries are data: nothing in them is executed or unpickled here.

This module imports neither torch nor a compiler, so that a warm compile never pays for one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringc.errors import Place, ToolchainError, reason

#: Raised when the layout of an entry or the meaning of its members changes: old entries are then never looked up.
SCHEMA_VERSION = 2

_MAGIC = b"RINGCKC1"
_SUFFIX = ".entry"
_DIGEST = hashlib.sha256().digest_size
_ALLOWED = "use only None, bool, int, float, str, lists and string-keyed mappings"


def canonical_json(value: object) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        TypeError: `value` holds something other than None, bool, int, float, str, sequences and string-keyed mappings.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON has no infinities; -inf is an ordinary constant of a masked maximum.
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a cache key can't hold a mapping with key {key!r}: {_ALLOWED}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    raise TypeError(f"a cache key can't hold {value!r} of type {type(value).__name__}: {_ALLOWED}")


def cache_key(parts: Mapping[str, object]) -> str:
    """The name of an entry: SHA-256 in hexadecimal over the canonical JSON of `parts` and the schema's version."""
    text = canonical_json({"schema": SCHEMA_VERSION, "parts": parts})
    return hashlib.sha256(text.encode()).hexdigest()


def default_cache_dir() -> Path:
    """`$RINGC_CACHE_DIR`, or `~/.cache/ringc` where that is unset or empty.

    Raises:
        ToolchainError: there is no home folder for what the variable says, or for the default.
    """
    named = os.environ.get("RINGC_CACHE_DIR")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "ringc"
    except RuntimeError as error:
        raise ToolchainError(
            "there is no home folder for the kernel cache", help="set RINGC_CACHE_DIR to a folder"
        ) from error


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds: entries and the bytes that they take on the disk."""

    entries: int
    bytes: int


class Cache:
    """A folder of entries, each a mapping of member names to bytes.

    Any number of processes may read, write and clear it at once.

    Args:
        folder: where the entries lie; `default_cache_dir()` if None. Made on the first `put`.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir()
        self._root = self.folder / f"kernels-v{SCHEMA_VERSION}"

    def path(self, key: str) -> Path:
        """Where the entry of `key` lies, whether or not it exists."""
        return self._root / key[:2] / (key + _SUFFIX)

    def get(self, key: str) -> dict[str, bytes] | None:
        """The members stored under `key`; None when there is no entry, or a damaged one, which is then removed.

        Raises:
            ToolchainError: the folder exists but can't be read.
        """
        path = self.path(key)
        try:
            blob = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explain(error, path, "read") from error
        members = _unpack(blob)
        if members is None:
            # Another process may have replaced it meanwhile; at worst that entry is compiled once more.
            path.unlink(missing_ok=True)
        return members

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Store `files` under `key`, replacing what was there.

        Raises:
            ToolchainError: the folder can't be made or written, or the disk is full. No partial entry is left.
        """
        path = self.path(key)
        temporary: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
            temporary = Path(name)
            # Not synced to the disk: an entry that a power cut damages fails its checksum.
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(_pack(files))
            temporary.replace(path)
            temporary = None
        except OSError as error:
            raise _explain(error, path.parent, "write") from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raise now, before any compiling, what `put` would raise about the folder.

        Raises:
            ToolchainError: the folder can't be made or written.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=".writing-", dir=self._root):
                pass
        except OSError as error:
            raise _explain(error, self._root, "write") from error

    def keys(self) -> Iterator[str]:
        """The keys of all entries, in no particular order."""
        for path in self._entries():
            yield path.name.removesuffix(_SUFFIX)

    def size(self) -> CacheSize:
        """How many entries there are and how many bytes they take."""
        count = total = 0
        for path in self._entries():
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
            count += 1
        return CacheSize(count, total)

    def clear(self) -> CacheSize:
        """Remove all entries, also those of older schema versions, and say what was removed.

        Raises:
            ToolchainError: an entry can't be removed.
        """
        count = total = 0
        for path in self._all_files():
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _explain(error, path, "clear") from error
            if path.name.endswith(_SUFFIX):
                count += 1
                total += size
        return CacheSize(count, total)

    def _entries(self) -> Iterator[Path]:
        yield from self._root.glob(f"??/*{_SUFFIX}")

    def _all_files(self) -> Iterator[Path]:
        # Only files that a cache makes: the folder may be one that the user shares with other things.
        for pattern in (f"*{_SUFFIX}", ".writing-*"):
            yield from self.folder.glob(f"kernels-v*/??/{pattern}")


def _pack(files: Mapping[str, bytes]) -> bytes:
    table: list[dict[str, object]] = []
    bodies: list[bytes] = []
    for name in sorted(files):
        body = zlib.compress(files[name], level=3)
        table.append({"name": name, "packed": len(body), "size": len(files[name])})
        bodies.append(body)
    header = canonical_json(table).encode()
    payload = b"".join([len(header).to_bytes(8, "little"), header, *bodies])
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def _unpack(blob: bytes) -> dict[str, bytes] | None:
    start = len(_MAGIC) + _DIGEST
    if blob[: len(_MAGIC)] != _MAGIC or hashlib.sha256(blob[start:]).digest() != blob[len(_MAGIC) : start]:
        return None
    length = int.from_bytes(blob[start : start + 8], "little")
    at = start + 8 + length
    members: dict[str, bytes] = {}
    for row in json.loads(blob[start + 8 : at]):
        members[row["name"]] = zlib.decompress(blob[at : at + row["packed"]])
        at += row["packed"]
    return members


def _explain(error: OSError, path: Path, action: str) -> ToolchainError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ToolchainError(
            "no space left for the kernel cache",
            place=Place(path),
            help="free some space, run `ringc cache clear`, or set RINGC_CACHE_DIR to a folder on another disk",
        )
    return ToolchainError(
        f"can't {action} the kernel cache: {reason(error)}",
        place=Place(path),
        help="set RINGC_CACHE_DIR to a folder that you may write",
    )
