"""Routing on GPUs: the router's product with sums in fp32, and the choice of experts, one warp for a row.

Up to four rows are multiplied with the weight's rows one by one. More go to tensor cores, cut over the inner axis where that leaves
processors idle; of up to 16 rows each part is one block. Choosing in the same kernel was tried: 8192 rows of 2048 with 256 experts took
40.4 us on an H100, 28.4 of it the product; both apart take less. All experts of 64 rows are in one program then, and eight choices one
after the other keep its warps waiting for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.choose import CHOOSE_NAMES, Choice
from ringc.codegen.triton.jobs import Job, jobs_text, padded, pointer
from ringc.codegen.triton.overlap import READ_EARLY
from ringc.codegen.triton.signature import RESERVED
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.routing import Route
from ringc.passes.schedules.routing import ROUTE_ROWS

STREAMED = 4
"""Rows up to which a program reads one row of the router's weight whole."""

LONGEST = 8192
"""Longest row of the weight that is held so."""

FEW = 16
"""Rows up to which a program multiplies one block of the inner axis, for as many experts: the narrowest sides of a dot."""

DEEPEST = 512
"""Longest block of the inner axis of few rows, of two bytes each.

In a step of 16 sequences on an H100 one block of 256 in place of two of 128 in a pipeline of three stages takes 85 us less of 5200, with 8
sequences 50 less of 3415, in 19 layers: more than the product itself gains, likely as less shared memory leaves more room to programs of
the shared expert, which run beside it. Blocks of 512, for rows of more than 2048, are not measured.
"""

PARTS = 8
"""Most parts of the inner axis, which the choice adds up again; of few rows of more than PARTS * DEEPEST elements there are more.

H100, 2048 -> 256 with its choice, us by tile (rows, experts, inner) and most parts: 64 rows (64, 64, 64) 9.5 with 8, 10.0 with 16, 11.6
with 32, (64, 128, 64) 9.7, 10.3 and 12.4; 256 rows (64, 64, 64) 10.1, (64, 128, 64) 10.5 to 11.9. 8192 rows take 28 us for the product in
tiles of 64 and 128 rows, cuBLAS 23.4.
"""

RESULTS = ("experts", "weights")
"""What a launch writes: the route's results."""

_RESERVED = (
    *RESERVED, *CHOOSE_NAMES, "stream", "block", "product", "partial", "rows", "parts", "steps", "STREAMED", "FEW", "ROWS", "row_tiles",
    "expert_tiles", *RESULTS,
)  # fmt: skip


@dataclass(frozen=True)
class _Region:
    """What a routing region is made of. `x` and `w` are None where it takes logits."""

    op: Route
    logits: Value | None
    x: Value | None
    w: Value | None
    bias: Value | None

    @property
    def choice(self) -> Choice:
        """What its choice is made for."""
        return Choice(self.op, None if self.bias is None else self.bias.type, self.logits is None)


def _argument(kernel: Kernel, value: Value) -> Value:
    if value.op is not None:
        raise CodegenError(f"@{kernel.name}: this template takes a product and its route, not {value.op.name}")
    return value


def _region(kernel: Kernel) -> _Region:
    body = kernel.function.body
    routes = [op for op in body.ops if isinstance(op, Route)]
    if len(routes) != 1 or routes[0].results != tuple(body.outputs):
        raise CodegenError(f"@{kernel.name}: this template takes one route, whose results are the region's outputs")
    (op,) = routes
    bias = None if op.bias is None else _argument(kernel, op.bias)
    product = op.logits.op
    if not isinstance(product, MatMul):
        return _Region(op, _argument(kernel, op.logits), None, None, bias)
    if not product.transpose_b:
        raise CodegenError(
            f"@{kernel.name}: the router's weight stands as [inner, experts], and this template wants [experts, inner]"
        )
    return _Region(op, None, _argument(kernel, product.a), _argument(kernel, product.b), bias)


