"""The spec language: what an architecture is, as data.

A spec is a YAML file (or a preset) that `load_spec` reads into a `Spec`. Every point on which published implementations of the same model
disagree is a field of its own; its description names who does what. Those that only change where a value is rounded are under
`precision`; `fp32` there means single precision and `model` means the spec's `dtype`.

Implementations named in the descriptions: *training* (the published Megatron recipe and the linghe kernels), *serving* (the vendor's
SGLang build, flood, AReno, vLLM), *HF* (the modelling code beside the released weights), *MLX* (mlx-lm).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from ringc.model_defs import decay as decays
from ringc.model_defs import rotary

Precision = Literal["fp32", "model"]
LayerKind = Literal["linear", "softmax"]
MlpKind = Literal["dense", "moe"]
Fp8Product = Literal["qkv", "gate", "out", "mlp", "experts", "shared_experts"]

_NonNegativeInt = Annotated[int, Field(ge=0)]
_NonNegativeFloat = Annotated[float, Field(ge=0)]
# Bounds far above any model: a slip of the keyboard must not become a loop over a billion layers, and token ids stay 32-bit.
_Count = Annotated[int, Field(ge=1, le=4096)]
_Width = Annotated[int, Field(ge=1, le=1 << 20)]
_Index = Annotated[int, Field(ge=1, lt=1 << 31)]


class Section(BaseModel):
    """Base of all sections: unknown keys, implied conversions ("16" for 16), NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Vocabulary(Section):
    """Tokens: how many, how text becomes them, and which have a meaning for generation."""

    size: _Index = Field(description="Rows of the embedding and of the head.")
    tokenizer: Literal["bytes", "checkpoint"] = Field(
        default="checkpoint",
        description="`checkpoint`: the tokenizer.json beside the weights. `bytes`: token b is the byte b, and text is UTF-8.",
    )
    bos: _NonNegativeInt | None = Field(default=None, description="Token put before a text; null for none.")
    eos: _NonNegativeInt | None = Field(default=None, description="Token that ends a generation; null for none.")
    pad: _NonNegativeInt | None = Field(
        default=None, description="Token that fills up short rows of a batch; null for none."
    )


class Layers(Section):
    """How many layers there are, and which of them use linear and which softmax attention."""

    count: _Count = Field(description="Number of layers L.")
    M: _NonNegativeInt = Field(
        description="Linear layers in a group; one softmax layer ends each group of M + 1. 0: every layer is softmax."
    )
    tail: Literal["softmax", "linear"] = Field(
        default="softmax",
        description="What the layers after the last whole group are. HF, MLX and AReno: softmax. SGLang, flood and vLLM: linear. "
        "Without effect where M + 1 divides the number of layers, as in all released models.",
    )


class YarnScaling(Section):
    """YaRN: rotary frequencies stretched for contexts longer than the trained one (arXiv 2309.00071)."""

    kind: Literal["yarn"]
    factor: Annotated[float, Field(gt=1)] = Field(description="How many times longer the context gets.")
    original_positions: _Index = Field(description="Context length that the model was trained for.")
    beta_fast: PositiveFloat = Field(
        default=32.0, description="Pairs that turn more often than this in the original context are kept."
    )
    beta_slow: PositiveFloat = Field(
        default=1.0, description="Pairs that turn less often than this are slowed by the whole factor."
    )
    amplitude: PositiveFloat | None = Field(
        default=None, description="What cos and sin are multiplied by; null for the paper's 0.1 ln(factor) + 1."
    )


