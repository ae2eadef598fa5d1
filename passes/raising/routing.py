"""The routing chain of a mixture of experts, from its logits to the chosen experts and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ringc.ir.core import Op, Value
from ringc.ir.ops.index import Scatter, TakeAlong, TopK
from ringc.ir.ops.pointwise import Add, Cast, Div, Eq, Le, Lt, Mul, Not, Sigmoid, Where
from ringc.ir.ops.reduce import Max, Sum
from ringc.ir.ops.routing import Route
from ringc.ir.ops.rows import Softmax
from ringc.ir.ops.shape import Broadcast, Reshape, Slice
from ringc.ir.ops.source import Iota, scalar_value
from ringc.ir.types import DType
from ringc.passes.canonicalize.arithmetic import is_number, number
from ringc.passes.raising.match import Match, either, last_axis, look, without_units
from ringc.passes.rewrite import Rewriter, need, pattern


@dataclass(frozen=True)
class _Groups:
    """How the group-limited choice is made; by default there are no groups."""

    groups: int = 1
    keep: int = 1
    group_top: int = 2
    dropped: float = -math.inf


@pattern(TopK)
def route(op: TopK, r: Rewriter) -> None:
    """From sigmoid or softmax of the logits to the last top-k, the scores taken there, their normalisation and factor."""
    m = Match()
    m.found[op] = None
    values, ids = op.results
    need(op.x.tensor.rank == 2, "not a choice for each token")
    biased, groups = _limited(m, op.x)
    experts = int(biased.shape[1])
    need(op.k <= groups.keep * experts // groups.groups, "more experts are chosen than the kept groups have")
    scores, bias = _without_bias(m, biased)
    kind, logits = _score(m, scores)

    if values.uses:
        # The values are the scores only where nothing was added to them, and no score was replaced by one that can be chosen.
        need(bias is None and groups.dropped == -math.inf, "the weights carry the bias")
        need(not any(isinstance(u, TakeAlong) and u.x is scores for u in ids.users()), "two kinds of weights")
        first = values
    else:
        takers = [u for u in ids.users() if isinstance(u, TakeAlong) and u.x is scores]
        need(len(takers) == 1, "the scores are not taken where the experts were chosen")
        first = m.take(takers[0].result, TakeAlong).result
    tail = _normalised(m, first)
    m.closed(ids, tail.weights)
    made = r.insert(
        Route(
            logits, bias, op.k, kind, groups.groups, groups.keep, groups.group_top, groups.dropped, tail.normalize, tail.eps,
            tail.factor,
        )
    )  # fmt: skip
    r.replace_values((ids, made.results[0]), (tail.weights, made.results[1]))


def _score(m: Match, scores: Value) -> tuple[str, Value]:
    if isinstance(scores.op, Sigmoid):
        return "sigmoid", m.take(scores, Sigmoid).x
    return "softmax", m.take(scores, Softmax).x


def _without_bias(m: Match, biased: Value) -> tuple[Value, Value | None]:
    """(scores, bias [E] or None)"""
    if not isinstance(biased.op, Add):
        return biased, None
    added = m.take(biased, Add)
    scores, bias = either(added, _scores_and_bias)
    return scores, bias


def _scores_and_bias(scores: Value, bias: Value) -> tuple[Value, Value]:
    need(isinstance(scores.op, Sigmoid | Softmax), "not a score")
    need(bias.shape == scores.shape[-1:] and not is_number(bias), "not one bias for each expert")
    return scores, bias


# ---------------------------------------------------------------- groups


def _limited(m: Match, x: Value) -> tuple[Value, _Groups]:
    """(biased scores [N, E], groups) of what the last top-k takes."""
    masked = _through_reshapes(m, x)
    if isinstance(masked.op, Where):
        where = m.take(masked, Where)
        if is_number(where.b):
            kept, chosen, dropped, inverted = where.a, where.condition, float(number(where.b)), False
        else:
            kept, chosen, dropped, inverted = where.b, where.condition, float(number(where.a)), True
    elif isinstance(masked.op, Mul):  # times a mask of 0 and 1
        product = m.take(masked, Mul)
        kept, mask = either(product, _scores_and_mask)
        chosen, dropped, inverted = mask, 0.0, False
    else:
        return x, _Groups()
    mask, inverted = _spread(m, chosen, inverted)
    found, group_score = _kept_groups(m, mask, inverted)
    grouped, top = _group_score(m, group_score)
    *_, count, each = (0, 0, *grouped.shape)
    need(
        grouped.tensor.rank == 3 and isinstance(count, int) and isinstance(each, int),
        "not [N, groups, experts of a group]",
    )
    biased = _through_reshapes(m, grouped)
    need(_through_reshapes(m, kept) is biased, "the masked scores are not those that the groups were chosen by")
    need(biased.shape == x.shape and biased.tensor.rank == 2, "the groups are not runs of experts")
    need(group_score.shape[1] == count, "as many groups in the mask as in the scores")
    return biased, replace(found, groups=int(count), group_top=top, dropped=dropped)


def _through_reshapes(m: Match, value: Value) -> Value:
    while isinstance(value.op, Reshape):
        value = m.take(value, Reshape).x
    return value


def _scores_and_mask(kept: Value, mask: Value) -> tuple[Value, Value]:
    inner = mask
    while isinstance(inner.op, Reshape | Broadcast):
        inner = inner.op.x
    is_mask = isinstance(inner.op, Cast) and inner.op.x.type.dtype is DType.BOOL
    need(is_mask or isinstance(inner.op, Scatter | Max), "not a mask")
    return kept, mask


def _spread(m: Match, mask: Value, inverted: bool) -> tuple[Value, bool]:
    """The mask of groups [N, G] that a mask of [N, G, 1], or of each group's experts, is made of; and whether it says what is dropped."""
    value, by_expert = mask, False
    while True:
        value = _truth(m, value)
        if isinstance(value.op, Eq | Not) and _is_negation(value.op):
            value, inverted = m.take(value, type(value.op)).inputs()[0], not inverted
            continue
        if not isinstance(value.op, Reshape | Broadcast):
            break
        op = m.take(value, type(value.op))
        if isinstance(op, Broadcast):
            # Copies must run along the experts of a group: [N, G, 1] to [N, G, E/G].
            need(
                op.x.tensor.rank == 3 and op.shape[:2] == op.x.shape[:2] and op.x.shape[2] == 1,
                "not one choice for each group",
            )
            by_expert = True
        value = op.inputs()[0]
    need(value.tensor.rank == 2, "not one choice for each group")
    need(by_expert or mask.shape[:2] == value.shape[:2], "the mask of groups lies along another axis")
    return value, inverted


