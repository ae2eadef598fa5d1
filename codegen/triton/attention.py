"""Softmax attention over a cache on GPUs: tiles of a prompt's tokens, or single tokens with their keys split among programs.

The softmax runs online in base 2 (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691), its statistics and sums in f32.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import Job, jobs_text, padded, pointer
from ringc.codegen.triton.segments import PIECE_OF
from ringc.codegen.triton.signature import RESERVED
from ringc.errors import CodegenError
from ringc.ir.ops.mixers import Attention

_RESERVED = (
    *RESERVED, "pinned", "o", "partial", "stats", "tokens", "sequences", "places", "steps", "rows", "grid", "absorb", "piece_of",
    "attend_tiles", "attend_tokens", "combine", "FEW",
)  # fmt: skip

_HEAD = "import triton\nimport triton.language as tl"

_ABSORB = '''
@triton.jit
def absorb(score, v_tile, top, total, acc):
    """Take one more block of keys into a softmax: its scores (base 2), its values, and the row maxima, sums and outputs so far."""
    new_top = tl.maximum(top, tl.max(score, 1))
    weight = tl.exp2(score - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    acc = tl.dot(weight.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
    return new_top, total * shrink + tl.sum(weight, 1), acc
'''.strip("\n")

_COMBINE = '''
@triton.jit
def combine(partial, stats, o, HEADS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr):
    """The parts of one head of one token, weighed by what the softmax has summed in each. A part without keys has weight zero."""
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    part = row * PARTS + tl.arange(0, PARTS)
    channel = tl.arange(0, TILE)
    top = tl.load(stats + part * 2)
    used = top > float("-inf")
    weight = tl.where(used, tl.exp2(top - tl.maximum(tl.max(top, 0), -1e30)), 0.0)
    total = tl.sum(weight * tl.load(stats + part * 2 + 1), 0)
    parts = tl.load(partial + part[:, None] * D + channel[None, :], mask=used[:, None] & (channel < D)[None, :], other=0.0)
    out = tl.sum(parts * weight[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(o + row * D + channel, out.to(o.dtype.element_ty), mask=channel < D)
'''.strip("\n")


@dataclass(frozen=True)
class _Region:
    """An attention with the names of its operands."""

    op: Attention
    arguments: list[str]
    names: Names

    @property
    def heads(self) -> int:
        return int(self.op.q.shape[1])

    @property
    def shared(self) -> int:
        return int(self.op.cache.shape[1])

    @property
    def d(self) -> int:
        return int(self.op.q.shape[2])

    @property
    def given(self) -> str:
        """The operands in the operation's order."""
        return ", ".join(self.names[v] for v in self.op.inputs())

    @property
    def signature(self) -> dict[str, str]:
        element = pointer(self.op.q.type)
        return {
            "q": element,
            "keys": element,
            "values": element,
            "slots": "*i32",
            "offsets": "*i32",
            "positions": "*i32",
        }

    @property
    def constants(self) -> dict[str, int | float]:
        # Scores in base 2.
        scale = self.op.scale * 1.4426950408889634
        return {"HEADS": self.heads, "SHARED": self.shared, "D": self.d, "TILE": padded(self.d), "SCALE": scale}

    def mask(self, rows: str) -> str:
        """The mask of a tile of rows, with the channels where they are padded."""
        return rows if padded(self.d) == self.d else f"{rows} & (channel < D)[None, :]"


def _region(kernel: Kernel) -> _Region:
    body = kernel.function.body
    if len(body.ops) != 1 or not isinstance(body.ops[0], Attention) or list(body.ops[0].results) != list(body.outputs):
        raise CodegenError(f"@{kernel.name}: this template takes attention alone")
    names = Names(_RESERVED)
    return _Region(body.ops[0], argument_names(body, names), names)


