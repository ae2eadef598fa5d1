"""The choice of experts on a GPU: one warp for a row.

What bounds many rows is that every instruction has to be issued for each of them, and how long they wait for each other. Of 256 experts in
8 groups they are 536 where the logits are complete and the groups that stay are read once more, so that each round looks at them alone. The
largest scores of a group are found in one reduction of short lists in order, as which experts they are doesn't matter there. Of more rows
than there are warps on the processors at a time, a program takes two, whose instructions fill each other's waits.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ringc.codegen.triton.jobs import Job, element, padded, pointer
from ringc.codegen.triton.overlap import READ_FEW
from ringc.codegen.writer import Writer
from ringc.ir.ops.routing import Route
from ringc.ir.types import DType, Type

CHOOSE_NAMES = ("choose", "chosen", "logits_of", "ordered", "merged", "probability", "LOWEST", "pinned")
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
    def pairs(self) -> bool:
        """Whether many rows are taken two at a time."""
        return not self.summed

    @property
    def numbers(self) -> list[str]:
        """What `choose` has to know of the sizes."""
        return ["rows", "parts"] if self.summed else ["rows"]

    def jobs(self) -> list[Job]:
        """How `choose` is launched: for each row, and for each pair of rows."""
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
        each_of = [{"TOGETHER": 1}, {"TOGETHER": 2}] if self.pairs else [{}]
        return [Job("choose", signature, together | sizes, num_warps=warps, num_stages=1) for together in each_of]

    def launch(self, w: Writer, given: str) -> None:
        """The lines that launch it for `rows`; its jobs come first in the file."""
        if self.pairs:
            with w.block("if rows > PAIRS:"):
                w(f"choose[(-(-rows // 2),)]({given}, **pinned(JOBS[1]))")
                w("return")
        w(f"choose[(rows,)]({given}, **pinned(JOBS[0]))")

    def text(self) -> str:
        """`choose`, and the functions that it calls."""
        op = self.op
        w = Writer()
        w(f"{_SUM if self.summed else _READ}\n\n\n{_ORDER}\n\n")
        if self.groups > 1 and op.group_top > 1:
            w(f"{_merged(op.group_top)}\n\n")
        w("@triton.jit")
        if op.score == "sigmoid":
            with w.block("def probability(x):"):
                w("return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))")
        else:
            with w.block("def probability(x, largest, whole):"):
                w("return tl.exp2((x - largest) * 1.4426950408889634) / whole")
        w("\n")
        self._chosen(w)
        w("\n")
        self._choose(w)
        return w.text()

    def _chosen(self, w: Writer) -> None:
        """The function of one row."""
        op = self.op
        logit = element(op.logits.type)
        rounded = f".to({logit}).to(tl.float32)" if self.summed and logit != "tl.float32" else ""
        sums = ", largest, whole" if op.score == "softmax" else ""
        bias = [] if self.bias is None else ["bias", "b"]
        w("@triton.jit")
        w("def chosen(")
        w(f"    {', '.join(['logits', *bias, 'number', 'real', 'row', *(['rows', 'parts'] * self.summed)])},")
        w(f"    {_SIZES}")
        with w.block("):"):
            w('"""A row\'s experts, best first, the lower one among equals, and their weights."""')
            w("group = tl.arange(0, GROUP_TILE)")
            w("member = tl.arange(0, EACH_TILE)")
            w("rank = tl.arange(0, TOP_TILE)")
            at = "logits, row, rows, parts, GROUPS * EACH" if self.summed else "logits + row * GROUPS * EACH"
            read = f"x = logits_of({at}, number, real){rounded}"
            biased = f"probability(x{sums}){'' if self.bias is None else ' + b'}"
            score = f'score = tl.where(real, {biased}, float("-inf"))'
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
                for line in (read, *([] if self.bias is None else [_READ_BIAS]), score):
                    w(line)
            elif self.groups > 1:
                self._drop_groups(w)
            w("score = tl.where(real, ordered(score), LOWEST)")
            w(f"flat = tl.reshape(number, [{tiles} * EACH_TILE])")
            w(f"left = tl.reshape(score, [{tiles} * EACH_TILE])")
            w("best = tl.zeros([TOP_TILE], dtype=tl.int32)")
            with w.block("for i in tl.static_range(TOP_K):"):
                w("first = tl.min(tl.where(left == tl.max(left, 0), flat, GROUPS * EACH), 0)")
                w("best = tl.where(rank == i, first, best)")
                w("left = tl.where(flat == first, LOWEST, left)")
            w(f"own = logits_of({at}, best, rank < TOP_K){rounded}")
            w(f"weight = tl.where(rank < TOP_K, probability(own{sums}), 0.0)")
            if op.normalize:
                w(f"weight = weight / (tl.sum(weight, 0) + {op.eps!r})")
            w(f"return best, {'weight' if op.factor == 1.0 else f'weight * {op.factor!r}'}")

    def _choose(self, w: Writer) -> None:
        """The kernel."""
        bias = [] if self.bias is None else ["bias"]
        w(f"@triton.jit(do_not_specialize={json.dumps(self.numbers)})")
        w("def choose(")
        w(f"    {', '.join(['logits', *bias, 'experts', 'weights', *self.numbers])},")
        w(f"    {'TOGETHER: tl.constexpr, ' * self.pairs}{_SIZES}")
        shape = "[parts, rows, experts]" if self.summed else "[rows, experts]"
        with w.block("):"):
            if self.pairs:
                w(f'"""The experts of one row, or of two together, and their weights. logits: {shape}."""')
            else:
                w(f'"""The experts of a row, and their weights. logits: {shape}."""')
            w("number = tl.arange(0, GROUP_TILE)[:, None] * EACH + tl.arange(0, EACH_TILE)[None, :]")
            w("real = (tl.arange(0, GROUP_TILE) < GROUPS)[:, None] & (tl.arange(0, EACH_TILE) < EACH)[None, :]")
            if self.bias is not None:
                w(_READ_BIAS)
                w(READ_FEW)
            w(f"row = tl.program_id(0).to(tl.int64){' * TOGETHER' * self.pairs}")
            self._made(w, "row")
            if self.pairs:
                # Behind both, as no load is moved in front of a store.
                with w.block("if TOGETHER == 2:"):
                    w("# While one row waits for its largest score, the other's instructions are issued.")
                    w("other = tl.minimum(row + 1, rows - 1)")
                    self._made(w, "other")
            self._kept(w, "row")
            if self.pairs:
                with w.block("if TOGETHER == 2:"):
                    self._kept(w, "other")

    def _made(self, w: Writer, row: str) -> None:
        bias = [] if self.bias is None else ["bias", "b"]
        given = ["logits", *bias, "number", "real", row, *(["rows", "parts"] * self.summed)]
        w(f"best_of_{row}, weights_of_{row} = chosen(")
        w(f"    {', '.join(given)}, GROUPS, EACH, GROUP_TILE, EACH_TILE, TOP_K, TOP_TILE")
        w(")")

    @staticmethod
    def _kept(w: Writer, row: str) -> None:
        at = f"{row} * TOP_K + tl.arange(0, TOP_TILE)"
        mask = "mask=tl.arange(0, TOP_TILE) < TOP_K"
        w(f"tl.store(experts + {at}, best_of_{row}, {mask})")
        w(f"tl.store(weights + {at}, weights_of_{row}.to(weights.dtype.element_ty), {mask})")

    def _add_up_groups(self, w: Writer) -> None:
        """What groups are compared by."""
        op = self.op
        w(f"# A group counts by its {op.group_top} largest scores; {op.keep} of {op.groups} groups stay.")
        if op.group_top == 1:
            w("total = tl.max(score, 1)")
        else:
            lists = ["score", *["none"] * (op.group_top - 1)]
            w('none = tl.full([GROUP_TILE, EACH_TILE], float("-inf"), tl.float32)')
            w(f"{', '.join(_items('best', op.group_top))} = tl.reduce(({', '.join(lists)}), 1, merged)")
            w(f"total = {' + '.join(_items('best', op.group_top))}")
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
        w(f"score = tl.where((before >= {op.keep})[:, None], {dropped}, score)")


