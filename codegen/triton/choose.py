"""The choice of experts on a GPU: one warp for a row.

What bounds many rows is that every instruction has to be issued for each of them. Of 256 experts in 8 groups that are 630 where the logits
are complete and the groups that stay are read once more, so that each round looks at them alone; 770 where all groups are kept in
registers. Programs that take row after row are no faster.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ringc.codegen.triton.jobs import Job, element, padded, pointer
from ringc.codegen.triton.overlap import READ_EARLY
from ringc.codegen.writer import Writer
from ringc.ir.ops.routing import Route
from ringc.ir.types import DType, Type

CHOOSE_NAMES = ("choose", "logits_of", "ordered", "unordered", "probability", "LOWEST", "pinned")
"""What a file with a choice defines."""


@dataclass(frozen=True)
class Choice:
    """What the function that chooses is made for.

    Attributes:
        op: how is chosen.
        bias: its type; None without.
        summed: the logits are f32 sums in parts, and rounded to their own type when they are complete.
    """

    op: Route
    bias: Type | None
    summed: bool

    @property
    def groups(self) -> int:
        """Groups of which some are dropped; 1 where none is."""
        return self.op.groups if self.op.keep < self.op.groups else 1

    @property
    def narrows(self) -> bool:
        """Whether the groups that stay are read again: not where their logits are summed again, or where a dropped expert may be chosen."""
        return self.groups > 1 and not self.summed and self.op.dropped == -math.inf

    @property
    def numbers(self) -> list[str]:
        """What `choose` has to know of the sizes."""
        return ["rows", "parts"] if self.summed else []

    def job(self) -> Job:
        """How `choose` is launched."""
        op, each = self.op, self.op.experts // self.groups
        logits = DType.F32 if self.summed else op.logits.type.dtype
        signature = {"logits": pointer(logits), **({} if self.bias is None else {"bias": pointer(self.bias)})}
        signature |= {"experts": "*i32", "weights": pointer(op.results[1].type)}
        signature |= dict.fromkeys(self.numbers, "i32")
        sizes = {
            "GROUPS": self.groups, "EACH": each, "GROUP_TILE": padded(self.groups, 1), "EACH_TILE": padded(each, 1),
            "TOP_K": op.top_k, "TOP_TILE": padded(op.top_k, 1),
        }  # fmt: skip
        warps = 1 if sizes["GROUP_TILE"] * sizes["EACH_TILE"] <= 512 else 4
        return Job("choose", signature, sizes, num_warps=warps, num_stages=1)

    def text(self) -> str:
        """`choose`, and the functions that it calls."""
        op = self.op
        logit = element(op.logits.type)
        rounded = f".to({logit}).to(tl.float32)" if self.summed and logit != "tl.float32" else ""
        sums = ", largest, whole" if op.score == "softmax" else ""
        w = Writer()
        w(f"{_SUM if self.summed else _READ}\n\n\n{_ORDER}")
        w("\n")
        w("@triton.jit")
        if op.score == "sigmoid":
            with w.block("def probability(x):"):
                w("return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))")
        else:
            with w.block("def probability(x, largest, whole):"):
                w("return tl.exp2((x - largest) * 1.4426950408889634) / whole")
        w("\n")
        w(f"@triton.jit(do_not_specialize={json.dumps(self.numbers)})" if self.numbers else "@triton.jit")
        w("def choose(")
        bias = [] if self.bias is None else ["bias"]
        w(f"    {', '.join(['logits', *bias, 'experts', 'weights', *self.numbers])},")
        w("    GROUPS: tl.constexpr, EACH: tl.constexpr, GROUP_TILE: tl.constexpr, EACH_TILE: tl.constexpr,")
        w("    TOP_K: tl.constexpr, TOP_TILE: tl.constexpr,")
        with w.block("):"):
            shape = "[parts, rows, experts]" if self.summed else "[rows, experts]"
            w(
                f'"""One row: its experts, best first, the lower one among equals, and their weights. logits: {shape}."""'
            )
            w("group = tl.arange(0, GROUP_TILE)")
            w("member = tl.arange(0, EACH_TILE)")
            w("number = group[:, None] * EACH + member[None, :]")
            w("real = (group < GROUPS)[:, None] & (member < EACH)[None, :]")
            w("rank = tl.arange(0, TOP_TILE)")
            at = "logits, row, rows, parts, GROUPS * EACH" if self.summed else "logits + row * GROUPS * EACH"
            read = f"x = logits_of({at}, number, real){rounded}"
            read_bias = "b = tl.load(bias + number, mask=real, other=0.0).to(tl.float32)"
            biased = f"probability(x{sums}){'' if self.bias is None else ' + b'}"
            score = f"score = tl.where(real, ordered({biased}), LOWEST)"
            if self.bias is not None:
                w(read_bias)
                w(READ_EARLY)
            w("row = tl.program_id(0).to(tl.int64)")
            w(read)
            if op.score == "softmax":
                w('x = tl.where(real, x, float("-inf"))')
                w("largest = tl.max(tl.max(x, 1), 0)")
                w("whole = tl.sum(tl.sum(tl.exp2((x - largest) * 1.4426950408889634), 1), 0)")
            w(score)
            tiles = "GROUP_TILE"
            if self.groups > 1:
                self._add_up_groups(w)
            if self.narrows:
                tiles = str(padded(op.keep, 1))
                self._take_groups(w)
                for line in (read, *([] if self.bias is None else [read_bias]), score):
                    w(line)
            elif self.groups > 1:
                self._drop_groups(w)
            w(f"flat = tl.reshape(number, [{tiles} * EACH_TILE])")
            w(f"left = tl.reshape(score, [{tiles} * EACH_TILE])")
            w("chosen = tl.zeros([TOP_TILE], dtype=tl.int32)")
            with w.block("for i in tl.static_range(TOP_K):"):
                w("first = tl.min(tl.where(left == tl.max(left, 0), flat, GROUPS * EACH), 0)")
                w("chosen = tl.where(rank == i, first, chosen)")
                w("left = tl.where(flat == first, LOWEST, left)")
            w(f"own = logits_of({at}, chosen, rank < TOP_K){rounded}")
            w(f"weight = tl.where(rank < TOP_K, probability(own{sums}), 0.0)")
            if op.normalize:
                w(f"weight = weight / (tl.sum(weight, 0) + {op.eps!r})")
            scaled = "weight" if op.factor == 1.0 else f"weight * {op.factor!r}"
            w("tl.store(experts + row * TOP_K + rank, chosen, mask=rank < TOP_K)")
            w(f"tl.store(weights + row * TOP_K + rank, ({scaled}).to(weights.dtype.element_ty), mask=rank < TOP_K)")
        return w.text()

    def _add_up_groups(self, w: Writer) -> None:
        """What groups are compared by."""
        op = self.op
        w(f"# A group counts by its {op.group_top} largest scores; {op.keep} of {op.groups} groups stay.")
        w("others = score")
        w("total = tl.zeros([GROUP_TILE], dtype=tl.float32)")
        with w.block(f"for _ in tl.static_range({op.group_top}):"):
            w("best = tl.max(others, 1)")
            w("total += unordered(best)")
            w("place = tl.min(tl.where(others == best[:, None], member[None, :], EACH_TILE), 1)")
            w("others = tl.where(member[None, :] == place[:, None], LOWEST, others)")
        w("sums = tl.where(group < GROUPS, ordered(total), LOWEST)")

    def _take_groups(self, w: Writer) -> None:
        """The experts of the groups that stay, in the place of all."""
        keep = self.op.keep
        w("equal = (sums[:, None] == sums[None, :]) & (group[:, None] < group[None, :])")
        w("before = tl.sum(((sums[:, None] > sums[None, :]) | equal).to(tl.int32), 0)")
        w(f"place = tl.arange(0, {padded(keep, 1)})")
        w("stays = tl.sum(tl.where(before[None, :] == place[:, None], group[None, :], 0), 1)")
        w("number = stays[:, None] * EACH + member[None, :]")
        w(f"real = (place < {keep})[:, None] & (member < EACH)[None, :]")

    def _drop_groups(self, w: Writer) -> None:
        """Experts of groups that don't stay get the score of dropped ones."""
        op = self.op
        w("equal = (sums[None, :] == sums[:, None]) & (group[None, :] < group[:, None])")
        w("before = tl.sum(((sums[None, :] > sums[:, None]) | equal).to(tl.int32), 1)")
        dropped = 'float("-inf")' if op.dropped == -math.inf else repr(op.dropped)
        w(f"dropped = ordered(tl.full([GROUP_TILE, EACH_TILE], {dropped}, tl.float32))")
        w(f"score = tl.where(real & (before >= {op.keep})[:, None], dropped, score)")


_READ = '''@triton.jit
def logits_of(logits, expert, real):
    """A row's logits of some experts."""
    return tl.load(logits + expert, mask=real, other=0.0).to(tl.float32)'''

_SUM = '''@triton.jit
def logits_of(logits, row, rows, parts, EXPERTS: tl.constexpr, expert, real):
    """A row's logits of some experts: the sum of its parts."""
    x = tl.zeros(expert.shape, dtype=tl.float32)
    for part in tl.range(parts, loop_unroll_factor=8):
        x += tl.load(logits + (part * rows + row) * EXPERTS + expert, mask=real, other=0.0).to(tl.float32)
    return x'''

_ORDER = '''LOWEST = tl.constexpr(-(1 << 31))
"""Below every score."""


@triton.jit
def ordered(score):
    """Whole numbers in the order of the scores: a warp finds the largest of those in one instruction."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def unordered(number):
    return tl.where(number < 0, number ^ 0x7FFFFFFF, number).to(tl.float32, bitcast=True)'''
