"""Checkpoints in, prepared tensors out, and back; everything that can be wrong with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ringc
from ringc.codegen.packing import pack, read_part, storage_shape, unpack, write_part
from ringc.errors import CheckpointError, RingcError, RunError, UsageError
from ringc.model_defs import load_spec
from ringc.runtime import memory
from ringc.runtime.artifact import open_artifact
from ringc.runtime.drawn import initial_parameter, random_parameter
from ringc.runtime.model import Model
from ringc.runtime.weights import Preparation
from tests.runtime.models import reference_config, reference_weights, sharded

Tensors = dict[str, torch.Tensor]
QKV = "model.layers.0.attention.query_key_value.weight"


@pytest.fixture(scope="module")
def published() -> Tensors:
    return {n: w.float() for n, w in reference_weights(reference_config(load_spec("ring-tiny")), 3).items()}


class TestLoading:
    def test_one_file_shards_and_tensors_give_the_same_model(
        self, tiny_folder: Path, published: Tensors, tmp_path: Path
    ) -> None:
        (tmp_path / "one").mkdir()
        save_file(published, tmp_path / "one" / "model.safetensors")
        ids = torch.arange(30)[None]
        wanted = ringc.load(tiny_folder, published)(ids)
        sources = (tmp_path / "one", tmp_path / "one" / "model.safetensors", sharded(tmp_path / "many", published))
        for source in sources:
            assert torch.equal(ringc.load(tiny_folder, source)(ids), wanted)
        assert torch.equal(ringc.load(tiny_folder, "random:3")(ids), wanted)

    def test_tables_of_the_configuration_are_passed_over(
        self, tiny_folder: Path, published: Tensors, tmp_path: Path
    ) -> None:
        save_file({**published, "model.layers.0.attention.slope": torch.ones(4)}, tmp_path / "model.safetensors")
        ringc.load(tiny_folder, tmp_path)

    def test_random_tensors_depend_on_name_and_seed_alone(self) -> None:
        a = random_parameter("model.layers.0.mlp.up_proj.weight", (300, 100), 1)
        assert torch.equal(a, random_parameter("model.layers.0.mlp.up_proj.weight", (300, 100), 1))
        assert not torch.equal(a, random_parameter("model.layers.0.mlp.up_proj.weight", (300, 100), 2))
        assert not torch.equal(a, random_parameter("model.layers.1.mlp.up_proj.weight", (300, 100), 1))
        assert float(a.std()) == pytest.approx(0.1, rel=0.02)
        norm = random_parameter("model.norm.weight", (4000,), 1)
        assert float(norm.mean()) == pytest.approx(1, abs=0.02)
        assert float(norm.std()) == pytest.approx(0.2, rel=0.1)

    def test_initial_ones(self, tiny_folder: Path) -> None:
        matrix = initial_parameter("model.layers.0.mlp.up_proj.weight", (300, 100), 1)
        assert float(matrix.std()) == pytest.approx(0.006, rel=0.02)
        assert not torch.equal(matrix, initial_parameter("model.layers.0.mlp.up_proj.weight", (300, 100), 2))
        assert torch.equal(initial_parameter("model.layers.0.input_layernorm.weight", (8,), 1), torch.ones(8))
        assert torch.equal(initial_parameter("model.layers.1.mlp.gate.expert_bias", (8,), 1), torch.zeros(8))
        ids = torch.arange(30)[None]
        first, again, other = (ringc.load(tiny_folder, f"initial:{seed}")(ids) for seed in (3, 3, 4))
        assert torch.equal(again, first)
        assert not torch.equal(other, first)
        # Normed rows times a head of that deviation.
        assert float(first.std()) == pytest.approx(0.006 * 128**0.5, rel=0.1)

    def test_progress_is_told(self, tiny_folder: Path) -> None:
        told: list[tuple[int, int]] = []
        ringc.load(tiny_folder, "random:0", progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (len(told), len(told))

    def test_too_little_memory_is_said_before_anything_is_loaded(
        self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
        with pytest.raises(RunError, match=r"weights need 5\.\d MB of memory, and 1\.0 kB are available"):
            ringc.load(tiny_folder, "random:0")


def _drop(t: Tensors) -> None:
    del t[QKV]


def _add(t: Tensors) -> None:
    t["model.layers.0.attention.bias"] = torch.zeros(3)


def _nan(t: Tensors) -> None:
    t[QKV][3, 4] = float("nan")


def _infinite(t: Tensors) -> None:
    t["model.norm.weight"][0] = float("inf")


def _shape(t: Tensors) -> None:
    t[QKV] = t[QKV][:-1].contiguous()


def _integers(t: Tensors) -> None:
    t[QKV] = t[QKV].to(torch.int32)


class TestAnotherModels:
    def test_both_use_the_same_memory(self, tiny: Model, tiny_copy: Callable[[], Path]) -> None:
        model = ringc.load(tiny_copy(), tiny)
        assert model.prepared.keys() == tiny.prepared.keys()
        assert all(w is tiny.prepared[key] for key, w in model.prepared.items())
        assert torch.equal(model([[1, 2, 3]]), tiny([[1, 2, 3]]))

    def test_laid_out_otherwise(self, tiny: Model, tiny_folder: Path) -> None:
        artifact = open_artifact(tiny_folder)
        entry = artifact.manifest["prepare"]["norm.weight"]
        prepare = artifact.manifest["prepare"] | {"norm.weight": entry | {"dtype": "bf16"}}
        other = replace(artifact, folder=Path("other"), manifest={**artifact.manifest, "prepare": prepare})
        with pytest.raises(CheckpointError, match=rf"other doesn't keep norm.weight as {tiny_folder} does") as error:
            Model(other, tiny)
        assert "from where they come" in str(error.value)

    def test_on_another_device(self, tiny: Model, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiny, "device", torch.device("meta"))
        with pytest.raises(CheckpointError, match="tiny runs on cpu, and the weights that it was given are on meta"):
            ringc.load(tiny_folder, tiny)

    def test_nothing_is_narrowed_and_room_is_wanted_all_the_same(self, tiny: Model, tiny_folder: Path) -> None:
        with pytest.raises(UsageError, match="stay as it keeps them"):
            ringc.load(tiny_folder, tiny, weights_dtype=torch.bfloat16)
        with pytest.raises(RunError, match="caches need"):
            ringc.load(tiny_folder, tiny, room=1 << 60)


class TestWrongTensors:
    @pytest.mark.parametrize(
        ("change", "message", "name"),
        [
            (_drop, "lacks the tensor", QKV),
            (_add, "a tensor that the model hasn't", "attention.bias"),
            (_nan, "holds NaN", QKV),
            (_infinite, "holds infinite numbers", "model.norm.weight"),
            (_shape, r"has the shape \[383, 128\], and the model's is \[384, 128\]", QKV),
            (_integers, "holds numbers of type int32", QKV),
        ],
    )
    def test_file_and_tensor_are_named(
        self,
        tiny_folder: Path,
        published: Tensors,
        tmp_path: Path,
        change: Callable[[Tensors], None],
        message: str,
        name: str,
    ) -> None:
        tensors = {n: t.clone() for n, t in published.items()}
        change(tensors)
        folder = sharded(tmp_path / "checkpoint", tensors)
        with pytest.raises(CheckpointError, match=message) as caught:
            ringc.load(tiny_folder, folder)
        assert name in str(caught.value)
        assert str(folder) in str(caught.value)


def _no_folder(folder: Path) -> Path:
    return folder / "elsewhere"


def _empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _missing_shard(folder: Path) -> Path:
    (folder / "model-00002-of-00003.safetensors").unlink()
    return folder


def _truncated(folder: Path) -> Path:
    path = folder / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


def _empty_file(folder: Path) -> Path:
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"")
    return folder


def _garbage(folder: Path) -> Path:
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"\xff" * 4096)
    return folder


def _index_text(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text("{")
    return folder


def _index_list(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    return folder


def _index_outside(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))
    return folder


def _index_wrong(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][QKV] = next(
        f for f in sorted(set(index["weight_map"].values())) if f != index["weight_map"][QKV]
    )
    path.write_text(json.dumps(index))
    return folder


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (_no_folder, "no such folder"),
            (_empty_folder, "neither model.safetensors nor"),
            (_missing_shard, "the shard model-00002-of-00003.safetensors is missing"),
            (_truncated, "can't be read"),
            (_empty_file, "can't be read"),
            (_garbage, "can't be read"),
            (_index_text, "the index is no JSON"),
            (_index_list, "the index has no 'weight_map'"),
            (_index_outside, "outside the folder"),
            (_index_wrong, "the index says that"),
        ],
    )
    def test_the_file_is_named(
        self, tiny_folder: Path, published: Tensors, tmp_path: Path, damage: Callable[[Path], Path], message: str
    ) -> None:
        source = damage(sharded(tmp_path / "checkpoint", published))
        with pytest.raises(CheckpointError, match=message) as caught:
            ringc.load(tiny_folder, source)
        assert caught.value.place is not None
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize("source", ["random:", "random:x", "random:-1", "initial:", "initial:0.5"])
    def test_drawn_weights_have_a_number(self, tiny_folder: Path, source: str) -> None:
        with pytest.raises(UsageError, match=f"names no {source.partition(':')[0]} weights"):
            ringc.load(tiny_folder, source)

    def test_every_message_says_its_class(self, tiny_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(RingcError) as caught:
            ringc.load(tiny_folder, tmp_path)
        assert str(caught.value).startswith("error[RC0200]: ")


@st.composite
def packings(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], list[tuple[int, int]]]:
    """A shape, a layout of it, and a region of it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    axis = draw(st.integers(0, len(shape) - 1))
    blocks = draw(st.sampled_from([(), ((axis, draw(st.integers(2, 5))),)]))
    region = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        region.append((start, draw(st.integers(start + 1, n))))
    return shape, blocks, region


