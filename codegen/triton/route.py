"""Routing on GPUs: the router's product with sums in fp32, and the choice of experts, one warp for a row.

A few rows are multiplied with the weight's rows one by one. More go to tensor cores, cut over the inner axis where that leaves processors
idle. Choosing in the same kernel was tried: 8192 rows of 2048 with 256 experts took 40.4 us on an H100, 28.4 of it the product; both apart
take less. All experts of 64 rows are in one program then, and eight choices one after the other keep its warps waiting for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import Job, element, jobs_text, padded, pointer
from ringc.codegen.triton.overlap import WEIGHTS_ALONE
from ringc.codegen.triton.signature import RESERVED
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.pointwise import Cast
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.routing import Route
from ringc.ir.types import DType
from ringc.passes.schedules.routing import ROUTE_ROWS

STREAMED = 4
"""Rows up to which a program reads one row of the router's weight whole."""

LONGEST = 8192
"""Longest row of the weight that is held so."""

AT_ONCE = 2112
"""Programs that choose, at most: 16 of one warp on each of an H100's processors, which then take row after row. A program for each row
spends as long on starting and ending programs as on choosing.
"""

_RESERVED = (
    *RESERVED, "pinned", "LOWEST", "logits_of", "ordered", "unordered", "probability", "stream", "FEW",
    "product", "choose", "experts", "weights", "partial", "rows", "parts", "steps", "few", "ROWS", "tiles", "AT_ONCE",
)  # fmt: skip


@dataclass(frozen=True)
class _Region:
    """What a routing region is made of. `x` and `w` are None where it takes logits."""

    op: Route
    logits: Value | None
    x: Value | None
    w: Value | None
    bias: Value | None


def _source(kernel: Kernel, value: Value) -> Value:
    """The argument that a value is, but for casts to a wider type."""
    while isinstance(value.op, Cast):
        inner = value.op.inputs()[0]
        if inner.type.dtype.bytes > value.type.dtype.bytes:
            raise CodegenError(f"@{kernel.name}: routing doesn't narrow {inner.type} to {value.type}")
        value = inner
    if value.op is not None:
        raise CodegenError(f"@{kernel.name}: this template takes a product and its route, not {value.op.name}")
    return value


def _region(kernel: Kernel) -> _Region:
    body = kernel.function.body
    found = [op for op in body.ops if isinstance(op, Route)]
    if len(found) != 1 or list(found[0].results) != list(body.outputs):
        raise CodegenError(f"@{kernel.name}: this template takes one route, whose results are the region's outputs")
    (op,) = found
    bias = None if op.bias is None else _source(kernel, op.bias)
    product = op.logits.op
    if not isinstance(product, MatMul):
        return _Region(op, _source(kernel, op.logits), None, None, bias)
    if not product.transpose_b:
        raise CodegenError(
            f"@{kernel.name}: the router's weight stands as [inner, experts], and this template wants [experts, inner]"
        )
    return _Region(op, None, _source(kernel, product.a), _source(kernel, product.b), bias)


