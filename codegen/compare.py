"""How far a kernel's result may be from what its IR means: as far as roundings go, everywhere in it.

The yardstick is the unfused computation in the same precision, from the same inputs: a kernel may make a few times its error, and where
that happens to make none, one rounding. Both are taken three times, so that an error hides neither behind a large element elsewhere nor in
the noise of one element: of the largest element, of the root mean square of all of them, and of that of every slice along every axis (a
row, a column, a head, a slot of the state). The noise of independent roundings is far smaller in the mean than at its worst: in bf16 an
element may be off by 0.4 %, a mean by 0.2 %, so a result that is 2 % off as a whole or in one slice is told from rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ringc.ir.core import Block
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.products import ExpertProduct, MatMul

MULTIPLE = 3.0
"""How many times the error of the unfused computation in the same precision a kernel's may be."""

SAME_SLICE = 2.0
"""The same where a slice's error is compared with that of the same slice: inputs that make one computation worse make others worse too."""

ROUNDING = 0.5
"""In units of the last place: what is allowed even where the unfused computation happens to be exact, which is one rounding."""

SUMS = 8.0
"""In units of f32's last place: sums are kept in f32, and taken in another order they differ by as much."""

LEAST = 32
"""Elements of a slice that is judged by its mean: the noise of fewer is that of single elements."""


@dataclass(frozen=True)
class Compared:
    """One result of a kernel against the reference.

    `error` and `allowed` are those of the measure in which the result is nearest to its bound, relative to the reference in that measure;
    NaN stands for elements that are not numbers. `measure` says which one it was.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    allowed: float
    measure: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    @property
    def ratio(self) -> float:
        """How near the result is to its bound: above 1 it is wrong, and infinite where it is no number."""
        if not self.allowed:
            return math.inf if self.error else 0.0
        ratio = self.error / self.allowed
        return math.inf if math.isnan(ratio) else ratio


def compare(name: str, made: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor, coarse: float) -> Compared:
    """Hold a result against the reference.

    Args:
        name: of the result.
        made: what the kernel wrote.
        exact: the same in fp64.
        plain: the same by the unfused computation in the kernel's precision.
        coarse: what is allowed beside, relative to the result (see `coarseness`).
    """
    shape = tuple(made.shape)
    if not made.numel():
        return Compared(name, shape, 0.0, 0.0)
    if not made.dtype.is_floating_point:
        wrong = int((made.long() != exact.long()).sum())
        return Compared(name, shape, wrong / made.numel(), 0.0, "share of elements")
    found = [Compared(name, shape, *one) for one in measures(made, exact, plain, coarse)]
    return max(found, key=lambda one: one.ratio)


def measures(
    made: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor, coarse: float
) -> Iterator[tuple[float, float, str]]:
    """Error, what is allowed, and the name of each measure; of each axis the slice that is nearest to its bound."""
    rounding = ROUNDING * torch.finfo(made.dtype).eps
    beside = SUMS * torch.finfo(torch.float32).eps + coarse
    off, usually_off = made.double() - exact, plain.double() - exact
    largest = float(exact.abs().max()) or 1.0
    error, usual = (float(x.abs().max()) / largest for x in (off, usually_off))
    yield error, MULTIPLE * usual + rounding + beside, "largest element"
    for (measure, errors), (_, usuals), (_, sizes) in zip(*map(_means, (off, usually_off, exact)), strict=True):
        # A slice is held against what is common, so that one that is bad excuses no other; its own error counts where it is more.
        some = (usuals / sizes)[(usuals > 0) & (sizes > 0)]
        common = float(some.median()) if len(some) else 0.0
        # What is added up may cancel in a slice: then its errors are those of the terms, which are as large as in most others. A few
        # that are far larger say nothing of them.
        ranked = sizes[sizes > 0].sort().values
        typical = float(ranked[len(ranked) // 2]) if len(ranked) else 1.0
        floor = rounding * sizes + beside * sizes.clamp(min=typical)
        allowed = torch.maximum(MULTIPLE * common * sizes, SAME_SLICE * usuals) + floor
        at = int((errors / allowed).nan_to_num(math.inf).argmax())
        size = float(sizes[at]) or typical
        yield float(errors[at]) / size, float(allowed[at]) / size, f"{measure}{at}" if len(sizes) > 1 else measure


def coarseness(body: Block) -> float:
    """What a kernel's products may be off by, relative to the result, beside a rounding of it.

    Those of the chunked form take decayed rows and the state rounded to the rows' type, each once: in bf16 a state was off by 2.1e-3 of its
    largest element on a GPU. Others add up K terms in an order of their own, and tensor cores cut off what they add: about sqrt(K) units of
    f32's last place (K = 2048: 3.3e-6 of the largest element for the head's product, where this allows 5.4e-6).
    """
    found = [0.0]
    for op in body.ops:
        if isinstance(op, LinearAttention) and op.form == "chunked":
            found.append(ROUNDING * torch.finfo(op.v.type.dtype.torch).eps)
        elif isinstance(op, MatMul | ExpertProduct) and isinstance(terms := op.inputs()[0].shape[-1], int):
            found.append(terms**0.5 * torch.finfo(torch.float32).eps)
    return max(found)


def _means(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Root mean squares: [1] of all elements, then for each axis those of the slices along it, if they have enough elements."""
    yield "mean", x.square().mean().sqrt()[None]
    for axis, count in enumerate(x.shape):
        if x.numel() // count >= LEAST and count > 1:
            others = [i for i in range(x.dim()) if i != axis]
            yield f"mean at [{':, ' * axis}", x.square().mean(others).sqrt()