def _is_negation(op: Eq | Not) -> bool:
    """`not m`, or `m == 0`: masks are made of zeros and ones, `_kept_groups` takes no others."""
    return isinstance(op, Not) or (is_number(op.b) and number(op.b) == 0)


def _kept_groups(m: Match, mask: Value, inverted: bool) -> tuple[_Groups, Value]:
    """(groups with `keep` filled in, the groups' scores) of a mask [N, G] that is true for the best groups."""
    if isinstance(mask.op, Le | Lt) and not is_number(mask.op.a) and not is_number(mask.op.b):
        comparison = mask.op
        m.found[comparison] = None
        best, score = (comparison.b, comparison.a) if inverted else (comparison.a, comparison.b)
        need(isinstance(comparison, Lt) == inverted, "the last of the best groups is not among them")
        return _best_by_value(m, m.peel(best), score), score
    need(not inverted, "a mask of the dropped groups")
    value = _truth(m, mask)
    if isinstance(value.op, Scatter):
        scatter = m.take(value, Scatter)
        need(scalar_value(scatter.base) == 0 and scalar_value(scatter.src) == 1, "not ones among zeros")
        top = m.take(scatter.ids, TopK)
    else:
        top = _one_hot(m, value)
    return _chosen_groups(top, "groups"), top.x


def _chosen_groups(top: TopK, what: str) -> _Groups:
    need(top.x.tensor.rank == 2, f"not the best {what} of each token")
    return _Groups(keep=top.k)


def _best_by_value(m: Match, best: Value, score: Value) -> _Groups:
    """`score >= the keep-th best score`. Where two groups' scores are equal, `route` keeps the first of them alone."""
    if isinstance(best.op, Max):
        top = m.take(best, Max)
        need(top.x is score and top.axes == last_axis(score) and top.keep, "not compared with the best score")
        return _Groups(keep=1)
    last = m.take(best, Slice) if isinstance(best.op, Slice) else None
    ranked = m.take(best if last is None else last.x, TopK)
    need(
        (ranked.results[0] is (best if last is None else last.x)) and ranked.x is score,
        "not compared with ranked scores",
    )
    if last is None:
        need(ranked.k == 1, "compared with more than one score")
    else:
        need(
            (last.axis, last.start, last.stop) == (1, ranked.k - 1, ranked.k),
            "not compared with the last of the best scores",
        )
    return _chosen_groups(ranked, "groups")


def _truth(m: Match, mask: Value) -> Value:
    """Through casts, and comparisons of zeros and ones that say "is one"."""
    while True:
        op = mask.op
        if isinstance(op, Cast):
            mask = m.take(mask, Cast).x
        elif (
            isinstance(op, Lt | Le)
            and is_number(op.a)
            and (0 <= number(op.a) < 1 if isinstance(op, Lt) else 0 < number(op.a) <= 1)
        ):
            m.found[op] = None
            mask = op.b
        elif isinstance(op, Eq) and is_number(op.b) and number(op.b) == 1:
            mask = m.take(mask, Eq).a
        else:
            return mask