class Rope(Section):
    """Rotary position embedding of queries and keys, the same in linear and softmax layers, applied after the q/k norm."""

    theta: Annotated[float, Field(gt=1)] = Field(description="Base of the frequencies theta ** (-2j / rotary_dim).")
    rotary_dim: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        description="The first rotary_dim elements of a head rotate, the others pass through. Even, at most head_dim. Configurations "
        "that give a fraction of the head mean int(head_dim * fraction)."
    )
    pairing: Literal["half", "interleaved"] = Field(
        default="half",
        description="Which two elements turn together. `half`: j and j + rotary_dim / 2 (all implementations of Ring 2.0 and Qwen3). "
        "`interleaved`: 2j and 2j + 1 (the V2.5 successor; AReno inherits it).",
    )
    scaling: YarnScaling | None = Field(default=None, description="YaRN, or null for none.")

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """Radians per token of the rotary_dim / 2 pairs."""
        if self.scaling is None:
            return rotary.plain_frequencies(self.theta, self.rotary_dim)
        yarn = self.scaling
        return rotary.yarn_frequencies(
            self.theta,
            self.rotary_dim,
            factor=yarn.factor,
            original_positions=yarn.original_positions,
            beta_fast=yarn.beta_fast,
            beta_slow=yarn.beta_slow,
        )

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by; 1 without scaling."""
        if self.scaling is None:
            return 1.0
        given = self.scaling.amplitude
        return rotary.yarn_amplitude(self.scaling.factor) if given is None else given


class _Decay(Section):
    """What all decay laws share: how the layer changes them."""

    layer_factor: decays.LayerFactor = Field(
        default="serving",
        description="Factor of layer i (0-based) of L on the heads' slopes. `serving`: 1 - i/(L-1) + eps (all serving engines and the "
        "training code). `hf`: 1 - (i-1)/(L-1) + eps (HF modelling code; looks like a shifted port of the 1-based training formula). "
        "`mlx`: 1 - max(0, i-1)/(L-1) + eps. `none`: 1. Late layers differ by a factor of two: decide on real weights.",
    )
    eps: _NonNegativeFloat = Field(
        default=1e-5, description="Added to the layer factor, so that the last layer still forgets."
    )


class PowerLawDecay(_Decay):
    """Slopes that halve every H / octaves heads: 2 ** (-octaves (h + 1) / H). The released models'."""

    kind: Literal["power_law"]
    octaves: PositiveFloat = Field(
        default=8.0, description="How many powers of two the heads span; 8 in the released models."
    )


class LinearDecay(_Decay):
    """Slopes at equal distances from the first head's to the last head's."""

    kind: Literal["linear"]
    first: PositiveFloat = Field(description="Slope of head 0.")
    last: PositiveFloat = Field(description="Slope of head H - 1.")


class ExplicitDecay(_Decay):
    """Slopes written out."""

    kind: Literal["explicit"]
    slopes: tuple[PositiveFloat, ...] = Field(strict=False, description="One positive slope for each head.")


Decay = Annotated[PowerLawDecay | LinearDecay | ExplicitDecay, Field(discriminator="kind")]


class LinearAttention(Section):
    """Linear attention with a fixed decay: S = exp(-slope) S + k v^T, o = D^-0.5 q S; as many k and v heads as q heads."""

    decay: Decay = Field(description="The law of the slopes; the state is multiplied by exp(-slope) at every token.")
    silu: bool = Field(
        default=False, description="SiLU on q, k and v before the q/k norm (`linear_silu`; off in the released models)."
    )
    state_dtype: Precision = Field(
        default="fp32",
        description="What the state is kept in between tokens. HF, SGLang, AReno and the paper: fp32. flood and MLX: the model's dtype, "
        "with an error that grows with the length.",
    )
    norm_groups: _Width = Field(
        description="NUMBER of groups of the RMSNorm after attention (`group_norm_size`); each has heads * head_dim / norm_groups "
        "channels. 1: one norm over all of them."
    )
    gate: Literal["sigmoid", "none"] = Field(
        default="sigmoid",
        description="`sigmoid`: the normed output times sigmoid(x Wg), with x the layer's normed input. `none`: no gate, no weight for it.",
    )


class SoftmaxAttention(Section):
    """Grouped-query attention: causal, scores scaled by head_dim ** -0.5, softmax in fp32, no output gate."""

    kv_heads: _Count = Field(description="Key/value heads; query head a uses head a // (heads / kv_heads).")


