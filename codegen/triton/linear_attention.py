"""Linear attention on GPUs: what its forms share, and the segment-parallel chunked form for long sequences.

The recurrent form, for decode steps and short sequences, is `ringc.codegen.triton.linear_recurrent`. Both keep a head's state, or some
columns of it, in registers from the first token of a sequence or segment to the last, and update the pool in place. Sizes of heads that
are no powers of two are padded in the tile.
"""

from __future__ import annotations

import math

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import Job, jobs_text, padded, pointer
from ringc.codegen.triton.segments import PIECE_OF
from ringc.codegen.triton.signature import RESERVED
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.types import DType
from ringc.passes.front import cut_of_values

SAFE_EXPONENT = 60.0
"""Largest `slope * chunk` at which rows may be scaled by `exp(slope * (j + 1))`: 1e26, times values and scores far below 3e38."""

FORGOTTEN = 24
"""Bits: what enters a segment may lack at most 2^-24 of the largest |k_i v_j| of its sequence, and of its initial state, in element ij.

That is half a unit in f32's last place, what rounding the largest token alone may cost. `HORIZON_OF` has the bound. It holds for all that
is dropped together: parts of segments and whole segments alike are dropped from the horizon on, counted from the segment at hand.
"""

HORIZON_OF = f'''
@triton.jit
def horizon_of(slope):
    """How many tokens back a head sees: all that is older adds at most 2^-{FORGOTTEN} of the largest |k_i v_j| to element ij of its state.

    With lam = exp(-slope), what is at least h tokens old is a geometric series: at most lam^h / (1 - lam) of the largest token, which is
    2^-{FORGOTTEN} at h = ({FORGOTTEN} ln 2 - ln(1 - lam)) / slope. 1 - lam is at least slope / (1 + slope), and taken for that. An initial
    state that is so old counts lam^h, which is less. Without decay nothing is forgotten: a billion tokens.
    """
    slope = tl.maximum(slope, 1e-9)
    return tl.minimum(({FORGOTTEN * math.log(2):.9g} + tl.log(1.0 + 1.0 / slope)) / slope, 1e9).to(tl.int32) + 1
'''.strip("\n")

HEAD = "import triton\nimport triton.language as tl"

TAKEN = (
    *RESERVED, "pinned", "o", "inflow_of", "scan", "recurrent", "piece_of", "horizon_of", "inflow", "tokens", "sequences", "segment",
    "rows", "steps", "grid",
)  # fmt: skip


def mixer(kernel: Kernel) -> LinearAttention:
    """The region's one linear_attention, whose results are the region's outputs.

    Raises:
        CodegenError: there is none or several, the outputs are others, or the state isn't f32.
    """
    body = kernel.function.body
    found = [op for op in body.ops if isinstance(op, LinearAttention)]
    if len(found) != 1:
        raise CodegenError(f"@{kernel.name}: this template takes one linear_attention, not {len(found)}")
    (op,) = found
    if list(op.results) != list(body.outputs):
        raise CodegenError(f"@{kernel.name}: the region's outputs aren't those of its linear_attention")
    if op.pool.dtype is not DType.F32:
        raise CodegenError(f"@{kernel.name}: the state is {op.pool.dtype}, and this template keeps it in f32")
    return op


class Text:
    """What both forms of linear_attention fill into their text: sizes, masks of padded tiles, names of arguments.

    Its values may be cut out of a wider matrix, in whose rows they are `values_row` elements apart and begin at `values_first`.

    Raises:
        CodegenError: the region is more than a linear_attention and the cut of its values, or its state isn't f32.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.op = op = mixer(kernel)
        cut = cut_of_values(op)
        self.values, self.values_first = (op.v, 0) if cut is None else (cut.x, cut.start)
        self.values_row = math.prod(int(d) for d in self.values.shape[1:])
        alone = len(kernel.function.body.ops) == (1 if cut is None else 3)
        if not alone or self.values.op is not None:
            raise CodegenError(
                f"@{kernel.name}: this template takes linear_attention alone, but for a cut of its values"
            )
        self.heads, self.dk = (int(d) for d in op.q.shape[1:])
        self.dv = int(op.v.shape[2])
        self.tile_k, self.tile_v = padded(self.dk), padded(self.dv)
        names = Names(TAKEN)
        self.arguments = argument_names(kernel.function.body, names)
        self.of = dict(zip(kernel.function.body.args, self.arguments, strict=True))
        self.element = pointer(op.q.type)

    def name(self, value: Value) -> str:
        return self.of[value]

    def masks(self, block_v: int) -> dict[str, str]:
        """Masks as they stand in loads and stores; empty where the tile isn't padded."""
        key = "" if self.tile_k == self.dk else "key < DK"
        value = "" if self.dv % block_v == 0 else "value < DV"
        both = " & ".join(f"({m})[{at}]" for m, at in ((key, ":, None"), (value, "None, :")) if m)
        return {
            "key": f", mask={key}, other=0.0" if key else "",
            "value": f", mask={value}, other=0.0" if value else "",
            "store_value": f", mask={value}" if value else "",
            "tile": f", mask={both}, other=0.0" if both else "",
            "store_tile": f", mask={both}" if both else "",
            "rows_key": " & (key < DK)[None, :]" if key else "",
            "rows_value": " & (value < DV)[None, :]" if value else "",
        }


