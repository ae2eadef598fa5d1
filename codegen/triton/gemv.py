"""Products of one row: each element of the result is a sum over a row of the weight, which is read straight into registers.

Nothing is tiled and nothing runs on tensor cores: with one row a product is bound by reading its weight, and what counts is how much of
it is on its way. So a program takes a few rows of the weight whole and asks for all of them at once, before it waits for the kernel that
makes the other operand. The product becomes a multiplication and a sum (`as_sums`), and the file is generated as a row kernel's is: row
work in front of the product (a norm, a gate) and pointwise work behind it are part of the region, an expert's weight is a gather, and so is
the sum over a row's experts. What all programs make in front of a dense product the first of them may give back, for others to read.

A row's experts one by one and a dense product of the same row (the shared expert's) are two parts of a kernel, each with programs of its
own. The dense one's are the first: they need not know which experts are taken, and read their weights while that is found out.

Right for any number of rows, and meant for one of a dense product, where with each further row all of the weight is read once more, and for
rows that name experts of their own. Programs of one column follow each other, so that an expert that several rows name is read from memory
once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names
from ringc.codegen.triton.elements import Axis, Cut, Index, NeedsAxis, Scope, Tiles, power_of_two
from ringc.codegen.triton.gemv_parts import Choices, Part, arguments_of, parts_of
from ringc.codegen.triton.jobs import Job, jobs_text
from ringc.codegen.triton.overlap import READ_ASKED, READ_EARLY, READ_LATE
from ringc.codegen.triton.regions import Reader, loads_first, parted_loads, viewed
from ringc.codegen.triton.signature import RESERVED, Tensors, decorator, head
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Op, Value
from ringc.ir.elements import Elementwise
from ringc.ir.ops.composite import expanded
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast, Mul
from ringc.ir.ops.products import GatherMatMul, MatMul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.shape import Reshape, Transpose, storage_of
from ringc.ir.symbols import dim_text, symbols_of
from ringc.passes.front import before_product, in_front
from ringc.passes.versions import ONE_ROW

MOST_AXES = 6


def emit(kernel: Kernel) -> str:
    """The file of a product of one row.

    Raises:
        CodegenError: the region is no product with row work in front and pointwise work behind.
    """
    region = expanded(kernel.function.body)
    _check(kernel, region)
    front = any(isinstance(op, MatMul | GatherMatMul) and _is_made(op.inputs()[0]) for op in region.ops)
    parts = parts_of(kernel, *as_sums(region), front=front)
    tensors = Tensors(kernel, ("row", "choice", "column", "column_in", "program", "number"))
    number = "number" if len(parts) > 1 else "tl.program_id(0)"
    written = [_written(kernel, part, tensors, number, _once(kernel, parts, tensors)) for part in parts]
    rows = parts[0].body.outputs[0].shape[0]
    sizes = sorted(symbols_of([rows]).union(*(symbols for _, symbols in written)))
    count = dim_text(rows) if dim_text(rows).isidentifier() else f"({dim_text(rows)})"
    taken = ", ".join([*tensors.all, *sizes])

    w = Writer()
    head(w)
    apart = zip(parts, written, strict=True) if len(parts) > 1 else ()
    calls = [_helper(w, kernel, *made, tensors) for made in apart]
    w("\n")
    w(decorator(sizes))
    with w.block(f"def {kernel.name}({taken}):"):
        if not calls:
            written[0][0].scopes[0].write(w)
        else:
            first = f"{count} * {parts[0].programs}"
            w("# The first programs are the dense product's, which needs not know the experts.")
            w("number = tl.program_id(0)")
            with w.block(f"if number < {first}:"):
                w(calls[0].format("number"))
            with w.block("else:"):
                w(calls[1].format(f"number - {first}"))
    w("\n")
    w(jobs_text([Job(kernel.name, tensors.signature(tensors.all, sizes), {}, parts[-1].warps, 1)]))
    w("\n")
    with w.block(f"def launch({', '.join(tensors.all)}):"):
        for line in tensors.size_lines(sizes):
            w(line)
        w(f"grid = ({count} * {sum(part.programs for part in parts)},)")
        w(f"{kernel.name}[grid]({taken}, **pinned(JOBS[0]))")
    return w.text()


def _helper(w: Writer, kernel: Kernel, part: Part, made: tuple[Tiles, set[str]], tensors: Tensors) -> str:
    """Write a part as a function of the number of one of its programs; how it is called, but for that number."""
    tiles, symbols = made
    read = [tensors.arguments[i] for i in sorted(part.read)]
    given = ", ".join([*read, *(tensors.outputs[i] for i in part.results), *sorted(symbols)])
    name = f"{kernel.name}_{'experts' if part.choices else 'dense'}"
    w("\n")
    w("@triton.jit")
    with w.block(f"def {name}(number, {given}):"):
        tiles.scopes[0].write(w)
    return f"{name}({{}}, {given})"


def _once(kernel: Kernel, parts: Sequence[Part], tensors: Tensors) -> set[str]:
    """The weights of one row's experts and of what accompanies them: another token's need not make room for them."""
    if kernel.function.notes.get("rows") != ONE_ROW or not any(part.choices for part in parts):
        return set()
    pointers = tensors.pointers(parts[0].body.args)
    sources = [_source(weight) for part in parts for weight in part.weights]
    return {pointers[source] for source in sources if source is not None}


def _check(kernel: Kernel, region: Block) -> None:
    anchors = [op for op in region.ops if isinstance(op, MatMul | GatherMatMul)]
    if not anchors:
        raise CodegenError(f"@{kernel.name} has no product")
    refused = before_product(region)
    if refused:
        raise CodegenError(f"@{kernel.name}: {refused}", help="leave what stands in front to a row kernel")
    front = in_front(region, anchors[0].inputs()[0])
    experts = any(isinstance(op, GatherMatMul) for op in anchors)
    for op in region.ops:
        sums = isinstance(op, Sum) and op.axes == (1,) and op.x.tensor.rank == 3 and experts
        if op not in front and op not in anchors and not sums and not (isinstance(op, Elementwise) and op.pointwise):
            raise CodegenError(f"@{kernel.name}: '{op.name}' behind the product isn't pointwise")


def _written(
    kernel: Kernel, part: Part, tensors: Tensors, number: str, once: Collection[str]
) -> tuple[Tiles, set[str]]:
    """A part's body, for the cuts that it asks for, and as many tile axes as it turns out to need; and the sizes that it asks for."""
    # A row's experts one by one: along a tile axis, each thread would hold what says which they are for each of its elements.
    apart = () if part.choices is None else tuple(range(1, part.choices.together))
    cuts = {len(apart) + 1: Cut(len(apart) + 1, points=apart)} if apart else {}
    axes = 2
    while True:
        try:
            tiles, symbols = _body(kernel, part, tensors, number, once, cuts, axes)
        except NeedsAxis:
            axes += 1
            if axes > MOST_AXES:
                raise CodegenError("the region needs more axes than a kernel has") from None
            continue
        except Cut as cut:
            if cut.extent in cuts:
                raise CodegenError(f"an axis of {cut.extent} elements is cut in two ways") from cut
            cuts[cut.extent] = cut
            continue
        finer = {inner: half for inner, half in map(_halved, part.weights) if half and inner not in cuts}
        if not finer:
            return tiles, symbols
        # 5120 elements are a block of 4096 and one of 1024 rather than one of 8192.
        cuts |= {inner: Cut(inner, points=(half,)) for inner, half in finer.items()}