def emit(kernel: Kernel) -> str:
    """`triton.route`: [widening casts, a product with the router's weight,] and the route. The workspace is f32[max(N, 4096), E].

    Raises:
        CodegenError: the region is made of something else.
    """
    region = _region(kernel)
    op, body = region.op, kernel.function.body
    names = Names(_RESERVED)
    arguments = argument_names(body, names)
    groups, keep = (op.groups, op.keep) if op.keep < op.groups else (1, 1)
    each = op.experts // groups
    logits = DType.F32 if region.logits is None else region.logits.type.dtype
    choose = Job(
        "choose",
        {"logits": pointer(logits)}
        | ({} if region.bias is None else {"bias": pointer(region.bias.type)})
        | {"experts": "*i32", "weights": pointer(op.results[1].type), "rows": "i32", "parts": "i32"},
        {
            "GROUPS": groups, "EACH": each, "GROUP_TILE": padded(groups, 1), "EACH_TILE": padded(each, 1),
            "TOP_K": op.top_k, "TOP_TILE": padded(op.top_k, 1),
        },
        num_warps=1 if padded(groups, 1) * padded(each, 1) <= 512 else 4,
        num_stages=1,
    )  # fmt: skip
    bias = "" if region.bias is None else f", {names[region.bias]}"
    if region.logits is not None:
        text = _choose(region, groups, keep, element(logits))
        given = names[region.logits]
        return f"""import triton
import triton.language as tl

{jobs_text([choose])}


{text}


AT_ONCE = {AT_ONCE}


def launch({", ".join(arguments)}, experts, weights):
    rows = {given}.shape[0]
    choose[(min(rows, AT_ONCE),)]({given}{bias}, experts, weights, rows, 1, **pinned(JOBS[0]))
"""
    assert region.x is not None and region.w is not None
    inner = int(region.x.shape[1])
    jobs = [_product_job(region, inner, few) for few in (True, False)]
    few, many = ({k: int(j.constants[k] or 0) for k in ("BLOCK_N", "BLOCK_E", "BLOCK_K")} for j in jobs)
    x, w = names[region.x], names[region.w]
    return f'''import triton
import triton.language as tl

{jobs_text([*jobs, choose, _stream_job(region, inner)])}


{_product(region, inner)}


{_stream(inner)}


{_choose(region, groups, keep, element(op.logits.type))}


ROWS = {ROUTE_ROWS}
"""Rows of partial logits that the workspace holds at least."""

FEW = {STREAMED if padded(inner) <= LONGEST else 0}
"""Rows up to which each program reads a row of the router's weight whole."""

AT_ONCE = {AT_ONCE}
"""Programs that choose, at most: as many as run at a time."""


def launch({", ".join(arguments)}, experts, weights, partial):
    rows = {x}.shape[0]
    if rows == 0:
        return
    if rows <= FEW:
        stream[({op.experts},)]({x}, {w}, partial, rows, **pinned(JOBS[3]))
        choose[(min(rows, AT_ONCE),)](partial{bias}, experts, weights, rows, 1, **pinned(JOBS[2]))
        return
    few = rows <= {few["BLOCK_N"]}
    block_n, block_e, block_k = {tuple(few.values())} if few else {tuple(many.values())}
    tiles = -(-rows // block_n) * -(-{op.experts} // block_e)
    steps = -(-{inner} // block_k)
    # As many parts of the inner axis as fill the processors, fit the workspace, and have something to do.
    parts = max(1, min(steps, ROWS // rows, -(-128 // tiles)))
    steps = -(-steps // parts)
    product[(-(-rows // block_n), -(-{op.experts} // block_e), parts)]({x}, {w}, partial, rows, steps, **pinned(JOBS[0 if few else 1]))
    choose[(min(rows, AT_ONCE),)](partial{bias}, experts, weights, rows, parts, **pinned(JOBS[2]))
'''


def _stream_job(region: _Region, inner: int) -> Job:
    assert region.x is not None and region.w is not None
    signature = {"x": pointer(region.x.type), "w": pointer(region.w.type), "partial": "*fp32", "rows": "i32"}
    sizes = {"INNER": inner, "EXPERTS": region.op.experts, "BLOCK_K": padded(min(inner, LONGEST))}
    return Job("stream", signature, sizes, num_warps=4, num_stages=1)


def _stream(inner: int) -> str:
    mask = ", mask=at < INNER, other=0.0" if padded(inner) != inner else ""
    return f'''@triton.jit(do_not_specialize=["rows"])
def stream(x, w, partial, rows, INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The logits of one expert for few rows, in one part: its row of the weight is read once, and before the rows are there."""
    expert = tl.program_id(0)
    at = tl.arange(0, BLOCK_K)
    w_row = tl.load(w + expert * INNER + at{mask}).to(tl.float32)
    {WEIGHTS_ALONE}
    for row in range(rows):
        x_row = tl.load(x + row * INNER + at{mask}).to(tl.float32)
        tl.store(partial + row * EXPERTS + expert, tl.sum(x_row * w_row, 0))'''


