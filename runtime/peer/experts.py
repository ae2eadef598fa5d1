"""Routing, and three ways to run a mixture of experts in plain PyTorch.

A form takes x [N, h], expert ids and weights [N, k], `gate_up` [E, 2 w, h] (gate rows above up rows) and `down` [E, h, w], and gives
[N, h]: the sum over a token's experts of weight * down(silu(gate(x)) * up(x)).

* `loop`: tokens sorted by expert, one product after another. Sizes depend on the data, so torch.compile sees the loop as one opaque
  operation and not as a break in its graph.
* `bmm`: the matrices of every token's experts gathered, one batched product. Right for a few tokens; torch.compile fuses the gather.
* `grouped_mm`: tokens sorted by expert, PyTorch's grouped product. On a CPU that is a loop in C++, for fp32 too. torch.compile checks its
  arguments as if for a GPU, so that it is given to it as an operation of its own. On a GPU it is a kernel for bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ringc.model_defs.spec import Moe

MoeForm = Literal["loop", "bmm", "grouped_mm"]
MOE_FORMS: tuple[MoeForm, ...] = get_args(MoeForm)

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def route(moe: Moe, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Expert ids and their weights, both [N, k], of x [N, h]; the scores are computed in f32, the product in the type of its weight."""
    logits = F.linear(x.to(weight.dtype), weight).float()
    scores = logits.sigmoid() if moe.router.score == "sigmoid" else logits.softmax(-1)
    biased = scores if bias is None else scores + bias
    groups = moe.groups
    if groups is not None and groups.keep < groups.count:
        by_group = biased.view(len(biased), groups.count, -1)
        best = by_group.topk(min(groups.score_top, by_group.shape[-1]), -1, sorted=False).values.sum(-1)
        kept = torch.zeros_like(best).scatter_(-1, best.topk(groups.keep, -1, sorted=False).indices, 1.0)
        biased = by_group.masked_fill(kept[..., None] == 0, float(groups.mask)).flatten(-2)
    ids = biased.topk(moe.top_k, -1, sorted=False).indices
    weights = scores.gather(-1, ids)
    if moe.router.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + moe.router.eps)
    return ids, (weights * moe.router.scale).to(x.dtype)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _sorted_by_expert(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Expert ids [N * k] in rising order, and where in the flat `ids` each stood."""
    ordered = ids.flatten().sort()
    return ordered.values, ordered.indices


def _loop(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    experts, order = _sorted_by_expert(ids)
    token = order // ids.shape[1]
    counts = torch.bincount(experts, minlength=len(gate_up)).tolist()
    rows = torch.split(x[token], counts)
    made = [F.linear(_swiglu(F.linear(r, gate_up[e])), down[e]) for e, r in enumerate(rows) if counts[e]]
    return torch.zeros_like(x).index_add_(0, token, torch.cat(made) * weights.flatten()[order, None])


_opaque_loop = torch.library.custom_op("ringc_peers::experts_loop", _loop, mutates_args=())


@_opaque_loop.register_fake
def _(x: Tensor, _ids: Tensor, _weights: Tensor, _gate_up: Tensor, _down: Tensor) -> Tensor:
    return torch.empty_like(x)


def loop(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert after the other."""
    run = _opaque_loop if torch.compiler.is_compiling() else _loop
    return run(x, ids, weights, gate_up, down)


def bmm(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The matrices of every token's experts in one batched product: N * k * 3 w h elements are gathered."""
    tokens, k = ids.shape
    flat = ids.flatten()
    rows = x[:, None].expand(tokens, k, x.shape[1]).reshape(tokens * k, -1, 1)
    inner = _swiglu(torch.bmm(gate_up[flat], rows).squeeze(-1))
    made = torch.bmm(down[flat], inner[..., None]).view(tokens, k, -1)
    return (made * weights[..., None]).sum(1)


def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if hasattr(F, "grouped_mm"):
        made: Tensor = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
        return made
    return torch._grouped_mm(x, weight.transpose(1, 2), offs=ends)


_opaque_product = torch.library.custom_op("ringc_peers::grouped_mm", _product, mutates_args=())


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, _ends: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


def grouped_mm(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Two grouped products over tokens sorted by expert."""
    product = _opaque_product if torch.compiler.is_compiling() else _product
    experts, order = _sorted_by_expert(ids)
    token = order // ids.shape[1]
    every = torch.arange(len(gate_up), device=ids.device)
    ends = torch.searchsorted(experts, every, right=True, out_int32=True)
    made = product(_swiglu(product(x[token], gate_up, ends)), down, ends)
    if x.is_cuda:
        # Adding rows up in place would take turns at them, and round every sum to bf16.
        return (made[order.argsort()].view(*ids.shape, -1) * weights[..., None]).sum(1)
    return torch.zeros_like(x).index_add_(0, token, made * weights.flatten()[order, None])


FORMS: dict[MoeForm, Experts] = {"loop": loop, "bmm": bmm, "grouped_mm": grouped_mm}


def why_not(form: MoeForm, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Why a form can't run here in this type, or nothing if it can."""
    if form != "grouped_mm":
        return ""
    x, ends = torch.ones(2, 16, dtype=dtype, device=device), torch.tensor([1, 2], dtype=torch.int32, device=device)
    try:
        _product(x, x.new_ones(2, 16, 16), ends)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        name = {"cpu": "the CPU", "cuda": "this GPU"}[device]
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        return f"grouped_mm doesn't run on {name} in {kind} in torch {torch.__version__}: {str(error).splitlines()[0]}"
    return ""
