"""The forms of linear attention: what each costs, where it is safe, and from which length on which one wins.

*recurrent* runs the recurrence token by token, its state in registers. *chunked* runs blocks of tokens: within a block a product with a
decay mask, between blocks the state. On the CPU the block form scales queries by `exp(slope (j+1))` and keys by its inverse, which saves
the decay of the state at every token but needs `slope * chunk` to stay far below the 88 of fp32; on a GPU the mask holds only differences,
which are always safe, and the sequence is cut into segments that run side by side. On the CPU this is an implementation of its own, for
more threads than heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ringc.ir.symbols import add, floordiv, mul
from ringc.ir.types import DType, TensorType
from ringc.passes.schedules.model import B, Candidate, N, crossover, longer, parse_config, roofline
from ringc.passes.target import Target

SAFE_EXPONENT = 60.0
"""Largest `slope * chunk` of the scaled form: factors stay below 1e26, and their products with the values far below fp32's 3e38."""

CHUNKED_GAIN = 1.35
"""How much faster the inner loop is without the decay, on the CPU."""

TABLES = sympy.Float(50e-9)
"""Seconds that a task of the chunked form on the CPU takes for its tables of powers."""

CPU_SEGMENT = 128
"""Least tokens of a segment on the CPU: its state is written and read three times, which costs as much as 8 tokens."""

CPU_TASKS = 32
"""Tasks that a batch of few sequences is cut into on the CPU; sequences that make about half as many by themselves are not cut."""

VECTOR = 16
"""Columns of a slice are a multiple of this: the lanes of a vector."""

GPU_CHUNK = 64
GPU_SEGMENT = 256
"""Least tokens of a segment: enough chunks to hide the prefix over segments."""

GPU_COLUMNS = 64
"""Columns of the state that one block of threads holds."""

GPU_STEP = 0.57e-6
"""Seconds of a step of the recurrence on a GPU, which waits for the last one. H100: 64 tokens of a sequence of 16 heads take 43 us."""

GPU_RECURRENT_RATE = 0.28
"""Share of a GPU's rate of arithmetic that the recurrence reaches where sequences fill it. H100: 1.5 us a step of 16 of them."""

GPU_BLOCKS = 256
"""Blocks of threads that a long batch is cut into: two on each of 132 processors, all at once. Twice as many take 107 instead of 89 us for
8192 tokens of 16 heads of 128 on an H100, and 526 instead of 510 us for 65536, as each sums up a longer prefix."""


@dataclass(frozen=True)
class Problem:
    """One linear-attention operation: heads, sizes of keys and values, element size, the steepest slope of any layer that runs it."""

    heads: int
    dk: int
    dv: int
    element: int
    steepest: float

    @property
    def state_bytes(self) -> sympy.Expr:
        return 2 * 4 * B * self.heads * self.dk * self.dv

    @property
    def row_bytes(self) -> sympy.Expr:
        return self.element * N * self.heads * 2 * (self.dk + self.dv)


def forms(problem: Problem, target: Target) -> dict[str, Candidate]:
    """Every form with its cost, or with why it may not be used."""
    return _cpu(problem, target) if target.backend != "triton" else _gpu(problem, target)


def _cpu(p: Problem, target: Target) -> dict[str, Candidate]:
    # Two threads, H=8, D=64: recurrent 0.95 us a token, scaled blocks of 16 tokens 0.68; the tables of powers cost what one token saves.
    # The state is read before the first token and written behind the last, so that traffic comes on top of the work.
    threads = sympy.Min(target.width, B * _tasks(p))
    work = _work(p, target, threads)
    fixed = (p.state_bytes + p.row_bytes) / sympy.Float(target.bandwidth) + target.launch
    tables = TABLES * B * _tasks(p) / threads
    recurrent, scaled = work + fixed, work / CHUNKED_GAIN + tables + fixed
    chunk = next((c for c in (16, 8, 4) if c * p.steepest <= SAFE_EXPONENT), 0)
    unsafe = "" if chunk else f"slope {p.steepest:.3g} times 4 tokens exceeds {SAFE_EXPONENT:g}: exp overflows fp32"
    template = "torch.eager" if target.backend == "torch" else "tvm.linear_recurrent"
    blocked = "torch.eager" if target.backend == "torch" else f"tvm.linear_chunked{{chunk={chunk or 4}}}"
    return {"recurrent": Candidate(template, recurrent), "chunked": Candidate(blocked, scaled, unsafe)}