class Mlp(Section):
    """SwiGLU down(silu(gate(x)) * up(x)) of the dense layers."""

    width: _Width = Field(description="Width between gate/up and down.")
    first_k: _NonNegativeInt = Field(
        default=0,
        description="The first first_k layers are dense, the others mixtures of experts. Not read where moe is null: all are dense.",
    )


def _mask_value(value: Any) -> Any:
    # `-inf` is a string in YAML, `-.inf` the number; both are natural to write.
    if isinstance(value, float) and value == float("-inf"):
        return "-inf"
    return value


class ExpertGroups(Section):
    """Group-limited routing: experts are cut into equal runs, and only the best groups take part in the top-k."""

    count: _Width = Field(description="Number of groups; each has experts / count consecutive experts.")
    keep: _Width = Field(description="How many groups take part.")
    score_top: _Width = Field(
        default=2, description="A group's score is the sum of its score_top largest biased scores (2 everywhere)."
    )
    mask: Annotated[Literal["-inf", 0], BeforeValidator(_mask_value)] = Field(
        default="-inf",
        description="What the dropped groups' scores become before the top-k. HF and SGLang: -inf. MLX and flood: 0. They differ only "
        "where fewer than top_k kept scores are above 0.",
    )


class Router(Section):
    """From a token to its experts and their weights. Equal scores: the lower expert number wins."""

    dtype: Precision = Field(
        default="fp32", description="Precision of the product x Wr^T. fp32 everywhere but in ports that ignore it."
    )
    logits_dtype: Precision = Field(
        default="fp32",
        description="What the logits are rounded to. Training, HF: fp32. SGLang casts them back to the model's dtype.",
    )
    score: Literal["sigmoid", "softmax"] = Field(
        default="sigmoid", description="Score of a logit: sigmoid (Ring 2.0), or softmax over experts."
    )
    bias: bool = Field(
        default=True, description="A learnt fp32 bias is added to the scores for choosing, not for weighting."
    )
    normalize: bool = Field(
        default=True,
        description="Divide the chosen scores by their sum. HF leaves it out where top_k is 1; here it is done wherever it is on.",
    )
    eps: _NonNegativeFloat = Field(default=1e-20, description="Added to that sum. HF, SGLang: 1e-20. MLX: 0.")
    scale: PositiveFloat = Field(
        default=1.0, description="Factor on the routed experts' part (`routed_scaling_factor`; 2.5 in Ring 2.0)."
    )
    scale_position: Literal["weights", "sum"] = Field(
        default="weights",
        description="Where scale is applied. HF, MLX, training: to the weights. flood and some SGLang paths: to the sum.",
    )
    weights_dtype: Precision = Field(
        default="fp32", description="What the weights are rounded to. HF: fp32. MLX: the model's dtype."
    )
    weight_position: Literal["after_down", "before_down"] = Field(
        default="after_down",
        description="Where an expert's weight is applied. HF and serving: to its output. Training kernels and AReno: to the input of its "
        "down product, equal in real arithmetic.",
    )


class Moe(Section):
    """Mixture of SwiGLU experts: y = sum over the chosen e of w_e E_e(x), plus shared(x)."""

    experts: _Width = Field(description="Number of routed experts E.")
    top_k: _Width = Field(description="Experts chosen for each token.")
    width: _Width = Field(description="Width of a routed expert.")
    shared_experts: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=0, description="Experts that every token passes; they are stored as one wider expert."
    )
    shared_width: _Width | None = Field(
        default=None, description="Width of one shared expert; null for the routed experts' width."
    )
    groups: ExpertGroups | None = Field(
        default=None, description="Group-limited routing, or null for a top-k over all experts."
    )
    router: Router = Field(default=Router(), description="How experts are chosen and weighted.")

    @property
    def total_shared_width(self) -> int:
        """Width of the one SwiGLU that holds all shared experts; 0 without any."""
        return self.shared_experts * (self.width if self.shared_width is None else self.shared_width)