def _halved(weight: Value) -> tuple[int, int]:
    """How long a row of a weight is, and the first of two powers of two that make it, if it is two long ones."""
    inner = int(weight.shape[-1])
    half = power_of_two(inner) // 2
    rest = inner - half
    return inner, half if inner >= 64 and rest < half and rest & (rest - 1) == 0 else 0


def _body(
    kernel: Kernel,
    part: Part,
    tensors: Tensors,
    number: str,
    once: Collection[str],
    cuts: dict[int, Cut],
    axes: int,
) -> tuple[Tiles, set[str]]:
    """One way to write it; raises `Cut` or `NeedsAxis` where it takes others."""
    body, choices = part.body, part.choices
    symbols: set[str] = set()
    names = Names((*RESERVED, *tensors.all, *tensors.taken))
    t = Tiles(names, tensors.pointers(body.args), range(axes), symbols.add, once=once)
    reader = Reader(t, cuts)
    made, first = _place(t, part, number)
    t.line(f"column = {first} + {t.place(0, f'tl.arange(0, {part.columns})')}")
    inside = ""
    if part.width % part.columns:
        inside = "column_in"
        t.line(f"{inside} = column < {part.width}")
    # Columns lie along the outermost tile axis, so that reductions take the others.
    column = Index(((Axis("column", 0, part.width - 1, slot=0, block=part.columns, inside=inside), 1),))
    early = frozenset(kernel.function.notes.get("early", ()))
    # Which expert's a weight is, a kernel before says: the one in front, or an earlier one (`ringc.passes.early`).
    known = all(arguments_of(body, w.op.ids) <= early for w in part.weights if isinstance(w.op, Gather))
    if not known:
        t.line(READ_LATE)
    for weight in part.weights:
        _ask(reader, weight, made, column, choices)
    lines = t.scopes[0].lines
    asked = len(lines)
    stores: list[str | Scope] = []
    for i in part.results:
        value, pointer = body.outputs[i], tensors.outputs[i]
        if part.is_front(i):
            stores += _given_back(reader, value, pointer, part, made)
            continue
        at = (*made, column)
        t.store(pointer, value.type.dtype, at, value.shape, t.tile(reader.read(value, at)))
        stores.append(lines.pop())
    rest = lines[asked:]
    if not known:
        # Where the kernel makes what stands in front, too, its weights wait for their turn: so it is 1 % faster.
        mark = [] if part.front else [READ_ASKED]
        rest = [*mark, *loads_first(rest), *stores]
    elif part.read <= early:
        rest = [*loads_first(rest), READ_EARLY, *stores]
    else:
        # Beside its weights those of norms, say, which come from memory, too.
        there = "|".join(name for i, name in enumerate(tensors.arguments) if i in early)
        given, rest = parted_loads(rest, there) if there else ([], rest)
        rest = [*given, READ_EARLY, *loads_first(rest), *stores]
    lines[asked:] = rest
    return t, symbols