def emit_chunked(kernel: Kernel) -> str:
    """`triton.linear_chunked{chunk,segment,segments}`: two passes over segments of the sequences.

    `chunk`: rows of one block product. `segment`: least tokens of a segment. `segments`: into how many a long batch is cut at most, beside
    one more for each sequence. The workspace f32[(B + min(N // segment, segments)) * H, Dk, Dv] holds what enters each segment.

    Raises:
        CodegenError: the region is more than a linear_attention and the cut of its values, or its state isn't f32.
    """
    t = Text(kernel)
    config = kernel.implementation
    chunk, segment, segments = config["chunk"], config["segment"], int(config.get("segments", 16))
    scaled = 0.0 < t.op.steepest * chunk <= SAFE_EXPONENT
    # 64 columns of a state of 128 rows are 64 registers a thread; with a table of decays or masks beside them half as many fit.
    widest = 64 if t.tile_k <= 64 or (scaled and t.tile_k == t.dk) else 32
    wide, narrow = min(64, t.tile_v), min(widest, t.tile_v)
    q, slots = t.name(t.op.q), t.name(t.op.slots)
    tensors = {"slopes": "*fp32", "state": "*fp32", "slots": "*i32", "offsets": "*i32"}
    sizes = {"segment": "i32", "sequences": "i32", "steps": "i32"}
    constants = {
        "H": t.heads,
        "DK": t.dk,
        "DV": t.dv,
        "KEYS": t.tile_k,
        "CHUNK": chunk,
        "V_ROW": t.values_row,
        "V_FIRST": t.values_first,
    }
    jobs = [
        Job(
            "inflow_of", {"k": t.element, "v": t.element, **tensors, "inflow": "*fp32", **sizes}, {**constants, "BLOCK_V": wide},
            num_warps=4, num_stages=3,
        ),
        Job(
            "scan", {**dict.fromkeys(("q", "k", "v"), t.element), **tensors, "o": t.element, "inflow": "*fp32", **sizes},
            {**constants, "BLOCK_V": narrow, "SCALE": t.op.scale}, num_warps=4, num_stages=2,
        ),
    ]  # fmt: skip
    k, v, slopes, state, offsets = (t.name(x) for x in (t.op.k, t.values, t.op.slopes, t.op.state, t.op.offsets))
    return f'''{HEAD}

{jobs_text(jobs)}


{PIECE_OF}


{HORIZON_OF}


{_inflow(t.masks(wide))}


{_scan(t.masks(narrow), scaled)}


SEGMENT, SEGMENTS, CHUNK = {segment}, {segments}, {chunk}
"""Least tokens of a segment; into how many a long batch is cut at most; tokens of a chunk."""


def launch({", ".join(t.arguments)}, o, inflow):
    tokens, sequences = {q}.shape[0], {slots}.shape[0]
    segment = max(SEGMENT, -(-tokens // (SEGMENTS * CHUNK)) * CHUNK)
    rows = tokens // segment + sequences
    sizes = segment, sequences, max(0, sequences - 1).bit_length()
    if tokens > segment:
        # Else every sequence is one segment, into which nothing flows but its state.
        inflow_of[(rows * {-(-t.dv // wide)}, {t.heads})](
            {k}, {v}, {slopes}, {state}, {slots}, {offsets}, inflow, *sizes, **pinned(JOBS[0])
        )
    scan[(rows * {-(-t.dv // narrow)}, {t.heads})](
        {q}, {k}, {v}, {slopes}, {state}, {slots}, {offsets}, o, inflow, *sizes, **pinned(JOBS[1])
    )
'''