def _product_job(region: _Region, inner: int, few: bool) -> Job:
    """The configuration for at most 16 rows, or for more."""
    assert region.x is not None and region.w is not None
    signature = {
        "x": pointer(region.x.type),
        "w": pointer(region.w.type),
        "partial": "*fp32",
        "rows": "i32",
        "steps": "i32",
    }
    experts = padded(region.op.experts)
    narrow = region.x.type.dtype.bytes == 2
    sizes = {"INNER": inner, "EXPERTS": region.op.experts}
    if few:
        sizes |= {"BLOCK_N": 16, "BLOCK_E": min(32, experts), "BLOCK_K": min(128 if narrow else 64, padded(inner))}
        return Job("product", signature, sizes, num_warps=4, num_stages=2)
    # 8192 rows of 2048 and 256 experts, H100: 27.7 us; 128 rows 30 to 31, 256 experts 28.4, three stages 32.6; cuBLAS 23.6.
    rows, columns, deep, warps, stages = (64, 128, 64, 4, 4) if narrow else (32, 32, 32, 8, 2)
    sizes |= {"BLOCK_N": rows, "BLOCK_E": min(columns, experts), "BLOCK_K": min(deep, padded(inner))}
    return Job("product", signature, sizes, num_warps=warps, num_stages=stages)


def _product(region: _Region, inner: int) -> str:
    assert region.x is not None and region.w is not None
    inner_mask = inner % 128 != 0
    expert_mask = region.op.experts % 128 != 0
    x_mask = "(row < rows)[:, None]" + (" & (at + k < INNER)[None, :]" if inner_mask else "")
    # The last part may end behind the inner axis.
    w_terms = ["(at + k < INNER)[None, :]"] * inner_mask + ["(expert < EXPERTS)[:, None]"] * expert_mask
    w_mask = f", mask={' & '.join(w_terms)}, other=0.0" if w_terms else ""
    if region.x.type.dtype == region.w.type.dtype:
        step = 'acc = tl.dot(x_tile, tl.trans(w_tile), acc, input_precision="ieee")'
    else:
        step = 'acc = tl.dot(x_tile.to(tl.float32), tl.trans(w_tile.to(tl.float32)), acc, input_precision="ieee")'
    store = "(row < rows)[:, None]" + (" & (expert < EXPERTS)[None, :]" if expert_mask else "")
    return f'''@triton.jit(do_not_specialize=["rows", "steps"])
def product(
    x, w, partial, rows, steps,
    INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Part `program_id(2)` of x w^T: the sum over `steps` blocks of the inner axis. partial: [parts, rows, EXPERTS]."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    part = tl.program_id(2)
    at = tl.arange(0, BLOCK_K)
    x_at = x + row[:, None].to(tl.int64) * INNER + at[None, :]
    w_at = w + expert[:, None] * INNER + at[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_E], dtype=tl.float32)
    begin = part * steps * BLOCK_K
    for k in range(begin, tl.minimum(begin + steps * BLOCK_K, INNER), BLOCK_K):
        x_tile = tl.load(x_at + k, mask={x_mask}, other=0.0)
        w_tile = tl.load(w_at + k{w_mask})
        {step}
    partial_at = (part.to(tl.int64) * rows + row[:, None]) * EXPERTS + expert[None, :]
    tl.store(partial + partial_at, acc, mask={store})'''


