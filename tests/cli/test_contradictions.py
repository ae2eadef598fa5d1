"""Manifests that were edited to contradict themselves, or the program beside them, and signed again: hashes can't tell.

Each gives one message that says so and to compile again, exit code 2, whatever is wanted of the artifact.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ringc.codegen.artifact import MANIFEST
from tests.cli.support import Damage, Done, Here, check, signed

RANDOM = ["--weights", "random:0"]


def _at(path: str, value: object) -> Damage:
    """Put another value at a path of the manifest, `kernels.row_1.inputs`; keys hold no dot but those in quotes."""

    def change(manifest: dict[str, Any]) -> None:
        *above, last = [k.strip("'") for k in re.findall(r"'[^']*'|[^.]+", path)]
        holder: Any = manifest
        for key in above:
            holder = holder[int(key) if isinstance(holder, list) else key]
        holder[int(last) if isinstance(holder, list) else last] = value

    return signed(change)


def _without(table: str, key: str) -> Damage:
    return signed(lambda m: m[table].pop(key))


STATE, QKV_KEY = "states.'layers.0.state'", "prepare.'layers.0.attention.query_key_value.weight+g_proj'"
INPUTS = "entries.decode.0.inputs"
CONTRADICTIONS: list[tuple[str, Damage, str]] = [
    ("true for a number", _at("max_positions", True), "'max_positions' is missing or of the wrong type"),
    ("no parameters", _at("facts", {}), "'facts.parameters' is missing"),
    ("typical sizes in words", _at("entries.decode.0.typical.N", "1"), "decode[0].typical.N' is missing or of the wrong type"),
    ("end of the text in words", _at("vocabulary.eos", "eos"), "'vocabulary.eos'"),
    ("unknown back end", _at("kernels.row_1.backend", "cuda"), "'kernels.row_1.backend'"),
    ("unknown storage", _at("target.storage", "int4"), "'target.storage'"),
    ("another entry point", _at("entries.train", []), "unknown entry point: 'train'"),
    ("no kernels", _at("kernels", {}), "there are no kernels"),
    ("no positions", _at("max_positions", 0), "the model has 0 positions"),
    ("negative vocabulary", _at("vocabulary.size", -272), "the vocabulary has -272 tokens"),
    ("end outside the vocabulary", _at("vocabulary.eos", 9999), "the token eos is outside the vocabulary"),
    ("version of another entry", _at("entries.decode.0.name", "prefill.one"), "a version of decode is called 'prefill.one'"),
    ("typical size of nothing", _at("entries.decode.0.typical.N", 0), "has a typical size below 1"),
    ("versions of other inputs", _at(INPUTS, [["ids", "i32[N / B]"]]), "has other inputs than decode."),
    ("kernel of another family", _at("kernels.row_1.family", "route"), "row_1 is of the family 'route'"),
    ("another kernel's source", _at("kernels.row_1.source", "kernels/row_2.py"), "the source of the kernel row_1 is"),
    ("another file built", _at("kernels.row_1.built", {".ll": "program.py"}), "the kernel row_1 has 'program.py' for its '.ll'"),
    ("no type", _at("kernels.row_1.inputs.0", "f32[N, __import__('os')]"), "which is none"),
    ("negative state", _at(f"{STATE}.shape.0", -4), "the state layers.0.state has a size that is neither"),
    ("state of another size", _at(f"{STATE}.shape.0", 8), "which the runtime doesn't hand out"),
    ("state of another type", _at(f"{STATE}.dtype", "bf16"), "which the runtime doesn't hand out"),
    ("missing state", _without("states", "layers.0.state"), "which the runtime doesn't hand out"),
    ("state of nobody", _at("states.more", {"shape": [4], "dtype": "f32"}), "doesn't take the state more"),
    ("weight of nothing", _at(f"{QKV_KEY}.shape.0", 0), "query_key_value.weight+g_proj has a size below 1"),
    ("weight of another size", _at(f"{QKV_KEY}.shape.0", 513), "is not what its parts cover"),
    ("part outside", _at(f"{QKV_KEY}.parts.0.region.0", [0, 999]), "has a part outside its shape"),
    ("part of another shape", _at(f"{QKV_KEY}.parts.0.shape.0", 12), "has a part of the shape [12, 128] for the region"),
    ("part moved in an unknown way", _at(f"{QKV_KEY}.parts.0.steps", [["turn", [0]]]), "has a part of the shape"),
    ("block of an unknown axis", _at(f"{QKV_KEY}.blocks", [[7, 16]]), "is cut into blocks of [7, 16]"),
    ("stack without a place", _at(f"{QKV_KEY}.parts.0.stack", 3), "has a stack of 3 tensors called"),
    ("short table", _at("prepare.'table.frequencies'.table", [1.0]), "has a table of 1 numbers"),
    ("weight made of nothing", _at(QKV_KEY, {"shape": [512, 128], "dtype": "f32"}), "made of either a table or parts"),
]  # fmt: skip
"""What is found when an artifact is opened, whatever is wanted of it."""

SEEN_WHEN_RUN: list[tuple[str, Damage, str]] = [
    ("missing kernel", _without("kernels", "row_2"), "the program launches the kernel row_2, which there isn't"),
    ("missing weight", _without("prepare", "word_embeddings.weight"), "the program wants the weight word_embeddings.weight"),
    ("another vocabulary", _at("vocabulary.size", 300), "[1, 300] of float32 as tensor"),
    ("kernel of another type", _at("kernels.row_2.inputs.0", "bf16[N / B, 512]"), "gives the kernel row_2"),
    ("kernel of another shape", _at("kernels.row_2.inputs.0", "f32[N / B, 513]"), "and it takes"),
    ("kernel of less inputs", _at("kernels.row_2.inputs", []), "gives the kernel row_2"),
    ("kernel of more results", _at("kernels.row_2.workspace", ["f32[N]"]), "tensors, and it takes"),
    ("weight of another type", _at(f"{QKV_KEY}.dtype", "f16"), "of float16 as tensor"),
    ("weight in another layout", _at(f"{QKV_KEY}.blocks", [[0, 32]]), "[16, 128, 32] of float32 as tensor"),
]  # fmt: skip
"""What only the program shows."""

MODULE_IS_INPUT = signed(lambda m: m.update(module=m["input"]))
INPUT_IS_MODULE = signed(lambda m: m.update(input=m["module"]))
OTHER_TENSORS = "gives the kernel attention_1 other tensors"
SEEN_WHEN_READ: list[tuple[str, list[str], Damage, str]] = [
    ("another module", ["explain"], MODULE_IS_INPUT, "graph/00_input.ring lacks decode.one"),
    ("another input", ["check"], INPUT_IS_MODULE, "_memory.ring lacks decode"),
    ("module without the kernel", ["inspect", "row_1", "--stage", "ir"], MODULE_IS_INPUT, "lacks row_1"),
    (
        "kernel of another type",
        ["check", "--kernels"],
        _at("kernels.attention_1.inputs.0", "bf16[N / B, 4, 32]"),
        OTHER_TENSORS,
    ),
]
"""What the graphs in the artifact show."""


def _contradicts(done: Done, message: str, place: Path) -> None:
    check(done, message, str(place))
    assert "the artifact contradicts itself: " in done.stderr or "the manifest" in done.stderr


@pytest.mark.parametrize(("damage", "message"), [c[1:] for c in CONTRADICTIONS], ids=[c[0] for c in CONTRADICTIONS])
def test_a_manifest_that_contradicts_itself(
    here: Here, tmp_path: Path, tiny: Path, damage: Damage, message: str
) -> None:
    artifact = Path(shutil.copytree(tiny, tmp_path / "artifact"))
    damage(artifact)
    verbs: list[list[str]] = [["run", *RANDOM, "--prompt", "x"], ["inspect"], ["explain"], ["check"]]
    for verb, *options in verbs:
        _contradicts(here(verb, artifact, *options), message, artifact / MANIFEST)


@pytest.mark.parametrize(("damage", "message"), [c[1:] for c in SEEN_WHEN_RUN], ids=[c[0] for c in SEEN_WHEN_RUN])
def test_a_manifest_that_contradicts_the_program(
    here: Here, tmp_path: Path, tiny: Path, damage: Damage, message: str
) -> None:
    artifact = Path(shutil.copytree(tiny, tmp_path / "artifact"))
    damage(artifact)
    _contradicts(here("run", artifact, *RANDOM, "--prompt", "x"), message, artifact / MANIFEST)
    assert here("inspect", artifact).returncode == 0


@pytest.mark.parametrize(
    ("verb", "damage", "message"), [c[1:] for c in SEEN_WHEN_READ], ids=[c[0] for c in SEEN_WHEN_READ]
)
def test_a_manifest_that_contradicts_the_graphs(
    here: Here, tmp_path: Path, tiny: Path, verb: list[str], damage: Damage, message: str
) -> None:
    artifact = Path(shutil.copytree(tiny, tmp_path / "artifact"))
    damage(artifact)
    _contradicts(here(verb[0], artifact, *verb[1:]), message, artifact / MANIFEST)
