"""A model of the Ring-linear family as one writes it in PyTorch: caches made once, products merged, no kernel of its own.

Works eagerly and under torch.compile, in fp32 on a CPU and in bf16 on a GPU. Everything is done that costs no more than care: q, k and v
(and gate and up) in one product, the q/k norm and the rotation of all heads at once, linear attention by fla or in blocks of matrix
products for prompts and as a recurrence in place for decoding, PyTorch's fused softmax attention, decay tables made once for a length,
logits of last tokens alone. In bf16 the router, rotation, norms' sums and linear attention's states are f32.

All sequences of a batch have the same length. Tensors are `[B, T, ...]`; H heads, Hk key/value heads, D their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringc.runtime.peer.experts import FORMS, MoeForm, route
from ringc.runtime.peer.linear import Decays, decays, fla, fla_prefill, linear_prefill

if TYPE_CHECKING:
    from ringc.model_defs.spec import Spec

State = tuple[Tensor, ...]
"""A linear layer's (S [B, H, D, D],) or a softmax layer's keys and values, each [B, Hk, S, D]."""


VARIANTS = 64
"""Sizes and places that compiled code may meet: dynamo's own limit are 8."""


@dataclass
class Cache:
    """Memory of a batch: updated in place by the model; `position` [1] is `length` as a tensor, for compiled code."""

    layers: list[State]
    length: int
    position: Tensor

    @torch.inference_mode()
    def rewind(self, length: int) -> None:
        """Count as if `length` tokens were held: softmax layers forget, linear layers' states stay."""
        self.length = length
        self.position.fill_(length)