def _choose(region: _Region, groups: int, keep: int, logit: str) -> str:
    """The function that chooses, and those that it calls."""
    op = region.op
    rounded = f".to({logit}).to(tl.float32)" if logit != "tl.float32" and region.logits is None else ""
    sums = ", largest, whole" if op.score == "softmax" else ""
    w = Writer()
    w(_ORDER)
    w("\n")
    w("@triton.jit")
    if op.score == "sigmoid":
        with w.block("def probability(x):"):
            w("return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))")
    else:
        with w.block("def probability(x, largest, whole):"):
            w("return tl.exp2((x - largest) * 1.4426950408889634) / whole")
    w("\n")
    w('@triton.jit(do_not_specialize=["rows", "parts"])')
    w("def choose(")
    w(f"    logits,{'' if region.bias is None else ' bias,'} experts, weights, rows, parts,")
    w("    GROUPS: tl.constexpr, EACH: tl.constexpr, GROUP_TILE: tl.constexpr, EACH_TILE: tl.constexpr,")
    w("    TOP_K: tl.constexpr, TOP_TILE: tl.constexpr,")
    with w.block("):"):
        w(
            '"""Of every row its experts, best first, the lower one among equals, and their weights. logits: [parts, rows, experts]."""'
        )
        w("group = tl.arange(0, GROUP_TILE)")
        w("member = tl.arange(0, EACH_TILE)")
        w("number = group[:, None] * EACH + member[None, :]")
        w("real = (group < GROUPS)[:, None] & (member < EACH)[None, :]")
        w("flat = tl.reshape(number, [GROUP_TILE * EACH_TILE])")
        w("rank = tl.arange(0, TOP_TILE)")
        if region.bias is not None:
            w("b = tl.load(bias + number, mask=real, other=0.0).to(tl.float32)")
            w(WEIGHTS_ALONE)
        with w.block("for row in tl.range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):"):
            w(f"x = logits_of(logits, row, rows, parts, number, real, GROUPS * EACH){rounded}")
            if op.score == "softmax":
                w('x = tl.where(real, x, float("-inf"))')
                w("largest = tl.max(tl.max(x, 1), 0)")
                w("whole = tl.sum(tl.sum(tl.exp2((x - largest) * 1.4426950408889634), 1), 0)")
            w(f"score = tl.where(real, ordered(probability(x{sums}){'' if region.bias is None else ' + b'}), LOWEST)")
            if keep < groups:
                _drop_groups(w, op, keep)
            w("left = tl.reshape(score, [GROUP_TILE * EACH_TILE])")
            w("chosen = tl.zeros([TOP_TILE], dtype=tl.int32)")
            with w.block("for i in tl.static_range(TOP_K):"):
                w("first = tl.min(tl.where(left == tl.max(left, 0), flat, GROUPS * EACH), 0)")
                w("chosen = tl.where(rank == i, first, chosen)")
                w("left = tl.where(flat == first, LOWEST, left)")
            w(f"own = logits_of(logits, row, rows, parts, chosen, rank < TOP_K, GROUPS * EACH){rounded}")
            w(f"weight = tl.where(rank < TOP_K, probability(own{sums}), 0.0)")
            if op.normalize:
                w(f"weight = weight / (tl.sum(weight, 0) + {op.eps!r})")
            scaled = "weight" if op.factor == 1.0 else f"weight * {op.factor!r}"
            w("tl.store(experts + row * TOP_K + rank, chosen, mask=rank < TOP_K)")
            w(f"tl.store(weights + row * TOP_K + rank, ({scaled}).to(weights.dtype.element_ty), mask=rank < TOP_K)")
    return w.text().rstrip("\n")


def _drop_groups(w: Writer, op: Route, keep: int) -> None:
    """Experts of groups that don't stay get the score of dropped ones."""
    w(f"# A group counts by its {op.group_top} largest scores; {keep} of {op.groups} groups stay.")
    w("others = score")
    w("total = tl.zeros([GROUP_TILE], dtype=tl.float32)")
    with w.block(f"for _ in tl.static_range({op.group_top}):"):
        w("best = tl.max(others, 1)")
        w("total += unordered(best)")
        w("place = tl.min(tl.where(others == best[:, None], member[None, :], EACH_TILE), 1)")
        w("others = tl.where(member[None, :] == place[:, None], LOWEST, others)")
    w("sums = tl.where(group < GROUPS, ordered(total), LOWEST)")
    w("equal = (sums[None, :] == sums[:, None]) & (group[None, :] < group[:, None])")
    w("before = tl.sum(((sums[None, :] > sums[:, None]) | equal).to(tl.int32), 1)")
    dropped = 'float("-inf")' if op.dropped == float("-inf") else repr(op.dropped)
    w(f"dropped = ordered(tl.full([GROUP_TILE, EACH_TILE], {dropped}, tl.float32))")
    w(f"score = tl.where(real & (before >= {keep})[:, None], dropped, score)")


_ORDER = '''@triton.jit
def logits_of(logits, row, rows, parts, expert, real, EXPERTS: tl.constexpr):
    """A row's logits of some experts: the sum of its parts."""
    x = tl.zeros(expert.shape, dtype=tl.float32)
    for part in tl.range(parts, loop_unroll_factor=8):
        x += tl.load(logits + (part * rows + row) * EXPERTS + expert, mask=real, other=0.0).to(tl.float32)
    return x


LOWEST = tl.constexpr(-(1 << 31))
"""Below every score."""


@triton.jit
def ordered(score):
    """Whole numbers in the order of the scores: a warp finds the largest of those in one instruction."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def unordered(number):
    return tl.where(number < 0, number ^ 0x7FFFFFFF, number).to(tl.float32, bitcast=True)'''
