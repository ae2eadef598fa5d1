"""What the programs of a product of one row make: parts of the results, and how much of the weights each program reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.elements import power_of_two
from ringc.errors import CodegenError
from ringc.ir.core import Block, Value
from ringc.ir.ops.index import Gather
from ringc.passes.front import in_front

PROGRAM = 16 << 10
"""Bytes of weights that a program reads, at most, where it reads several rows."""

PROGRAMS = 512
"""Programs wanted at least, about four to a processor."""

EXPERT, EXPERTS = 16 << 10, 8 << 10
"""Bytes of weights that a program reads of one expert, and of all experts of a row together: it holds the rows beside them.

H100, ten layers of ring-mini by (columns, warps) of the up and of the down product, us of a step of one sequence and of 16: (2, 2), (1, 1)
698 and 2620; (1, 1), (1, 1) 706 and 2585; (1, 1), (4, 2) 710 and 2641; (2, 1), (1, 1) 712 and 2620; (1, 1), (1, 2) 717 and 2655. Sums over
several warps wait for each other, eight times in the down product.
"""

WARP = 4 << 10
"""Bytes of weights that a warp reads: eight loads of 16 bytes in each thread. Twice as many with row work in front, which all programs do,
and of experts.

Medians of an H100 for one row of ring-mini, cold weights, launches overlapping, against `triton.matmul` in us: 2048 -> 8192 12.6 (13.3),
SwiGLU of 512 2.9 (8.4), 512 -> 2048 1.8 (3.4), a gate and 2048 -> 2048 5.4 (8.8), a norm and SwiGLU of 5120 15.8 (18.1), 8 experts' up and
down products 15.6 and 8.8 (18.8 and 11.0). Where a program reads 8 to 32 KiB in 2 to 8 warps hardly matters.
"""


@dataclass(frozen=True)
class Choices:
    """How many experts a row names, and whether a program takes all of them, to add them up, or one."""

    count: int
    summed: bool

    @property
    def together(self) -> int:
        """How many a program takes."""
        return self.count if self.summed else 1


@dataclass(frozen=True)
class Part:
    """Results that the same programs make: the numbers of the kernel's results, and the products that they are made of.

    Attributes:
        weights: [c, k], of experts [n, j, c, k].
        choices: of a row, where some of the weights are experts'.
        front: whether there is row work in front.
        columns, warps: of each of the programs.
    """

    body: Block
    results: tuple[int, ...]
    weights: tuple[Value, ...]
    choices: Choices | None
    front: bool
    columns: int
    warps: int

    @property
    def width(self) -> int:
        """Columns of the results."""
        return int(self.weights[0].shape[-2])

    @property
    def programs(self) -> int:
        """For each row."""
        return -(-self.width // self.columns) * (self.choices.count // self.choices.together if self.choices else 1)

    def is_front(self, result: int) -> bool:
        """Whether a result is what is made in front of a dense product."""
        made = needed(self.body, self.body.outputs[result])
        return self.front and self.choices is None and made.isdisjoint(self.weights)

    @property
    def read(self) -> set[int]:
        """The numbers of the arguments."""
        return arguments_of(self.body, *(self.body.outputs[i] for i in self.results))


def needed(body: Block, *values: Value) -> set[Value]:
    """Some values of a region, and all that they depend on."""
    return {*values, *(v for op in in_front(body, *values) for v in op.inputs())}


def arguments_of(body: Block, *values: Value) -> set[int]:
    """The numbers of the region's arguments that some of its values depend on."""
    found = needed(body, *values)
    return {i for i, value in enumerate(body.args) if value in found}


def parts_of(kernel: Kernel, body: Block, weights: Sequence[Value], *, front: bool) -> list[Part]:
    """The parts of a region whose products are sums, a dense one before that of experts; `front`: there is row work in front.

    Raises:
        CodegenError: a part has no product.
    """
    one_by_one = [value.tensor.rank == 3 for value in body.outputs]
    parts: list[Part] = []
    for alone in sorted(set(one_by_one), reverse=True):
        results = tuple(i for i, found in enumerate(one_by_one) if found is alone)
        reached = needed(body, *(body.outputs[i] for i in results))
        mine = tuple(weight for weight in weights if weight in reached)
        if not mine:
            raise CodegenError(f"@{kernel.name}: result {results[0]} is made of no product")
        named = next((weight for weight in mine if isinstance(weight.op, Gather)), None)
        choices = None if named is None else Choices(int(named.shape[1]), summed=not alone)
        columns, warps = _programs(kernel, mine, choices, front=front)
        if parts:  # beside experts its programs read as much as theirs, in as many warps
            columns, warps = _most(min(int(mine[0].shape[-2]), EXPERT // _bytes(mine, None))), parts[0].warps
        parts.insert(0, Part(body, results, mine, choices, front, columns, warps))
    return parts


def _bytes(weights: Sequence[Value], choices: Choices | None) -> int:
    """Of weights, for each column. What meets the sum of experts is not counted, but where it is more."""
    each = [int(w.shape[-1]) * w.type.dtype.bytes for w in weights]
    named = [n * choices.together for n, w in zip(each, weights, strict=True) if choices and isinstance(w.op, Gather)]
    return max(sum(named), *each) if named else sum(each)


def _programs(kernel: Kernel, weights: Sequence[Value], choices: Choices | None, *, front: bool) -> tuple[int, int]:
    """The columns of a program, and its warps."""
    columns, each = int(weights[0].shape[-2]), _bytes(weights, choices)
    if choices is None:
        most = min(4, PROGRAM // each, columns // PROGRAMS)
    else:
        most = min(columns, (EXPERTS if choices.summed else EXPERT) // each)
    block = _most(most)
    warps = max(1, min(8, power_of_two(-(-block * each // (WARP if choices is None and not front else 2 * WARP)))))
    given = kernel.implementation
    return int(given.get("columns", block)), int(given.get("warps", warps))


def _most(columns: int) -> int:
    """The largest power of two that is no more, and 1 at least."""
    return power_of_two(max(1, columns) + 1) // 2
