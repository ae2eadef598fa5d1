"""Random inputs that are valid for a kernel: what an integer argument may hold is read off the operations that take it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch

from ringc.ir.core import Block, Env, Function, Op, Value
from ringc.ir.ops.index import Gather, Scatter, ScatterAdd, SortByKey, TakeAlong
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.pointwise import Cast, FloorDiv
from ringc.ir.ops.products import ExpertProduct, GatherMatMul, MatMul, SegmentMatMul
from ringc.ir.ops.scan import Scan
from ringc.ir.ops.shape import Reshape
from ringc.ir.ops.source import Constant, SegmentIds
from ringc.ir.ops.state import StateAppend, StateRead, StateWrite
from ringc.ir.symbols import Dim
from ringc.ir.types import StateType, TensorType

REDUCED = {"N": 37, "B": 3, "P": 5, "S": 48, "R": 5}
"""Sizes at which kernels are checked: no power of two, several sequences, more slots than sequences."""

LARGE = {**REDUCED, "N": 600, "B": 2}
"""Sizes at which every kernel has several blocks of rows, and a sequence more than one segment."""

LONG = {**LARGE, "N": 150}
"""The same for what the reference takes a token at a time."""

FEW_TOKENS = {**REDUCED, "N": 5}
SHORT_SEQUENCES = {**LONG, "B": 100}
"""Sizes at which softmax attention goes other ways: few tokens in all, and about one of each sequence."""


def check_sizes(function: Function) -> list[dict[str, int]]:
    """The sizes at which a kernel is checked: reduced ones, and large ones unless it only serves few rows.

    What works on states and only ever sees one token of each sequence has nothing to gain from more of them. Softmax attention may go
    another way for few tokens, and for short sequences.
    """
    sizes = [sizes_for(function)]
    _, high = function.notes.get("rows", (1, 0))
    attends = any(isinstance(op, Attention) for op in function.body.ops)
    mixers = [op for op in function.body.ops if isinstance(op, LinearAttention)]
    if not high and not ((attends or mixers) and _decodes(function)):
        # The cache is copied for each token, and the recurrence walked.
        slow = attends or any(op.form != "chunked" for op in mixers)
        sizes.append(sizes_for(function, LONG if slow else LARGE))
    if attends:
        sizes += [sizes_for(function, others) for others in (FEW_TOKENS, SHORT_SEQUENCES)]
    return sizes


def sizes_for(function: Function, wanted: Mapping[str, int] = REDUCED) -> dict[str, int]:
    """Sizes that fit a kernel: those wanted, or as many rows as the kernel serves at most. It is right for fewer than it was chosen for."""
    sizes = dict(wanted)
    _, high = function.notes.get("rows", (1, 0))
    sizes["N"] = min(sizes["N"], high or sizes["N"])
    sizes["B"] = sizes["N"] if _decodes(function) else min(sizes["B"], sizes["N"])
    sizes["R"] = min(sizes["R"], sizes["N"])
    sizes["P"] = max(sizes["P"], sizes["B"] + 1)
    sizes["S"] = max(sizes["S"], sizes["N"])
    return sizes


def _decodes(function: Function) -> bool:
    """Whether a kernel only ever sees one token of each sequence."""
    return bool(function.notes.get("serves") == "decode")


def random_inputs(
    function: Function, sizes: Mapping[str, int], seed: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """One tensor for each argument, in logical (unpacked) layout: random numbers, offsets that ascend, ids in range, slots apart.

    Args:
        function: a kernel's.
        sizes: values of its symbols.
        seed: of the draw.
        device: where they are, and where normal numbers are drawn: others there than elsewhere.
    """
    return Inputs(function.body, dict(sizes), seed, one_each=_decodes(function), device=device).all()


class Inputs:
    """Draws the arguments of a block one by one.

    Args:
        block: whose arguments they are.
        sizes: values of its symbols.
        seed: of the draw.
        one_each: every sequence has one token.
        device: where they are, and where normal numbers are drawn.
    """

    def __init__(
        self, block: Block, sizes: dict[str, int], seed: int, *, one_each: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.block = block
        self.one_each = one_each
        self.env = Env(sizes)
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.normals = self.generator
        if self.device.type != "cpu":
            self.normals = torch.Generator(self.device).manual_seed(seed)
        self.cuts: dict[tuple[int, int], list[int]] = {}

    def all(self) -> list[torch.Tensor]:
        return [self.one(arg) for arg in self.block.args]

    def one(self, arg: Value) -> torch.Tensor:
        return self._drawn(arg).to(self.device)

    def _drawn(self, arg: Value) -> torch.Tensor:
        type = arg.type
        if isinstance(type, StateType):
            shape = (self.env.size(type.slots), *self.env.shape(type.shape))
            return self.normal(shape).to(type.dtype.torch)
        if type.dtype.is_float:
            return self.numbers(arg, type)
        return self.integers(arg, type).to(type.dtype.torch)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.normals, device=self.device)

    def numbers(self, arg: Value, type: TensorType) -> torch.Tensor:
        shape = self.env.shape(type.shape)
        users = arg.users()
        if any(isinstance(u, LinearAttention) and u.slopes is arg for u in users):
            return torch.rand(shape, generator=self.generator) * 0.7 + 0.01
        made = self.normal(shape)
        if any((isinstance(u, MatMul) and u.b is arg) or (isinstance(u, ExpertProduct) and u.w is arg) for u in users):
            made = made * shape[-1] ** -0.5
        return made.to(type.dtype.torch)

    def integers(self, arg: Value, type: TensorType) -> torch.Tensor:
        shape = self.env.shape(type.shape)
        count = torch.Size(shape).numel()
        for user in arg.users():
            role = self.role(arg, user, count)
            if role is not None:
                return role.reshape(shape)
        limit = self.limit(arg)
        return torch.randint(0, limit if limit is not None else 8, shape, generator=self.generator)

    def role(self, arg: Value, user: Op, count: int) -> torch.Tensor | None:
        """The argument's content where an operation wants more of it than a range."""
        match user:
            case SegmentIds() if user.offsets is arg:
                return self.offsets(count - 1, user.length)
            case LinearAttention() | Attention() if user.offsets is arg:
                return self.offsets(count - 1, user.q.shape[0])
            case Scan() if user.offsets is arg:
                return self.offsets(count - 1, user.xs[0].shape[0])
            case SegmentMatMul() if user.offsets is arg:
                return self.offsets(count - 1, user.x.shape[0])
            case Attention() if user.positions is arg:
                return self.positions(user, count)
            case LinearAttention() | Attention() | StateRead() | StateWrite() if user.slots is arg:
                return self.slots(user, count)
            case StateAppend() if user.slots is arg:
                pool = user.pool()
                made = torch.randint(0, self.env.size(pool.slots), (count,), generator=self.generator)
                made[0] = -1  # nobody's: dropped
                return made
            case StateAppend() if user.positions is arg:
                rows = self.env.size(user.pool().shape[0])
                return torch.randperm(rows, generator=self.generator)[:count]
            case _:
                return None

    def offsets(self, segments: int, rows: Dim) -> torch.Tensor:
        """Ascending, from 0 to the number of rows; the same for all operations on the same rows."""
        total = self.env.size(rows)
        if segments == total and self.one_each:
            return torch.arange(total + 1)
        if (segments, total) not in self.cuts:
            inner = torch.randint(0, total + 1, (segments - 1,), generator=self.generator).sort().values.tolist()
            self.cuts[segments, total] = [0, *inner, total]
        return torch.tensor(self.cuts[segments, total])

    def slots(self, user: Op, count: int) -> torch.Tensor:
        state = next(v.type for v in user.inputs() if isinstance(v.type, StateType))
        made = torch.randperm(self.env.size(state.slots), generator=self.generator)[:count]
        if count > 2:
            made[-1] = -1  # nobody's: reads zeros, writes nothing
        return made

    def positions(self, user: Attention, count: int) -> torch.Tensor:
        """Consecutive in each sequence, which holds some tokens already."""
        segments = self.env.size(user.slots.shape[0])
        cuts = self.offsets(segments, user.q.shape[0]).tolist()
        longest = self.env.size(user.cache.shape[0])
        made = torch.empty(count, dtype=torch.int64)
        for start, stop in pairwise(cuts):
            room = longest - (stop - start)
            held = int(torch.randint(0, room + 1, (1,), generator=self.generator))
            made[start:stop] = torch.arange(held, held + stop - start)
        return made

    def limit(self, value: Value) -> int | None:
        """One more than the largest number that a value may hold; None where nothing says."""
        found: list[int] = []
        for user in value.users():
            inner: int | None = None
            match user:
                case Gather() if user.ids is value:
                    inner = self.env.size(user.x.shape[0])
                case GatherMatMul() if user.ids is value:
                    inner = self.env.size(user.w.shape[0])
                case TakeAlong() if user.ids is value:
                    inner = self.env.size(user.x.shape[-1])
                case Scatter() if user.ids is value:
                    inner = self.env.size(user.base.shape[-1])
                case ScatterAdd() if user.ids is value:
                    inner = self.env.size(user.length)
                case SortByKey():
                    inner = user.num_keys
                case FloorDiv() if user.a is value and isinstance(user.b.op, Constant):
                    inner = self.limit(user.result)
                    inner = None if inner is None else inner * int(user.b.op.value[0])
                case Reshape() | Cast():
                    inner = self.limit(user.result)
                case _:
                    pass
            if inner is not None:
                found.append(inner)
        return min(found) if found else None