_SIZES = (
    "GROUPS: tl.constexpr, EACH: tl.constexpr, GROUP_TILE: tl.constexpr, EACH_TILE: tl.constexpr,\n"
    "    TOP_K: tl.constexpr, TOP_TILE: tl.constexpr,"
)

_READ_BIAS = "b = tl.load(bias + number, mask=real, other=0.0).to(tl.float32)"

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
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)'''


def _items(name: str, count: int) -> list[str]:
    return [f"{name}_{i}" for i in range(1, count + 1)]


def _merged(count: int) -> str:
    """The function that merges two lists of so many numbers, the largest first.

    Number k of the result is the largest of both k-th ones and of the smaller one of each i-th and (k - i)-th.
    """
    a, b = _items("a", count), _items("b", count)
    made = []
    for k in range(count):
        text = f"tl.maximum({a[k]}, {b[k]})"
        for i in range(k):
            text = f"tl.maximum({text}, tl.minimum({a[i]}, {b[k - 1 - i]}))"
        made.append(text)
    lines = [f"    {name} = {text}" for name, text in zip(_items("c", count), made, strict=True)]
    return "\n".join(
        [
            "@triton.jit",
            f"def merged({', '.join([*a, *b])}):",
            f'    """The {count} largest of two lists, each the largest first."""',
            *lines,
            f"    return {', '.join(_items('c', count))}",
        ]
    )
