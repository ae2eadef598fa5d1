"""The one form of the experts' combination: each token gathers its experts' rows, weights them, and sums.

A sum by `scatter_add` over rows in the experts' order says the same, but every row would be added to memory by itself.
"""

from __future__ import annotations

from ringc.ir.core import Value
from ringc.ir.ops.index import Gather, ScatterAdd, SortByKey
from ringc.ir.ops.pointwise import FloorDiv, Mul
from ringc.ir.ops.reduce import Sum
from ringc.ir.ops.shape import Reshape
from ringc.ir.symbols import mul
from ringc.passes.canonicalize.arithmetic import number
from ringc.passes.raising.match import look, without_units
from ringc.passes.rewrite import NoMatch, Rewriter, need, pattern


@pattern(ScatterAdd)
def combine_by_gather(op: ScatterAdd, r: Rewriter) -> None:
    """`scatter_add(y * w[order], order // k)` -> `sum(reshape(y[places], [N, k, h]) * w[N, k, 1])`, and the like without weights.

    `order` and `places` come from one `sort_by_key` of the N*k choices: place `places[i]` holds choice i, which is token i // k's.
    """
    token = look(op.ids, FloorDiv)
    sort = look(token.a, SortByKey)
    k = number(token.b)
    order, _, places = sort.results
    need(token.a is order, "not the order of the choices")
    choices = order.shape[0]
    need(k > 0 and mul(op.length, k) == choices, "not as many choices for each token")
    y, weight = op.x, None
    product = op.x.op
    if isinstance(product, Mul):
        for rows, factor in ((product.a, product.b), (product.b, product.a)):
            try:
                weight, y = _choice_weights(factor, order), rows
                break
            except NoMatch:
                continue
    width = y.shape[1:]
    need(y.tensor.rank == 2 and y.shape[0] == choices, "not one row for each choice")
    each = r(Reshape(r(Gather(y, places)), (op.length, k, *width)))
    if weight is not None:
        each = r(Mul(each, r(Reshape(weight, (op.length, k, 1)))))
    r.replace(op, r(Sum(each, axes=(1,))))


def _choice_weights(factor: Value, order: Value) -> Value:
    """The weights of all choices, [N * k], of a factor [N * k, 1] in the experts' order."""
    need(factor.shape == (order.shape[0], 1), "not one weight for each row")
    taken = look(without_units(factor), Gather)
    weights = taken.x
    need(taken.ids is order and weights.tensor.elements == order.shape[0], "not the weights in the experts' order")
    return weights


RULES = (combine_by_gather,)
