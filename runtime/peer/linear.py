"""Linear attention of prompts in PyTorch: by fla's kernel on a GPU where fla is installed, else in blocks of matrix products.

q, k, v [B, T, H, D] and a state S [B, H, D, D] in f32; H heads, D their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens of a block of linear attention, at least."""

BLOCKS = 64
"""Blocks of a prompt, at most: each is carried on to all those behind it, so that blocks grow where a prompt is long."""


@dataclass(frozen=True)
class Decays:
    """Powers of a layer's decays that a prompt of one length needs, the scale of the queries included; C tokens make a block.

    Attributes:
        within: [H, 1, C, C], from token j to token i of a block, 0 for j > i.
        from_state: [H, 1, C, 1], from the block's beginning to token i.
        to_end: [H, n, C, 1], from token j to its block's end.
        carry: [H, n + 1, n + 1], from the first state and the blocks' own parts to the states before each block and after the last.
    """

    within: Tensor
    from_state: Tensor
    to_end: Tensor
    carry: Tensor


def block_length(tokens: int) -> int:
    """Tokens of a block of a prompt of so many: a power of two."""
    return max(CHUNK, 1 << math.ceil(math.log2(tokens / BLOCKS)) if tokens > BLOCKS else 1)


def decays(slopes: Tensor, tokens: int, scale: float) -> Decays:
    """The tables for slopes [H] and a prompt of `tokens` tokens, the last block of which may be short."""
    chunk = block_length(tokens)
    blocks = -(-tokens // chunk)
    s = slopes.double()[:, None, None]
    j = torch.arange(chunk, device=slopes.device)
    starts = (torch.arange(blocks + 1, device=slopes.device) * chunk).clamp(max=tokens)
    ends = starts[1:]
    within = torch.exp(-s * (j[:, None] - j[None, :]).clamp(min=0)).tril() * scale
    from_state = torch.exp(-s * (j[:, None] + 1)) * scale
    to_end = torch.exp(-s * ((ends - starts[:-1])[:, None] - 1 - j).clamp(min=0))
    between = torch.exp(-s * (starts[:, None] - ends[None, :]).clamp(min=0)).tril(-1)
    carry = torch.cat([torch.exp(-s * starts[:, None]), between], -1)
    tables = (within[:, None], from_state[:, None], to_end[..., None], carry)
    return Decays(*(t.float().contiguous() for t in tables))


def linear_prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor, table: Decays) -> tuple[Tensor, Tensor]:
    """In blocks: q, k, v and S -> o [B, T, H, D] in f32, S."""
    batch, tokens, heads, dim = q.shape
    blocks, chunk = table.to_end.shape[1:3]

    def cut(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, blocks * chunk - tokens)) if blocks * chunk > tokens else x
        return x.view(batch, blocks, chunk, heads, dim).permute(0, 3, 1, 2, 4).contiguous()

    q, k, v = (cut(x.float()) for x in (q, k, v))
    o = ((q @ k.transpose(-1, -2)) * table.within) @ v
    parts = (k * table.to_end).transpose(-1, -2) @ v
    states = table.carry @ torch.cat([state[:, :, None], parts], 2).flatten(-2)
    states = states.view(*states.shape[:-1], dim, dim)
    o = o + (q * table.from_state) @ states[:, :, :-1]
    return o.permute(0, 2, 3, 1, 4).reshape(batch, blocks * chunk, heads, dim)[:, :tokens], states[:, :, -1]


@cache
def fla() -> Any:
    """fla's `chunk_simple_gla`; None where the package isn't installed."""
    try:
        return import_module("fla.ops.simple_gla").chunk_simple_gla
    except ImportError:
        return None


def fla_prefill(q: Tensor, k: Tensor, v: Tensor, state: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """By fla's kernel, on a GPU: q, k, v, S and slopes [H] -> o [B, T, H, D], S."""
    o, new = fla()(
        q, k, v, g_gamma=-slopes, scale=q.shape[-1] ** -0.5, initial_state=state, output_final_state=True
    )  # fmt: skip
    return o, new
