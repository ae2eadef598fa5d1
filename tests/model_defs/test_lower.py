"""What the front end writes where a spec says how precisely something is computed."""

from __future__ import annotations

import pytest

from ringc.ir.core import Op
from ringc.ir.ops.index import Gather
from ringc.ir.ops.pointwise import Cast
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.source import Param
from ringc.ir.symbols import symbols_of
from ringc.ir.types import DType
from ringc.model_defs import load_spec
from ringc.model_defs.lower import lower
from ringc.model_defs.spec import Spec


def with_router(**changes: str) -> Spec:
    spec = load_spec("ring-tiny")
    assert spec.moe is not None
    router = spec.moe.router.model_copy(update=changes)
    return spec.model_copy(update={"moe": spec.moe.model_copy(update={"router": router})})


def router_product(spec: Spec) -> MatMul:
    """The first router's product of a bf16 prefill."""
    for op in lower(spec, DType.BF16).functions["prefill"].body.ops:
        if isinstance(op, MatMul) and isinstance(op.b.op, Param) and op.b.op.source.endswith("mlp.gate.weight"):
            return op
    raise AssertionError("no router")


@pytest.mark.parametrize(
    ("changes", "rounds"), [({}, False), ({"dtype": "model"}, True), ({"logits_dtype": "model"}, True)]
)
def test_a_router_s_product_is_summed_in_f32_and_rounded_where_the_spec_says_so(
    changes: dict[str, str], rounds: bool
) -> None:
    product = router_product(with_router(**changes))
    assert (product.a.type.dtype, product.b.type.dtype, product.result.type.dtype) == (
        DType.BF16,
        DType.BF16,
        DType.F32,
    )
    users: list[Op] = product.result.users()
    narrowed = [u for u in users if isinstance(u, Cast) and u.result.type.dtype is DType.BF16]
    assert bool(narrowed) == rounds
    assert not rounds or users == narrowed


@pytest.mark.parametrize("last", ["linear", "softmax"])
@pytest.mark.parametrize("experts", [True, False])
def test_behind_the_last_mixer_a_prefill_makes_the_wanted_rows_alone(last: str, experts: bool) -> None:
    spec = load_spec("ring-tiny")
    # One group without its last layer: what is left over is of either kind.
    layers = spec.layers.model_copy(update={"count": spec.layers.M, "tail": last})
    spec = spec.model_copy(update={"layers": layers})
    if not experts:
        spec = spec.model_copy(update={"moe": None, "mlp": spec.mlp.model_copy(update={"first_k": 0})})
    final = spec.layers.count - 1
    assert spec.layer_kind(final) == last
    ops = lower(spec, DType.BF16).functions["prefill"].body.ops
    kind = spec.mlp_kind(final)
    behind = [op for op in ops if op.scope in (f"layers.{final}.wanted_{kind}", "head")]
    assert all("N" not in symbols_of(v.type.shape) for op in behind for v in (*op.inputs(), *op.results))
    products = [op.b.op.source for op in behind if isinstance(op, MatMul) and isinstance(op.b.op, Param)]
    assert f"model.layers.{final}.attention.dense.weight" in products
    assert any(op.scope == f"layers.{final}.{last}" and isinstance(op, Gather) for op in ops)
    # Before it, and in a step, all rows are made.
    others = [*ops[: ops.index(behind[0])], *lower(spec, DType.BF16).functions["decode"].body.ops]
    assert not any(isinstance(op, MatMul | SegmentMatMul) and "R" in symbols_of(op.result.shape) for op in others)