class TypicalInputs(Inputs):
    """Inputs as a model meets them, to time a kernel with: no slot is nobody's, sequences are as long as their caches hold, and rows are
    shared out among experts as independent choices would.

    Args:
        function: a kernel's.
        sizes: the typical ones of a version.
        seed: of the draw.
    """

    def __init__(self, function: Function, sizes: Mapping[str, int], seed: int = 0) -> None:
        super().__init__(function.body, dict(sizes), seed, one_each=_decodes(function))

    def role(self, arg: Value, user: Op, count: int) -> torch.Tensor | None:
        if isinstance(user, SegmentMatMul) and user.offsets is arg:
            return self.choices(count - 1, self.env.size(user.x.shape[0]))
        return super().role(arg, user, count)

    def choices(self, experts: int, rows: int) -> torch.Tensor:
        """Offsets of rows that chose an expert each."""
        chosen = torch.randint(0, experts, (rows,), generator=self.generator)
        return torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(chosen, minlength=experts).cumsum(0)])

    def slots(self, user: Op, count: int) -> torch.Tensor:
        return torch.arange(count)

    def offsets(self, segments: int, total: Dim) -> torch.Tensor:
        """Sequences of equal length, which their caches have room for."""
        return torch.arange(segments + 1) * self.env.size(total) // segments

    def positions(self, user: Attention, count: int) -> torch.Tensor:
        """The last that the cache has room for."""
        segments = self.env.size(user.slots.shape[0])
        cuts = self.offsets(segments, user.q.shape[0]).tolist()
        longest = self.env.size(user.cache.shape[0])
        return torch.cat([torch.arange(longest - (stop - start), longest) for start, stop in pairwise(cuts)])