def _place(t: Tiles, part: Part, number: str) -> tuple[tuple[Index, ...], str]:
    """Write which part of the result a program makes, by its number: its leading indices, and its first column as text."""
    choices = part.choices
    count = -(-part.width // part.columns)
    times = f" * {part.columns}" if part.columns > 1 else ""
    row = Index(((Axis("row", 0, None, wide=True), 1),))
    if choices is None:
        t.line(f"# A program for one row and {part.columns} of {part.width} columns.")
        t.line(f"program = {number}")
        t.line(f"row = (program // {count}).to(tl.int64)")
        return (row,), f"program % {count}{times}"
    rows = t.tile(t.size(part.body.outputs[0].shape[0])).text
    if choices.summed:
        t.line(f"# A program for one row, all of its experts, and {part.columns} of {part.width} columns.")
        t.line(f"program = {number}")
        t.line(f"row = (program % {rows}).to(tl.int64)")
        return (row,), f"program // {rows}{times}"
    t.line(f"# A program for one row, one of its experts, and {part.columns} of {part.width} columns.")
    t.line(f"program = {number} // {choices.count}")
    t.line(f"choice = {number} % {choices.count}")
    t.line(f"row = (program % {rows}).to(tl.int64)")
    choice = Index(((Axis("choice", 0, choices.count - 1), 1),))
    return (row, choice), f"program // {rows}{times}"


def _ask(reader: Reader, weight: Value, made: tuple[Index, ...], column: Index, choices: Choices | None) -> None:
    """Read all of a weight that the program needs, in front of what it waits for: loads on their way at once are what counts."""
    places: list[tuple[Index, ...]] = [(column,)]
    if isinstance(weight.op, Gather):
        assert choices is not None
        places = [(*made, column)]
        if choices.summed:
            places = [(*made, piece.index, column) for piece in reader.pieces(choices.count, {0})]
        for place in places:  # all of them at once, as each load of a weight waits for one
            reader.read(weight.op.ids, place[:-1])
    for place in places:
        used = {axis.slot for index in place for axis in index.axes}
        for piece in reader.pieces(int(weight.shape[-1]), used):
            if piece.loop is None:
                reader.read(weight, (*place, piece.index))


def _given_back(reader: Reader, value: Value, pointer: str, part: Part, made: tuple[Index, ...]) -> list[str | Scope]:
    """The stores of what is made in front, by the first program of a row, where all of them make it."""
    t = reader.tiles
    stores: list[str | Scope] = []
    for piece in reader.pieces(int(value.shape[-1]), {0}):
        at = (*made, piece.index)
        with t.loop(piece.loop) if piece.loop else nullcontext():
            tile = t.tile(reader.read(value, at))
            t.store(pointer, value.type.dtype, at, value.shape, tile, f"(program % {part.programs} == 0)")
        stores.append(t.scopes[0].lines.pop())
    return stores


def _source(weight: Value) -> Value | None:
    """The argument that a weight's elements are read from."""
    return viewed(weight.op.x if isinstance(weight.op, Gather) else weight)


def as_sums(body: Block) -> tuple[Block, list[Value]]:
    """A copy of a region with `sum_k w[c, k] x[n, k]` in the place of its products; and their weights, [c, k] or [n, j, c, k]."""
    copy = Block([a.type for a in body.args], [a.name for a in body.args])
    mapping: dict[Value, Value] = dict(zip(body.args, copy.args, strict=True))
    b = Builder(copy)
    weights: list[Value] = []
    summed = any(isinstance(op, GatherMatMul) and _is_summed(op) for op in body.ops)
    for op in body.ops:
        clone = op.clone(mapping)
        if isinstance(clone, MatMul | GatherMatMul):
            x, *_ = clone.inputs()
            if _is_made(x):
                # A kernel in front would round it in memory: rounded here, it is the same for one row as for many.
                x = b(Cast(x, x.tensor.dtype))
            weights.append(_weight(b, clone))
            *lead, inner = x.shape
            lead += [1] * (weights[-1].tensor.rank - 1 - len(lead)) if isinstance(clone, GatherMatMul) else [1]
            products = b(Mul(weights[-1], b(Reshape(x, (*lead, inner)))))
            total = b(Sum(products, (products.tensor.rank - 1,)))
            out = clone.out or (x.tensor.dtype if summed else None)  # rounded, as above
            made: Sequence[Value] = (total if out is None else b(Cast(total, out)),)
        else:
            made = b.insert(clone).results
        for old, new in zip(op.results, made, strict=True):
            new.name = new.name or old.name
            mapping[old] = new
    copy.set_outputs(mapping[v] for v in body.outputs)
    return copy, weights


def _is_made(value: Value) -> bool:
    """Whether a value is computed, and not read."""
    return storage_of(value).op is not None


def _is_summed(op: Op) -> bool:
    """Whether a product's result goes into a sum over a row's experts."""
    users = op.results[0].users()
    return any(isinstance(u, Sum) or (isinstance(u, Elementwise) and _is_summed(u)) for u in users)


def _weight(b: Builder, op: MatMul | GatherMatMul) -> Value:
    if isinstance(op, MatMul):
        return op.b if op.transpose_b else b(Transpose(op.b, (1, 0)))
    return b(Gather(op.w, op.ids))
