"""The choice of experts on a GPU: one warp for a row, or for two.

What bounds many rows is that every instruction has to be issued for each of them, and waits for the one before: of 256 experts in 8 groups
528 instructions, where the logits are complete and the groups that stay are read once more, so that each round looks at them alone. Where
they are sums of parts, of few rows, nothing is read twice: a step of 8 or 16 sequences takes 10 to 15 us less so. The
largest scores of a group are found in one reduction of short lists in order, as which experts they are doesn't matter there. Of many rows
a program takes two, round by round, so that one row's instructions are issued while the other waits for its largest score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from ringc.codegen.triton.jobs import Job, element, padded, pointer
from ringc.codegen.triton.overlap import READ_FEW, READ_LATE
from ringc.codegen.writer import Writer
from ringc.ir.ops.routing import Route
from ringc.ir.types import DType, Type

CHOOSE_NAMES = (
    "choose", "scores_of", "weights_of", "logits_of", "ordered", "larger", "smaller", "merged", "probability", "LOWEST", "PAIRS", "pinned",
)  # fmt: skip
"""What a file with a choice defines."""

PAIRS = 4096
"""Rows above which a program chooses for two: up to there all programs of one warp, 32 to a processor, run at a time.

H100, rows of 256 experts behind cuBLAS's product, us with 1, 2, 3 and 4 rows to a program: 4097 rows 22.5, 22.5, 23.5, 23.9; 8192 rows
35.2, 32.5, 33.3, 33.3; 32768 rows 114.6, 101.7, 102.7, 104.8. Two one after the other in one program take 33.2 and 103.1.
"""

ONE_WARP = 512
"""Scores that one warp holds, at most."""


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
        """Whether the groups that stay are read again: not where that adds logits up again, or a dropped expert may be chosen."""
        return self.groups > 1 and not self.summed and self.op.dropped == -math.inf

    @property
    def warps(self) -> int:
        """Of a program."""
        return 1 if padded(self.groups, 1) * padded(self.op.experts // self.groups, 1) <= ONE_WARP else 4

    @property
    def pairs(self) -> bool:
        """Whether many rows are taken two at a time: where one warp is a program, and not where logits are summed, of few rows."""
        return self.warps == 1 and not self.summed

    @property
    def numbers(self) -> list[str]:
        """What `choose` has to know of the sizes."""
        return ["rows", "parts"] if self.summed else ["rows"]

    @property
    def _bias(self) -> list[str]:
        """The bias as a parameter."""
        return [] if self.bias is None else ["bias"]

    @property
    def _sums(self) -> list[str]:
        """What a softmax over all experts needs."""
        return ["largest", "whole"] if self.op.score == "softmax" else []

    def jobs(self) -> list[Job]:
        """How `choose` is launched: for each row, and where it `pairs` rows for each two. They come first in their file."""
        op, each = self.op, self.op.experts // self.groups
        logits = DType.F32 if self.summed else op.logits.type.dtype
        signature = {"logits": pointer(logits), **({} if self.bias is None else {"bias": pointer(self.bias)})}
        signature |= {"experts": "*i32", "weights": pointer(op.results[1].type)}
        signature |= dict.fromkeys(self.numbers, "i32")
        sizes = {
            "GROUPS": self.groups, "EACH": each, "GROUP_TILE": padded(self.groups, 1), "EACH_TILE": padded(each, 1),
            "TOP_K": op.top_k, "TOP_TILE": padded(op.top_k, 1),
        }  # fmt: skip
        ways = [{"TOGETHER": 1}, {"TOGETHER": 2}] if self.pairs else [{}]
        return [Job("choose", signature, way | sizes, num_warps=self.warps, num_stages=1) for way in ways]

    def launch(self, w: Writer, given: Sequence[str]) -> None:
        """Write the lines that launch it for `rows`, with these arguments in front of its numbers' names."""
        arguments = ", ".join(given)
        if self.pairs:
            with w.block("if rows > PAIRS:"):
                w(f"choose[(-(-rows // 2),)]({arguments}, **pinned(JOBS[1]))")
                w("return")
        w(f"choose[(rows,)]({arguments}, **pinned(JOBS[0]))")

    def text(self) -> str:
        """`choose`, and what it uses."""
        w = Writer()
        w(f"{_SUM if self.summed else _READ}\n\n\n{_ORDER}\n\n")
        if self.groups > 1:
            w(f"{_LARGER}\n\n\n{_merged(self.op.group_top)}\n\n")
        w("@triton.jit")
        if self._sums:
            with w.block("def probability(x, largest, whole):"):
                w("return tl.exp2((x - largest) * 1.4426950408889634) / whole")
        else:
            with w.block("def probability(x):"):
                w("return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))")
        w("\n")
        self._scores(w)
        w("\n")
        self._weights(w)
        w("\n")
        if self.pairs:
            w(f"PAIRS = {PAIRS}")
            w('"""Rows above which a program chooses for two."""\n\n')
        self._choose(w)
        return w.text()

    def _head(self, w: Writer, name: str, parameters: Sequence[str], sizes: str = "") -> None:
        w(f"def {name}(")
        w(f"    {', '.join(parameters)},")
        w(f"    {sizes}GROUPS: tl.constexpr, EACH: tl.constexpr, GROUP_TILE: tl.constexpr, EACH_TILE: tl.constexpr,")
        w("    TOP_K: tl.constexpr, TOP_TILE: tl.constexpr,")
        w("):")

    @property
    def _kept(self) -> list[str]:
        """What `weights_of` is given beside the chosen experts: of sums the probabilities, otherwise what a softmax needs."""
        return ["probabilities"] if self.summed else self._sums

    @property
    def _of_row(self) -> list[str]:
        """The parameters that say which row's logits are read."""
        return ["logits", "row", *(["rows", "parts"] if self.summed else [])]

    @property
    def _of_scores(self) -> list[str]:
        """The parameters of the function that makes scores, behind those of the row; the bias where it is read again."""
        again = self._bias if self.narrows else []
        return [*again, *(["b"] if self._bias else []), "number", "real"]

    def _logits(self, experts: str, real: str) -> str:
        """The text that reads a row's logits of some experts."""
        logit = element(self.op.logits.type)
        rounded = f".to({logit}).to(tl.float32)" if self.summed and logit != "tl.float32" else ""
        at = "logits, row, rows, parts, GROUPS * EACH" if self.summed else "logits + row * GROUPS * EACH"
        return f"logits_of({at}, {experts}, {real}){rounded}"

    def _scores(self, w: Writer) -> None:
        """The function that makes what a row chooses by."""
        op, tiles = self.op, "GROUP_TILE"
        w("@triton.jit")
        self._head(w, "scores_of", [*self._of_row, *self._of_scores])
        with w.indented():
            also = ", and what its probabilities are made with" if self._sums else ""
            w(
                f'"""Numbers of a row\'s experts that may be chosen, and their scores as whole numbers in order{also}."""'
            )
            w(f"x = {self._logits('number', 'real')}")
            if self._sums:
                w('x = tl.where(real, x, float("-inf"))')
                w("largest = tl.max(tl.max(x, 1), 0)")
                w("whole = tl.sum(tl.sum(tl.exp2((x - largest) * 1.4426950408889634), 1), 0)")
            score = f"probability({', '.join(['x', *self._sums])})"
            if self.summed:
                w(f"probabilities = {score}")
                score = "probabilities"
            score += " + b" if self._bias else ""
            if self.groups == 1:
                w(f"score = {score}")
            else:
                w(f'score = tl.where(real, {score}, float("-inf"))')
                w("group = tl.arange(0, GROUP_TILE)")
                self._add_up_groups(w)
            if self.narrows:
                tiles = str(padded(op.keep, 1))
                self._take_groups(w)
                w(f"x = {self._logits('number', 'real')}")
                if self._bias:
                    w(_READ_BIAS)
                w(f"score = {score}")
            elif self.groups > 1:
                self._drop_groups(w)
            w("score = tl.where(real, ordered(score), LOWEST)")
            flat = ("number", "score", *(["probabilities"] if self.summed else []))
            made = [f"tl.reshape({name}, [{tiles} * EACH_TILE])" for name in flat]
            w(f"return {', '.join([*made, *([] if self.summed else self._sums)])}")

    def _weights(self, w: Writer) -> None:
        """The function that makes a row's weights."""
        w("@triton.jit")
        self._head(w, "weights_of", [*([] if self.summed else self._of_row), "best", *self._kept])
        with w.indented():
            w('"""The weights of the experts that a row has chosen."""')
            w("real = tl.arange(0, TOP_TILE) < TOP_K")
            if self.summed:
                w("probability_of = tl.gather(probabilities, best // EACH * EACH_TILE + best % EACH, 0)")
                w("weight = tl.where(real, probability_of, 0.0)")
            else:
                w(f"x = {self._logits('best', 'real')}")
                w(f"weight = tl.where(real, probability({', '.join(['x', *self._sums])}), 0.0)")
            if self.op.normalize:
                w(f"weight = weight / (tl.sum(weight, 0) + {self.op.eps!r})")
            w(f"return weight{'' if self.op.factor == 1.0 else f' * {self.op.factor!r}'}")

    def _choose(self, w: Writer) -> None:
        """The kernel."""
        w(f"@triton.jit(do_not_specialize={json.dumps(self.numbers)})")
        parameters = ["logits", *self._bias, "experts", "weights", *self.numbers]
        self._head(w, "choose", parameters, "TOGETHER: tl.constexpr, " if self.pairs else "")
        with w.indented():
            what = "one row, or of two round by round" if self.pairs else "a row"
            shape = "[parts, rows, experts]" if self.summed else "[rows, experts]"
            w(
                f'"""The experts of {what}, best first, the lower one among equals, and their weights. logits: {shape}."""'
            )
            w("number = tl.arange(0, GROUP_TILE)[:, None] * EACH + tl.arange(0, EACH_TILE)[None, :]")
            w("real = (tl.arange(0, GROUP_TILE) < GROUPS)[:, None] & (tl.arange(0, EACH_TILE) < EACH)[None, :]")
            if self._bias:
                w(_READ_BIAS)
            w(READ_FEW if self._bias else READ_LATE)
            w("rank = tl.arange(0, TOP_TILE)")
            self._each_row(w, self._begin)
            with w.block("for i in tl.static_range(TOP_K):"):
                self._each_row(w, lambda row: [f"{row}top = tl.max({row}left, 0)"])
                self._each_row(
                    w,
                    lambda row: [
                        f"{row}first = tl.min(tl.where({row}left == {row}top, {row}flat, GROUPS * EACH), 0)",
                    ],
                )
                self._each_row(
                    w,
                    lambda row: [
                        f"{row}best = tl.where(rank == i, {row}first, {row}best)",
                        f"{row}left = tl.where({row}flat == {row}first, LOWEST, {row}left)",
                    ],
                )
            self._each_row(w, self._end)
            self._each_row(w, self._stores)

    def _each_row(self, w: Writer, lines: Callable[[str], Sequence[str]]) -> None:
        """Write lines for the one row, and for the other one of a pair, in whose names stands "other_"."""
        for line in lines(""):
            w(line)
        if self.pairs:
            with w.block("if TOGETHER == 2:"):
                for line in lines("other_"):
                    w(line)

    def _begin(self, row: str) -> list[str]:
        program = f"tl.program_id(0).to(tl.int64){' * TOGETHER' if self.pairs else ''}"
        made = [f"{row}{name}" for name in ("flat", "left", *self._kept)]
        return [
            f"{row}row = {'tl.minimum(row + 1, rows - 1)' if row else program}",
            *_call(", ".join(made), "scores_of", [*self._given(row), *self._of_scores]),
            f"{row}best = tl.zeros([TOP_TILE], dtype=tl.int32)",
        ]

    def _end(self, row: str) -> list[str]:
        logits = [] if self.summed else self._given(row)
        given = [*logits, f"{row}best", *(f"{row}{name}" for name in self._kept)]
        return _call(f"{row}weight", "weights_of", given)

    def _given(self, row: str) -> list[str]:
        return [f"{row}row" if name == "row" else name for name in self._of_row]

    @staticmethod
    def _stores(row: str) -> list[str]:
        at = f"{row}row * TOP_K + rank"
        return [
            f"tl.store(experts + {at}, {row}best, mask=rank < TOP_K)",
            f"tl.store(weights + {at}, {row}weight.to(weights.dtype.element_ty), mask=rank < TOP_K)",
        ]

    def _add_up_groups(self, w: Writer) -> None:
        """What groups are compared by."""
        op = self.op
        best = _items("best", op.group_top)
        w(f"# A group counts by its {op.group_top} largest scores; {op.keep} of {op.groups} groups stay.")
        if op.group_top > 1:
            w('none = tl.full([GROUP_TILE, EACH_TILE], float("-inf"), tl.float32)')
        lists = ", ".join(["score", *["none"] * (op.group_top - 1)])
        w(f"{', '.join(best)} = tl.reduce({f'({lists})' if op.group_top > 1 else lists}, 1, merged)")
        w(f"sums = tl.where(group < GROUPS, ordered({' + '.join(best)}), LOWEST)")

    def _take_groups(self, w: Writer) -> None:
        """The experts of the groups that stay, in the place of all."""
        keep = self.op.keep
        w("equal = (sums[:, None] == sums[None, :]) & (group[:, None] < group[None, :])")
        w("before = tl.sum(((sums[:, None] > sums[None, :]) | equal).to(tl.int32), 0)")
        w(f"place = tl.arange(0, {padded(keep, 1)})")
        w("stays = tl.sum(tl.where(before[None, :] == place[:, None], group[None, :], 0), 1)")
        w("number = stays[:, None] * EACH + tl.arange(0, EACH_TILE)[None, :]")
        w(f"real = (place < {keep})[:, None] & (tl.arange(0, EACH_TILE) < EACH)[None, :]")

    def _drop_groups(self, w: Writer) -> None:
        """Experts of groups that don't stay get the score of dropped ones."""
        op = self.op
        w("equal = (sums[None, :] == sums[:, None]) & (group[None, :] < group[:, None])")
        w("before = tl.sum(((sums[None, :] > sums[:, None]) | equal).to(tl.int32), 1)")
        dropped = 'float("-inf")' if op.dropped == -math.inf else repr(op.dropped)
        w(f"score = tl.where((before >= {op.keep})[:, None], {dropped}, score)")


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

