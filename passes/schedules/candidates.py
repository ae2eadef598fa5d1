"""The implementations of each kernel family on each back end."""

from __future__ import annotations

from collections.abc import Callable

import sympy

from ringc.errors import CodegenError
from ringc.ir.core import Block
from ringc.ir.ops.mixers import LinearAttention
from ringc.passes.schedules.model import Candidate, Rows
from ringc.passes.schedules.ranges import FEW
from ringc.passes.target import Target


def candidates(family: str, body: Block, rows: Rows, target: Target) -> list[Candidate]:
    """The implementations that a region of a family can have, best first by rule.

    Raises:
        CodegenError: the target has none.
    """
    choices = _CHOICES[target.backend]
    if family not in choices:
        raise CodegenError(f"target {target.name} has no kernels of family {family}")
    return [Candidate(i, sympy.Integer(0)) for i in choices[family](body, rows)]


Choice = Callable[[Block, Rows], list[str]]


def _always(*implementations: str) -> Choice:
    return lambda _body, _rows: list(implementations)


def _tvm_row(_: Block, rows: Rows) -> list[str]:
    # Waking a second thread costs 1 us when it spins and 60 us when it sleeps: a few rows are done before it is there.
    return [f"tvm.row{{parallel={int(not _few(rows))}}}"]


def _tvm_product(_: Block, rows: Rows) -> list[str]:
    # One row streams the weight at full bandwidth; from there on tiles of 8 rows serve everything, prefill too.
    return [f"tvm.matmul{{rows={1 if rows[1] == 1 else 8},block=32}}"]


def _tvm_grouped(_: Block, rows: Rows) -> list[str]:
    return ["tvm.grouped_few{block=32}" if _few(rows) else "tvm.grouped_tiled{rows=8,block=32}"]


def _tvm_linear_attention(body: Block, _: Rows) -> list[str]:
    (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))
    return ["tvm.linear_chunked{chunk=16}" if mixer.form == "chunked" else "tvm.linear_recurrent"]


def _tvm_route(_: Block, rows: Rows) -> list[str]:
    return [f"tvm.route{{parallel={int(not _few(rows))}}}"]


def _triton_linear_attention(body: Block, _: Rows) -> list[str]:
    (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))
    return [f"triton.linear_{mixer.form or 'recurrent'}"]


def _triton_attention(_: Block, rows: Rows) -> list[str]:
    return ["triton.attention_decode" if _few(rows) else "triton.attention_prefill"]


def _few(rows: Rows) -> bool:
    return 0 < rows[1] <= FEW


_CHOICES: dict[str, dict[str, Choice]] = {
    "tvm": {
        "row": _tvm_row,
        "matmul": _tvm_product,
        "grouped": _tvm_grouped,
        "linear_attention": _tvm_linear_attention,
        "attention": _always("tvm.attention"),
        "route": _tvm_route,
        "sort": _always("tvm.sort"),
    },
    "triton": {
        "row": _always("triton.row"),
        "matmul": _always("triton.matmul"),
        "grouped": _always("triton.grouped"),
        "linear_attention": _triton_linear_attention,
        "attention": _triton_attention,
        "route": _always("triton.route"),
        "sort": _always("triton.sort"),
    },
}
_CHOICES["torch"] = dict.fromkeys(_CHOICES["tvm"], _always("torch.eager"))
"""Back end -> family -> implementations."""