def emit(kernel: Kernel) -> str:
    """`triton.route`: [a product with the router's weight,] the route.

    The workspace is f32[max(N, 4096), E], the product's parts.

    Raises:
        CodegenError: the region is made of something else.
    """
    region = _region(kernel)
    names = Names(_RESERVED)
    arguments = argument_names(kernel.function.body, names)
    jobs = region.choice.jobs()
    if region.logits is None:
        assert len(jobs) == 1, "the numbers of the jobs below count on it"
        jobs += [_stream_job(region), _block_job(region), _product_job(region)]
    w = Writer()
    w("import triton")
    w("import triton.language as tl\n")
    w(jobs_text(jobs))
    w("\n")
    if region.logits is None:
        w(f"{_stream(region)}\n\n")
        w(f"{_block(region)}\n\n")
        w(f"{_product(region)}\n\n")
    w(f"{region.choice.text()}\n\n")
    if region.logits is None:
        w(f"ROWS = {ROUTE_ROWS}")
        w('"""Rows of partial logits that the workspace holds at least."""\n')
        w(f"STREAMED, FEW = {STREAMED if padded(_inner(region)) <= LONGEST else 0}, {FEW}")
        w(
            '"""Rows up to which a program reads a row of the router\'s weight whole; rows up to which it reads a block of one."""\n'
        )
    w("")
    results = [*RESULTS, *(["partial"] if region.logits is None else [])]
    with w.block(f"def launch({', '.join([*arguments, *results])}):"):
        if region.logits is None:
            _launch_product(w, region, names, jobs)
        else:
            w(f"rows = {names[region.logits]}.shape[0]")
            _launch_choice(w, region, names, names[region.logits])
    return w.text()


