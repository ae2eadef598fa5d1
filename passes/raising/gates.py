"""Sigmoid, silu, and the one form of SwiGLU: two products with the same left operand, and `silu(gate) * up`."""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.ops.pointwise import Add, Div, Exp, Mul, Neg, Sigmoid
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.ops.rows import Silu
from ringc.ir.ops.shape import Slice
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.raising.match import Match, look
from ringc.passes.rewrite import Rewriter, need, no_match, pattern, single_user


@pattern(Div)
def sigmoid_quotient(op: Div, r: Rewriter) -> None:
    """`1 / (1 + exp(-x))` -> `sigmoid(x)`, `x / (1 + exp(-x))` -> `silu(x)`, and of another y, `y sigmoid(x)`."""
    m = Match()
    below = m.take(op.b, Add)
    need(number(below.b) == 1, "not one more than an exponential")
    x = m.take(m.take(below.a, Exp).x, Neg).x
    m.found[op] = None
    m.closed(op.result)
    if op.a is x:
        r.replace(op, r(Silu(x)))
        return
    s = r(Sigmoid(x))
    r.replace(op, s if is_number(op.a) and number(op.a) == 1 else r(Mul(op.a, s)))


@pattern(Mul)
def silu(op: Mul, r: Rewriter) -> None:
    """`x * sigmoid(x)` -> `silu(x)`."""
    for x, s in ((op.a, op.b), (op.b, op.a)):
        if isinstance(s.op, Sigmoid) and s.op.x is x:
            single_user(s)
            r.replace(op, r(Silu(x)))
            return
    no_match("not a value times its own sigmoid")


@pattern(Mul)
def gate_first(op: Mul, r: Rewriter) -> None:
    """`up * silu(gate)` -> `silu(gate) * up`."""
    need(isinstance(op.b.op, Silu) and not isinstance(op.a.op, Silu), "in order")
    r.replace(op, r(Mul(op.b, op.a)))


@pattern(Mul)
def split_gate_and_up(op: Mul, r: Rewriter) -> None:
    """A product that is only sliced into gate and up becomes two products with slices of its weight.

    The slices of the weight are done once, when weights are prepared, and the kernel gets two accumulators over one left operand.
    """
    gate, up = look(look(op.a, Silu).x, Slice), look(op.b, Slice)
    need(gate.x is up.x and gate.axis == up.axis == gate.x.tensor.rank - 1, "not two slices of one product's columns")
    need(set(gate.x.uses) == {gate, up}, "others take the product")
    product = gate.x.op
    single_user(op.a)
    single_user(gate.result)
    single_user(up.result)
    halves: list[Value] = []
    for part in (gate, up):
        if isinstance(product, MatMul) and product.b.tensor.rank == 2:
            columns = Slice(product.b, 0 if product.transpose_b else 1, part.start, part.stop, part.step)
            halves.append(r(MatMul(product.a, r(columns), product.transpose_b, product.out)))
        elif isinstance(product, SegmentMatMul):
            columns = Slice(product.w, 1, part.start, part.stop, part.step)
            halves.append(r(SegmentMatMul(product.x, r(columns), product.offsets, product.out)))
        else:
            no_match("not slices of a product")
    r.replace(op, r(Mul(r(Silu(halves[0])), halves[1])))


ROW_RULES = (sigmoid_quotient, silu, gate_first)
PRODUCT_RULES = (split_gate_and_up,)
