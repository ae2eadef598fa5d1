"""The kernel cache: what is put comes back, damage is a miss, writers don't disturb each other, failures are
explained."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringc.codegen.cache import Cache, CacheSize, cache_key, canonical_json, default_cache_dir
from ringc.errors import ToolchainError

FILES = {"cubin": bytes(range(256)) * 40, "ptx": b".version 8.7\n" * 100, "empty": b""}


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    key = cache_key({"source": "x"})
    assert cache.get(key) is None
    cache.put(key, FILES)
    assert Cache(tmp_path).get(key) == FILES
    assert list(cache.keys()) == [key]
    cache.put(key, {"other": b"1"})
    assert cache.get(key) == {"other": b"1"}


def test_size_and_clear_count_the_same_and_leave_other_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for index in range(3):
        cache.put(cache_key({"i": index}), FILES)
    size = cache.size()
    assert size.entries == 3
    assert size.bytes == sum(cache.path(key).stat().st_size for key in cache.keys())  # noqa: SIM118
    assert cache.clear() == size
    assert cache.size() == CacheSize(0, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("position", [0, 10, 45, -1])
def test_one_changed_byte_is_a_miss_and_removes_the_entry(tmp_path: Path, position: int) -> None:
    cache = Cache(tmp_path)
    key = cache_key({"k": 1})
    cache.put(key, FILES)
    blob = bytearray(cache.path(key).read_bytes())
    blob[position] ^= 0x40
    cache.path(key).write_bytes(blob)
    assert cache.get(key) is None
    assert not cache.path(key).exists()


@pytest.mark.parametrize("keep", [0, 7, 39, 60, 200])
def test_a_truncated_entry_is_a_miss(tmp_path: Path, keep: int) -> None:
    cache = Cache(tmp_path)
    key = cache_key({"k": 1})
    cache.put(key, FILES)
    cache.path(key).write_bytes(cache.path(key).read_bytes()[:keep])
    assert cache.get(key) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_the_key_does_not_depend_on_the_order_of_a_mapping(parts: dict[str, object]) -> None:
    backwards = dict(reversed(list(parts.items())))
    assert cache_key(parts) == cache_key(backwards)


def test_keys_differ_where_values_differ_in_type_or_place() -> None:
    variants: list[object] = [1, 1.0, True, "1", None, [1], {"1": 1}, float("inf"), float("-inf"), ""]
    keys = {cache_key({"constants": variant}) for variant in variants}
    assert len(keys) == len(variants)


@pytest.mark.parametrize("bad", [{1: 2}, b"raw", object(), {"a": {3}}])
def test_a_key_refuses_what_has_no_canonical_text(bad: object) -> None:
    with pytest.raises(TypeError, match="cache key"):
        canonical_json(bad)


def test_many_writers_and_readers_of_one_key(tmp_path: Path) -> None:
    key = cache_key({"k": 1})
    versions = [{"cubin": bytes([n]) * 200_000} for n in range(8)]

    def work(n: int) -> bool:
        cache = Cache(tmp_path)
        for _ in range(10):
            cache.put(key, versions[n])
            found = cache.get(key)
            if found not in versions:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert not list(tmp_path.rglob(".writing-*"))


def test_processes_share_a_cache(tmp_path: Path) -> None:
    program = (
        "import sys; from ringc.codegen.cache import Cache, cache_key\n"
        "cache = Cache(sys.argv[1])\n"
        "for n in range(30): cache.put(cache_key({'n': n}), {'x': b'%d' % n * 1000})\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    cache = Cache(tmp_path)
    assert cache.size().entries == 30
    assert all(cache.get(cache_key({"n": n})) == {"x": b"%d" % n * 1000} for n in range(30))


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str, dir: Path) -> tuple[int, str]:
        path = dir / prefix
        path.touch()
        return os.open("/dev/full", os.O_WRONLY), str(path)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(ToolchainError, match=r"(?s)no space left.*RINGC_CACHE_DIR"):
        Cache(tmp_path).put(cache_key({}), FILES)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    cache = Cache(in_the_way)
    assert cache.get(cache_key({})) is None
    with pytest.raises(ToolchainError, match=r"(?s)can't write the kernel cache.*RINGC_CACHE_DIR"):
        cache.put(cache_key({}), FILES)


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGC_CACHE_DIR", str(tmp_path / "here"))
    assert default_cache_dir() == tmp_path / "here"
    monkeypatch.setenv("RINGC_CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "ringc"


def test_importing_the_cache_loads_no_heavy_library() -> None:
    program = (
        "import sys, ringc.codegen.cache; print([m for m in ('torch', 'triton', 'tvm', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )
