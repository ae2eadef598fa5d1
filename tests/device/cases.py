"""Every Triton template at a real model's sizes in bf16, on a GPU, against fp64. One case is one kernel function by one implementation."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ringc.codegen import compare as bound
from ringc.codegen.backend import run_source
from ringc.codegen.emit import emit
from ringc.codegen.inputs import Inputs
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.triton.jit import prepare_jit
from ringc.ir.core import Env, Function, Op, Value
from ringc.ir.interpret import run_block
from ringc.ir.ops.index import SortByKey
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.products import GatherMatMul, MatMul, SegmentMatMul
from ringc.ir.ops.routing import Route
from ringc.ir.ops.source import SegmentIds
from ringc.ir.text_parse import parse_module
from ringc.ir.types import StateType, TensorType
from ringc.passes.front import in_front
from ringc.passes.schedules.candidates import candidates
from ringc.passes.target import target

KERNELS = Path(__file__).parent / "data" / "kernels.ring"
TOKENS = (1, 2, 15, 16, 17, 63, 64, 65, 1000, 8192)
MORE = (2048,)
"""Beside them, for kernels whose reference doesn't walk through the tokens: other tiles are chosen there."""

CROWDED = (16, 65, 1000)
"""At these, experts' kernels are checked with all rows at one expert, too; where rows are few, most experts have none anyway."""

QUERIES = 512
"""Tokens that the reference of softmax attention takes at a time."""

ROWS = ((1, 1), (2, 16), (17, 0))
"""The ranges of row counts that implementations are chosen for. Whatever it was chosen for, a kernel must be right for all `TOKENS`."""

FROBENIUS = 0.015
"""The relative error of a whole bf16 result, on random inputs; a third of it on integer ones."""


@dataclass(frozen=True)
class Case:
    """A kernel function made by one implementation."""

    name: str
    kernel: Kernel


@dataclass(frozen=True)
class Outcome:
    """What checking a case gave: its worst relative errors by result on random and on integer inputs, or what failed first."""

    runs: int
    random: float
    integer: float
    failed: str = ""


def cases() -> list[Case]:
    """All of them: each function of the file by each implementation that the schedulers know."""
    found: list[Case] = []
    for function in parse_module(KERNELS.read_text(), KERNELS).functions.values():
        seen: set[str] = set()
        for rows in ROWS:
            for candidate in candidates(function.notes["family"], function.body, rows, target("sm_90")):
                if candidate.illegal or candidate.implementation in seen:
                    continue
                seen.add(candidate.implementation)
                notes = {
                    "family": function.notes["family"],
                    "implementation": candidate.implementation,
                    "workspace": candidate.workspace,
                }
                if early := _early(function):
                    notes["early"] = early
                number = len(seen)
                made = Function(f"{function.name}_{number}", function.body.clone(), **notes)
                found.append(Case(made.name, kernel_of(made)))
    return found


def _early(function: Function) -> tuple[int, ...]:
    """What a kernel may read early where it is launched in a model (`ringc.passes.early`): an expert product that follows another all but
    its rows, linear attention what doesn't go into them.
    """
    body = function.body
    rows = [op.x for op in body.ops if isinstance(op, GatherMatMul)]
    rows += [v for op in body.ops if isinstance(op, LinearAttention) for v in (op.q, op.k, op.v)]
    made = {v for op in in_front(body, *rows) for v in op.inputs()} | set(rows)
    given = {body.args[0], *(a for a in body.args if a.name in ("cos", "sin"))}
    return tuple(i for i, arg in enumerate(body.args) if rows and (arg not in made or arg not in given))


def case(name: str) -> Case:
    return next(c for c in cases() if c.name == name)


def build(kernel: Kernel, folder: Path) -> tuple[Callable[..., None], dict[str, Any]]:
    """The kernel's `launch`, and all names of its file."""
    prepare_jit(strict=False)
    path = folder / f"{kernel.name}.py"
    path.write_text(emit(kernel, target("sm_90")).text)
    names = run_source(path)
    return names["launch"], names