def _inflow(m: dict[str, str]) -> str:
    """Pass 1."""
    mask = " & ".join(f"({c.strip(' &')})" for c in (m["rows_key"],) if c)
    key_mask = f", mask={mask}, other=0.0" if mask else ""
    mask = " & ".join(f"({c.strip(' &')})" for c in (m["rows_value"],) if c)
    value_mask = f", mask={mask}, other=0.0" if mask else ""
    return f'''@triton.jit(do_not_specialize=["segment", "sequences", "steps"])
def inflow_of(
    k, v, slopes, state, slots, offsets, inflow, segment, sequences, steps,
    H: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr,
    V_ROW: tl.constexpr, V_FIRST: tl.constexpr,
):
    """What enters each segment from just before it: the sequence's state, or what the segment before builds up from zero.

    The segment before is whole, so there are no tails here; its chunks beyond the head's horizon are skipped. The state is copied for
    sequences of several segments, as the last of them overwrites it in the next pass while the first may not have read it yet; of one
    segment, it stays where it is.
    """
    blocks: tl.constexpr = (DV + BLOCK_V - 1) // BLOCK_V
    row = tl.program_id(0) // blocks
    head = tl.program_id(1).to(tl.int64)
    sequence, begin, end, index = piece_of(offsets, row, segment, sequences, steps)
    first = begin + index * segment
    key = tl.arange(0, KEYS)
    value = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    tile = key[:, None] * DV + value[None, :]
    inflow_at = inflow + (row.to(tl.int64) * H + head) * (DK * DV) + tile
    if index == 0:
        if end - begin > segment:
            slot = tl.load(slots + sequence).to(tl.int64)
            s = tl.zeros([KEYS, BLOCK_V], dtype=tl.float32)
            if slot >= 0:
                s = tl.load(state + (slot * H + head) * (DK * DV) + tile{m["tile"]})
            tl.store(inflow_at, s{m["store_tile"]})
    elif first < end:
        slope = tl.load(slopes + head)
        decay = slope * -1.4426950408889634
        skipped = tl.maximum(segment - horizon_of(slope), 0) // CHUNK * CHUNK
        token = tl.arange(0, CHUNK)
        to_end = tl.exp2(decay * (CHUNK - 1 - token))
        over_chunk = tl.exp2(decay * CHUNK)
        k_base = k + ((first - segment).to(tl.int64) * H + head) * DK
        v_base = v + (first - segment).to(tl.int64) * V_ROW + V_FIRST + head * DV
        s = tl.zeros([KEYS, BLOCK_V], dtype=tl.float32)
        for start in range(skipped, segment, CHUNK):
            at = (start + token)[:, None]
            k_tile = tl.load(k_base + at * (H * DK) + key[None, :]{key_mask})
            v_tile = tl.load(v_base + at.to(tl.int64) * V_ROW + value[None, :]{value_mask})
            weighted = (v_tile * to_end[:, None]).to(v_tile.dtype)
            s = tl.dot(tl.trans(k_tile), weighted, s * over_chunk, input_precision="ieee")
        tl.store(inflow_at, s{m["store_tile"]})'''


