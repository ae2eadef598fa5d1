"""The tensors of a checkpoint, by their published names, and what follows from them: counts and bytes.

One naming for all specs, that of the Ring models' safetensors files: one tensor for each expert, q, k and v stacked in one matrix (all q
heads, then k, then v), shared experts as one wider expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ringc.model_defs.spec import Spec

ParameterKind = Literal[
    "embedding", "final_norm", "head", "attention_norm", "mlp_norm", "qkv", "out", "query_norm", "key_norm", "linear_gate", "linear_norm",
    "dense_gate", "dense_up", "dense_down", "router", "router_bias", "expert_gate", "expert_up", "expert_down", "shared_gate",
    "shared_up", "shared_down",
]  # fmt: skip

IGNORED_TENSORS = ("slope", "inv_freq", "v_head", "model.mtp")
"""Parts of names of tensors that checkpoints hold and models don't: tables that follow from the configuration, heads of other tasks."""

_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A published tensor.

    Attributes:
        name: as in the checkpoint.
        shape: matrices are [outputs, inputs].
        dtype: what it is published in.
        kind: its part in the layer.
        layer: number of its layer (from 0); None for embedding, last norm and head.
        expert: number of its routed expert (from 0); None for all others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["bf16", "fp32"]
    kind: ParameterKind
    layer: int | None = None
    expert: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * _BYTES[self.dtype]


def checkpoint_parameters(spec: Spec) -> Iterator[Parameter]:
    """All tensors of a model's checkpoint: embedding, layers from first to last, last norm, head (unless tied)."""
    h, vocab = spec.hidden, spec.vocabulary.size
    yield Parameter("model.word_embeddings.weight", (vocab, h), spec.dtype, "embedding")
    for layer in range(spec.layers.count):
        yield from _layer(spec, layer)
    yield Parameter("model.norm.weight", (h,), spec.dtype, "final_norm")
    if not spec.head.tied:
        yield Parameter("lm_head.weight", (vocab, h), spec.dtype, "head")


def _layer(spec: Spec, layer: int) -> Iterator[Parameter]:
    prefix = f"model.layers.{layer}."
    yield Parameter(f"{prefix}input_layernorm.weight", (spec.hidden,), spec.dtype, "attention_norm", layer)
    yield from _attention(spec, layer, f"{prefix}attention.")
    yield Parameter(f"{prefix}post_attention_layernorm.weight", (spec.hidden,), spec.dtype, "mlp_norm", layer)
    yield from _mlp(spec, layer, f"{prefix}mlp.")


def _attention(spec: Spec, layer: int, prefix: str) -> Iterator[Parameter]:
    h, width, dtype = spec.hidden, spec.attention_width, spec.dtype
    rows = (spec.heads + 2 * spec.kv_heads(layer)) * spec.head_dim
    yield Parameter(f"{prefix}query_key_value.weight", (rows, h), dtype, "qkv", layer)
    if spec.qk_norm:
        yield Parameter(f"{prefix}query_layernorm.weight", (spec.head_dim,), dtype, "query_norm", layer)
        yield Parameter(f"{prefix}key_layernorm.weight", (spec.head_dim,), dtype, "key_norm", layer)
    if spec.linear is not None and spec.layer_kind(layer) == "linear":
        if spec.linear.gate != "none":
            yield Parameter(f"{prefix}g_proj.weight", (width, h), dtype, "linear_gate", layer)
        yield Parameter(f"{prefix}g_norm.weight", (width,), dtype, "linear_norm", layer)
    yield Parameter(f"{prefix}dense.weight", (h, width), dtype, "out", layer)


def _mlp(spec: Spec, layer: int, prefix: str) -> Iterator[Parameter]:
    h, moe, dtype = spec.hidden, spec.moe, spec.dtype
    if moe is None or spec.mlp_kind(layer) == "dense":
        width = spec.mlp.width
        yield Parameter(f"{prefix}gate_proj.weight", (width, h), dtype, "dense_gate", layer)
        yield Parameter(f"{prefix}up_proj.weight", (width, h), dtype, "dense_up", layer)
        yield Parameter(f"{prefix}down_proj.weight", (h, width), dtype, "dense_down", layer)
        return
    yield Parameter(f"{prefix}gate.weight", (moe.experts, h), dtype, "router", layer)
    if moe.router.bias:
        yield Parameter(f"{prefix}gate.expert_bias", (moe.experts,), "fp32", "router_bias", layer)
    for e in range(moe.experts):
        expert = f"{prefix}experts.{e}."
        yield Parameter(f"{expert}gate_proj.weight", (moe.width, h), dtype, "expert_gate", layer, e)
        yield Parameter(f"{expert}up_proj.weight", (moe.width, h), dtype, "expert_up", layer, e)
        yield Parameter(f"{expert}down_proj.weight", (h, moe.width), dtype, "expert_down", layer, e)
    if moe.total_shared_width:
        shared, width = f"{prefix}shared_experts.", moe.total_shared_width
        yield Parameter(f"{shared}gate_proj.weight", (width, h), dtype, "shared_gate", layer)
        yield Parameter(f"{shared}up_proj.weight", (width, h), dtype, "shared_up", layer)
        yield Parameter(f"{shared}down_proj.weight", (h, width), dtype, "shared_down", layer)


def parameter_count(spec: Spec) -> int:
    """Elements of all tensors of the checkpoint, the router's biases included."""
    return sum(p.size for p in checkpoint_parameters(spec))


def active_parameter_count(spec: Spec, *, embeddings: bool = False) -> int:
    """Elements that take part in computing one token: of the routed experts, top_k.

    Args:
        spec: the model.
        embeddings: count the embedding and the head too.
    """
    total = 0
    for p in checkpoint_parameters(spec):
        if p.expert is not None:
            assert spec.moe is not None
            total += p.size if p.expert < spec.moe.top_k else 0
        elif embeddings or p.kind not in ("embedding", "head"):
            total += p.size
    return total


def parameter_bytes(spec: Spec) -> int:
    """Bytes of all tensors as published."""
    return sum(p.bytes for p in checkpoint_parameters(spec))


def state_bytes_per_sequence(spec: Spec) -> int:
    """Bytes of the linear layers' states of one sequence, whatever its length: heads * head_dim * head_dim each."""
    if spec.linear is None:
        return 0
    element = _BYTES["fp32" if spec.linear.state_dtype == "fp32" else spec.dtype]
    return len(spec.linear_layers) * spec.heads * spec.head_dim**2 * element


def kv_bytes_per_token(spec: Spec) -> int:
    """Bytes that the softmax layers keep for every token of a sequence: one key and one value for each kv head."""
    if spec.softmax is None:
        return 0
    return len(spec.softmax_layers) * 2 * spec.softmax.kv_heads * spec.head_dim * _BYTES[spec.dtype]
