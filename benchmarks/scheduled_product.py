"""A product on the CPU written twice: as TVM's computation with a schedule beside it, and as the loops that ringc emits.

    python -m benchmarks.scheduled_product [--rounds 7] [--write]

`docs/design.md` has TVM's kernels emitted as scheduled loops; this measures what that gains or gives up. The schedule keeps a tile of rows
and a panel of the packed weight in registers (`cache_write`, `decompose_reduction`), with threads over pairs of tiles and panels; 20 tiles
are tried and the fastest is taken. It may rely on the rows filling whole tiles, which the emitted loops may not. PyTorch's product is timed
beside both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.common import (
    Times,
    command_line,
    deliver,
    machine,
    machine_line,
    options,
    table,
    timed,
)
from ringc.codegen.emit import emit
from ringc.codegen.kernel import kernel_of
from ringc.codegen.packing import pack
from ringc.codegen.tvm.build import import_tvm, module_of, processor
from ringc.ir.text_parse import parse_module

SIZES = ((2304, 512, 1536), (2304, 512, 576), (576, 1024, 576), (72, 512, 1536))
"""Rows, inner size, columns, which every tile divides: a prompt's wide product, its output product, an expert's, a short prompt."""

TILES = tuple(product((4, 6, 8, 12), (16, 32, 48, 64, 96)))
"""Rows and columns of the scheduled computation's tile; the largest don't fit into registers."""

EMITTED = (8, 32)
"""Rows and columns that the schedulers choose."""

LANES = 16
WARM_SECONDS = 0.03
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Way:
    """One way to multiply; the call has its operands."""

    name: str
    run: Callable[[], object]


def scheduled(rows: int, inner: int, outer: int, tile: tuple[int, int]) -> Callable[..., Any]:
    """`y[i, r, o, c] = sum_k x[i, r, k] w[o, k, c]`, a tile of `tile` rows and columns in registers."""
    tvm = import_tvm()
    from tvm import s_tir, te

    high, wide = tile
    x = te.placeholder((rows // high, high, inner), "float32", "x")
    w = te.placeholder((outer // wide, inner, wide), "float32", "w")
    k = te.reduce_axis((0, inner), "k")
    y = te.compute(
        (rows // high, high, outer // wide, wide), lambda i, r, o, c: te.sum(x[i, r, k] * w[o, k, c], axis=k), "y"
    )
    schedule = s_tir.Schedule(te.create_prim_func([x, w, y]))
    block = schedule.get_sblock("y")
    i, r, o, c, along = schedule.get_loops(block)
    vectors, lane = schedule.split(c, [None, LANES])
    schedule.reorder(o, i, along, r, vectors, lane)
    written = schedule.cache_write(block, 0, "local")
    task = schedule.fuse(o, i)
    schedule.parallel(task)
    schedule.reverse_compute_at(written, task)
    schedule.vectorize(schedule.split(schedule.get_loops(written)[-1], [None, LANES])[1])
    for loop in (r, vectors):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    schedule.decompose_reduction(block, along)
    made: Callable[..., Any] = tvm.compile(schedule.mod, target=processor().tvm_target())["main"]
    return made


def emitted(inner: int, outer: int) -> Callable[..., Any]:
    """The kernel that ringc makes of the product."""
    rows, columns = EMITTED
    (function,) = parse_module(
        f"""module @benchmark level kernel
symbol N >= 0
func @product(%x: f32[N, {inner}], %w: f32[{outer}, {inner}]@0x{columns}) {{
  %y = matmul(%x, %w) {{transpose_b = true}} : f32[N, {outer}]
  return %y
}}
"""
    ).functions.values()
    function.notes |= {"family": "matmul", "implementation": f"tvm.matmul{{rows={rows},block={columns}}}"}
    source = emit(kernel_of(function))
    made: Callable[..., Any] = import_tvm().compile(
        module_of(source.text, source.name), target=processor().tvm_target()
    )["main"]
    return made


def ways(rows: int, inner: int, outer: int, progress: Callable[[str], None]) -> list[Way]:
    """Every way, checked against fp64: PyTorch, the emitted kernel, the scheduled one in each tile.

    Raises:
        SystemExit: one is wrong.
    """
    x, w = torch.randn(rows, inner), torch.randn(outer, inner)
    exact = x.double() @ w.double().T
    found = []

    def add(name: str, run: Callable[[], object], made: torch.Tensor, result: torch.Tensor) -> None:
        made.fill_(float("nan"))
        run()
        error = float((result.double() - exact).abs().max() / exact.abs().max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{name} is wrong for {rows} x {inner} x {outer}: relative error {error:.1e}")
        found.append(Way(name, run))

    library = torch.empty(rows, outer)
    add("PyTorch", partial(torch.mm, x, w.T, out=library), library, library)
    kernel, packed, own = emitted(inner, outer), pack(w, ((0, EMITTED[1]),)), torch.empty(rows, outer)
    add("emitted loops", partial(kernel, x, packed, own), own, own)
    for tile in TILES:
        high, wide = tile
        progress(f"{rows} x {inner} x {outer}: scheduled, tile of {high} x {wide}")
        made = scheduled(rows, inner, outer, tile)
        panels, y = pack(w, ((0, wide),)), torch.empty(rows // high, high, outer // wide, wide)
        run = partial(made, x.view(rows // high, high, inner), panels, y)
        add(f"scheduled {high} x {wide}", run, y, y.view(rows, outer))
    return found


def measure(found: list[Way], rounds: int) -> dict[str, Times]:
    """Seconds of each way, measured in turns."""
    seconds: dict[str, list[list[float]]] = {way.name: [] for way in found}
    for _ in range(rounds):
        for way in found:
            # Threads of the other library spin for a while before they sleep, and those of this one take some launches to wake.
            time.sleep(0.25)
            begin = time.perf_counter()
            while time.perf_counter() - begin < WARM_SECONDS:
                way.run()
            seconds[way.name].append(timed(way.run, 5))
    return {
        name: Times(tuple(statistics.median(r) for r in turns), min(min(r) for r in turns))
        for name, turns in seconds.items()
    }


def main() -> None:
    parser = options("scheduled_product", __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()

    found, rows, data = machine(), [], {}
    for size in SIZES:
        m, k, n = size
        times = measure(ways(m, k, n, lambda what: print(what, file=sys.stderr, flush=True)), given.rounds)
        best = min((name for name in times if name.startswith("scheduled")), key=lambda name: times[name].median)
        gflop = 2 * m * k * n / 1e9
        cells = (
            f"{gflop / t.median:.0f} ({gflop / max(t.rounds):.0f} to {gflop / min(t.rounds):.0f})"
            for t in (times["PyTorch"], times["emitted loops"], times[best])
        )
        rows.append([f"{m} x {k} x {n}", *cells, best.removeprefix("scheduled ")])
        data["x".join(map(str, size))] = {name: list(t.rounds) for name, t in times.items()}
    text = (
        f"{machine_line(found)} `{command_line('scheduled_product')}`\n\n"
        + table(["GFLOP/s", "PyTorch", "emitted loops", "scheduled", "its tile"], rows)
        + f"\n\nMedians of {given.rounds} rounds in turns, and slowest to fastest; the schedule in the fastest of {len(TILES)} tiles."
    )
    deliver("scheduled_product", text, {"machine": found, "times": data}, given)


if __name__ == "__main__":
    main()
