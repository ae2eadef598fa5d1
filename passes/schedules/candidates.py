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


def _few(rows: Rows) -> bool:
    return 0 < rows[1] <= FEW


def _linear_attention(backend: str) -> Choice:
    def choose(body: Block, _: Rows) -> list[str]:
        (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))
        return [f"{backend}.linear_{mixer.form or 'recurrent'}"]

    return choose


def _always(*implementations: str) -> Choice:
    return lambda _body, _rows: list(implementations)


def _by_rows(few: str, many: str) -> Choice:
    return lambda _body, rows: [few if _few(rows) else many]


_CHOICES: dict[str, dict[str, Choice]] = {
    "tvm": {
        "row": _always("tvm.row"),
        "matmul": _by_rows("tvm.matmul_few{block=32}", "tvm.matmul_tiled{block=32}"),
        "grouped": _by_rows("tvm.grouped_few{block=32}", "tvm.grouped_tiled{block=32}"),
        "linear_attention": _linear_attention("tvm"),
        "attention": _always("tvm.attention"),
        "route": _always("tvm.route"),
        "sort": _always("tvm.sort"),
    },
    "triton": {
        "row": _always("triton.row"),
        "matmul": _always("triton.matmul"),
        "grouped": _always("triton.grouped"),
        "linear_attention": _linear_attention("triton"),
        "attention": _by_rows("triton.attention_decode", "triton.attention_prefill"),
        "route": _always("triton.route"),
        "sort": _always("triton.sort"),
    },
}
_CHOICES["torch"] = dict.fromkeys(_CHOICES["tvm"], _always("torch.eager"))
"""Back end -> family -> implementations."""