def _one_hot(m: Match, value: Value) -> TopK:
    """`any(ids[:, j] == g)` over j, as the largest (or sum) of zeros and ones: the top-k that the ids come from."""
    reduction = m.take(value, Max) if isinstance(value.op, Max) else m.take(value, Sum)
    equal = m.take(_truth(m, reduction.x), Eq)

    def sides(ids: Value, groups: Value) -> tuple[Value, Value]:
        look(without_units(groups), Iota)
        return ids, groups

    ids, groups = either(equal, sides)
    top = m.take(m.peel(ids), TopK)
    need(m.peel(ids) is top.results[1], "compared with scores, not with places")
    n, keep = top.results[1].shape
    count = top.x.shape[1]
    need(look(without_units(groups), Iota).length == count, "not compared with every group")
    compared = equal.result.shape
    if reduction.axes == (1,):
        fits = (
            compared == (n, keep, count)
            and ids.shape == (n, keep, 1)
            and groups.shape in ((count,), (1, count), (1, 1, count))
        )
    else:
        fits = reduction.axes == (2,) and compared == (n, count, keep) and ids.shape == (n, 1, keep)
        fits = fits and groups.shape in ((count, 1), (1, count, 1))
    need(fits and not reduction.keep, "not one comparison for each group and choice")
    return top


def _group_score(m: Match, score: Value) -> tuple[Value, int]:
    """(grouped scores [N, G, E/G], how many of a group's best make its score)."""
    if isinstance(score.op, Max):
        best = m.take(score, Max)
        need(best.axes == (2,) and not best.keep, "not the best score of each group")
        return best.x, 1
    value = m.peel(score)
    if isinstance(value.op, TopK):
        top = m.take(value, TopK)
        need(top.k == 1 and value is top.results[0], "not one score for each group")
        return top.x, 1
    total = m.take(value, Sum)
    need(total.axes == (2,) and not total.keep, "not the sum of each group's best")
    top = m.take(total.x, TopK)
    need(total.x is top.results[0], "a sum of places")
    return top.x, top.k


# ---------------------------------------------------------------- weights


@dataclass(frozen=True)
class _Tail:
    """What follows the taken scores, and the value that it ends in."""

    weights: Value
    normalize: bool = False
    eps: float = 0.0
    factor: float = 1.0
    ops: tuple[Op, ...] = field(default=())


def _normalised(m: Match, first: Value) -> _Tail:
    """Follow the taken scores through the division by their sum (+ eps) and constant factors, in either order."""
    tail = _Tail(first)
    while True:
        step = _factor(tail) or (None if tail.normalize else _quotient(tail))
        if step is None:
            m.found |= dict.fromkeys(tail.ops)
            return replace(tail, eps=tail.eps if tail.normalize else 1e-20)
        tail = step


def _factor(tail: _Tail) -> _Tail | None:
    users = tail.weights.uses
    user = users[0] if len(users) == 1 else None
    if isinstance(user, Mul) and is_number(user.b):
        return replace(tail, weights=user.result, factor=tail.factor * number(user.b), ops=(*tail.ops, user))
    return None


def _quotient(tail: _Tail) -> _Tail | None:
    """`w / (sum(w) + eps)`, where a constant factor may stand on the upper w. A factor c on both cancels, but turns eps into eps / c."""
    w = tail.weights
    sums = [u for u in w.users() if isinstance(u, Sum)]
    others = [u for u in w.users() if not isinstance(u, Sum)]
    if len(sums) != 1 or len(others) != 1 or len(w.uses) != 2:
        return None
    total, eps, ops = sums[0].result, 0.0, [sums[0], others[0]]
    if sums[0].axes != last_axis(w) or not sums[0].keep or len(total.uses) != 1:
        return None
    plus = total.users()[0] if total.users() else None
    if isinstance(plus, Add) and is_number(plus.b):
        total, eps = plus.result, float(number(plus.b))
        ops.append(plus)
    upper, factor, quotient = w, 1.0, others[0]
    if isinstance(quotient, Mul) and is_number(quotient.b) and len(quotient.result.uses) == 1:
        upper, factor = quotient.result, float(number(quotient.b))
        following = quotient.result.users()
        if not following:
            return None
        quotient = following[0]
        ops.append(quotient)
    if not isinstance(quotient, Div) or quotient.b is not total or len(total.uses) != 1:
        return None
    if quotient.a is upper and tail.factor > 0:
        return _Tail(quotient.result, True, eps / tail.factor, factor, (*tail.ops, *ops))
    return None


RULES = (route,)