def _launch_product(w: Writer, region: _Region, names: Names, jobs: Sequence[Job]) -> None:
    """The product and the choice behind it."""
    assert region.x is not None and region.w is not None
    given, experts, inner = f"{names[region.x]}, {names[region.w]}, partial, rows", region.op.experts, _inner(region)
    block, tile = ({k: int(j.constants[k] or 0) for k in ("BLOCK_N", "BLOCK_E", "BLOCK_K")} for j in jobs[2:])
    w(f"rows = {names[region.x]}.shape[0]")
    with w.block("if rows == 0:"):
        w("return")
    with w.block("if rows <= STREAMED:"):
        w("parts = 1")
        w(f"stream[({experts},)]({given}, **pinned(JOBS[1]))")
    with w.block("elif rows <= FEW:"):
        w(f"parts = {-(-inner // block['BLOCK_K'])}")
        w(f"block[({-(-experts // block['BLOCK_E'])}, parts)]({given}, **pinned(JOBS[2]))")
    with w.block("else:"):
        w(f"row_tiles, expert_tiles = -(-rows // {tile['BLOCK_N']}), {-(-experts // tile['BLOCK_E'])}")
        w(
            "# As many parts of the inner axis as fill the processors, fit the workspace, and are added up again at no great cost."
        )
        blocks = -(-inner // tile["BLOCK_K"])
        w(f"parts = max(1, min({min(blocks, PARTS)}, ROWS // rows, -(-128 // (row_tiles * expert_tiles))))")
        w(f"steps = -(-{blocks} // parts)")
        w(f"product[(row_tiles, expert_tiles, parts)]({given}, steps, **pinned(JOBS[3]))")
    _launch_choice(w, region, names, "partial")


def _launch_choice(w: Writer, region: _Region, names: Names, logits: str) -> None:
    bias = [] if region.bias is None else [names[region.bias]]
    region.choice.launch(w, [logits, *bias, *RESULTS, *region.choice.numbers])


def _inner(region: _Region) -> int:
    assert region.x is not None
    return int(region.x.shape[1])


def _stream_job(region: _Region) -> Job:
    inner = _inner(region)
    sizes = {"INNER": inner, "EXPERTS": region.op.experts, "BLOCK_K": padded(min(inner, LONGEST))}
    return Job("stream", _signature(region), sizes, num_warps=4, num_stages=1)


def _stream(region: _Region) -> str:
    inner = _inner(region)
    mask = ", mask=at < INNER, other=0.0" if padded(inner) != inner else ""
    return f'''@triton.jit(do_not_specialize=["rows"])
def stream(x, w, partial, rows, INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The logits of one expert for few rows, in one part: its row of the weight is read once, and before the rows are there."""
    expert = tl.program_id(0)
    at = tl.arange(0, BLOCK_K)
    w_row = tl.load(w + expert * INNER + at{mask}).to(tl.float32)
    {READ_EARLY}
    for row in range(rows):
        x_row = tl.load(x + row * INNER + at{mask}).to(tl.float32)
        tl.store(partial + row * EXPERTS + expert, tl.sum(x_row * w_row, 0))'''


def _block_job(region: _Region) -> Job:
    """The configuration for at most `FEW` rows.

    Raises:
        CodegenError: the inner axis has more blocks than the workspace has room for.
    """
    assert region.x is not None
    inner = _inner(region)
    deepest = 2 * DEEPEST // max(2, region.x.type.dtype.bytes)
    sizes = {"INNER": inner, "EXPERTS": region.op.experts, "BLOCK_N": FEW, "BLOCK_E": FEW}
    sizes["BLOCK_K"] = min(padded(-(-inner // PARTS)), deepest)
    most = ROUTE_ROWS // FEW * sizes["BLOCK_K"]
    if inner > most:
        raise CodegenError(f"a router's rows of {inner} are longer than {most}, which this template takes")
    return Job("block", _signature(region), sizes, num_warps=4, num_stages=1)


def _product_job(region: _Region) -> Job:
    """The configuration for more rows."""
    assert region.x is not None
    inner, experts = _inner(region), padded(region.op.experts)
    narrow = region.x.type.dtype.bytes == 2
    rows, columns, deep, warps, stages = (64, 64, 64, 4, 4) if narrow else (32, 32, 32, 8, 2)
    sizes = {"INNER": inner, "EXPERTS": region.op.experts}
    sizes |= {"BLOCK_N": rows, "BLOCK_E": min(columns, experts), "BLOCK_K": min(deep, padded(inner))}
    return Job("product", {**_signature(region), "steps": "i32"}, sizes, num_warps=warps, num_stages=stages)


def _signature(region: _Region) -> dict[str, str]:
    assert region.x is not None and region.w is not None
    return {"x": pointer(region.x.type), "w": pointer(region.w.type), "partial": "*fp32", "rows": "i32"}


def _masks(inner: str, *, outside: bool) -> tuple[str, str, str]:
    """The ends of a load of rows, of a load of the weight and of a store of their product, that keep to what is there.

    Args:
        inner: what is true of a place on the inner axis that is there; empty where all of a block are.
        outside: whether a tile may have experts behind the last.
    """
    along = [f"({inner})[None, :]"] if inner else []
    rows = ["(row < rows)[:, None]"]
    experts = ["(expert < EXPERTS)[:, None]", "(expert < EXPERTS)[None, :]"] if outside else []
    x, w = (f", mask={' & '.join(terms)}, other=0.0" if terms else "" for terms in (rows + along, along + experts[:1]))
    return x, w, f", mask={' & '.join(rows + experts[1:])}"


def _block(region: _Region) -> str:
    uneven = _inner(region) % int(_block_job(region).constants["BLOCK_K"] or 1)
    x_mask, w_mask, store_mask = _masks("at < INNER" if uneven else "", outside=region.op.experts % FEW != 0)
    return f'''@triton.jit(do_not_specialize=["rows"])
def block(
    x, w, partial, rows,
    INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Block `program_id(1)` of the inner axis of x w^T, for all rows. partial: [blocks, rows, EXPERTS]."""
    row = tl.arange(0, BLOCK_N)
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    at = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    w_tile = tl.load(w + expert[:, None] * INNER + at[None, :]{w_mask})
    {READ_EARLY}
    x_tile = tl.load(x + row[:, None] * INNER + at[None, :]{x_mask})
    total = tl.dot(x_tile, tl.trans(w_tile), input_precision="ieee")
    partial_at = (tl.program_id(1) * rows + row[:, None]) * EXPERTS + expert[None, :]
    tl.store(partial + partial_at, total{store_mask})'''


def _product(region: _Region) -> str:
    uneven = _inner(region) % 128
    x_mask, w_mask, store_mask = _masks("at + k < INNER" if uneven else "", outside=region.op.experts % 128 != 0)
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
        x_tile = tl.load(x_at + k{x_mask})
        w_tile = tl.load(w_at + k{w_mask})
        acc = tl.dot(x_tile, tl.trans(w_tile), acc, input_precision="ieee")
    partial_at = (part.to(tl.int64) * rows + row[:, None]) * EXPERTS + expert[None, :]
    tl.store(partial + partial_at, acc{store_mask})'''