class TestPacking:
    @given(packings())
    def test_a_packed_tensor_comes_back(
        self, packing: tuple[tuple[int, ...], tuple[tuple[int, int], ...], object]
    ) -> None:
        shape, blocks, _ = packing
        x = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
        storage = pack(x, blocks)
        assert storage.shape == storage_shape(shape, blocks)
        assert torch.equal(unpack(storage, shape, blocks), x)
        assert int((storage == 0).sum()) == storage.numel() - x.numel()

    @given(packings())
    def test_a_part_is_written_where_it_is_read(
        self, packing: tuple[tuple[int, ...], tuple[tuple[int, int], ...], list[tuple[int, int]]]
    ) -> None:
        shape, blocks, region = packing
        storage = torch.zeros(storage_shape(shape, blocks))
        part = torch.rand([b - a for a, b in region]) + 1
        write_part(storage, blocks, region, part)
        assert torch.equal(read_part(storage, blocks, region), part)
        whole = torch.zeros(shape)
        whole[tuple(slice(a, b) for a, b in region)] = part
        assert torch.equal(unpack(storage, shape, blocks), whole)

    def test_the_inside_of_a_block_is_behind_all_other_axes(self) -> None:
        x = torch.arange(12).reshape(6, 2)
        assert torch.equal(pack(x, ((0, 3),))[1, :, 2], x[5])


