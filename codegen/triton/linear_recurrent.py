"""Linear attention token by token: one program for some columns of the state of one head of one sequence, which stay in its registers.

In front of the recurrence a region may hold row work: the split of a wide product, norms of heads, rotary positions. It is generated from
the region's IR where the recurrence needs it, at the indices [token, head, key] and [token, head, value], so that q, k and v are never
written. A key is one tile, as the recurrence needs it, and isn't cut where rotary positions join their halves: a row is read twice, at
each channel and at the channel that it is rotated with, the second time from the cache. Each program of a head repeats the row work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.triton.elements import Axis, Index, Loop, NeedsAxis, Scope, Tile, Tiles, operand
from ringc.codegen.triton.jobs import Job, jobs_text, padded
from ringc.codegen.triton.linear_attention import HEAD, Text, mixer
from ringc.codegen.triton.overlap import READ_EARLY
from ringc.codegen.triton.regions import UNROLLED, Reader, loads_first
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.rows import Rope
from ringc.ir.symbols import symbols_of

COLUMNS = 32
"""Most columns of a state that a program holds."""


def emit(kernel: Kernel) -> str:
    """`triton.linear_recurrent`: the file's body.

    Raises:
        CodegenError: the region isn't a linear_attention behind row work, the row work doesn't fit the tiles, or the state isn't f32.
    """
    mixer(kernel)
    return _alone(kernel) if len(kernel.function.body.ops) == 1 else _fronted(kernel)


def _warps(tile_k: int) -> int:
    return 4 if tile_k >= 128 else 1


def _alone(kernel: Kernel) -> str:
    """q, k and v are arguments."""
    t = Text(kernel)
    block_v = min(COLUMNS, t.tile_v)
    m = t.masks(block_v)
    signature = dict.fromkeys(("q", "k", "v"), t.element) | {
        "slopes": "*fp32",
        "state": "*fp32",
        "slots": "*i32",
        "offsets": "*i32",
    }
    signature["o"] = t.element
    constants = {"H": t.heads, "DK": t.dk, "DV": t.dv, "KEYS": t.tile_k, "BLOCK_V": block_v, "SCALE": t.op.scale}
    job = Job("recurrent", signature, constants, num_warps=_warps(t.tile_k), num_stages=1)
    given = ", ".join(t.name(v) for v in t.op.inputs())
    return f'''{HEAD}

{jobs_text([job])}


@triton.jit
def recurrent(
    q, k, v, slopes, state, slots, offsets, o,
    H: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, KEYS: tl.constexpr, BLOCK_V: tl.constexpr, SCALE: tl.constexpr,
):
    """For every token of a sequence: S = exp(-slope) S + k^T v; o = SCALE q S."""
    sequence = tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    first = tl.load(offsets + sequence).to(tl.int64)
    end = tl.load(offsets + sequence + 1).to(tl.int64)
    if end > first:
        slot = tl.load(slots + sequence).to(tl.int64)
        decay = tl.exp2(tl.load(slopes + head) * -1.4426950408889634)
        key = tl.arange(0, KEYS)
        value = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
        state_at = state + (slot * H + head) * (DK * DV) + key[:, None] * DV + value[None, :]
        # Slot -1 is nobody's: it holds zeros, and nothing is written there.
        s = tl.zeros([KEYS, BLOCK_V], dtype=tl.float32)
        if slot >= 0:
            s = tl.load(state_at{m["tile"]})
        q_at = q + head * DK + key
        k_at = k + head * DK + key
        v_at = v + head * DV + value
        q_next = tl.load(q_at + first * (H * DK){m["key"]})
        k_next = tl.load(k_at + first * (H * DK){m["key"]})
        v_next = tl.load(v_at + first * (H * DV){m["value"]})
        for token in range(first, end):
            q_t = q_next.to(tl.float32) * SCALE
            k_t = k_next.to(tl.float32)
            v_t = v_next.to(tl.float32)
            # The next token's rows are on their way while this one's are in use; behind the last, the last again.
            after = tl.minimum(token + 1, end - 1)
            q_next = tl.load(q_at + after * (H * DK){m["key"]})
            k_next = tl.load(k_at + after * (H * DK){m["key"]})
            v_next = tl.load(v_at + after * (H * DV){m["value"]})
            s = s * decay + k_t[:, None] * v_t[None, :]
            o_t = tl.sum(s * q_t[:, None], 0)
            tl.store(o + token * (H * DV) + head * DV + value, o_t.to(o.dtype.element_ty){m["store_value"]})
        if slot >= 0:
            tl.store(state_at, s{m["store_tile"]})


def launch({", ".join(t.arguments)}, o):
    grid = ({-(-t.dv // block_v)}, {t.heads}, {t.name(t.op.slots)}.shape[0])
    recurrent[grid]({given}, o, **pinned(JOBS[0]))
'''


_LOCALS = (
    "recurrent", "sequence", "head", "first", "end", "slot", "key", "value", "state_at", "held", "s", "decay", "token", "q_t", "k_t",
    "v_t", "o_t",
)  # fmt: skip
"""Names of the kernel with row work, which no tensor may have."""


def _fronted(kernel: Kernel) -> str:
    """q, k and v are made by row work."""
    tensors = Tensors(kernel, _LOCALS)
    body = expanded(kernel.function.body, kept=(LinearAttention, Rope))
    op = next(o for o in body.ops if isinstance(o, LinearAttention))
    pointers = tensors.pointers(body.args)
    for what, value in (("state", op.state), ("slots", op.slots), ("offsets", op.offsets)):
        if value not in pointers:
            raise CodegenError(f"@{kernel.name}: the {what} of linear_attention must be an argument of its region")
    heads, dk, dv = (int(d) for d in op.pool.shape)
    symbols: set[str] = set()
    try:
        lines = _lines(op, tensors, pointers, symbols.add)
    except NeedsAxis:
        raise CodegenError(
            f"@{kernel.name}: row work in front of linear attention reduces an axis of more than {UNROLLED} elements for each channel",
            help="leave it to a row kernel",
        ) from None
    sizes = sorted(symbols)
    parameters = ", ".join((*tensors.all, *sizes))
    job = Job("recurrent", tensors.signature(tensors.all, sizes), {}, num_warps=_warps(padded(dk)), num_stages=1)

    w = Writer()
    head(w)
    w("")
    w(jobs_text([job]))
    w("\n")
    w(decorator(sizes))
    with w.block(f"def recurrent({parameters}):"):
        w('"""For every token of a sequence: q, k and v by row work, then S = exp(-slope) S + k^T v; o = scale q S."""')
        lines.write(w)
    w("\n")
    with w.block(f"def launch({', '.join(tensors.all)}):"):
        for line in tensors.size_lines(sizes):
            w(line)
        w(f"grid = ({-(-dv // _columns(dv))}, {heads}, {pointers[op.slots]}.shape[0])")
        w(f"recurrent[grid]({parameters}, **pinned(JOBS[0]))")
    return w.text()


def _columns(dv: int) -> int:
    return min(COLUMNS, padded(dv))


def _lines(op: LinearAttention, tensors: Tensors, pointers: Mapping[Value, str], sizes: Callable[[str], None]) -> Scope:
    """What a program does."""
    heads, dk, dv = (int(d) for d in op.pool.shape)
    tile_k, columns = padded(dk), _columns(dv)
    names = Names(
        (*RESERVED, *tensors.all, *_LOCALS, *symbols_of([d for t in tensors.types().values() for d in t.shape]))
    )
    # Keys and values lie along one tile axis: no expression of the row work has both.
    t = Tiles(names, pointers, [1], sizes)
    reader = Reader(t, {}, cuttable=False)
    token, its_head = Axis("token", 0, None, wide=True), Axis("head", 0, heads - 1)
    key = Axis("key", 0, dk - 1, slot=1, block=tile_k, inside="" if dk == tile_k else f"(key < {dk})")
    value = Axis("value", 0, dv - 1, slot=1, block=columns, inside="" if dv % columns == 0 else f"(value < {dv})")
    reader.define(key, dk)  # a norm of a head shares the loads; the values are a part of theirs

    t.line("sequence = tl.program_id(2)")
    t.line("head = tl.program_id(1)")
    t.line(f"first = tl.load({pointers[op.offsets]} + sequence).to(tl.int64)")
    t.line(f"end = tl.load({pointers[op.offsets]} + sequence + 1).to(tl.int64)")
    t.line(f"slot = tl.load({pointers[op.slots]} + sequence).to(tl.int64)")
    t.line(f"key = tl.arange(0, {tile_k})")
    t.line(f"value = tl.program_id(0) * {columns} + tl.arange(0, {columns})")
    slope = t.tile(reader.read(op.slopes, [Index(((its_head, 1),))]))
    with t.loop(Loop(token, "for token in range(first, end):")):
        row = [Index(((token, 1),)), Index(((its_head, 1),))]
        q, k, v = (
            t.tile(reader.read(x, [*row, Index(((a, 1),))])) for x, a in ((op.q, key), (op.k, key), (op.v, value))
        )
        t.scopes[-1].lines = loads_first(t.scopes[-1].lines)
        t.line(f"q_t = {_block(q, key)} * {op.scale}")
        t.line(f"k_t = {_block(k, key)}")
        t.line(f"v_t = {_block(v, value)}")
        t.line("s = s * decay + k_t[:, None] * v_t[None, :]")
        t.line("o_t = tl.sum(s * q_t[:, None], 0)")
        out = Tile("o_t", frozenset((token, its_head, value)))
        t.store(tensors.outputs[0], op.v.type.dtype, [*row, Index(((value, 1),))], op.v.shape, out)
        # What doesn't vary over the tokens stands before this by now, and needs no slot. The state is on its way while a first token's
        # row work is done. A branch for sequences without tokens would have the slot wait for the offsets.
        inside = [f"{a.inside}{place}" for a, place in ((key, "[:, None]"), (value, "[None, :]")) if a.inside]
        held = f", mask={' & '.join(('held', *inside))}"
        t.scopes[0].lines += [
            f"state_at = {pointers[op.state]} + (slot * {heads} + head) * {dk * dv} + (key[:, None] * {dv} + value[None, :])",
            "# Slot -1 is nobody's: it holds zeros, and nothing is written there.",
            "held = (slot >= 0) & (end > first)",
            f"s = tl.load(state_at{held}, other=0.0)",
            f"decay = tl.exp2({operand(slope)} * -1.4426950408889634)",
        ]
    t.line(f"tl.store(state_at, s{held})")
    # Its state is on its way while the launch in front ends, if nothing of what is read here is that one's.
    first, early = t.scopes[0].lines, {tensors.arguments[i] for i in tensors.kernel.function.notes.get("early", ())}
    if {pointers[op.state], *(name for name in tensors.arguments if _reads(first, name))} <= early:
        first.insert(next(i for i, line in enumerate(first) if isinstance(line, Scope)), READ_EARLY)
    return t.scopes[0]


def _reads(lines: Sequence[str | Scope], name: str) -> bool:
    """Whether lines that stand in no loop read a tensor."""
    return any(isinstance(line, str) and re.search(rf"tl\.load\({name}\b", line) for line in lines)


def _block(tile: Tile, axis: Axis) -> str:
    """The text of a whole block, 0 in the place of elements that don't exist: row work may have made 1 of them, as exp(0)."""
    if axis.inside:
        return f"tl.where({axis.inside}, {tile.text}, 0.0)"
    return operand(tile) if axis in tile.axes else f"(tl.zeros([{axis.block}], dtype=tl.float32) + {operand(tile)})"