class Layer(nn.Module):
    """One layer's tensors, merged where one product does the work of several, and what is done with them."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Tensor
    qk_norm: Tensor
    out: Tensor
    linear_norm: Tensor
    linear_gate: Tensor
    slopes: Tensor
    decay: Tensor
    gate_up: Tensor
    down: Tensor
    router: Tensor
    router_bias: Tensor
    experts_gate_up: Tensor
    experts_down: Tensor

    def __init__(self, spec: Spec, weights: Mapping[str, Tensor], index: int, form: MoeForm, like: Tensor) -> None:
        super().__init__()
        self.spec, self.form = spec, form
        self.linear = spec.layer_kind(index) == "linear"
        self.moe = spec.mlp_kind(index) == "moe"
        self.kv_heads = spec.kv_heads(index)
        self.tables: dict[int, Decays] = {}
        under = f"model.layers.{index}."

        def keep(name: str, *sources: str, dtype: torch.dtype = like.dtype) -> None:
            self.register_buffer(name, torch.cat([weights[under + s].to(like.device, dtype) for s in sources]))

        keep("attention_norm", "input_layernorm.weight")
        keep("mlp_norm", "post_attention_layernorm.weight")
        keep("qkv", "attention.query_key_value.weight")
        keep("out", "attention.dense.weight")
        if spec.qk_norm:
            heads = torch.cat(
                [
                    weights[f"{under}attention.query_layernorm.weight"].expand(spec.heads, -1),
                    weights[f"{under}attention.key_layernorm.weight"].expand(self.kv_heads, -1),
                ]
            )
            self.register_buffer("qk_norm", heads.to(like))
        if self.linear:
            assert spec.linear is not None
            keep("linear_norm", "attention.g_norm.weight")
            if spec.linear.gate == "sigmoid":
                keep("linear_gate", "attention.g_proj.weight")
            slopes = torch.tensor(spec.slopes(index), device=like.device)
            self.register_buffer("slopes", slopes)
            self.register_buffer("decay", torch.exp(-slopes)[:, None, None])
        if not self.moe:
            keep("gate_up", "mlp.gate_proj.weight", "mlp.up_proj.weight")
            keep("down", "mlp.down_proj.weight")
            return
        assert spec.moe is not None
        keep("router", "mlp.gate.weight")
        if spec.moe.router.dtype == "fp32":
            self.router = self.router.float()  # of a weight that is published in the model's type
        if spec.moe.router.bias:
            keep("router_bias", "mlp.gate.expert_bias", dtype=torch.float32)
        if spec.moe.total_shared_width:
            keep("gate_up", "mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight")
            keep("down", "mlp.shared_experts.down_proj.weight")
        # One after the other into their places: of a large model there is no room for a second copy.
        experts, width = spec.moe.experts, spec.moe.width
        self.register_buffer("experts_gate_up", like.new_empty(experts, 2 * width, spec.hidden))
        self.register_buffer("experts_down", like.new_empty(experts, spec.hidden, width))
        for e in range(experts):
            own = f"{under}mlp.experts.{e}."
            self.experts_gate_up[e, :width] = weights[f"{own}gate_proj.weight"]
            self.experts_gate_up[e, width:] = weights[f"{own}up_proj.weight"]
            self.experts_down[e] = weights[f"{own}down_proj.weight"]

    def projected(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, D], k and v [B, T, Hk, D] of normed x [B, T, h]: normed and rotated, all heads of q and k at once."""
        spec = self.spec
        both = spec.heads + self.kv_heads
        qkv = F.linear(x, self.qkv).view(*x.shape[:-1], both + self.kv_heads, spec.head_dim)
        if self.linear and spec.linear is not None and spec.linear.silu:
            qkv = F.silu(qkv)
        qk, v = qkv[..., :both, :], qkv[..., both:, :]
        if spec.qk_norm:
            qk = F.rms_norm(qk, (spec.head_dim,), None, spec.norm_eps) * self.qk_norm
        width = spec.rope.rotary_dim
        turning, rest = qk[..., :width], qk[..., width:]
        if spec.rope.pairing == "half":
            a, b = turning.chunk(2, -1)
            qk = torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
        else:
            a, b = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
            qk = torch.cat((turned, rest), -1)
        qk = qk.to(v.dtype)  # cos and sin are f32
        return qk[..., : spec.heads, :], qk[..., spec.heads :, :], v

    def finished(self, x: Tensor, o: Tensor) -> Tensor:
        """What follows linear attention: o [B, T, H, D] -> [B, T, h], normed by groups, gated by the layer's normed input, projected."""
        spec = self.spec
        assert spec.linear is not None
        grouped = o.reshape(*o.shape[:-2], spec.linear.norm_groups, -1)
        y = F.rms_norm(grouped, grouped.shape[-1:], None, spec.norm_eps).flatten(-2) * self.linear_norm
        if spec.linear.gate == "sigmoid":
            y = y * torch.sigmoid(F.linear(x, self.linear_gate))
        return F.linear(y.to(x.dtype), self.out)

    def mlp(self, x: Tensor) -> Tensor:
        """The dense MLP, or routed and shared experts, of normed x [B, T, h]."""
        spec = self.spec
        if not self.moe:
            gate, up = F.linear(x, self.gate_up).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down)
        assert spec.moe is not None
        rows = x.flatten(0, -2)
        ids, weights = route(spec.moe, rows, self.router, self.router_bias if spec.moe.router.bias else None)
        y = FORMS[self.form](rows, ids, weights, self.experts_gate_up, self.experts_down)
        if spec.moe.total_shared_width:
            gate, up = F.linear(rows, self.gate_up).chunk(2, -1)
            y = y + F.linear(F.silu(gate) * up, self.down)
        return y.view_as(x)

    def prefill(self, x: Tensor, state: State, cos: Tensor, sin: Tensor, start: int) -> Tensor:
        """x [B, T, h] behind `start` tokens that the state holds; the state is updated in place."""
        y = F.rms_norm(x, x.shape[-1:], self.attention_norm, self.spec.norm_eps)
        q, k, v = self.projected(y, cos, sin)
        tokens = x.shape[1]
        if self.linear:
            (s,) = state
            if tokens in self.tables:
                o, new = linear_prefill(q, k, v, s, self.tables[tokens])
            else:
                o, new = fla_prefill(q, k, v, s, self.slopes)
            s.copy_(new)
            y = self.finished(y, o)
        else:
            keys, values = state
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            keys[:, :, start : start + tokens] = k
            values[:, :, start : start + tokens] = v
            mask = None
            if start:
                k, v = keys[:, :, : start + tokens], values[:, :, : start + tokens]
                mask = torch.ones(tokens, start + tokens, dtype=torch.bool, device=x.device).tril(start)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=start == 0, enable_gqa=True)
            y = F.linear(o.transpose(1, 2).flatten(-2), self.out)
        x = x + y
        return x + self.mlp(F.rms_norm(x, x.shape[-1:], self.mlp_norm, self.spec.norm_eps))

    def decode(self, x: Tensor, state: State, cos: Tensor, sin: Tensor, position: Tensor, length: int | None) -> Tensor:
        """x [B, 1, h], one token of each sequence; without `length`, whose place is `position` [1] in caches that are read whole."""
        y = F.rms_norm(x, x.shape[-1:], self.attention_norm, self.spec.norm_eps)
        q, k, v = self.projected(y, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.linear:
            (s,) = state
            q, k, v = (t.to(s.dtype) for t in (q, k, v))
            s.mul_(self.decay).addcmul_(k.transpose(-1, -2), v)
            o = (q * self.spec.head_dim**-0.5) @ s
            y = self.finished(y, o.transpose(1, 2))
        else:
            keys, values = state
            mask = None
            if length is None:
                keys.index_copy_(2, position, k)
                values.index_copy_(2, position, v)
                mask = (torch.arange(keys.shape[2], device=x.device) <= position)[None]
            else:
                keys[:, :, length : length + 1] = k
                values[:, :, length : length + 1] = v
                keys, values = keys[:, :, : length + 1], values[:, :, : length + 1]
            # One query a head: the heads that share keys are rows of one product.
            shared = q.reshape(q.shape[0], self.kv_heads, -1, q.shape[-1])
            o = F.scaled_dot_product_attention(shared, keys, values, attn_mask=mask)
            y = F.linear(o.reshape(q.shape[0], 1, -1), self.out)
        x = x + y
        return x + self.mlp(F.rms_norm(x, x.shape[-1:], self.mlp_norm, self.spec.norm_eps))


class TorchModel(nn.Module):
    """The model of a spec, from tensors by published name.

    Args:
        spec: the architecture. Where it rounds between operations is the model's own choice.
        weights: by published name; each is asked for once.
        moe: how experts are run.
        dtype, device: of its weights and activations.

    Raises:
        ValueError: the spec quantizes products.
    """

    embedding: Tensor
    norm: Tensor
    head: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, Tensor],
        moe: MoeForm = "grouped_mm",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if spec.fp8 is not None:
            raise ValueError(f"{spec.name} has FP8 products, and this model none")
        self.spec = spec
        like = torch.empty(0, dtype=dtype, device=device)
        self.register_buffer("embedding", weights["model.word_embeddings.weight"].to(like))
        self.register_buffer("norm", weights["model.norm.weight"].to(like))
        self.register_buffer("head", self.embedding if spec.head.tied else weights["lm_head.weight"].to(like))
        self.layers = nn.ModuleList(Layer(spec, weights, i, moe, like) for i in range(spec.layers.count))
        self.register_buffer("cos", torch.empty(0, device=device))
        self.register_buffer("sin", torch.empty(0, device=device))
        self.compiled = False
        self._prefill: Callable[..., Tensor] = self._prefill_step
        self._decode: Callable[..., Tensor] = self._decode_step

    @property
    def uses_fla(self) -> bool:
        """Whether prompts go through fla's kernel."""
        return self.embedding.is_cuda and fla() is not None

    def compile_steps(
        self, mode: str | None = None, options: dict[str, Any] | None = None, *, by_layer: bool = False
    ) -> None:
        """Put torch.compile around a prefill and a decoding step, each one graph (but for fla's part), for the sizes that they meet.

        Args:
            mode, options: as torch.compile takes them.
            by_layer: compile layers, each one graph; those of a kind share it. Whole steps of a large model, whose configurations are tried
                out, take many minutes.
        """
        self.compiled = True
        # Each chunk of a prompt is a variant, as its place is, and with layers apart so is each kind of layer.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        how: dict[str, Any] = {"fullgraph": not self.uses_fla, "dynamic": False, "mode": mode, "options": options}
        if by_layer:
            for layer in self.layers:
                for step in ("prefill", "decode"):
                    setattr(layer, step, torch.compile(getattr(layer, step), **how))
            self._logits = torch.compile(self._logits, **how)  # type: ignore[method-assign]
            return
        self._prefill = torch.compile(self._prefill_step, **how)
        self._decode = torch.compile(self._decode_step, **how)

    @torch.inference_mode()
    def new_cache(self, batch: int, max_len: int) -> Cache:
        """Memory for `batch` sequences of up to `max_len` tokens."""
        spec, D = self.spec, self.spec.head_dim
        if len(self.cos) < max_len:
            angles = torch.arange(max_len)[:, None].double() * torch.tensor(spec.rope.frequencies).double()
            self.cos = (angles.cos() * spec.rope.amplitude).to(self.cos)
            self.sin = (angles.sin() * spec.rope.amplitude).to(self.sin)
        like = self.embedding
        wide = torch.float32 if spec.linear is None or spec.linear.state_dtype == "fp32" else like.dtype
        layers: list[State] = []
        for i in range(spec.layers.count):
            if spec.layer_kind(i) == "linear":
                layers.append((like.new_zeros((batch, spec.heads, D, D), dtype=wide),))
            else:
                shape = batch, spec.kv_heads(i), max_len, D
                layers.append((like.new_zeros(shape), like.new_zeros(shape)))
        return Cache(layers, 0, torch.zeros(1, dtype=torch.int64, device=like.device))

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: Cache) -> Tensor:
        """Run ids [B, T] behind what the cache holds: logits [B, V] of the last tokens."""
        tokens = ids.shape[1]
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.linear and tokens not in layer.tables and not self.uses_fla:
                layer.tables[tokens] = decays(layer.slopes, tokens, self.spec.head_dim**-0.5)
        logits = self._prefill(ids, cache.layers, cache.length)
        cache.rewind(cache.length + tokens)
        return logits

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: Cache) -> Tensor:
        """Run one token of each sequence, ids [B]: logits [B, V]."""
        logits = self._decode(ids, cache.layers, cache.position, None if self.compiled else cache.length)
        cache.rewind(cache.length + 1)
        return logits

    @torch.inference_mode()
    def decode_again(self, ids: Tensor, cache: Cache) -> Tensor:
        """As `decode`, but the cache counts no token: what is measured again and again, or captured in a CUDA graph.

        Keys and values are read up to the cache's length, as the host knows it, and not whole behind a mask.
        """
        return self._decode(ids, cache.layers, cache.position, cache.length)

    def _prefill_step(self, ids: Tensor, states: list[State], start: int) -> Tensor:
        x = F.embedding(ids, self.embedding)
        end = start + ids.shape[1]
        cos, sin = self.cos[start:end, None], self.sin[start:end, None]
        for layer, state in zip(self.layers, states, strict=True):
            assert isinstance(layer, Layer)
            x = layer.prefill(x, state, cos, sin, start)
        return self._logits(x[:, -1])

    def _decode_step(self, ids: Tensor, states: list[State], position: Tensor, length: int | None) -> Tensor:
        x = F.embedding(ids[:, None], self.embedding)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        for layer, state in zip(self.layers, states, strict=True):
            assert isinstance(layer, Layer)
            x = layer.decode(x, state, cos, sin, position, length)
        return self._logits(x[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.spec.norm_eps), self.head).float()
