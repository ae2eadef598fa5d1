"""The implementations of each kernel family on each back end, with what they cost."""

from __future__ import annotations

from collections.abc import Callable

from ringc.errors import CodegenError
from ringc.ir.core import Block, Function
from ringc.ir.ops.cost import region_bytes
from ringc.ir.ops.index import SortByKey
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.passes.schedules import attention, library, linear_attention, products, routing
from ringc.passes.schedules.crossovers import ROWS_ALONE
from ringc.passes.schedules.model import Candidate, Rows, roofline, tokens_of
from ringc.passes.target import Target

WANTED = 16
"""Rows of which prefill gives logits, where costs are compared: the last row is wanted or all are, which no guard tests, so a few stand
for both. They must be more than one, and few enough that the head's weight is what is read."""


def candidates(family: str, body: Block, rows: Rows, target: Target) -> list[Candidate]:
    """The implementations that a region of a family can have.

    Raises:
        CodegenError: the target has none.
    """
    if family not in _FAMILIES:
        raise CodegenError(f"there is no kernel family {family}")
    return _FAMILIES[family](body, rows, target)


Service = tuple[Rows, str, int]
"""What a version serves: rows, of which entry point, and the most tokens of a sequence (0 for no limit)."""


def service(function: Function) -> Service:
    """What a function serves: a version, or a layer of one."""
    notes = function.notes
    return notes.get("rows", (1, 0)), notes.get("serves", "prefill"), notes.get("each", 0)


def typical_sizes(rows: Rows, entry: str, each: int = 0) -> dict[str, int]:
    """Sizes that stand for a version when costs are compared: one prompt in prefill, one token of sequences of 4096 in decode.

    Args:
        rows: that the version serves.
        entry: its entry point.
        each: the most tokens of a sequence that it serves; 0 for no limit. Then there are as many sequences as this takes.
    """
    tokens = tokens_of(rows)
    if entry == "decode":
        return {"N": tokens, "B": tokens, "R": tokens, "P": tokens, "S": 4096}
    held = min(each or tokens, tokens)
    sequences = -(-tokens // held)
    return {"N": tokens, "B": sequences, "R": max(min(tokens, WANTED), sequences), "P": sequences, "S": held}


def _rows(template: str) -> Callable[[Block, Rows, Target], list[Candidate]]:
    """Row kernels and routing: bound by traffic. Waking a second thread costs more than a few rows take."""

    def choose(body: Block, rows: Rows, target: Target) -> list[Candidate]:
        seconds = roofline(target, products.flops_of(body), region_bytes(body), rate=target.vector_rate, bandwidth=0.8)
        if target.backend != "tvm":
            return [_plain(target, template, seconds)]
        parallel = int(tokens_of(rows) > ROWS_ALONE)
        return [Candidate(f"tvm.{template}{{parallel={parallel}}}", seconds)]

    return choose


def _dense(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    return products.dense(body, rows, target)


def _grouped(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    return products.grouped(body, rows, target)


def _linear_attention(body: Block, _: Rows, target: Target) -> list[Candidate]:
    (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))
    problem = problem_of(mixer)
    form = linear_attention.forms(problem, target)[mixer.form or "recurrent"]
    if form.illegal:
        raise CodegenError(f"linear attention can't be {mixer.form} here: {form.illegal}")
    if mixer.form != "chunked" or target.backend != "tvm":
        return [form]
    cut = linear_attention.segments(problem, target)
    return [form] if cut is None else [form, cut]


def problem_of(mixer: LinearAttention) -> linear_attention.Problem:
    """What the scheduler has to know of an operation."""
    heads, dk = (int(d) for d in mixer.q.shape[1:])
    return linear_attention.Problem(heads, dk, int(mixer.v.shape[2]), mixer.q.type.dtype.bytes, mixer.steepest)


def _attention(body: Block, _: Rows, target: Target) -> list[Candidate]:
    seconds = roofline(
        target, products.flops_of(body), region_bytes(body), rate=0.5 * target.matrix_rate, bandwidth=0.8
    )
    if target.backend != "triton":
        return [_plain(target, "attention", seconds)]
    shared = next(int(op.cache.shape[1]) for op in body.ops if isinstance(op, Attention))
    template, workspace = attention.implementation(body, attention.few_tokens(shared, target))
    return [Candidate(template, seconds, workspace=workspace)]


def _sort(body: Block, _: Rows, target: Target) -> list[Candidate]:
    seconds = roofline(target, 0, region_bytes(body), rate=1.0, bandwidth=0.1)
    if target.backend != "triton":
        return [_plain(target, "sort", seconds)]
    (op,) = (o for o in body.ops if isinstance(o, SortByKey))
    return [Candidate("triton.sort", seconds, workspace=routing.sort_workspace(op))]


def _route(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    if target.backend != "triton":
        return _rows("route")(body, rows, target)
    # Two launches, priced as one: they overlap with each other and with what stands in front, which a library's call doesn't.
    rate = routing.PRODUCT_RATE * target.matrix_rate
    seconds = roofline(target, products.flops_of(body), region_bytes(body), rate=rate, bandwidth=0.85)
    return [Candidate("triton.route", seconds, workspace=routing.route_workspace(body))]


def _library(body: Block, rows: Rows, target: Target) -> list[Candidate]:
    return [library.call(body, rows, target)]


def _plain(target: Target, template: str, seconds: object) -> Candidate:
    name = "torch.eager" if target.backend == "torch" else f"{target.backend}.{template}"
    return Candidate(name, seconds)


_FAMILIES: dict[str, Callable[[Block, Rows, Target], list[Candidate]]] = {
    "row": _rows("row"),
    "matmul": _dense,
    "grouped": _grouped,
    "linear_attention": _linear_attention,
    "attention": _attention,
    "route": _route,
    "sort": _sort,
    "library": _library,
}