def _scan(m: dict[str, str], scaled: bool) -> str:
    """Pass 2."""
    if scaled:
        meaning = (
            "Within a chunk, with lam = exp(-slope) and row j of v scaled by lam^-(j+1) to V:\n"
            "    o_i = SCALE lam^(i+1) (q_i S + causal(q k^T)_i V)  and  S = lam^n (S + k^T V).\n"
            "    The slopes are gentle enough for fp32's range."
        )
        tables = """causal = token[:, None] >= token[None, :]
        shrink = tl.exp2(decay * (token + 1)) * SCALE
        grow = tl.exp2(-decay * (token + 1))"""
        step = """v_tile = (v_tile * grow[:, None]).to(v_tile.dtype)
            scores = tl.where(causal, tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), 0.0)
            out = tl.dot(q_tile, s.to(q_tile.dtype), input_precision="ieee")
            out = tl.dot(scores.to(v_tile.dtype), v_tile, out, input_precision="ieee") * shrink[:, None]"""
        update = """s = tl.dot(tl.trans(k_tile), v_tile, s, input_precision="ieee") * tl.exp2(decay * count)"""
    else:
        meaning = (
            "Within a chunk, with lam = exp(-slope):\n"
            "    o_i = SCALE (lam^(i+1) q_i S + sum over j <= i of lam^(i-j) (q_i k_j) v_j)\n"
            "    and  S = lam^n S + sum over j of lam^(n-1-j) k_j^T v_j: differences of positions only, safe for every slope."
        )
        tables = """distance = token[:, None] - token[None, :]
        within = tl.where(distance >= 0, tl.exp2(decay * tl.maximum(distance, 0)), 0.0) * SCALE
        from_start = tl.exp2(decay * (token + 1)) * SCALE"""
        step = """scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * within
            out = tl.dot(q_tile, s.to(q_tile.dtype), input_precision="ieee") * from_start[:, None]
            out = tl.dot(scores.to(v_tile.dtype), v_tile, out, input_precision="ieee")"""
        update = """to_end = tl.exp2(decay * tl.maximum(count - 1 - token, 0))
            weighted = (v_tile * to_end[:, None]).to(v_tile.dtype)
            s = tl.dot(tl.trans(k_tile), weighted, s * tl.exp2(decay * count), input_precision="ieee")"""
    return f'''@triton.jit(do_not_specialize=["segment", "sequences", "steps"])
def scan(
    q, k, v, slopes, state, slots, offsets, o, inflow, segment, sequences, steps,
    H: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr,
    V_ROW: tl.constexpr, V_FIRST: tl.constexpr, SCALE: tl.constexpr,
):
    """Every segment sums the decayed inflows of its sequence up to its own, as far back as its head sees, then runs its chunks.

    The last one stores the final state.

    {meaning}
    """
    blocks: tl.constexpr = (DV + BLOCK_V - 1) // BLOCK_V
    row = tl.program_id(0) // blocks
    head = tl.program_id(1).to(tl.int64)
    sequence, begin, end, index = piece_of(offsets, row, segment, sequences, steps)
    first = begin + index * segment
    length = tl.minimum(end - first, segment)
    if length > 0:
        slot = tl.load(slots + sequence).to(tl.int64)
        is_last = first + segment >= end
        slope = tl.load(slopes + head)
        decay = slope * -1.4426950408889634
        key = tl.arange(0, KEYS)
        value = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
        tile = key[:, None] * DV + value[None, :]
        state_at = state + (slot * H + head) * (DK * DV) + tile
        s = tl.zeros([KEYS, BLOCK_V], dtype=tl.float32)
        if (index == 0) & is_last:
            # Slot -1 is nobody's: it holds zeros, and nothing is written there.
            if slot >= 0:
                s = tl.load(state_at{m["tile"]})
        else:
            # Inflow number `back` from here is made of tokens at least `back * segment` before this one's first.
            over_segment = tl.exp2(decay * segment)
            reach = (horizon_of(slope) - 1) // segment
            for back in range(tl.minimum(index, reach), -1, -1):
                inflow_at = inflow + ((row - back).to(tl.int64) * H + head) * (DK * DV) + tile
                s = s * over_segment + tl.load(inflow_at{m["tile"]})
        # Bases are int64; offsets within a segment fit int32, but for those in wider rows.
        q_base = q + (first.to(tl.int64) * H + head) * DK
        k_base = k + (first.to(tl.int64) * H + head) * DK
        v_base = v + first.to(tl.int64) * V_ROW + V_FIRST + head * DV
        o_base = o + (first.to(tl.int64) * H + head) * DV
        token = tl.arange(0, CHUNK)
        {tables}
        for start in range(0, length, CHUNK):
            inside = (start + token < length)[:, None]
            at = (start + token)[:, None]
            q_tile = tl.load(q_base + at * (H * DK) + key[None, :], mask=inside{m["rows_key"]}, other=0.0)
            k_tile = tl.load(k_base + at * (H * DK) + key[None, :], mask=inside{m["rows_key"]}, other=0.0)
            v_tile = tl.load(v_base + at.to(tl.int64) * V_ROW + value[None, :], mask=inside{m["rows_value"]}, other=0.0)
            {step}
            tl.store(o_base + at * (H * DV) + value[None, :], out.to(o.dtype.element_ty), mask=inside{m["rows_value"]})
            count = tl.minimum(length - start, CHUNK)
            {update}
        if is_last & (slot >= 0):
            tl.store(state_at, s{m["store_tile"]})'''