class Head(Section):
    """The product that makes logits."""

    dtype: Precision = Field(
        default="fp32",
        description="Precision of logits and their accumulation. SGLang, training: fp32. HF: rounded to the model's dtype.",
    )
    tied: bool = Field(default=False, description="Use the embedding's matrix instead of an own one.")


class PrecisionPoints(Section):
    """Where intermediate values are rounded. In an fp32 model all choices are the same."""

    residual: Precision = Field(
        default="model",
        description="The residual stream. The paper's aligned set: fp32. Released engines: the model's dtype.",
    )
    norm_weight: Precision = Field(
        default="fp32",
        description="Whether a norm's weight multiplies before rounding (fp32: training, SGLang) or after it (model: HF).",
    )
    rope: Precision = Field(
        default="fp32",
        description="Precision of cos, sin and the rotation. Training, SGLang: fp32. HF casts to the model's.",
    )
    linear_inputs: Precision = Field(
        default="model",
        description="q, k and v as linear attention reads them. HF, flood, training: the model's dtype. SGLang: fp32.",
    )
    query_scale: Precision = Field(
        default="fp32",
        description="head_dim ** -0.5 inside the op in fp32 (all but one), or on q beforehand (SGLang's minimax backend).",
    )
    gate: Precision = Field(
        default="fp32",
        description="Sigmoid gate and its product. Training, SGLang, flood: fp32. HF, MLX: the model's dtype.",
    )


class Fp8Tensor(Section):
    """How one class of tensors is quantized: absolute-maximum scales, one per tile."""

    format: Literal["e4m3", "e5m2"] = Field(
        default="e4m3", description="Element format; the published recipe uses e4m3 for gradients too."
    )
    tile: tuple[_Count, _Count] = Field(strict=False, description="Rows x columns that share a scale.")
    scale_dtype: Literal["fp32"] = Field(default="fp32", description="Type of the scales.")
    pow2_scales: bool = Field(default=False, description="Round scales up to powers of two.")


def _tiles(rows: int, columns: int) -> Fp8Tensor:
    return Fp8Tensor(tile=(rows, columns))


class Fp8(Section):
    """Block-scaled FP8 products (arXiv 2510.19338, sec. 3.2). Router, norms, attention, embedding and head are never quantized.

    For y [M, N] = x [M, K] W [N, K]^T: forward reads `activation` and `weight`, the gradient of x reads `gradient` and `weight`, the
    gradient of W reads `gradient_transposed` and `activation_transposed`.
    """

    products: tuple[Fp8Product, ...] = Field(
        default=("qkv", "gate", "out", "mlp", "experts", "shared_experts"),
        strict=False,
        description="Which products read FP8 operands.",
    )
    activation: Fp8Tensor = Field(default=_tiles(1, 128), description="x, scaled along K.")
    activation_transposed: Fp8Tensor = Field(default=_tiles(128, 1), description="x for the gradient of W, along M.")
    weight: Fp8Tensor = Field(
        default=_tiles(128, 128), description="W; square, so that its transpose has equal blocks."
    )
    gradient: Fp8Tensor = Field(default=_tiles(1, 128), description="Gradient of y, along N.")
    gradient_transposed: Fp8Tensor = Field(default=_tiles(128, 1), description="Gradient of y for that of W, along M.")
    scale_min: PositiveFloat = Field(default=1e-30, description="Smallest scale, so that an all-zero tile has one.")


