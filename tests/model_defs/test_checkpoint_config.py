"""Published configurations become specs; those that a spec can't say are refused where they say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ringc.errors import CheckpointError, UsageError
from ringc.model_defs import Spec, import_checkpoint, load_spec, parameter_count, parse_spec

# What the configuration of Ring-mini-linear-2.0 states.
MINI: dict[str, Any] = {
    "architectures": ["BailingMoeLinearV2ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_bailing_moe_linear_v2.BailingMoeLinearV2Config"},
    "eos_token_id": 156892,
    "first_k_dense_replace": 1,
    "group_norm_size": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "layer_group_size": 5,
    "linear_silu": False,
    "max_position_embeddings": 131072,
    "model_type": "bailing_moe_linear",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 512,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "vocab_size": 157184,
}
SOFTMAX = "BailingMoeV2ForCausalLM"


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def imported(tmp_path: Path, without: tuple[str, ...] = (), **changes: Any) -> Spec:
    config = {key: value for key, value in {**MINI, **changes}.items() if key not in without}
    return parse_spec(import_checkpoint(write(tmp_path / "model", config)))


def test_mini_equals_its_preset(tmp_path: Path) -> None:
    spec, preset = imported(tmp_path), load_spec("ring-mini-linear-2.0")
    assert spec.name == "model"
    same = preset.model_copy(update={"name": spec.name, "description": "", "vocabulary": spec.vocabulary})
    assert spec == same
    assert spec.vocabulary == preset.vocabulary.model_copy(update={"bos": None})


def test_the_softmax_sibling(tmp_path: Path) -> None:
    spec = imported(
        tmp_path, architectures=[SOFTMAX], max_position_embeddings=32768, rope_theta=600000, bos_token_id=156891
    )
    preset = load_spec("ring-mini-2.0")
    assert spec == preset.model_copy(update={"name": "model", "description": ""})
    assert parameter_count(spec) == 16_255_643_392


@pytest.mark.parametrize("decay", ["serving", "hf", "mlx"])
def test_the_layer_factor_is_a_choice(tmp_path: Path, decay: Any) -> None:
    spec = parse_spec(import_checkpoint(write(tmp_path / "model", MINI), decay=decay))
    assert spec.linear is not None
    assert spec.linear.decay.layer_factor == decay


def test_an_unknown_layer_factor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="servng"):
        import_checkpoint(write(tmp_path / "model", MINI), decay="servng")  # type: ignore[arg-type]


def test_absent_keys_take_the_constructor_defaults(tmp_path: Path) -> None:
    folder = write(tmp_path / "bare", {"architectures": MINI["architectures"]})
    text = import_checkpoint(folder)
    spec = parse_spec(text)
    assert spec.linear_layers == ()  # layer_group_size 1: every layer ends a group
    assert spec.layers.M == 0
    assert spec.linear is not None
    assert spec.moe is not None
    assert spec.moe.groups is not None
    assert (spec.linear.norm_groups, spec.linear.silu) == (1, False)
    assert (spec.rope.theta, spec.max_positions) == (600000, 32768)
    assert spec.rope.rotary_dim == 128
    assert spec.moe.router.scale == 1.0
    assert (spec.moe.groups.count, spec.moe.groups.keep) == (8, 4)
    assert (spec.vocabulary.eos, spec.vocabulary.pad) == (156892, 156892)
    assert "max_positions: 32768 # max_position_embeddings absent: the configuration class's default" in text
    assert "scale: 1 # routed_scaling_factor absent" in text


def test_rotary_dim_wins_over_the_fraction(tmp_path: Path) -> None:
    assert imported(tmp_path, rotary_dim=32).rope.rotary_dim == 32
    assert imported(tmp_path, partial_rotary_factor=0.25).rope.rotary_dim == 32
    assert imported(tmp_path, without=("partial_rotary_factor",)).rope.rotary_dim == 128


def test_rotary_settings(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    scaling = imported(tmp_path, rope_scaling=yarn).rope.scaling
    assert scaling is not None
    assert (scaling.factor, scaling.original_positions, scaling.beta_fast, scaling.amplitude) == (
        4.0,
        32768,
        32.0,
        None,
    )
    gathered = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}
    rope = imported(
        tmp_path, without=("rope_theta", "partial_rotary_factor", "rope_scaling"), rope_parameters=gathered
    ).rope
    assert (rope.theta, rope.rotary_dim, rope.scaling) == (5e5, 32, None)


def test_variants_of_the_mixture(tmp_path: Path) -> None:
    assert imported(tmp_path, num_experts=None).moe is None
    for count in (None, 1):
        moe = imported(tmp_path, n_group=count).moe
        assert moe is not None
        assert moe.groups is None
    moe = imported(tmp_path, num_shared_experts=None).moe
    assert moe is not None
    assert moe.total_shared_width == 0
    moe = imported(tmp_path, without=("moe_shared_expert_intermediate_size",), num_shared_experts=2).moe
    assert moe is not None
    assert moe.total_shared_width == 1024
    moe = imported(tmp_path, num_experts_per_tok=1).moe
    assert moe is not None
    assert moe.router.normalize is False
    moe = imported(tmp_path, router_dtype="bf16", score_function="softmax", moe_router_enable_expert_bias=False).moe
    assert moe is not None
    assert (moe.router.dtype, moe.router.score, moe.router.bias) == ("model", "softmax", False)


def test_other_fields(tmp_path: Path) -> None:
    assert imported(tmp_path, head_dim=None).head_dim == 128
    assert imported(tmp_path, tie_word_embeddings=True).head.tied
    assert imported(tmp_path, without=("torch_dtype",), dtype="float32").dtype == "fp32"
    assert imported(tmp_path, eos_token_id=[5, 6]).vocabulary.eos == 5
    # A default that doesn't fit the vocabulary is no token of this model.
    small = imported(tmp_path, without=("eos_token_id", "pad_token_id"), vocab_size=1000)
    assert (small.vocabulary.eos, small.vocabulary.pad) == (None, None)


def test_the_text_is_commented_and_names_what_it_left_out(tmp_path: Path) -> None:
    text = import_checkpoint(write(tmp_path / "Ring mini (copy)", {**MINI, "brand_new_key": 1}))
    assert text.startswith("# Imported from the config.json of a checkpoint of BailingMoeLinearV2ForCausalLM.\n")
    assert "left out: brand_new_key." in text
    assert "layer_factor: serving # not in config.json, and implementations disagree" in text
    assert parse_spec(text).name == "Ring-mini-copy-"


UNSUPPORTED = [
    ("architectures", ["LlamaForCausalLM"], "architecture 'LlamaForCausalLM' is not supported"),
    ("architectures", [], "'architectures' is missing or empty"),
    ("architectures", None, "'architectures' must be a list, not null"),
    ("use_bias", True, "biases are not supported"),
    ("use_qkv_bias", True, "biases are not supported"),
    ("hidden_act", "gelu", "only 'silu' is supported"),
    ("use_rmsnorm", False, "only RMSNorm is supported"),
    ("norm_head", True, "a normalized head is not supported"),
    ("num_nextn_predict_layers", 1, "1 multi-token-prediction layers, which are not supported"),
    ("quantization_config", {"quant_method": "fp8"}, "the checkpoint is quantized ('quantization_config')"),
    ("quantization", {"bits": 4}, "the checkpoint is quantized ('quantization')"),
    ("use_sliding_window", True, "sliding-window attention is not supported"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "rotary scaling 'linear' is not supported"),
    ("rope_scaling", {"type": "yarn", "factor": 2.0, "mscale_all_dim": 1}, "YaRN's 'mscale_all_dim' is not supported"),
    ("rope_scaling", {"type": "yarn"}, "'rope.scaling.factor' must be a number, not null"),
    ("router_dtype", "fp8", "'router_dtype' is 'fp8'"),
    ("score_function", "relu", "'score_function' is 'relu'"),
    ("torch_dtype", "float16", "'torch_dtype' is 'float16'"),
    ("hidden_size", "2048", "'hidden_size' must be an integer, not '2048'"),
    ("hidden_size", True, "'hidden_size' must be an integer, not true"),
    ("hidden_size", 2048.5, "'hidden_size' must be an integer, not 2048.5"),
    ("hidden_size", -1, "'hidden' must be at least 1, not -1"),
    ("num_key_value_heads", 3, "heads 16 is not a multiple of kv_heads 3"),
    ("group_norm_size", 3, "can't be cut into 3 equal groups"),
    ("layer_group_size", 0, "a group has at least one layer"),
    ("n_group", 7, "256 experts can't be cut into 7 equal groups"),
    ("topk_group", None, "'moe.groups.keep' must be an integer, not null"),
    ("partial_rotary_factor", 0, "'partial_rotary_factor' is 0"),
    ("partial_rotary_factor", 1.5, "'partial_rotary_factor' is 1.5"),
    ("rotary_dim", 63, "'rope.rotary_dim' must be a multiple of 2, not 63"),
    ("eos_token_id", 200000, "'eos' is token 200000"),
    ("eos_token_id", ["a"], "must be a token or a list of tokens"),
    ("num_hidden_layers", 10**9, "'layers.count' must be at most 4096"),
    ("num_attention_heads", 0, "'heads' must be at least 1, not 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), UNSUPPORTED, ids=lambda v: str(v)[:30])
def test_what_a_spec_cannot_say_is_refused_at_its_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    folder = write(tmp_path / "model", {**MINI, key: value})
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(folder)
    error = caught.value
    assert message in error.message
    assert "config.json" in error.message
    assert error.help
    assert error.place is not None
    assert error.place.file == folder / "config.json"
    lines = (folder / "config.json").read_text().splitlines()
    expected = next(n for n, line in enumerate(lines, 1) if line.startswith(f'  "{key}":'))
    assert (error.place.line, error.place.column, error.place.width) == (expected, 3, len(key) + 2)
    assert error.place.text == lines[expected - 1]


def test_the_supported_architectures_are_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(write(tmp_path / "model", {"architectures": ["Qwen3ForCausalLM"]}))
    assert "BailingMoeLinearV2ForCausalLM, BailingMoeV2ForCausalLM" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b'{"a": 1,\n "b": }', "not valid JSON", 2),
        (b"", "not valid JSON", 1),
        (b"{'a': 1}", "not valid JSON", 1),
        (b"[1]", "not a JSON object", 1),
        (b"null", "not a JSON object", 1),
        (b"\xff\xfe{}", "not UTF-8", None),
        (b"{}" + b" " * (5 << 20), "larger than 4 MiB", None),
        (b'{"a": ' + b"9" * 6000 + b"}", "out of reason", None),
        (b"[" * 100_000, "out of reason|not valid JSON", None),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, message: str, line: int | None) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(tmp_path)
    assert caught.value.place is not None
    assert line is None or caught.value.place.line == line
    assert caught.value.help


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no 'config\.json'"):
        import_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="doesn't exist"):
        import_checkpoint(tmp_path / "none")
    file = write(tmp_path / "model", MINI) / "config.json"
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        import_checkpoint(file)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="directory"):
        import_checkpoint(tmp_path / "odd")


def test_a_nested_key_of_the_same_name_is_not_blamed(tmp_path: Path) -> None:
    config = {"text_config": {"hidden_act": "gelu"}, **MINI, "hidden_act": "relu"}
    folder = write(tmp_path / "model", config)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(folder)
    assert caught.value.place is not None
    assert caught.value.place.text is not None
    assert "relu" in caught.value.place.text