_LARGER = '''@triton.jit
def larger(a, b):
    """NaN is above all, so that what is wrong stays to be seen."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)'''


def _call(made: str, function: str, given: Sequence[str]) -> list[str]:
    """The lines of a call of one of the functions above."""
    return [
        f"{made} = {function}(",
        f"    {', '.join(given)}, GROUPS, EACH, GROUP_TILE, EACH_TILE, TOP_K, TOP_TILE",
        ")",
    ]


def _items(name: str, count: int) -> list[str]:
    return [f"{name}_{i}" for i in range(1, count + 1)]


def _merged(count: int) -> str:
    """The function that merges two lists of so many numbers, the largest first.

    Number k of the result is the largest of both k-th ones and of the smaller one of each i-th and (k - i)-th.
    """
    a, b, c = (_items(name, count) for name in "abc")
    w = Writer()
    w("@triton.jit")
    with w.block(f"def merged({', '.join([*a, *b])}):"):
        w(f'"""The {count} largest of two lists, each the largest first."""')
        for k in range(count):
            terms = [b[k], *(f"smaller({a[i]}, {b[k - 1 - i]})" for i in range(k))]
            w(f"{c[k]} = {reduce(lambda made, term: f'larger({made}, {term})', terms, a[k])}")
        w(f"return {', '.join(c)}")
    return w.text()