class Spec(Section):
    """A language model: embedding, layers of (norm, attention, residual, norm, MLP, residual), norm, head. No biases anywhere."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=80,
        description="Name of the architecture; goes into file names.",
    )
    description: str = Field(default="", description="One line about it, for listings.")
    dtype: Literal["bf16", "fp32"] = Field(
        default="bf16", description="What weights are published in and activations are rounded to."
    )
    vocabulary: Vocabulary
    max_positions: _Index = Field(description="Longest sequence, in tokens, that the model is meant for.")
    hidden: _Width = Field(description="Width of the residual stream.")
    layers: Layers
    heads: _Count = Field(description="Query heads H; in linear layers also the number of key and value heads.")
    head_dim: _Count = Field(description="Elements of a head D; heads * head_dim need not equal hidden.")
    norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of every RMSNorm.")
    qk_norm: bool = Field(
        default=True,
        description="RMSNorm on every query and key head, with one weight of head_dim elements for all heads.",
    )
    rope: Rope
    linear: LinearAttention | None = Field(default=None, description="Linear layers; may be null where there are none.")
    softmax: SoftmaxAttention | None = Field(
        default=None, description="Softmax layers; may be null where there are none."
    )
    mlp: Mlp
    moe: Moe | None = Field(default=None, description="Mixture of experts, or null: all MLPs are dense.")
    head: Head = Field(default=Head())
    precision: PrecisionPoints = Field(default=PrecisionPoints())
    fp8: Fp8 | None = Field(
        default=None, description="FP8 recipe, or null for none. `fp8: {}` is the published recipe."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from ringc.model_defs.checks import problems

        found = tuple(problems(self))
        if found:
            raise PydanticCustomError(
                INCONSISTENT, "{summary}", {"summary": "; ".join(p.message for p in found), "problems": found}
            )
        return self

    # ------------------------------------------------------------ layers

    @property
    def group_size(self) -> int:
        """Layers in a group: M linear ones and the softmax layer that ends it."""
        return self.layers.M + 1

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.layers.count:
            raise IndexError(f"layer {layer} of a model of {self.layers.count} layers")
        return layer

    def layer_kind(self, layer: int) -> LayerKind:
        """Which attention layer `layer` (0-based) has."""
        self._checked(layer)
        if (layer + 1) % self.group_size == 0:
            return "softmax"
        return self.layers.tail if layer >= self.layers.count // self.group_size * self.group_size else "linear"

    def mlp_kind(self, layer: int) -> MlpKind:
        """Which MLP layer `layer` (0-based) has."""
        return "dense" if self._checked(layer) < self.mlp.first_k or self.moe is None else "moe"

    @property
    def linear_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.layers.count) if self.layer_kind(i) == "linear")

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.layers.count) if self.layer_kind(i) == "softmax")

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.layers.count) if self.mlp_kind(i) == "dense")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.layers.count) if self.mlp_kind(i) == "moe")

    # ------------------------------------------------------------ attention

    @property
    def attention_width(self) -> int:
        """heads * head_dim: columns of the output projection."""
        return self.heads * self.head_dim

    def kv_heads(self, layer: int) -> int:
        """Key/value heads of layer `layer`: all heads in linear layers, `softmax.kv_heads` in softmax layers."""
        if self.layer_kind(layer) == "linear":
            return self.heads
        assert self.softmax is not None
        return self.softmax.kv_heads

    def slopes(self, layer: int) -> tuple[float, ...]:
        """Decay slopes of the heads of linear layer `layer`: the state is multiplied by exp(-slope) at every token.

        Raises:
            ValueError: the layer is not linear.
        """
        if self.layer_kind(layer) != "linear" or self.linear is None:
            raise ValueError(f"layer {layer} of {self.name} is a softmax layer: it has no decay")
        law = self.linear.decay
        factor = decays.layer_factor(law.layer_factor, layer, self.layers.count, law.eps)
        if isinstance(law, PowerLawDecay):
            heads = decays.power_law(self.heads, law.octaves)
        elif isinstance(law, LinearDecay):
            heads = decays.line(self.heads, law.first, law.last)
        else:
            heads = law.slopes
        return tuple(slope * factor for slope in heads)


INCONSISTENT: Final = "inconsistent_spec"
"""Type of the pydantic error that carries `problems`, a tuple of `checks.Problem`."""
