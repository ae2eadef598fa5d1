"""A checkpoint in the published format, from its files to text: import, compile, run; the tokens are the reference's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.support import Done, Here, contents, right, ringc
from tests.reference.ring_linear import RingConfig, forward, random_weights

tokenizers = pytest.importorskip("tokenizers")

CONFIG = RingConfig(vocab_size=320, num_experts=8, num_shared_experts=2)
PROMPT = "the state of the layer"
COUNT = 12
LARGEST = 6e4
"""Bytes of a shard."""


def published_config(config: RingConfig, eos: int) -> dict[str, Any]:
    """What a config.json says; a key is left out where the configuration class's default stands."""
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "layer_group_size", "group_norm_size", "rope_theta", "use_qk_norm", "linear_silu", "num_experts",
        "num_experts_per_tok", "num_shared_experts", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob",
        "first_k_dense_replace", "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    return {
        "architectures": ["BailingMoeLinearV2ForCausalLM"],
        **{name: getattr(config, name) for name in same},
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
        "eos_token_id": eos,
        "pad_token_id": eos,
        "transformers_version": "4.56.1",
    }


def trained() -> Any:
    """A byte-level tokenizer of 300 tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the state of the layer, and the gate of the layer"] * 4, trainer)
    return made


def write_shards(folder: Path, weights: dict[str, torch.Tensor]) -> int:
    """Safetensors files of a published size with their index; gives back how many."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in weights.items():
        if sum(t.nbytes for t in shards[-1].values()) > LARGEST:
            shards.append({})
        shards[-1][name] = tensor
    places: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return len(shards)


def greedy(weights: dict[str, torch.Tensor], prompt: list[int], count: int) -> list[int]:
    """The reference's most likely tokens, in double precision; none of them is a close call."""
    made: list[int] = []
    for _ in range(count):
        logits = forward(CONFIG, weights, torch.tensor([*prompt, *made])).logits[-1]
        best, runner_up = logits.topk(2).values
        assert best - runner_up > 1e-3
        made.append(int(logits.argmax()))
    return made


class Published:
    """A checkpoint's folder, the artifact that was compiled for it, and what it should generate."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.spec, self.artifact = folder / "Ring-test", folder / "spec.yaml", folder / "artifact"
        self.checkpoint.mkdir()
        weights = {n: w.float().double() for n, w in random_weights(CONFIG, 26).items()}
        self.tokenizer = trained()
        self.prompt: list[int] = self.tokenizer.encode(PROMPT, add_special_tokens=False).ids
        free = greedy(weights, self.prompt, COUNT)
        # The text ends at the first token from the ninth on that hasn't come before.
        at = next(i for i in range(8, COUNT) if free[i] not in free[:i])
        self.eos, self.wanted = free[at], free[:at]
        config = published_config(CONFIG, self.eos)
        (self.checkpoint / "config.json").write_text(json.dumps(config, indent=2))
        self.tokenizer.save(str(self.checkpoint / "tokenizer.json"))
        self.shards = write_shards(self.checkpoint, {n: w.float() for n, w in weights.items()})
        right("import", str(self.checkpoint), "-o", str(self.spec))
        right("compile", str(self.spec), "-o", str(self.artifact), "--target", "torch")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


def run(model: Published, *arguments: str, checkpoint: Path | None = None) -> Done:
    return ringc("run", str(model.artifact), "--weights", str(checkpoint or model.checkpoint), *arguments)


def test_the_checkpoint_is_as_published(published: Published) -> None:
    assert published.shards > 3
    places = json.loads((published.checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    assert {f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in range(8)} <= places.keys()
    assert "name: Ring-test" in published.spec.read_text()


def test_a_prompt_goes_on_as_the_reference_does_and_ends_at_eos(published: Published) -> None:
    done = run(published, "--prompt", PROMPT, "--max-new-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert done.stdout == PROMPT + published.tokenizer.decode(published.wanted) + "\n"
    assert (
        f"[{len(published.prompt)} tokens in, {len(published.wanted)} out, up to the end token, first after "
        in done.stderr
    )
    assert " tokens/s]" in done.stderr


def test_ids_go_on_as_the_reference_does(published: Published, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(json.dumps(published.prompt))
    done = run(published, "--prompt-ids", str(tmp_path / "ids.json"), "--max-new-tokens", "40")
    assert [int(word) for word in done.stdout.split()] == published.wanted


def test_text_stops_at_a_word(published: Published) -> None:
    text = published.tokenizer.decode(published.wanted)
    word = next(c for i, c in enumerate(text) if i and c.isprintable() and c != "\ufffd" and c not in text[:i])
    done = run(published, "--prompt", PROMPT, "--max-new-tokens", "40", "--stop", word)
    assert done.stdout == PROMPT + text[: text.index(word)] + "\n"
    assert " out, up to a stop text, first after " in done.stderr


def test_the_whole_model_is_checked_with_it(published: Published) -> None:
    text = right("check", str(published.artifact), "--weights", str(published.checkpoint), "--tokens", "20")
    assert "0 wrong" in text


# ---------------------------------------------------------------- tokenizers that don't fit


def _gone(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0\x01" * 50)


def _other_json(path: Path) -> None:
    path.write_text('{"model": {"type": "nonesuch"}}')


def _larger(path: Path) -> None:
    made = trained()
    made.add_tokens([f"extra{i}" for i in range(100)] + ["the state"])
    made.save(str(path))


def _knows_nothing(path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="?")).save(str(path))


def _swallows(path: Path) -> None:
    made = trained()
    made.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(".*"), "")
    made.save(str(path))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (_gone, ["tokenizer: bytes", "tokenizer.json"]),
        (_empty, ["the tokenizer can't be read"]),
        (_truncated, ["the tokenizer can't be read"]),
        (_binary, ["the tokenizer can't be read"]),
        (_other_json, ["the tokenizer can't be read"]),
        (_larger, [", and the model's vocabulary has 320"]),
        (_knows_nothing, ["the tokenizer can't encode the text"]),
        (_swallows, ["the tokenizer makes no tokens of the prompt"]),
    ],
)
def test_a_tokenizer_that_does_not_fit(
    here: Here, published: Published, tmp_path: Path, damage: Callable[[Path], None], messages: list[str]
) -> None:
    checkpoint = Path(shutil.copytree(published.checkpoint, tmp_path / "checkpoint"))
    damage(checkpoint / "tokenizer.json")
    before = contents(tmp_path)
    done = here("run", published.artifact, "--weights", checkpoint, "--prompt", PROMPT)
    assert done.returncode == 2
    assert done.stderr.startswith("error[RC0")
    for message in messages:
        assert message in done.stderr.splitlines()[0]
    if damage is not _swallows:
        assert f"  --> {checkpoint / 'tokenizer.json'}\n" in done.stderr
    assert "\n  = help: " in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


def test_random_weights_have_no_tokenizer(here: Here, published: Published) -> None:
    done = here("run", published.artifact, "--weights", "random:0", "--prompt", PROMPT)
    assert done.returncode == 2
    assert "tokenizer: bytes" in done.stderr
    assert "tokenizer.json" in done.stderr