def test_the_map_and_its_inverse_know_all_movements() -> None:
    """Laid end to end, stacked, transposed, reshaped, cut, packed: what goes in comes out."""

    def half(start: int) -> dict[str, Any]:
        steps = [["reshape", [4, 3]], ["slice", [0, start, start + 2]]]
        return {"source": "c", "shape": [12], "steps": steps, "region": [[0, 2], [0, 3]]}

    prepare: dict[str, dict[str, Any]]
    prepare = {
        "ab": {
            "shape": [6, 5], "dtype": "f32", "blocks": [[0, 4]],
            "parts": [
                {"source": "a", "shape": [2, 5], "region": [[0, 2], [0, 5]]},
                {"source": "b", "shape": [5, 4], "steps": [["permute", [1, 0]]], "region": [[2, 6], [0, 5]]},
            ],
        },
        "e": {
            "shape": [3, 2, 5], "dtype": "bf16", "blocks": [[1, 4]],
            "parts": [
                {"source": "e.*.w", "shape": [5, 2], "stack": 3, "steps": [["permute", [0, 2, 1]]], "region": [[0, 3], [0, 2], [0, 5]]}
            ],
        },
        "c1": {"shape": [2, 3], "dtype": "f32", "parts": [half(0)]},
        "c2": {"shape": [2, 3], "dtype": "f32", "parts": [half(2)]},
        "t": {"shape": [2], "dtype": "f32", "table": [1.0, 2.0]},
    }  # fmt: skip
    preparation = Preparation(prepare)
    tensors = {name: torch.randn(shape).bfloat16().float() for name, shape in preparation.shapes().items()}
    assert set(tensors) == {"a", "b", "c", "e.0.w", "e.1.w", "e.2.w"}
    made = preparation.empty(torch.device("cpu"))
    for name, tensor in tensors.items():
        preparation.put(made, name, tensor)
    assert torch.equal(unpack(made["ab"], (6, 5), ((0, 4),)), torch.cat([tensors["a"], tensors["b"].T]))
    assert torch.equal(unpack(made["e"], (3, 2, 5), ((1, 4),))[2].float(), tensors["e.2.w"].T)
    assert torch.equal(made["c2"], tensors["c"].reshape(4, 3)[2:])
    assert made["t"].tolist() == [1.0, 2.0]
    for name, tensor in tensors.items():
        assert torch.equal(preparation.published(made, name).float(), tensor), name


def test_the_model_counts_its_bytes(tiny: Model) -> None:
    assert tiny.weight_bytes == Preparation(tiny.artifact.manifest["prepare"]).bytes()
