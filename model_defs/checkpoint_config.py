"""A published `config.json` as a spec.

The Hugging Face configurations of the BailingMoE V2 family leave out keys that equal the defaults of their Python class, say some things
twice, and say nothing on points where implementations differ; here all of it is made explicit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn, get_args

from ringc.errors import CheckpointError, Place, UsageError
from ringc.model_defs.decay import LayerFactor
from ringc.model_defs.json_source import JsonFile, read_json
from ringc.model_defs.loading import mistakes, show
from ringc.model_defs.spec import Spec
from ringc.model_defs.writing import spec_yaml

LINEAR = "BailingMoeLinearV2ForCausalLM"
SOFTMAX = "BailingMoeV2ForCausalLM"
SUPPORTED = (LINEAR, SOFTMAX)

# Keys that don't change what the model computes at inference.
_NEUTRAL = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "embedding_dropout", "initializer_range", "max_window_layers",
    "model_type", "mtp_loss_scaling_factor", "output_dropout", "output_router_logits", "seq_aux", "transformers_version", "use_cache",
})  # fmt: skip
_DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
_ROUTER_DTYPES = {"fp32": "fp32", "float32": "fp32", "bf16": "model", "bfloat16": "model", None: "model"}


def import_checkpoint(directory: str | Path, decay: LayerFactor = "serving") -> str:
    """Turns the `config.json` of a checkpoint folder into a commented spec.

    Args:
        directory: folder of a checkpoint whose architecture is BailingMoeLinearV2 or BailingMoeV2.
        decay: the layer factor of the decay, which configurations don't state (see `Decay.layer_factor`).

    Returns:
        YAML text that `parse_spec` reads.

    Raises:
        CheckpointError: config.json is missing, malformed, of another architecture, or asks for what a spec can't say.
        UsageError: `decay` is no layer factor.
    """
    published = [factor for factor in get_args(LayerFactor) if factor != "none"]
    if decay not in published:
        raise UsageError(f"'{decay}' is not a layer factor of the decay", help=f"choose from: {', '.join(published)}")
    folder = Path(directory)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "doesn't exist"
        raise CheckpointError(
            f"checkpoint '{folder}' {what}", place=Place(folder), help="give the folder that holds config.json"
        )
    config = _Config(read_json(folder / "config.json"))
    architecture = _architecture(config)
    _reject_unsupported(config)
    _Translation(config, architecture, decay).run(_name(folder))
    return config.yaml(architecture)


def _name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")
    return name[:80] or "imported"


class _Config:
    """The keys of a config.json on their way into a spec."""

    def __init__(self, file: JsonFile) -> None:
        self.file = file
        self.read: set[str] = set()
        self.raw: dict[str, Any] = {}
        self.origin: dict[tuple[str, ...], str] = {}
        self.comments: dict[tuple[str, ...], str] = {}

    def fail(self, key: str, message: str, help_: str) -> NoReturn:
        raise CheckpointError(f"config.json: {message}", place=self.file.place(key), help=help_)

    def get(self, key: str, default: Any, *types: type) -> Any:
        """The value of a key, of one of the types; the default if it is absent."""
        self.read.add(key)
        if key not in self.file.values:
            return default
        value = self.file.values[key]
        # bool is a subclass of int, but `true` is no number.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(_TYPE_NAMES[t] for t in types)
            self.fail(
                key, f"'{key}' must be {wanted}, not {show(value)}", "fetch the checkpoint again, or correct the key"
            )
        return value

    def put(self, path: tuple[str, ...], value: Any, *, key: str | None = None, comment: str = "") -> None:
        """Sets a field of the spec; `key` is where an error in it will be shown."""
        section = self.raw
        for step in path[:-1]:
            section = section.setdefault(step, {})
        section[path[-1]] = value
        if key is not None:
            self.origin[path] = key
            if key not in self.file.values and not comment:
                comment = f"{key} absent: the configuration class's default"
        if comment:
            self.comments[path] = comment

    def copy(self, path: tuple[str, ...], key: str, default: Any, *types: type) -> Any:
        """Takes a key over as it is."""
        value = self.get(key, default, *types)
        self.put(path, value, key=key)
        return value

    def yaml(self, architecture: str) -> str:
        from pydantic import ValidationError

        try:
            spec = Spec.model_validate(self.raw)
        except ValidationError as error:
            mistake = next(mistakes(error))
            steps = tuple(step for step in mistake.path if isinstance(step, str))
            prefixes = (steps[:n] for n in range(len(steps), 0, -1))
            key = next((self.origin[prefix] for prefix in prefixes if prefix in self.origin), None)
            place = self.file.place(key)
            blame = f" ('{key}')" if key is not None and key in self.file.values else ""
            raise CheckpointError(f"config.json{blame}: {mistake.message}", place=place, help=mistake.help) from None
        header = [f"Imported from the config.json of a checkpoint of {architecture}.", *_NOTES]
        unknown = sorted(set(self.file.values) - self.read - _NEUTRAL)
        if unknown:
            shown = ", ".join(key if key.isprintable() else repr(key) for key in unknown)
            header.append(f"Keys that ringc doesn't know and left out: {shown}.")
        return spec_yaml(spec, header=header, comments=self.comments)


_TYPE_NAMES: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
_NOTES = (
    "It doesn't say the decay's layer factor, what leftover layers are, the group mask, nor where values are rounded; those fields",
    "hold the chosen factor and ringc's defaults. `ringc schema` documents every field, with who does what.",
)


def _architecture(config: _Config) -> str:
    names = config.get("architectures", [], list)
    supported = f"supported: {', '.join(SUPPORTED)}"
    if not names:
        config.fail("architectures", "the key 'architectures' is missing or empty", supported)
    known = [str(name) for name in names if name in SUPPORTED]
    if not known:
        config.fail("architectures", f"the architecture {show(names[0])} is not supported", supported)
    return known[0]


def _reject_unsupported(config: _Config) -> None:
    """Stops at settings that a spec can't say, rather than compiling another model."""
    for key in ("use_bias", "use_qkv_bias", "attention_bias"):
        if config.get(key, False, bool, type(None)):
            config.fail(
                key, f"'{key}' is true: biases are not supported", "only checkpoints without biases can be imported"
            )
    if config.get("norm_head", False, bool, type(None)):
        config.fail(
            "norm_head", "'norm_head' is true: a normalized head is not supported", "only plain heads can be imported"
        )
    if config.get("use_rmsnorm", True, bool, type(None)) is False:
        config.fail("use_rmsnorm", "'use_rmsnorm' is false: only RMSNorm is supported", "specs have no LayerNorm")
    act = config.get("hidden_act", "silu", str)
    if act != "silu":
        config.fail(
            "hidden_act", f"'hidden_act' is {show(act)}: only 'silu' is supported", "specs describe SwiGLU MLPs"
        )
    mtp = config.get("num_nextn_predict_layers", 0, int, type(None))
    if mtp:
        config.fail("num_nextn_predict_layers", f"the checkpoint has {mtp} multi-token-prediction layers, which are not supported",
                    "set the key to 0 to import the model without them, and take their tensors out of the checkpoint")  # fmt: skip
    for key in ("quantization_config", "quantization", "compression_config"):
        if config.get(key, None, dict, type(None)) is not None:
            config.fail(key, f"the checkpoint is quantized ('{key}')", "import the bf16 checkpoint")
    if config.get("use_sliding_window", False, bool, type(None)):
        config.fail(
            "use_sliding_window", "sliding-window attention is not supported", "specs describe full causal attention"
        )
    window = config.get("sliding_window", None, int, type(None))
    if window is not None and "use_sliding_window" not in config.file.values:
        config.fail(
            "sliding_window", "sliding-window attention is not supported", "specs describe full causal attention"
        )


