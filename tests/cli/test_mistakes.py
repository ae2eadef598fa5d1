"""Malformed specs, checkpoints, artifacts and prompts through the command line.

Each gives one message that names the file, the place in it and the remedy, exit code 2, no traceback, and leaves everything as it was.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ringc.codegen import cpu
from ringc.codegen.artifact import MANIFEST, digest
from ringc.model_defs import preset_text
from tests.cli.support import SMALL, Damage, Done, Here, check, command, contents, needs_tvm, ringc, signed

TINY = preset_text("ring-tiny")
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"
QKV = "model.layers.0.attention.query_key_value.weight"
DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a test; what is made for the moment goes into it too, so that leftovers are seen."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path


# ---------------------------------------------------------------- specs


def edited(old: str, new: str) -> str:
    assert TINY.count(old) == 1
    return TINY.replace(old, new)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
SPECS: list[tuple[str, str | bytes, str, str]] = [
    ("unknown key", edited("hidden: 128", "hiden: 128"), "unknown key 'hiden'", ":10:1"),
    ("missing key", edited("hidden: 128\n", ""), "the spec lacks the key 'hidden'", ":1:1"),
    ("wrong type", edited("hidden: 128", "hidden: wide"), "'hidden' must be an integer, not 'wide'", ":10:9"),
    ("float for an integer", edited("heads: 4\n", "heads: 4.5\n"), "must be an integer, not 4.5", ":12:8"),
    ("out of range", edited("hidden: 128", "hidden: -1"), "'hidden' must be at least 1", ":10:9"),
    ("number beyond reason", edited("hidden: 128", f"hidden: {'9' * 40}"), "must be at most 1048576", ":10:9"),
    ("number of 5000 digits", edited("hidden: 128", f"hidden: {'9' * 5000}"), "is not a number", ":10:9"),
    ("not a number", edited("norm_eps: 1e-6", "norm_eps: .nan"), "must be a finite number, not nan", ":14:11"),
    ("infinite", edited("theta: 10000", "theta: 1e999"), "must be a finite number", ":16:15"),
    ("heads not divisible", edited("kv_heads: 2", "kv_heads: 3"), "heads 4 is not a multiple of kv_heads 3", ":24:21"),
    ("experts not divisible", edited("count: 4, keep", "count: 5, keep"), "can't be cut into 5 equal groups", ":33:19"),
    ("more chosen than there are", edited("top_k: 4", "top_k: 40"), "top_k 40 is larger than", ":29:10"),
    ("unknown choice", edited("factor: serving", "factor: severing"), "is 'severing'", ":19:54"),
    ("tab before a key", edited("  experts: 16", "\texperts: 16"), "the indentation has a tab", ":28:1"),
    ("tab behind a colon", edited("hidden: 128", "hidden:\t128"), "a tab stands where YAML wants a space", ":10:8"),
    ("key given twice", edited("heads: 4\n", "heads: 4\nheads: 4\n"), "'heads' is given twice, first in line 12", ":13:1"),
    ("alias bomb", BOMB, "the anchor '&a0' is not allowed", ":1:5"),
    ("object of Python", edited("heads: 4\n", "heads: !!python/object:os.system {}\n"), "is not allowed", ":12:8"),
    ("several documents", TINY + "---\na: 1\n", "more than one YAML document", f":{TINY.count(chr(10)) + 1}:1"),
    ("open quote", "name: 'tiny\n", "not valid YAML", ":2:1"),
    ("nested deeply", "name: " + DEEP[:1000], "nested more than 16 deep", ":1:22"),
    ("empty", "", "the spec is empty", ":1"),
    ("a list", "- 1\n", "the spec is a list", ":1:1"),
    ("binary", b"\x7fELF\x02\x01\x01\0\0", "binary", ":1"),
    ("UTF-16", TINY.encode("utf-16"), "not UTF-8", ":1"),
    ("large", b"# " + b"x" * 100_000, "larger than 64 KiB", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "place"), [s[1:] for s in SPECS], ids=[s[0] for s in SPECS])
def test_specs(here: Here, folder: Path, text: str | bytes, message: str, place: str) -> None:
    spec = folder / "spec.yaml"
    spec.write_bytes(text.encode() if isinstance(text, str) else text)
    before = contents(folder)
    check(here("compile", spec, "-o", folder / "out", "--target", "torch"), message, f"{spec}{place}")
    assert contents(folder) == before


def test_the_preset_that_the_mistakes_start_from_is_right(here: Here, folder: Path) -> None:
    (folder / "spec.yaml").write_bytes(codecs.BOM_UTF8 + TINY.replace("\n", "\r\n").encode())
    assert here("compile", folder / "spec.yaml", "-o", folder / "out", "--target", "torch").returncode == 0


# ---------------------------------------------------------------- where artifacts go


def _other_model(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text(json.dumps({"format_version": 1, "name": "other"}))


def _someone_s_work(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("...")


def _damaged(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text(DEEP)


OUTPUTS: list[tuple[str, Damage, str]] = [
    ("a file", lambda path: path.write_text("mine"), "a file of this name is in the way"),
    ("a link to itself", lambda path: path.symlink_to(path), "a file of this name is in the way"),
    ("a link to nothing", lambda path: path.symlink_to(path.parent / "none"), "a file of this name is in the way"),
    ("another model's", _other_model, "the folder holds an artifact of 'other'"),
    ("not an artifact", _someone_s_work, "the folder holds something that is no artifact"),
    ("a damaged artifact", _damaged, "the folder holds something that is no artifact"),
]


@pytest.mark.parametrize(("make", "message"), [o[1:] for o in OUTPUTS], ids=[o[0] for o in OUTPUTS])
def test_what_is_in_the_way_of_an_artifact(here: Here, folder: Path, make: Damage, message: str) -> None:
    make(folder / "out")
    before = contents(folder)
    check(here("compile", "ring-tiny", "-o", folder / "out", "--target", "torch"), message, str(folder / "out"))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "x" * 250], ids=["in a file", "long", "long with an ending"])
def test_where_no_artifact_can_be(here: Here, folder: Path, name: str) -> None:
    (folder / "file").write_text("")
    before = contents(folder)
    message = "is not a folder" if "/" in name else "file name too long"
    check(here("compile", "ring-tiny", "-o", folder / name, "--target", "torch"), message, str(folder / name))
    assert contents(folder) == before


# ---------------------------------------------------------------- tuning records

ENTRY = {"region": "row 1", "what": "mul", "sizes": {"N": 8}, "implementation": "torch.eager", "seconds": 1e-6}


def _record(*entries: object, **head: object) -> str:
    return json.dumps({"format_version": 1, "target": "torch", "device": "this", "entries": entries, **head})


def refuse_file(
    here: Here, folder: Path, target: str, option: str, text: str | bytes, message: str, place: str
) -> None:
    """A compile that is given a file with this text says what is wrong with it and where, and changes nothing."""
    file = folder / f"{option}.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    before = contents(folder)
    done = here("compile", "ring-tiny", "-o", folder / "out", "--target", target, f"--{option}", file)
    check(done, message, f"{file}{place}")
    assert contents(folder) == before


RECORDS: list[tuple[str, str | bytes, str, str]] = [
    ("empty", "", "the tuning record is no JSON", ":1:1"),
    ("no JSON", '{\n"format_version": 1,,}', "the tuning record is no JSON", ":2:21"),
    ("binary", b"\xff\xfe\0", "can't be read: it is no UTF-8 text", ""),
    ("nested deeply", DEEP, "can't be read: it is nested too deeply", ""),
    ("huge number", '{"format_version": ' + "9" * 5000 + "}", "can't be read", ""),
    ("a list", "[]", "the file is no tuning record", ""),
    ("something else", "{}", "the file is no tuning record", ""),
    ("another format version", _record(format_version=2), "has format version 2", ""),
    ("format version of a wrong type", _record(format_version=True), "has format version True", ""),
    ("without a device", json.dumps({"format_version": 1, "target": "torch", "entries": []}), "lacks 'device'", ""),
    ("another target", _record(target="sm_90"), "is of target sm_90, and this is target torch", ""),
    ("unknown key", _record(speed=1), "has an unknown key 'speed'", ""),
    ("entries of a wrong type", _record(entries={}), "has a 'entries' of the wrong type", ""),
    ("entry that is none", _record(ENTRY, 3), "entry 2 of the tuning record is no object", ""),
    ("entry without sizes", _record({"region": "row 1", "what": ""}), "entry 1 of the tuning record (row 1) lacks 'sizes'", ""),
    ("unknown key in an entry", _record({**ENTRY, "unit": "s"}), "(torch.eager of row 1) has an unknown key 'unit'", ""),
    ("region of a wrong type", _record({**ENTRY, "region": 1}), "entry 1 of the tuning record (torch.eager) has a 'region'", ""),
    ("time of a wrong type", _record({**ENTRY, "seconds": "1"}), "has a 'seconds' of the wrong type", ""),
    ("true for a time", _record({**ENTRY, "seconds": True}), "took True seconds", ""),
    ("no time", _record({**ENTRY, "seconds": 0}), "took 0 seconds", ""),
    ("NaN", _record({**ENTRY, "seconds": float("nan")}), "took nan seconds", ""),
    ("infinite", _record({**ENTRY, "seconds": float("inf")}), "took inf seconds", ""),
    ("time of 400 digits", _record({**ENTRY, "seconds": 10**400}), "seconds, which is no time", ""),
    ("size of a wrong type", _record({**ENTRY, "sizes": {"N": 8.5}}), "has the size N = 8.5", ""),
    ("negative size", _record({**ENTRY, "sizes": {"N": -8}}), "has the size N = -8", ""),
    ("entry given twice", _record(ENTRY, ENTRY), "entry 2 of the tuning record (torch.eager of row 1) is there twice", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "place"), [r[1:] for r in RECORDS], ids=[r[0] for r in RECORDS])
def test_tuning_records(here: Here, folder: Path, text: str | bytes, message: str, place: str) -> None:
    refuse_file(here, folder, "torch", "record", text, message, place)


def test_the_record_that_the_mistakes_start_from_is_right(here: Here, folder: Path) -> None:
    (folder / "record.json").write_text(_record(ENTRY, {**ENTRY, "sizes": {}}))
    record = folder / "record.json"
    done = here("compile", "ring-tiny", "-o", folder / "out", "--target", "torch", "--record", record)
    assert done.returncode == 0, done.stderr
    assert "times of 0 of" in done.stdout


@needs_tvm
@pytest.mark.parametrize(("name", "message"), [("", "is a directory"), ("none/record.json", "no such file")])
def test_where_no_record_can_be(here: Here, folder: Path, name: str, message: str) -> None:
    before = contents(folder)
    check(here("tune", "ring-tiny", "-o", folder / name), message, str(folder / name))
    assert contents(folder) == before


# ---------------------------------------------------------------- device descriptions


def _device(**changed: object) -> str:
    rates = {"bandwidth": 5e10, "launch": 2e-6, "matrix_rate": 2e11, "vector_rate": 2e11, "width": 2}
    found = {"format_version": 1, "target": "cpu", "device": "this", "measured_with": {"torch": "2.11"}, **rates}
    return json.dumps({key: value for key, value in (found | changed).items() if value is not None})


DEVICES: list[tuple[str, str | bytes, str, str]] = [
    ("empty", "", "the device description is no JSON", ":1:1"),
    ("binary", b"\xff\xfe\0", "can't be read: it is no UTF-8 text", ""),
    ("nested deeply", DEEP, "can't be read: it is nested too deeply", ""),
    ("a list", "[]", "the file is no device description", ""),
    ("a tuning record", _record(target="cpu"), "the file is no device description", ""),
    ("another format version", _device(format_version=2), "has format version 2", ""),
    ("format version of a wrong type", _device(format_version=True), "has format version True", ""),
    ("another target", _device(target="sm_90"), "is of target sm_90, and this is target cpu", ""),
    ("without a width", _device(width=None), "lacks 'width'", ""),
    ("unknown key", _device(date="today"), "has an unknown key 'date'", ""),
    ("width of a wrong type", _device(width=2.5), "has a 'width' of the wrong type", ""),
    ("no width", _device(width=0), "has width = 0, which is no number of pieces of work side by side", ""),
    ("rate of a wrong type", _device(matrix_rate="fast"), "has a 'matrix_rate' of the wrong type", ""),
    ("true for a rate", _device(vector_rate=True), "has vector_rate = True, which is no number of operations", ""),
    ("in GB", _device(bandwidth=50), "has bandwidth = 50, which is no number of bytes a second from 1e+06", ""),
    ("NaN", _device(launch=float("nan")), "has launch = nan, which is no number of seconds", ""),
    ("infinite", _device(bandwidth=float("inf")), "has bandwidth = inf", ""),
    ("rate of 400 digits", _device(bandwidth=10**400), "has bandwidth = 1000", ""),
    ("negative", _device(launch=-1e-6), "has launch = -1e-06", ""),
    ("version that is none", _device(measured_with={"torch": 2}), "has no version of 'torch' in measured_with", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "place"), [d[1:] for d in DEVICES], ids=[d[0] for d in DEVICES])
def test_device_descriptions(here: Here, folder: Path, text: str | bytes, message: str, place: str) -> None:
    refuse_file(here, folder, "cpu", "device", text, message, place)


@needs_tvm
def test_the_device_that_the_mistakes_start_from_is_right(here: Here, folder: Path) -> None:
    (folder / "device.json").write_text(_device())
    (folder / "m.ring").write_text("module @m level graph\n\nfunc @f(%x: f32[2]) {\n  return %x\n}\n")
    done = here("opt", folder / "m.ring", "-p", "dce", "--device", folder / "device.json")
    assert done.returncode == 0, done.stderr


@needs_tvm
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scratch", "no device description can be written here"),
        ("none/device.json", "no device description can be written here"),
        ("thesis.tex", "what is there is not replaced: the device description is no JSON"),
        ("record.json", "what is there is not replaced: the file is no device description"),
        ("sm_90.json", "what is there is not replaced: the device description is of target sm_90"),
    ],
)
def test_where_no_device_description_can_be(here: Here, folder: Path, name: str, message: str) -> None:
    (folder / "thesis.tex").write_text("...")
    (folder / "record.json").write_text(_record())
    (folder / "sm_90.json").write_text(_device(target="sm_90"))
    before = contents(folder)
    done = here("calibrate", "-o", folder / name)
    assert f"{folder / name}" in done.stderr
    check(done, message, None)
    assert contents(folder) == before


# ---------------------------------------------------------------- checkpoints


def _changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change a shard's tensors; the index is left as it is."""

    def damage(folder: Path) -> None:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        with safe_open(str(folder / places[QKV]), framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        change(tensors)
        save_file(tensors, folder / places[QKV])

    return damage


def _qkv_as(convert: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return _changed(lambda tensors: tensors.update({QKV: convert(tensors[QKV])}))


def _reindexed(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def _header(header: object) -> Damage:
    """Put another header and a little data in the place of the first shard."""

    def damage(folder: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    return damage


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _index(text: str | bytes) -> Damage:
    return lambda folder: (folder / INDEX).write_bytes(text.encode() if isinstance(text, str) else text)


def _folder_for_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def _link_for_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(folder / SHARD)


def _pickles(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


CHECKPOINTS: list[tuple[str, Damage, str, str]] = [
    ("missing shard", lambda f: (f / SHARD).unlink(), f"the shard {SHARD} is missing", SHARD),
    ("folder for a shard", _folder_for_shard, f"the shard {SHARD} is missing", SHARD),
    ("link to itself for a shard", _link_for_shard, f"the shard {SHARD} is missing", SHARD),
    ("truncated", lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-100]), "can't be read", SHARD),
    ("empty shard", lambda f: (f / SHARD).write_bytes(b""), "can't be read", SHARD),
    ("header longer than the file", lambda f: (f / SHARD).write_bytes(b"\xff" * 7 + b"\x7f{}"), "header too large", SHARD),
    ("header that is no JSON", _header(b"{nope"), "invalid JSON in header", SHARD),
    ("header that is no text", _header(b'{"\xff": 1}'), "invalid UTF-8 in header", SHARD),
    ("nested header", _header(DEEP.encode()), "invalid JSON in header", SHARD),
    ("overlapping tensors", _header({"a": _entry("F32", [4], 0, 16), "b": _entry("F32", [4], 8, 24)}), "invalid offset", SHARD),
    ("tensor beyond the end", _header({"a": _entry("F32", [1 << 38], 0, 1 << 40)}), "can't be read", SHARD),
    ("shape and bytes differ", _header({"a": _entry("F32", [5], 0, 16)}), "can't be read", SHARD),
    ("negative size", _header({"a": _entry("F32", [-4], 0, 16)}), "can't be read", SHARD),
    ("unknown type", _header({"a": _entry("Q4", [4], 0, 16)}), "unknown variant `Q4`", SHARD),
    ("index that is no JSON", _index('{"weight_map":\n {,}}'), "the index is no JSON", f"{INDEX}:2:3"),
    ("empty index", _index(""), "the index is no JSON", f"{INDEX}:1:1"),
    ("binary index", _index(b"\xff\xfe\0"), "the index can't be read: it is no UTF-8 text", INDEX),
    ("nested index", _index(DEEP), "the index can't be read: it is nested too deeply", INDEX),
    ("index without a map", _index("{}"), "the index has no 'weight_map'", INDEX),
    ("index of numbers", _index('{"weight_map": {"a": 1}}'), "the index has no 'weight_map'", INDEX),
    ("index of nothing", _index('{"weight_map": {}}'), "the checkpoint lacks the tensor", ""),
    ("index that leaves the folder", _reindexed(lambda i: i["weight_map"].update({QKV: "../x.safetensors"})), "outside the folder", INDEX),
    ("index with a path", _reindexed(lambda i: i["weight_map"].update({QKV: "/etc/passwd"})), "outside the folder", INDEX),
    ("index that names the folder", _reindexed(lambda i: i["weight_map"].update({QKV: ".."})), "outside the folder", INDEX),
    ("index without a tensor", _reindexed(lambda i: i["weight_map"].pop(QKV)), f"lacks the tensor {QKV}", ""),
    ("index with a tensor too many", _changed(lambda t: t.pop(QKV)), f"the index says that {QKV} is in", "*"),
    ("wrong shape", _qkv_as(lambda t: t[:-1].contiguous()), "has the shape [383, 128], and the model's is [384, 128]", "*"),
    ("a single number", _qkv_as(lambda t: t[0, 0].clone()), "has the shape []", "*"),
    ("NaN", _qkv_as(lambda t: t.index_fill(0, torch.tensor([5]), float("nan"))), f"{QKV} holds NaN", "*"),
    ("infinite", _qkv_as(lambda t: t.index_fill(0, torch.tensor([5]), float("-inf"))), f"{QKV} holds infinite numbers", "*"),
    ("beyond float32", _qkv_as(lambda t: t.double() * 1e300), f"{QKV} holds infinite numbers", "*"),
    ("integers", _qkv_as(lambda t: t.to(torch.int8)), "numbers of type int8", "*"),
    ("complex numbers", _qkv_as(lambda t: t.to(torch.complex64)), "numbers of type complex64", "*"),
    ("quantized without scales", _qkv_as(lambda t: t.to(torch.float8_e4m3fn)), "numbers of type float8_e4m3fn", "*"),
    ("pickled", _pickles, "the folder holds neither model.safetensors nor", ""),
    ("nothing", lambda f: shutil.rmtree(f), "there is no such folder", ""),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message", "place"), [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_checkpoints(
    here: Here, folder: Path, tiny: Path, published: Path, damage: Damage, message: str, place: str
) -> None:
    checkpoint = Path(shutil.copytree(published, folder / "checkpoint"))
    shard = json.loads((checkpoint / INDEX).read_text())["weight_map"][QKV]  # which `*` stands for
    damage(checkpoint)
    before = contents(folder)
    done = here("run", tiny, "--weights", checkpoint, "--prompt", "x", "--max-new-tokens", "1")
    check(done, message, str(checkpoint / place.replace("*", shard)))
    assert contents(folder) == before


def test_the_checkpoint_that_the_mistakes_start_from_is_right(here: Here, tiny: Path, published: Path) -> None:
    done = here("run", tiny, "--weights", published, "--prompt", "x", "--max-new-tokens", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["x" * 5000, "random", "pytorch.bin"])
def test_weights_that_are_no_checkpoint(
    here: Here, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    Path("pytorch.bin").write_bytes(b"PK\x03\x04" * 10)
    before = contents(folder)
    check(here("run", tiny, "--weights", name, "--prompt", "x"), "", name)
    assert contents(folder) == before


# ---------------------------------------------------------------- configurations of checkpoints

LINEAR = {"architectures": ["BailingMoeLinearV2ForCausalLM"]}


def _config(**values: object) -> str:
    return json.dumps({**LINEAR, **values}, indent=0)


CONFIGS: list[tuple[str, str | bytes, str, str]] = [
    ("empty", "", "not valid JSON", ":1:1"),
    ("no JSON", '{\n"a": 1,,}', "not valid JSON", ":2:8"),
    ("binary", b"\xff\xfe\0", "not UTF-8 text", ""),
    ("a list", "[]", "not a JSON object", ":1"),
    ("nested deeply", DEEP, "a number or a nesting that is out of reason", ""),
    ("key given twice", '{"vocab_size": 1,\n"vocab_size": 2}', "gives the key 'vocab_size' twice", ":2:1"),
    ("no architecture", "{}", "the key 'architectures' is missing", ""),
    ("another architecture", '{"architectures": ["LlamaForCausalLM"]}', "'LlamaForCausalLM' is not supported", ":1:2"),
    ("wrong type", _config(hidden_size="x"), "'hidden_size' must be an integer, not 'x'", ":5:1"),
    ("heads not divisible", _config(num_key_value_heads=3), "heads 16 is not a multiple of kv_heads 3", ":5:1"),
    ("NaN", _config(rms_norm_eps=float("nan")), "must be a finite number, not nan", ":5:1"),
    ("quantized", _config(quantization_config={"bits": 4}), "the checkpoint is quantized", ":5:1"),
    ("rotary scaling", _config(rope_scaling={"type": "linear"}), "rotary scaling 'linear' is not supported", ":5:1"),
]


@pytest.mark.parametrize(("text", "message", "place"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_configurations(here: Here, folder: Path, text: str | bytes, message: str, place: str) -> None:
    (folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    before = contents(folder)
    check(here("import", folder, "-o", folder / "spec.yaml"), message, f"{folder / 'config.json'}{place}")
    assert contents(folder) == before


@pytest.mark.parametrize(("name", "message"), [("", "is a directory"), ("none/spec.yaml", "no such file")])
def test_where_no_spec_can_be(here: Here, folder: Path, name: str, message: str) -> None:
    (folder / "config.json").write_text(_config())
    before = contents(folder)
    check(here("import", folder, "-o", folder / name), message, str(folder / name))
    assert contents(folder) == before


# ---------------------------------------------------------------- artifacts


def _manifest(text: str | bytes) -> Damage:
    return lambda folder: (folder / MANIFEST).write_bytes(text.encode() if isinstance(text, str) else text)


def _replaced(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def _folder_for(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


OUTSIDE = {"../outside.py": digest(b"x = 1\n")}
CPU_OF_ANOTHER_KIND = {"architecture": "vax", "features": []}
NEWER_CPU = {"architecture": cpu.architecture(), "features": ["avx9000"]}
ARTIFACTS: list[tuple[str, Damage, str, str]] = [
    ("no manifest", lambda f: (f / MANIFEST).unlink(), "the folder holds no artifact", ""),
    ("folder for the manifest", _folder_for(MANIFEST), "the manifest can't be read: is a directory", MANIFEST),
    ("empty manifest", _manifest(""), "the manifest is no JSON", f"{MANIFEST}:1:1"),
    ("manifest that is no JSON", _manifest('{\n"format_version": 1,,}'), "the manifest is no JSON", f"{MANIFEST}:2:21"),
    ("binary manifest", _manifest(b"\xff\xfe\0"), "the manifest can't be read: it is no UTF-8 text", MANIFEST),
    ("nested manifest", _manifest(DEEP), "the manifest can't be read: it is nested too deeply", MANIFEST),
    ("huge number", _manifest('{"format_version": ' + "9" * 5000 + "}"), "the manifest can't be read", MANIFEST),
    ("a list", _manifest("[]"), "says no format_version", MANIFEST),
    ("another format version", signed(lambda m: m.update(format_version=99)), "has format version 99", MANIFEST),
    ("changed manifest", _replaced(MANIFEST, '"size": 272', '"size": 273'), "the manifest was changed", MANIFEST),
    ("half of a character", _replaced(MANIFEST, '"name": "ring-tiny"', '"name": "\\ud800"'), "was changed", MANIFEST),
    ("manifest without kernels", signed(lambda m: m.pop("kernels")), "'kernels' is missing", MANIFEST),
    ("kernel without a source", signed(lambda m: m["kernels"]["row_1"].pop("source")), "'kernels.row_1.source'", MANIFEST),
    ("kernel without a family", signed(lambda m: m["kernels"]["row_1"].pop("family")), "'kernels.row_1.family'", MANIFEST),
    ("launch of a wrong type", signed(lambda m: m["kernels"]["row_1"].update(launch=3)), "'kernels.row_1.launch'", MANIFEST),
    ("workspace of a wrong type", signed(lambda m: m["kernels"]["row_1"].update(workspace=[3])), "'kernels.row_1.workspace[0]'", MANIFEST),
    ("kernel of a wrong type", signed(lambda m: m["kernels"].update(row_1=3)), "'kernels.row_1.", MANIFEST),
    ("unknown element type", signed(lambda m: m["states"]["layers.0.state"].update(dtype="q")), "state.dtype'", MANIFEST),
    ("no versions", signed(lambda m: m["entries"].update(decode=[])), "no version of decode", MANIFEST),
    ("file outside", signed(lambda m: m["files"].update(OUTSIDE)), "a file outside the artifact: '../outside.py'", MANIFEST),
    ("file of the system", signed(lambda m: m["files"].update({"/etc/passwd": "0"})), "outside the artifact", MANIFEST),
    ("kernel outside", signed(lambda m: m["kernels"]["row_1"].update(source="../outside.py")), "a file that it doesn't list", MANIFEST),
    ("another kind of processor", signed(lambda m: m["target"].update(cpu=CPU_OF_ANOTHER_KIND)), "for vax processors", MANIFEST),
    ("a newer processor", signed(lambda m: m["target"].update(cpu=NEWER_CPU)), "avx9000, which this processor lacks", MANIFEST),
    ("another target", signed(lambda m: m["target"].update(name="sm_20", arch=20)), "for target sm_20", MANIFEST),
    ("missing kernel", lambda f: (f / "kernels/row_1.py").unlink(), "no such file", "kernels/row_1.py"),
    ("folder for a kernel", _folder_for("kernels/row_1.py"), "is a directory", "kernels/row_1.py"),
    ("edited kernel", _replaced("kernels/row_1.py", "def", "def "), "1 kernel was edited since the compile", "kernels/row_1.py"),
    ("edited program", _replaced("program.py", "def", "def "), "1 file was edited since the compile", "program.py"),
    ("damaged graph", lambda f: (f / "graph/00_input.ring").write_text("module"), "is damaged", "graph/00_input.ring"),
    ("missing folder", lambda f: shutil.rmtree(f), "there is no such folder", ""),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message", "place"), [a[1:] for a in ARTIFACTS], ids=[a[0] for a in ARTIFACTS])
def test_artifacts(here: Here, folder: Path, tiny: Path, damage: Damage, message: str, place: str) -> None:
    artifact = Path(shutil.copytree(tiny, folder / "artifact"))
    (folder / "outside.py").write_text("x = 1\n")
    damage(artifact)
    before = contents(folder)
    check(here("run", artifact, "--weights", "random:0", "--prompt", "x"), message, str(artifact / place))
    assert contents(folder) == before


EDITS = [
    ("no Python", b"def launch(:\n", ":1"),
    ("no text", b"\xff\xfe\0", ""),
    ("raises", b"x = 1\nx = {}['no such key']\n", ":2"),
    ("defines nothing", b"x = 1\n", ""),
]


@pytest.mark.parametrize(("source", "line"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
@pytest.mark.parametrize("name", ["program.py", "kernels/attention_1.py"])
def test_edited_files_that_are_allowed(
    here: Here, folder: Path, tiny: Path, name: str, source: bytes, line: str
) -> None:
    artifact = Path(shutil.copytree(tiny, folder / "artifact"))
    (artifact / name).write_bytes(source)
    before = contents(folder)
    done = here("run", artifact, "--weights", "random:0", "--prompt", "x", "--allow-edited")
    check(done, name, f"{artifact / name}{line}")
    assert contents(folder) == before


# ---------------------------------------------------------------- prompts and options

IDS: list[tuple[str, str | bytes, str, str]] = [
    ("word", "hello", "'hello' is no token id", ":1:1"),
    ("fraction", "1 2\n3 2.5", "'2.5' is no token id", ":2:3"),
    ("not a number", "[NaN]", "'NaN' is no token id", ":1:2"),
    ("digits of another script", "١٢", "'١٢' is no token id", ":1:1"),
    ("outside the vocabulary", "[1,\n 272]", "the id 272 is outside the vocabulary of 272", ":2:2"),
    ("negative", "1, -2", "the id -2 is outside the vocabulary of 272", ":1:4"),
    ("5000 digits", "1 " + "9" * 5000, "is outside the vocabulary", ":1:3"),
    ("none: T = 0", "[]", "the file holds no token ids", ""),
    ("empty", "", "the file holds no token ids", ""),
    ("binary", b"\xff\xfe\0", "it is no UTF-8 text", ""),
    ("too many", "1 " * 4090, "4090 tokens of the prompt and 128 new ones are more than the model's 4096 positions", "tiny"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "place"), [i[1:] for i in IDS], ids=[i[0] for i in IDS])
def test_prompt_ids(here: Here, folder: Path, tiny: Path, text: str | bytes, message: str, place: str) -> None:
    ids = folder / "ids"
    ids.write_bytes(text.encode() if isinstance(text, str) else text)
    before = contents(folder)
    where = str(tiny) if place == "tiny" else f"{ids}{place}"
    check(here("run", tiny, "--weights", "random:0", "--prompt-ids", ids), message, where)
    assert contents(folder) == before


RANDOM = ["--weights", "random:0"]
USAGE: list[tuple[list[str], str]] = [
    (["compile", "ring-tinny", "-o", "{tmp}/a"], "no preset named 'ring-tinny'"),
    (["compile", "ring-tiny", "-o", "{tmp}/a", "--target", "sm_91"], "no target 'sm_91'"),
    (["compile", "ring-tiny", "-o", "{tmp}/a", "--dump", "some"], "no dump 'some'"),
    (["compile", "{tmp}/none.yaml", "-o", "{tmp}/a"], "no such file"),
    (["compile", "ring-tiny", "-o", "{tmp}/a", "--record", "{tmp}/none"], "can't be read: no such file"),
    (["tune", "ring-tiny", "-o", "{tmp}/a", "--target", "torch"], "nothing to measure for target torch"),
    (["tune", "ring-tiny", "-o", "{tmp}/a", "--target", "sm_91"], "no target 'sm_91'"),
    (["compile", "{tmp}", "-o", "{tmp}/a"], "is a folder"),
    (["compile", "{tmp}/loop", "-o", "{tmp}/a"], "symbolic links"),
    (["run", "{tmp}/a", *RANDOM, "--prompt", "x"], "no such folder"),
    (["run", "{tmp}/words", *RANDOM, "--prompt", "x"], "the artifact is a file, not a folder"),
    (["run", "{tiny}", *RANDOM], "there is nothing to continue"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--prompt-ids", "{tmp}/words"], "both --prompt and --prompt-ids"),
    (["run", "{tiny}", *RANDOM, "--prompt", ""], "the prompt is empty"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--max-new-tokens", "-1"], "--max-new-tokens is -1"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--max-new-tokens", "5000"], "more than the model's 4096 positions"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--top-p", "2"], "top_p is 2"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--top-k", "-1"], "top_k is -1"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--temperature", "nan"], "the temperature is nan"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--seed", "9" * 40], "--seed is 999"),
    (["run", "{tiny}", *RANDOM, "--prompt", "x", "--weights-dtype", "int4"], "can't be kept in 'int4'"),
    (["run", "{tiny}", "--weights", "random:", "--prompt", "x"], "names no random weights"),
    (["run", "{tiny}", "--weights", "random:" + "9" * 5000, "--prompt", "x"], "names no random weights"),
    (["run", "{tiny}", *RANDOM, "--prompt-ids", "{tmp}/none"], "no such file"),
    (["run", "{tiny}", *RANDOM, "--prompt-ids", "{tmp}"], "is a directory"),
    (["inspect", "{tiny}", "row_0"], "no kernel 'row_0'"),
    (["inspect", "{tiny}", "row_1", "--stage", "ptx"], "has no stage 'ptx'"),
    (["inspect", "{tiny}", "row_1", "--stage", "x"], "no stage 'x'"),
    (["inspect", "{tiny}", "program", "--stage", "ir"], "the program has its source alone"),
    (["check", "{tmp}"], "manifest.json is missing"),
    (["check", "{tiny}", "--tokens", "0"], "--tokens is 0"),
    (["check", "{tiny}", "--tokens", "5000"], "--tokens is 5000"),
    (["explain", "{tiny}", "everything"], "nothing to explain"),
    (["opt", "{tmp}/words", "-p", "dce"], "expected 'func'"),
    (["opt", "{tmp}/words", "-p", "dance"], "no pass 'dance'"),
    (["opt", "{tmp}/words", "-p", "dce{{deep=true}}"], "has no option 'deep'"),
    (["opt", "{tmp}/words", "-p", "dce{{"], "unreadable pipeline"),
    (["opt"], "a file is needed"),
    (["opt", "{tmp}/none", "-p", "dce"], "can't be read"),
    (["presets", "ring-tinny"], "no preset named 'ring-tinny'"),
    (["presets", "../ring-tiny"], "no preset named"),
    (["cache", "burn"], "can't 'burn'"),
    (["import", "{tmp}", "--decay", "fast"], "'fast' is not a layer factor of the decay"),
    (["import", "{tmp}", "--decay", "none"], "'none' is not a layer factor of the decay"),
    (["import", "{tmp}/words"], "is a file, not a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[" ".join(u[0])[:60] for u in USAGE])
def test_usage(here: Here, folder: Path, tiny: Path, arguments: list[str], message: str) -> None:
    (folder / "words").write_text("hello")
    (folder / "loop").symlink_to(folder / "loop")
    before = contents(folder)
    check(here(*(a.format(tmp=folder, tiny=tiny) for a in arguments)), message, None)
    assert contents(folder) == before


def test_a_cache_folder_of_nobody(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGC_CACHE_DIR", "~nobody-of-this-name/cache")
    check(here("cache"), "no home folder", None)


# ---------------------------------------------------------------- in a process of its own


@pytest.mark.parametrize(("spec", "place"), [("name: 'x", "1:7"), ("\tname: x", "1:1")], ids=["yaml", "tab"])
def test_a_process_ends_like_that_too(tmp_path: Path, spec: str, place: str) -> None:
    (tmp_path / "spec.yaml").write_text(spec)
    done = ringc("compile", str(tmp_path / "spec.yaml"), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error[RC0100]: ")
    assert "Traceback" not in done.stderr
    assert list(contents(tmp_path)) == ["spec.yaml"]


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
# Root may read and write everything: of its privileges those are given up (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH).
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "ringc", *sys.argv[1:]])
"""


def as_anyone(*arguments: str | Path) -> Done:
    """Run the command as somebody whom permissions hold for."""
    return command([sys.executable, "-c", WITHOUT_PRIVILEGES, *map(str, arguments)])


@pytest.fixture
def locked(tmp_path: Path) -> Any:
    """Takes permissions away from a path until the test ends."""
    taken: list[Path] = []

    def lock(path: Path, mode: int) -> Path:
        path.chmod(mode)
        taken.append(path)
        return path

    yield lock
    for path in taken:
        path.chmod(0o700)


needs_permissions = pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root is held by nothing")


@needs_permissions
def test_a_folder_that_may_not_be_written(tmp_path: Path, locked: Any) -> None:
    (tmp_path / "mine").mkdir()
    locked(tmp_path / "mine", 0o500)
    done = as_anyone("compile", "ring-tiny", "-o", tmp_path / "mine" / "out", "--target", "torch")
    check(done, "the folder can't be written: permission denied", str(tmp_path / "mine" / "out"))
    assert list(contents(tmp_path)) == ["mine"]


@needs_permissions
@needs_tvm
def test_a_cache_that_may_not_be_written(tmp_path: Path, locked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("RINGC_CACHE_DIR", str(locked(tmp_path / "cache", 0o500)))
    (tmp_path / "spec.yaml").write_text(SMALL)
    done = as_anyone("compile", tmp_path / "spec.yaml", "-o", tmp_path / "out", "--target", "cpu")
    check(done, "can't write the kernel cache: permission denied", None)
    assert str(tmp_path / "cache") in done.stderr
    assert list(contents(tmp_path)) == ["cache", "spec.yaml"]


@needs_permissions
@pytest.mark.parametrize("name", ["", MANIFEST, "kernels", "kernels/row_1.py"])
def test_an_artifact_that_may_not_be_read(tmp_path: Path, tiny: Path, locked: Any, name: str) -> None:
    artifact = Path(shutil.copytree(tiny, tmp_path / "artifact"))
    locked(artifact / name, 0)
    done = as_anyone("inspect", artifact)
    check(done, "can't be read: permission denied", None)
    assert str(artifact) in done.stderr


@needs_permissions
@pytest.mark.parametrize("name", ["", INDEX, SHARD])
def test_a_checkpoint_that_may_not_be_read(tmp_path: Path, tiny: Path, published: Path, locked: Any, name: str) -> None:
    checkpoint = Path(shutil.copytree(published, tmp_path / "checkpoint"))
    locked(checkpoint / name, 0)
    done = as_anyone("run", tiny, "--weights", checkpoint, "--prompt", "x")
    check(done, "can't be read: permission denied", None)
    assert str(checkpoint) in done.stderr


# ---------------------------------------------------------------- where output goes


def test_output_that_nobody_reads(tiny: Path) -> None:
    """Closed, or ended by the reader: no traceback, and no complaint of Python at the end."""
    for shell in (
        "{0} presets >&-",
        "{0} inspect {1} | true",
        "{0} schema | head -n 1",
        "{0} presets 2>&- | head -n 1",
    ):
        line = shell.format(f"'{sys.executable}' -m ringc", f"'{tiny}'")
        done = command(["bash", "-o", "pipefail", "-c", line])
        assert done.stderr == "", line
        assert done.returncode in (0, 1), line  # 1: the reader went before all was written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["presets"], ["inspect", "{tiny}"], ["run", "{tiny}", *RANDOM, "--prompt", "x"]])
def test_output_to_a_full_disk(tiny: Path, arguments: list[str]) -> None:
    words = " ".join(f"'{a.format(tiny=tiny)}'" for a in arguments)
    done = command(["bash", "-c", f"'{sys.executable}' -m ringc {words} > /dev/full"])
    assert "error[RC0001]: the output cannot be written: no space left on device\n  = help: " in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_text_that_the_terminal_can_t_show(tiny: Path) -> None:
    """A prompt that is no text, on a terminal that knows ASCII alone."""
    words = ["run", str(tiny), *RANDOM, "--prompt", os.fsdecode(b"\xff \xc3\xa9"), "--max-new-tokens", "8"]
    done = ringc(*words, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("? ?")