def emit(kernel: Kernel) -> str:
    """`triton.attention{splits,few}`: tiles of 64 tokens; one token a program where sequences have about one each.

    The keys of up to `few` tokens are cut into `splits` parts, a power of two, for as many programs; a second launch puts them together.
    Workspaces, for the tokens of the last way: f32[min(N, few) * H * splits, D] outputs of the parts, f32[..., 2] their maxima and sums.

    Raises:
        CodegenError: the region is more than an attention.
    """
    r = _region(kernel)
    splits, few = kernel.implementation["splits"], kernel.implementation["few"]
    element, sizes = pointer(r.op.q.type), {"places": "i32", "sequences": "i32", "steps": "i32"}
    signature = {**r.signature, "o": element, "partial": "*fp32", "stats": "*fp32", **sizes}
    block = 16 if r.op.q.type.dtype.bytes > 2 else 64
    by_token = {**r.constants, "ROWS": padded(r.heads // r.shared), "BLOCK_S": block}
    put_together = {"HEADS": r.heads, "D": r.d, "TILE": padded(r.d), "PARTS": splits}
    jobs = [
        Job(
            "attend_tiles",
            {**r.signature, "o": element, **sizes},
            {**r.constants, "BLOCK_Q": block, "BLOCK_S": block},
            num_warps=4,
            num_stages=3,
        ),
        Job("attend_tokens", signature, {**by_token, "PARTS": 1}, num_warps=4, num_stages=3),
        Job("attend_tokens", signature, {**by_token, "PARTS": splits}, num_warps=4, num_stages=3),
        Job("combine", {"partial": "*fp32", "stats": "*fp32", "o": element}, put_together, num_warps=2, num_stages=1),
    ]
    q, keys, slots = r.names[r.op.q], r.names[r.op.keys], r.names[r.op.slots]
    return f"""{_HEAD}

{jobs_text(jobs)}


{PIECE_OF}


{_ABSORB}


{_tiles(r)}


{_tokens(r)}


{_COMBINE}


FEW = {few}
\"\"\"Tokens up to which there are fewer blocks than processors, unless their keys are split.\"\"\"


def launch({", ".join(r.arguments)}, o, partial, stats):
    tokens, sequences = {q}.shape[0], {slots}.shape[0]
    sizes = {keys}.shape[1], sequences, max(0, sequences - 1).bit_length()
    if tokens <= FEW:
        attend_tokens[(tokens, {r.shared}, {splits})]({r.given}, o, partial, stats, *sizes, **pinned(JOBS[2]))
        combine[(tokens, {r.heads})](partial, stats, o, **pinned(JOBS[3]))
    elif tokens < 2 * sequences:
        attend_tokens[(tokens, {r.shared}, 1)]({r.given}, o, partial, stats, *sizes, **pinned(JOBS[1]))
    else:
        tiles = tokens // {block} + sequences
        attend_tiles[(tiles, {r.heads})]({r.given}, o, *sizes, **pinned(JOBS[0]))
"""


def _tiles(r: _Region) -> str:
    return f'''@triton.jit(do_not_specialize=["places", "sequences", "steps"])
def attend_tiles(
    q, keys, values, slots, offsets, positions, o, places, sequences, steps,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """One head of up to BLOCK_Q tokens of one sequence, over the keys that they see."""
    # Last tiles see the most keys: they start first.
    row = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    sequence, begin, end, index = piece_of(offsets, row, BLOCK_Q, sequences, steps)
    first = begin + index * BLOCK_Q
    if first < end:
        slot = tl.load(slots + sequence).to(tl.int64)
        token = tl.arange(0, BLOCK_Q)
        channel = tl.arange(0, TILE)
        key = tl.arange(0, BLOCK_S)
        inside = token < end - first
        position = tl.load(positions + first + token, mask=inside, other=0)
        at = (first.to(tl.int64) * HEADS + head) * D + token[:, None] * (HEADS * D) + channel[None, :]
        q_tile = tl.load(q + at, mask={r.mask("inside[:, None]")}, other=0.0)
        cache = (slot * places * SHARED + head // (HEADS // SHARED)) * D
        seen = tl.minimum(tl.max(position, 0) + 1, places)
        # Blocks that every token sees in full need no mask.
        whole = (tl.min(tl.where(inside, position, places), 0) + 1) // BLOCK_S * BLOCK_S
        whole = tl.minimum(whole, seen)
        # Slot -1 is nobody's: its values are zeros, and so is the sum.
        seen = tl.where(slot >= 0, seen, 0)
        whole = tl.where(slot >= 0, whole, 0)
        top = tl.full([BLOCK_Q], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_Q], dtype=tl.float32)
        acc = tl.zeros([BLOCK_Q, TILE], dtype=tl.float32)
        for start in range(0, whole // BLOCK_S * BLOCK_S, BLOCK_S):
            cached = cache + (start + key)[:, None].to(tl.int64) * (SHARED * D) + channel[None, :]
            k_tile = tl.load(keys + cached{_other(r)})
            v_tile = tl.load(values + cached{_other(r)})
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * SCALE
            top, total, acc = absorb(score, v_tile, top, total, acc)
        for start in range(whole // BLOCK_S * BLOCK_S, seen, BLOCK_S):
            cached = cache + (start + key)[:, None].to(tl.int64) * (SHARED * D) + channel[None, :]
            k_tile = tl.load(keys + cached, mask={r.mask("(start + key < seen)[:, None]")}, other=0.0)
            v_tile = tl.load(values + cached, mask={r.mask("(start + key < seen)[:, None]")}, other=0.0)
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * SCALE
            # Every token sees key 0, so its maximum is finite from the first block on.
            visible = ((start + key)[None, :] <= position[:, None]) & (start + key < seen)[None, :]
            top, total, acc = absorb(tl.where(visible, score, float("-inf")), v_tile, top, total, acc)
        out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        at = (first.to(tl.int64) * HEADS + head) * D + token[:, None] * (HEADS * D) + channel[None, :]
        tl.store(o + at, out.to(o.dtype.element_ty), mask={r.mask("inside[:, None]")})'''


def _other(r: _Region) -> str:
    return "" if padded(r.d) == r.d else ", mask=(channel < D)[None, :], other=0.0"


def _tokens(r: _Region) -> str:
    return f'''@triton.jit(do_not_specialize=["places", "sequences", "steps"])
def attend_tokens(
    q, keys, values, slots, offsets, positions, o, partial, stats, places, sequences, steps,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """The heads that share one key-value head, for one token, over one part of the keys that it sees, or all of them.

    A part without keys has the maximum -inf and leaves its output unwritten.
    """
    GROUP: tl.constexpr = HEADS // SHARED
    token = tl.program_id(0)
    shared = tl.program_id(1)
    part = tl.program_id(2)
    # The last sequence that begins at or before the token.
    low = 0
    high = sequences
    for _ in range(steps):
        middle = (low + high) // 2
        behind = tl.load(offsets + middle) > token
        low = tl.where(behind, low, middle)
        high = tl.where(behind, middle, high)
    slot = tl.load(slots + low).to(tl.int64)
    # Slot -1 is nobody's: its values are zeros, and so is the sum.
    length = tl.where(slot >= 0, tl.minimum(tl.load(positions + token) + 1, places), 0)
    span = tl.cdiv(tl.cdiv(length, PARTS), BLOCK_S) * BLOCK_S
    begin = part * span
    end = tl.minimum(begin + span, length)
    member = tl.arange(0, ROWS)
    channel = tl.arange(0, TILE)
    key = tl.arange(0, BLOCK_S)
    head = shared * GROUP + member
    at = (token.to(tl.int64) * HEADS + head)[:, None] * D + channel[None, :]
    q_tile = tl.load(q + at, mask={r.mask("(member < GROUP)[:, None]")}, other=0.0)
    cache = (slot * places * SHARED + shared) * D
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, TILE], dtype=tl.float32)
    for start in range(begin, end, BLOCK_S):
        cached = cache + (start + key)[:, None].to(tl.int64) * (SHARED * D) + channel[None, :]
        k_tile = tl.load(keys + cached, mask={r.mask("(start + key < end)[:, None]")}, other=0.0)
        v_tile = tl.load(values + cached, mask={r.mask("(start + key < end)[:, None]")}, other=0.0)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * SCALE
        top, total, acc = absorb(tl.where((start + key < end)[None, :], score, float("-inf")), v_tile, top, total, acc)
    if PARTS == 1:
        out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(o + at, out.to(o.dtype.element_ty), mask={r.mask("(member < GROUP)[:, None]")})
    else:
        row = (token.to(tl.int64) * HEADS + head) * PARTS + part
        if begin < end:
            tl.store(partial + row[:, None] * D + channel[None, :], acc, mask={r.mask("(member < GROUP)[:, None]")})
        tl.store(stats + row * 2, top, mask=member < GROUP)
        tl.store(stats + row * 2 + 1, total, mask=member < GROUP)'''