class _Translation:
    """Key by key, in the order of a spec."""

    def __init__(self, config: _Config, architecture: str, decay: LayerFactor) -> None:
        self.config = config
        self.is_linear = architecture == LINEAR
        self.decay = decay

    def run(self, name: str) -> None:
        self.config.put(("name",), name)
        self.vocabulary()
        self.sizes()
        self.rope()
        self.linear()
        self.mlp()
        self.head()

    def vocabulary(self) -> None:
        config = self.config
        size = config.copy(("vocabulary", "size"), "vocab_size", 157184, int)
        config.put(("vocabulary", "tokenizer"), "checkpoint")
        for name, default in (("bos", None), ("eos", 156892), ("pad", 156892)):
            key = f"{name}_token_id"
            token = config.get(key, default if default is not None and default < size else None, int, list, type(None))
            comment = ""
            if isinstance(token, list):
                if not token or not all(isinstance(t, int) and not isinstance(t, bool) for t in token):
                    config.fail(key, f"'{key}' must be a token or a list of tokens", "correct the key")
                comment = f"the first of {', '.join(map(str, token))}"
                token = token[0]
            config.put(("vocabulary", name), token, key=key, comment=comment)

    def sizes(self) -> None:
        config = self.config
        dtype_key = "dtype" if "dtype" in config.file.values else "torch_dtype"
        dtype = config.get(dtype_key, "bfloat16", str)
        if dtype not in _DTYPES:
            config.fail(
                dtype_key, f"'{dtype_key}' is {show(dtype)}, which is not supported", f"supported: {', '.join(_DTYPES)}"
            )
        config.put(("dtype",), _DTYPES[dtype], key=dtype_key)
        config.copy(("max_positions",), "max_position_embeddings", 32768, int)
        hidden = config.copy(("hidden",), "hidden_size", 2048, int)
        config.copy(("layers", "count"), "num_hidden_layers", 20, int)
        heads = config.copy(("heads",), "num_attention_heads", 16, int)
        head_dim = config.get("head_dim", 128, int, type(None))
        if not head_dim:
            head_dim = hidden // max(1, heads)
        config.put(("head_dim",), head_dim, key="head_dim")
        group = config.get("layer_group_size", 1, int) if self.is_linear else 1
        if group < 1:
            config.fail(
                "layer_group_size", f"'layer_group_size' is {group}: a group has at least one layer", "correct the key"
            )
        config.put(("layers", "M"), group - 1, key="layer_group_size" if self.is_linear else None)
        config.put(("layers", "tail"), "softmax")
        config.copy(("norm_eps",), "rms_norm_eps", 1e-6, float, int)
        config.copy(("qk_norm",), "use_qk_norm", True, bool)
        config.copy(("softmax", "kv_heads"), "num_key_value_heads", 4, int)

    def rope(self) -> None:
        config, raw = self.config, self.config.raw
        # Newer versions of transformers gather the rotary settings in one object.
        gathered = config.get("rope_parameters", None, dict, type(None)) or {}
        theta = config.get("rope_theta", gathered.get("rope_theta", 600000.0), float, int)
        config.put(
            ("rope", "theta"), theta, key="rope_theta" if "rope_theta" in config.file.values else "rope_parameters"
        )
        dim = config.get("rotary_dim", None, int, type(None))
        if dim is not None:
            config.get("partial_rotary_factor", None, float, int, type(None))
            config.put(("rope", "rotary_dim"), dim, key="rotary_dim")
        else:
            fraction = config.get("partial_rotary_factor", gathered.get("partial_rotary_factor", 1.0), float, int)
            if not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
                config.fail(
                    "partial_rotary_factor",
                    f"'partial_rotary_factor' is {show(fraction)}",
                    "it must be above 0 and at most 1",
                )
            key = "partial_rotary_factor"
            comment = f"{fraction:g} of head_dim" if key in config.file.values or key in gathered else ""
            config.put(("rope", "rotary_dim"), int(raw["head_dim"] * fraction), key=key, comment=comment)
        pairing = "interleaved" if config.get("rope_interleave", False, bool, type(None)) else "half"
        config.put(("rope", "pairing"), pairing, key="rope_interleave" if pairing == "interleaved" else None)
        self.scaling(gathered)

    def scaling(self, gathered: dict[str, Any]) -> None:
        config = self.config
        key = "rope_scaling" if config.file.values.get("rope_scaling") is not None else "rope_parameters"
        scaling = config.get("rope_scaling", None, dict, type(None)) or gathered
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            config.put(("rope", "scaling"), None)
            return
        if kind != "yarn":
            config.fail(key, f"rotary scaling {show(kind)} is not supported", "supported: yarn, or null")
        known = {"rope_type", "type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
                 "rope_theta", "partial_rotary_factor"}  # fmt: skip
        if extra := sorted(k for k, v in scaling.items() if k not in known and v is not None):
            config.fail(key, f"YaRN's '{extra[0]}' is not supported", f"supported: {', '.join(sorted(known))}")
        config.put(("rope", "scaling"), {
            "kind": "yarn",
            "factor": scaling.get("factor"),
            "original_positions": scaling.get("original_max_position_embeddings", config.raw["max_positions"]),
            "beta_fast": scaling.get("beta_fast", 32.0),
            "beta_slow": scaling.get("beta_slow", 1.0),
            "amplitude": scaling.get("attention_factor"),
        }, key=key)  # fmt: skip

    def linear(self) -> None:
        config = self.config
        if not self.is_linear:
            config.put(("linear",), None)
            return
        law = ("linear", "decay")
        config.put((*law, "kind"), "power_law")
        config.put((*law, "octaves"), 8)
        config.put(
            (*law, "layer_factor"),
            self.decay,
            comment="not in config.json, and implementations disagree: serving | hf | mlx",
        )
        config.put((*law, "eps"), 1e-5)
        config.copy(("linear", "silu"), "linear_silu", False, bool)
        config.put(("linear", "state_dtype"), "fp32")
        config.copy(("linear", "norm_groups"), "group_norm_size", 1, int)
        config.put(("linear", "gate"), "sigmoid")

    def mlp(self) -> None:
        config = self.config
        config.copy(("mlp", "width"), "intermediate_size", 5120, int)
        config.copy(("mlp", "first_k"), "first_k_dense_replace", 1, int)
        experts = config.get("num_experts", 256, int, type(None))
        if not experts:
            config.put(("moe",), None, key="num_experts")
            return
        config.put(("moe", "experts"), experts, key="num_experts")
        top_k = config.copy(("moe", "top_k"), "num_experts_per_tok", 8, int)
        width = config.copy(("moe", "width"), "moe_intermediate_size", 512, int)
        shared = config.get("num_shared_experts", 1, int, type(None)) or 0
        config.put(("moe", "shared_experts"), shared, key="num_shared_experts")
        shared_width = config.get("moe_shared_expert_intermediate_size", None, int, type(None))
        config.put(("moe", "shared_width"), width if shared_width is None else shared_width,
                   key="moe_intermediate_size" if shared_width is None else "moe_shared_expert_intermediate_size")  # fmt: skip
        self.groups()
        self.router(top_k)

    def groups(self) -> None:
        config, path = self.config, ("moe", "groups")
        count = config.get("n_group", 8, int, type(None))
        keep = config.get("topk_group", 4, int, type(None))
        if count in (None, 0, 1):
            config.put(path, None, key="n_group")
            return
        config.put((*path, "count"), count, key="n_group")
        config.put((*path, "keep"), keep, key="topk_group")
        config.put((*path, "score_top"), 2)
        config.put((*path, "mask"), "-inf")

    def router(self, top_k: int) -> None:
        config, path = self.config, ("moe", "router")
        dtype = config.get("router_dtype", "fp32", str, type(None))
        if dtype not in _ROUTER_DTYPES:
            config.fail(
                "router_dtype", f"'router_dtype' is {show(dtype)}, which is not supported", "supported: fp32, bf16"
            )
        config.put((*path, "dtype"), _ROUTER_DTYPES[dtype], key="router_dtype")
        key = (
            "scoring_func"
            if "score_function" not in config.file.values and "scoring_func" in config.file.values
            else "score_function"
        )
        score = config.get(key, "sigmoid", str)
        if score not in ("sigmoid", "softmax"):
            config.fail(key, f"'{key}' is {show(score)}, which is not supported", "supported: sigmoid, softmax")
        config.put((*path, "score"), score, key=key)
        config.get("scoring_func", None, str, type(None))
        config.copy((*path, "bias"), "moe_router_enable_expert_bias", True, bool)
        normalize = config.get("norm_topk_prob", True, bool)
        if normalize and top_k == 1:
            config.put(
                (*path, "normalize"), False, comment="the modelling code doesn't normalize a single expert's weight"
            )
        else:
            config.put((*path, "normalize"), normalize, key="norm_topk_prob")
        config.copy((*path, "scale"), "routed_scaling_factor", 1.0, float, int)

    def head(self) -> None:
        self.config.copy(("head", "tied"), "tie_word_embeddings", False, bool)
