"""What an artifact is on the disk, and everything that can be wrong with one."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ringc
from ringc.codegen import cpu
from ringc.codegen.artifact import MANIFEST, manifest_digest, to_json, write_artifact
from ringc.errors import ArtifactError
from ringc.runtime.artifact import open_artifact
from ringc.runtime.model import Model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None], *, signed: bool = True) -> Path:
    """Change a manifest; `signed` makes its hash fit again, as a newer compiler's or another machine's would."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    if signed:
        manifest["sha256"] = manifest_digest(manifest)
    path.write_text(to_json(manifest))
    return folder


class TestWriting:
    def test_two_compiles_give_the_same_bytes(self, tiny_folder: Path, tmp_path: Path) -> None:
        ringc.compile("ring-tiny", tmp_path / "other name", target="torch", use_cache=False)
        assert contents(tmp_path / "other name") == contents(tiny_folder)

    def test_it_holds_what_it_says(self, tiny_folder: Path) -> None:
        manifest = json.loads((tiny_folder / MANIFEST).read_text())
        assert {*manifest["files"], MANIFEST} == set(contents(tiny_folder))
        assert {"program.py", "events.jsonl", "graph/00_input.ring"} <= set(manifest["files"])
        assert manifest["input"] == "graph/00_input.ring"
        assert manifest["module"] in manifest["files"]
        assert manifest["spec"]["name"] == manifest["name"] == "ring-tiny"
        assert all(json.loads(line)["event"] for line in (tiny_folder / "events.jsonl").read_text().splitlines())

    def test_dump_all_keeps_every_pass(self, tmp_path: Path) -> None:
        ringc.compile("ring-tiny", tmp_path / "a", target="torch", dump_all=True)
        names = sorted(p.name for p in (tmp_path / "a" / "graph").iterdir())
        assert len(names) > 8
        assert [int(n[:2]) for n in names] == list(range(len(names)))

    def test_an_artifact_of_the_same_model_is_replaced(self, tmp_path: Path) -> None:
        for target in ("torch", "torch"):
            ringc.compile("ring-tiny", tmp_path / "a", target=target)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_other_things_are_never_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("...")
        for force in (False, True):
            with pytest.raises(ArtifactError, match="holds something that is no artifact"):
                ringc.compile("ring-tiny", tmp_path / "mine", target="torch", force=force)
        (tmp_path / "file").write_text("")
        with pytest.raises(ArtifactError, match="a file of this name is in the way"):
            ringc.compile("ring-tiny", tmp_path / "file", target="torch")
        assert contents(tmp_path) == {"mine/thesis.tex": b"...", "file": b""}

    def test_another_model_is_replaced_when_asked(self, tmp_path: Path) -> None:
        write_artifact(tmp_path / "a", {"format_version": 1, "name": "other"}, {})
        with pytest.raises(ArtifactError, match="an artifact of 'other'"):
            write_artifact(tmp_path / "a", {"format_version": 1, "name": "mine"}, {"x": b"1"})
        write_artifact(tmp_path / "a", {"format_version": 1, "name": "mine"}, {"x": b"1"}, force=True)
        assert set(contents(tmp_path)) == {"a/x", "a/manifest.json"}

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The old artifact stays, and no part of the new one."""
        folder = tmp_path / "a"
        write_artifact(folder, {"format_version": 1, "name": "m"}, {"x": b"old"})
        before = contents(tmp_path)
        write = pathlib.Path.write_bytes

        def full(self: Path, data: bytes) -> int:
            if self.name == "y":
                write(self, data[:1])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, data)

        monkeypatch.setattr(pathlib.Path, "write_bytes", full)
        with pytest.raises(ArtifactError, match="no space left"):
            write_artifact(folder, {"format_version": 1, "name": "m"}, {"x": b"new", "y": b"12"})
        assert contents(tmp_path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize("is_there", [False, True])
    def test_another_compile_into_the_folder_that_is_quicker(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
    ) -> None:
        """Whoever finishes last stands there, whole."""
        folder, rename = tmp_path / "a", pathlib.Path.rename
        if is_there:
            write_artifact(folder, {"format_version": 1, "name": "m"}, {"x": b"old"})
        others = [b"1", b"2"]

        def late(self: Path, target: Path) -> Path:
            # Just before the folder is put in its place, another process puts its own there.
            if target == folder and others:
                data = others.pop()
                monkeypatch.setattr(pathlib.Path, "rename", rename)
                write_artifact(folder, {"format_version": 1, "name": "m"}, {"x": data})
                monkeypatch.setattr(pathlib.Path, "rename", late)
            return rename(self, target)

        monkeypatch.setattr(pathlib.Path, "rename", late)
        write_artifact(folder, {"format_version": 1, "name": "m"}, {"x": b"new"})
        assert not others
        assert contents(tmp_path).keys() == {"a/x", "a/manifest.json"}
        assert (folder / "x").read_bytes() == b"new"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_an_unwritable_folder_is_said_before_any_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_a, **_k: False)  # root may write everywhere
        with pytest.raises(ArtifactError, match="permission denied") as caught:
            ringc.compile("ring-tiny", tmp_path / "a", target="torch")
        assert str(tmp_path / "a") in str(caught.value)
        assert not list(tmp_path.iterdir())


def _no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _no_json(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format_version": 1,,}')


def _bad_bytes(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")


def _deep(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000)


def _a_list(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def _version(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(format_version=99))


def _no_kernels(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.pop("kernels"))


def _changed(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["vocabulary"].update(size=1 << 20), signed=False)


def _lost_kernel(folder: Path) -> None:
    (folder / "kernels" / "row_1.py").unlink()


def _edited_kernel(folder: Path) -> None:
    path = folder / "kernels" / "row_1.py"
    path.write_text(path.read_text() + "\n")


def _edited_program(folder: Path) -> None:
    (folder / "program.py").write_text("")


def _damaged_graph(folder: Path) -> None:
    (folder / "graph" / "00_input.ring").write_text("module")


def _other_processor(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["target"].update(cpu={"architecture": "vax", "features": []}))


def _other_features(folder: Path) -> None:
    needs = {"architecture": cpu.architecture(), "features": ["avx9000"]}
    edit_manifest(folder, lambda m: m["target"].update(cpu=needs))


def _other_gpu(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["target"].update(name="sm_20", arch=20))


class TestReading:
    @pytest.mark.parametrize(
        ("damage", "message", "where"),
        [
            (_no_manifest, "manifest.json is missing", ""),
            (_no_json, "the manifest is no JSON", "manifest.json:1:"),
            (_bad_bytes, "the manifest can't be read", "manifest.json"),
            (_deep, "the manifest can't be read", "manifest.json"),
            (_a_list, "says no format_version", "manifest.json"),
            (_version, "has format version 99, and this ringc reads 2", "manifest.json"),
            (_no_kernels, "'kernels' is missing", "manifest.json"),
            (_changed, "the manifest was changed", "manifest.json"),
            (_lost_kernel, "can't be read: no such file", "kernels/row_1.py"),
            (_edited_kernel, "1 kernel was edited since the compile: kernels/row_1.py", "kernels/row_1.py"),
            (_edited_program, "edited since the compile: program.py", "program.py"),
            (_damaged_graph, "00_input.ring is damaged", "graph/00_input.ring"),
            (_other_processor, "for vax processors", "manifest.json"),
            (_other_features, "avx9000, which this processor lacks", "manifest.json"),
            (_other_gpu, "for target sm_20", "manifest.json"),
        ],
    )
    def test_it_is_one_message_that_names_the_place_and_the_remedy(
        self, tiny_copy: Callable[[], Path], damage: Callable[[Path], None], message: str, where: str
    ) -> None:
        folder = tiny_copy()
        damage(folder)
        with pytest.raises(ArtifactError, match=message) as caught:
            open_artifact(folder)
        assert caught.value.help
        assert f"{folder / where}" in str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="no such folder"):
            open_artifact(tmp_path / "a")

    def test_an_edited_kernel_runs_when_allowed(self, tiny_copy: Callable[[], Path]) -> None:
        folder = tiny_copy()
        program = (folder / "program.py").read_text()
        version = program.split("def prefill_short(")[1].split("\ndef ")[0]
        name = re.findall(r'rt\.launch\("(\w+)"', version)[-1]
        path = folder / "kernels" / f"{name}.py"
        path.write_text(path.read_text() + "\n\ndef launch(*tensors):\n    tensors[-1].fill_(7.0)\n")
        model = ringc.load(folder, "random:0", allow_edited=True)
        assert model.artifact.is_edited(name)
        assert (model([[1, 2, 3]]) == 7).all()

    def test_an_edited_kernel_that_is_no_python_is_named(self, tiny_copy: Callable[[], Path]) -> None:
        folder = tiny_copy()
        (folder / "kernels" / "row_3.py").write_text("def launch(:\n")
        model = ringc.load(folder, "random:0", allow_edited=True)
        with pytest.raises(ArtifactError, match=r"row_3\.py can't be loaded") as caught:
            model([[1, 2]])
        assert caught.value.place is not None
        assert caught.value.place.line == 1

    def test_looking_needs_no_machine(self, tiny_copy: Callable[[], Path]) -> None:
        folder = tiny_copy()
        _other_processor(folder)
        assert open_artifact(folder, any_machine=True).name == "ring-tiny"

    def test_an_artifact_can_be_moved(self, tiny_copy: Callable[[], Path], tiny: Model) -> None:
        moved = tiny_copy()
        assert (ringc.load(moved, "random:0")([[5, 6]]) == tiny([[5, 6]])).all()