def segments(p: Problem, target: Target) -> Candidate | None:
    """The chunked form cut into segments, by TVM; None where one sequence makes more than `CPU_TASKS` / 3 tasks, and is never cut."""
    # All but the last segment of a sequence build up their state once more, half of the work, and each state is written and read three
    # times. Two threads, 4096 tokens, against one piece: 8 heads of 64 columns take 5.9 ms, not 4.0. 16 threads: 1.04, not 1.40.
    whole = _cpu(p, target)["chunked"]
    chunk = dict(parse_config(whole.implementation))["chunk"]
    each = _tasks(p)
    most = CPU_TASKS // each
    if most <= 2:
        return None
    cut = sympy.Min(floordiv(N, CPU_SEGMENT), most, evaluate=False)
    few = sympy.Min(1, longer(sympy.Integer(0), most - 2 * B), evaluate=False)
    pieces = longer(B, cut * few)
    threads = sympy.Min(target.width, pieces * each, evaluate=False)
    twice = sympy.Float(1.5) - sympy.Float(0.5) * B / pieces
    states = 6 * 4 * pieces * p.heads * p.dk * p.dv
    fixed = (p.state_bytes + p.row_bytes + states) / sympy.Float(target.bandwidth) + 3 * target.launch
    seconds = _work(p, target, threads) / CHUNKED_GAIN * twice + 2 * TABLES * pieces * each / threads + fixed
    workspace = TensorType(DType.F32, (mul(add(B, sympy.Min(floordiv(N, CPU_SEGMENT), most)), p.heads), p.dk, p.dv))
    config = f"chunk={chunk},segment={CPU_SEGMENT},segments={most}"
    return Candidate(f"tvm.linear_segments{{{config}}}", seconds, whole.illegal, (workspace,))


def _work(p: Problem, target: Target, threads: sympy.Expr) -> sympy.Expr:
    """Seconds of the recurrence's arithmetic."""
    return 5 * N * p.heads * p.dk * p.dv / (target.vector_rate / target.width * threads)


def slices(heads: int, dv: int, columns: int = 64) -> int:
    """Into how many slices of value columns the kernels for the CPU cut a head: none wider than `columns`, and enough for four tasks.

    A narrower slice reads q and k once more and costs 20 to 40 % in time, so there are several only where a group of the state's rows
    doesn't fit into registers otherwise, and where a few heads would leave threads idle.
    """

    def fits(count: int) -> bool:
        return dv % count == 0 and (count == 1 or dv // count % VECTOR == 0)

    found = next((count for count in range(1, dv + 1) if fits(count) and dv // count <= columns), 1)
    while heads * found < 4 and fits(2 * found):
        found *= 2
    return found


def _tasks(p: Problem) -> int:
    """Into how many tasks the kernels for the CPU cut a sequence."""
    return p.heads * slices(p.heads, p.dv)


def _gpu(p: Problem, target: Target) -> dict[str, Candidate]:
    steps = sympy.Float(GPU_STEP) * N / B
    work = 5 * N * p.heads * p.dk * p.dv / sympy.Float(GPU_RECURRENT_RATE * target.vector_rate)
    serial = roofline(target, 0, p.state_bytes + p.row_bytes, rate=1.0, bandwidth=0.9) + longer(steps, work)
    # Segments behind the first read their keys and values twice, but for heads that see less than a segment back, and hand their states on
    # through memory. In a long segment the chunks' own latency hides behind what others read. H100, 16 heads, us predicted and measured
    # (less the 3 in which a graph starts): one sequence of 64 tokens 7 and 6, of 512 16 and 21, of 4096 58 and 53, of 65536 605 and 507;
    # 16 sequences of 16 tokens 23 and 21, of 1024 164 and 132.
    most = max(4, GPU_BLOCKS // (p.heads * -(-p.dv // GPU_COLUMNS)))
    cuts = sympy.Min(floordiv(N, GPU_SEGMENT), most)
    segments = add(B, cuts)
    flops = N * p.heads * (4 * GPU_CHUNK * p.dv + 4 * p.dk * p.dv)
    chunks = sympy.Min(N / B, longer(sympy.Integer(GPU_SEGMENT), N / most), evaluate=False) / GPU_CHUNK
    again = cuts / (4 * segments)
    traffic = p.state_bytes + p.row_bytes * (1 + again) + 2 * 4 * cuts * p.heads * p.dk * p.dv
    parallel = roofline(target, flops, traffic, rate=0.25 * target.matrix_rate, bandwidth=0.75, launches=2)
    parallel += sympy.Float(1.2e-6) + sympy.Float(1e-6) * sympy.Min(chunks, 8, evaluate=False)
    workspace = TensorType(DType.F32, (mul(segments, p.heads), p.dk, p.dv))
    config = f"chunk={GPU_CHUNK},segment={GPU_SEGMENT},segments={most}"
    chunked = Candidate(f"triton.linear_chunked{{{config}}}", parallel, workspace=(workspace,))
    return {"recurrent": Candidate("triton.linear_recurrent", serial), "chunked": chunked}


def switch_length(problem: Problem, target: Target, sequences: int = 1) -> int | None:
    """Tokens of each sequence from which the chunked form is predicted to win; None when it never does or is illegal."""
    found = forms(problem, target)
    if found["chunked"].illegal:
        return None
    tokens = crossover(found["recurrent"].seconds, found["chunked"].seconds, "N", {"B": sequences})
    return None if tokens is None else max(1, tokens // sequences)