class DeviceInputs(Inputs):
    """Inputs whose floating-point numbers are drawn on the GPU.

    Args:
        function: a kernel's.
        sizes: values of the symbols.
        seed: of the draw.
        integers_only: floating-point numbers are whole, from -1 to 1.
        one_expert: all rows have the same expert.
    """

    def __init__(
        self, function: Function, sizes: dict[str, int], seed: int, *, integers_only: bool, one_expert: bool = False
    ) -> None:
        super().__init__(function.body, sizes, seed, one_each=False, device="cuda")
        self.integers_only = integers_only
        self.one_expert = one_expert

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self.integers_only:
            return torch.randint(-1, 2, shape, generator=self.normals, device="cuda").float()
        return super().normal(shape)

    def numbers(self, arg: Value, type: TensorType) -> torch.Tensor:
        users = arg.users()
        if any(isinstance(u, LinearAttention) and u.slopes is arg for u in users):
            # Ring-linear's slopes; without decay, whole numbers stay whole.
            heads = self.env.shape(type.shape)[0]
            steps = torch.arange(1, heads + 1, device="cuda")
            return torch.zeros(heads, device="cuda") if self.integers_only else torch.exp2(-8.0 * steps / heads)
        if self.integers_only:
            # A router's logits near zero: far from it, fp32's sigmoid can't tell experts apart that fp64's can.
            routes = any(isinstance(op, Route) for op in self.block.ops)
            weight = routes and any(isinstance(u, MatMul) and u.b is arg for u in users)
            bias = routes and len(type.shape) == 1
            factor = 0.0 if bias else 1 / 64 if weight else 1.0
            return (self.normal(self.env.shape(type.shape)) * factor).to(type.dtype.torch)
        return super().numbers(arg, type)

    def role(self, arg: Value, user: Op, count: int) -> torch.Tensor | None:
        if self.one_expert and isinstance(user, SegmentMatMul) and user.offsets is arg:
            rows = self.env.size(user.x.shape[0])
            return torch.cat([torch.zeros(count // 3), torch.full((count - count // 3,), rows)])
        if self.one_expert and isinstance(user, GatherMatMul) and user.ids is arg:
            return torch.full((count,), self.env.size(user.w.shape[0]) // 3)
        if self.one_expert and isinstance(user, SortByKey):
            return torch.full((count,), user.num_keys // 3)
        return super().role(arg, user, count)


def sizes_of(tokens: int, sequences: int) -> dict[str, int]:
    """Values of all symbols."""
    return {"N": tokens, "B": sequences, "P": sequences + 2, "S": tokens + 100, "R": min(5, tokens)}


def call_tensors(kernel: Kernel, inputs: Sequence[torch.Tensor], sizes: dict[str, int]) -> list[torch.Tensor]:
    """Copies of the inputs, then poisoned outputs and workspaces."""
    env = Env(sizes)
    return [x.clone() for x in inputs] + [poisoned(env, t) for t in (*kernel.outputs, *kernel.workspace)]


def poisoned(env: Env, type: TensorType) -> torch.Tensor:
    dtype = type.dtype.torch
    value: float = math.nan if dtype.is_floating_point else 1 if dtype == torch.bool else torch.iinfo(dtype).max
    return torch.full(env.shape(type.shape), value, dtype=dtype, device="cuda")


def reference(
    kernel: Kernel, inputs: Sequence[torch.Tensor], sizes: dict[str, int], precision: torch.dtype | None
) -> list[torch.Tensor]:
    """What the kernel's IR gives in a precision; None: in the stored types."""
    body = kernel.function.body
    if isinstance(body.ops[0], Attention):
        # Its decomposition copies the whole cache for every token.
        return [attention(body.ops[0].scale, *inputs, precision=precision)]
    with torch.device("cuda"):
        return run_block(body, [x.clone() for x in inputs], Env(sizes, precision))


def attention(
    scale: float,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    offsets: torch.Tensor,
    positions: torch.Tensor,
    *,
    precision: torch.dtype | None,
) -> torch.Tensor:
    """Softmax attention sequence by sequence."""
    made = torch.zeros_like(q, dtype=precision or q.dtype)
    group = q.shape[1] // keys.shape[2]
    for b, (start, stop) in enumerate(pairwise(offsets.tolist())):
        slot = int(slots[b])
        if slot < 0 or start == stop:
            continue
        here = positions[start:stop].long()
        longest = int(here.max()) + 1
        wide = precision or torch.float32
        k, v = (x[slot, :longest].to(wide).repeat_interleave(group, 1) for x in (keys, values))
        for first in range(start, stop, QUERIES):
            some = slice(first, min(first + QUERIES, stop))
            scores = torch.einsum("thd,shd->hts", q[some].to(wide), k) * scale
            seen = torch.arange(longest, device=q.device)[None, :] <= positions[some].long()[:, None]
            weights = scores.masked_fill_(~seen, -math.inf).softmax(-1)
            made[some] = torch.einsum("hts,shd->thd", weights, v).to(made.dtype)
    return made


def results(kernel: Kernel, given: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The function's results among the tensors of a call."""
    outputs = iter(given[len(kernel.function.body.args) :])
    for i, value in enumerate(kernel.function.body.outputs):
        yield given[kernel.in_place[i]] if isinstance(value.type, StateType) else next(outputs)


def check(case: Case) -> Outcome:
    """Build a case and compare all its results at all sizes, on random and on integer inputs; stops at the first that is wrong."""
    kernel = case.kernel
    worst = {False: 0.0, True: 0.0}
    runs = 0
    with tempfile.TemporaryDirectory() as folder:
        launch, _ = build(kernel, Path(folder))
        for n, sequences, integers_only, one_expert in draws(kernel):
            sizes = sizes_of(n, sequences)
            inputs = DeviceInputs(
                kernel.function, sizes, 7 * n + sequences, integers_only=integers_only, one_expert=one_expert
            ).all()
            given = call_tensors(kernel, inputs, sizes)
            launch(*given)
            torch.cuda.synchronize()
            runs += 1
            exact = reference(kernel, inputs, sizes, torch.float64)
            plain = reference(kernel, inputs, sizes, None)
            for i, (made, want, usual) in enumerate(zip(results(kernel, given), exact, plain, strict=True)):
                error, complaint = compare(kernel, made, want, usual, integers_only=integers_only)
                worst[integers_only] = max(worst[integers_only], error)
                if complaint:
                    kind = ("integer" if integers_only else "random") + (", one expert" if one_expert else "")
                    said = f"result {i} at N={n}, B={sequences}, {kind} inputs: {complaint}"
                    return Outcome(runs, worst[False], worst[True], said)
    return Outcome(runs, worst[False], worst[True])


def draws(kernel: Kernel) -> Iterator[tuple[int, int, bool, bool]]:
    """What a kernel is checked at: tokens, sequences, whether numbers are whole, whether all rows have one expert."""
    ops = kernel.function.body.ops
    walks = any(isinstance(op, Attention | LinearAttention | Route | SegmentIds) for op in ops)
    sorts = any(isinstance(op, SegmentMatMul | GatherMatMul | SortByKey) for op in ops)
    for n in TOKENS if walks else TOKENS + MORE:
        for sequences in sorted({1, min(n, 6)}):
            for integers_only in (True, False):
                yield n, sequences, integers_only, False
    for n in CROWDED if sorts else ():
        yield n, 1, False, True


def compare(
    kernel: Kernel, made: torch.Tensor, want: torch.Tensor, usual: torch.Tensor, *, integers_only: bool
) -> tuple[float, str]:
    """The relative error of a whole result, and what is wrong with it, if anything.

    Bounds are those of `ringc check`; the relative error of the whole has one that is fixed beside. For that one the reference is rounded
    to the result's type on integer inputs, where most sums are exact: a right product then shows no error.
    """
    if made.shape != want.shape:
        return math.inf, f"shape {tuple(made.shape)} in the place of {tuple(want.shape)}"
    if not made.numel():
        return 0.0, ""
    routes = any(isinstance(op, Route) for op in kernel.function.body.ops)
    if not made.dtype.is_floating_point:
        wrong = made.long() != want.long()
        if routes and made.dim() == 2:
            # Scores that are equal up to fp32's rounding may change places: a few rows in a thousand.
            rows = float(wrong.any(-1).float().mean())
            return rows, "" if rows <= 0.005 else f"{rows:.1%} of rows differ"
        share = float(wrong.float().mean())
        return share, "" if share == 0 else f"{share:.1%} of elements differ"
    found = bound.compare("", made, want, usual, bound.coarseness(kernel.function.body))
    tolerance = FROBENIUS
    if routes:
        tolerance = 0.01
    elif integers_only:
        want, tolerance = want.to(made.dtype).double(), FROBENIUS / 3
    made = made.double()
    if not bool(torch.isfinite(made).all()):
        return math.inf, f"{int((~torch.isfinite(made)).sum())} of {made.numel()} elements aren't finite"
    error = float((made - want).norm() / (want.norm() + 1e-30))
    if not routes and not found.passed:
        return error, f"{found.measure} is off by {found.error:.1e}, allowed {found.allowed:.1e}"
    return error, "" if error <= tolerance else f"relative error {error:.1e}"


def binaries(names: dict[str, Any]) -> str:
    """Registers and spills of what Triton's JIT has compiled of a kernel file, as far as this version of Triton tells."""
    found: list[str] = []
    for name, function in names.items():
        for held in getattr(function, "device_caches", {}).values():
            for made in held[0].values():
                registers, spills = getattr(made, "n_regs", None), getattr(made, "n_spills", None)
                if registers is not None:
                    found.append(f"{name} {registers}r" + (f" {spills} spills" if spills else ""))
    return ", ".join(found)
