"""The routing chain becomes one `route`, with its groups masked in every way; near misses don't."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import math

import pytest

from ringc.ir.ops.routing import Route
from tests.passes.support import counts, graph, transformed

ARGS = "%logits: f32[N, 12], %bias: f32[12]"

SCORE = {
    "sigmoid": "%p = sigmoid(%logits)",
    "exponential sigmoid": "%one_ = constant() {value = [1.0], dtype = f32}\n%nl = neg(%logits)\n%el = exp(%nl)\n%dl = add(%one_, %el)\n"
    "%p = div(%one_, %dl)",
    "softmax": "%top_ = max(%logits) {axes = [1], keep = true}\n%sh = sub(%logits, %top_)\n%el = exp(%sh)\n"
    "%sl = sum(%el) {axes = [1], keep = true}\n%p = div(%el, %sl)",
}
BIAS = {
    "bias": "%b = add(%p, %bias)",
    "bias first": "%b = add(%bias, %p)",
    "bias as a row": "%br = reshape(%bias) {shape = [1, 12]}\n%b = add(%p, %br)",
    "bias for each token": "%br = broadcast(%bias) {shape = [N, 12]}\n%b = add(%p, %br)",
}
GROUPED = "%grouped = reshape(%b) {shape = [N, 4, 3]}"
GROUP_SCORE = {
    "top 2": "%gt, %gi = topk(%grouped) {k = 2}\n%gs = sum(%gt) {axes = [2]}",
    "top 2, axis kept": "%gt, %gi = topk(%grouped) {k = 2}\n%gs0 = sum(%gt) {axes = [2], keep = true}\n%gs = reshape(%gs0) {shape = [N, 4]}",
    "best": "%gs = max(%grouped) {axes = [2]}",
}
BEST = "%best, %kept_ids = topk(%gs) {k = 2}"
FALSE = "%f_ = constant() {value = [false], dtype = bool}\n%f = broadcast(%f_) {shape = [N, 4]}"
TRUE = "%t_ = constant() {value = [true], dtype = bool}\n%t = broadcast(%t_) {shape = [N, 2]}"
ZEROS = "%f_ = constant() {value = [0.0], dtype = f32}\n%f = broadcast(%f_) {shape = [N, 4]}"
ONES = "%t_ = constant() {value = [1.0], dtype = f32}\n%t = broadcast(%t_) {shape = [N, 2]}"
HALF = "%half = constant() {value = [0.5], dtype = f32}"
ONE = "%uno = constant() {value = [1.0], dtype = f32}"
KEPT = {
    "scatter": f"{BEST}\n{FALSE}\n{TRUE}\n%kept = scatter(%f, %kept_ids, %t)",
    "scatter of numbers, > 0.5": f"{BEST}\n{ZEROS}\n{ONES}\n{HALF}\n%k0 = scatter(%f, %kept_ids, %t)\n%kept = gt(%k0, %half)",
    "scatter of numbers, == 1": f"{BEST}\n{ZEROS}\n{ONES}\n{ONE}\n%k0 = scatter(%f, %kept_ids, %t)\n%kept = eq(%k0, %uno)",
    "scatter of numbers, cast": f"{BEST}\n{ZEROS}\n{ONES}\n%k0 = scatter(%f, %kept_ids, %t)\n%kept = cast(%k0) {{dtype = bool}}",
    "comparison": f"{BEST}\n%last = slice(%best) {{axis = 1, start = 1, stop = 2}}\n%kept = ge(%gs, %last)",
    "comparison, le": f"{BEST}\n%last = slice(%best) {{axis = 1, start = 1, stop = 2}}\n%kept = le(%last, %gs)",
    "comparison, not lt": f"{BEST}\n%last = slice(%best) {{axis = 1, start = 1, stop = 2}}\n%less = lt(%gs, %last)\n%kept = not(%less)",
    "one-hot": f"{BEST}\n%gn = iota() {{length = 4}}\n%ki = reshape(%kept_ids) {{shape = [N, 2, 1]}}\n%eq = eq(%ki, %gn)\n%ef = cast(%eq) {{dtype = f32}}\n"
    f"%any = max(%ef) {{axes = [1]}}\n{HALF}\n%kept = gt(%any, %half)",
    "one-hot, groups in front": f"{BEST}\n%gn = iota() {{length = 4}}\n%gc = reshape(%gn) {{shape = [1, 4, 1]}}\n%ki = reshape(%kept_ids) {{shape = [N, 1, 2]}}\n"
    f"%eq = eq(%gc, %ki)\n%ef = cast(%eq) {{dtype = f32}}\n%any = sum(%ef) {{axes = [2]}}\n{HALF}\n%kept = lt(%half, %any)",
}
DROP = "%drop = constant() {value = [DROPPED], dtype = f32}"
MASKED = {
    "by group": f"{DROP}\n%km = reshape(%kept) {{shape = [N, 4, 1]}}\n%m3 = where(%km, %grouped, %drop)\n%m = reshape(%m3) {{shape = [N, 12]}}",
    "by expert": f"{DROP}\n%km = reshape(%kept) {{shape = [N, 4, 1]}}\n%ke = broadcast(%km) {{shape = [N, 4, 3]}}\n%kx = reshape(%ke) {{shape = [N, 12]}}\n"
    "%m = where(%kx, %b, %drop)",
    "negated": f"{DROP}\n%km = reshape(%kept) {{shape = [N, 4, 1]}}\n%kn = not(%km)\n%m3 = where(%kn, %drop, %grouped)\n%m = reshape(%m3) {{shape = [N, 12]}}",
    "by expert, equal to zero": f"{DROP}\n%kn = cast(%kept) {{dtype = f32}}\n%km = reshape(%kn) {{shape = [N, 4, 1]}}\n%ke = broadcast(%km) {{shape = [N, 4, 3]}}\n"
    "%kx = reshape(%ke) {shape = [N, 12]}\n%nil = constant() {value = [0.0], dtype = f32}\n%kz = eq(%kx, %nil)\n%m = where(%kz, %drop, %b)",
    "by expert, above a half": f"{DROP}\n%kn = cast(%kept) {{dtype = f32}}\n%km = reshape(%kn) {{shape = [N, 4, 1]}}\n%ke = broadcast(%km) {{shape = [N, 4, 3]}}\n"
    "%kx = reshape(%ke) {shape = [N, 12]}\n%some = constant() {value = [0.5], dtype = f32}\n%kz = gt(%kx, %some)\n%m = where(%kz, %b, %drop)",
    "broadcast": f"{DROP}\n%km = reshape(%kept) {{shape = [N, 4, 1]}}\n%ke = broadcast(%km) {{shape = [N, 4, 3]}}\n%m3 = where(%ke, %grouped, %drop)\n"
    "%m = reshape(%m3) {shape = [N, 12]}",
}
CHOOSE = "%val, %ids = topk(%m) {k = 4}\n%w = take_along(%p, %ids)"
SUM = "%ws = sum(%w) {axes = [1], keep = true}"
EPS = "%eps = constant() {value = [1e-20], dtype = f32}"
F = "%fac = constant() {value = [2.5], dtype = f32}"
WEIGHTS = {
    "normalised, factor": (
        f"{SUM}\n{EPS}\n%wt = add(%ws, %eps)\n%wn = div(%w, %wt)\n{F}\n%y = mul(%wn, %fac)",
        True,
        1e-20,
        2.5,
    ),
    "factor first": (
        f"{SUM}\n{EPS}\n%wt = add(%ws, %eps)\n{F}\n%wf = mul(%fac, %w)\n%y = div(%wf, %wt)",
        True,
        1e-20,
        2.5,
    ),
    "factor before the sum": (
        (
            f"{F}\n%wf = mul(%w, %fac)\n%ws = sum(%wf) {{axes = [1], keep = true}}\n%eps = constant() {{value = [0.5], dtype = f32}}\n"
            "%wt = add(%eps, %ws)\n%y = div(%wf, %wt)"
        ),
        True,
        0.2,
        1.0,
    ),
    "normalised": (f"{SUM}\n{EPS}\n%wt = add(%eps, %ws)\n%y = div(%w, %wt)", True, 1e-20, 1.0),
    "by the inverse": (
        f"{SUM}\n{EPS}\n%wt = add(%ws, %eps)\n{ONE}\n%wi = div(%uno, %wt)\n%y = mul(%w, %wi)",
        True,
        1e-20,
        1.0,
    ),
    "no eps": ("%ws0 = sum(%w) {axes = [1]}\n%ws = reshape(%ws0) {shape = [N, 1]}\n%y = div(%w, %ws)", True, 0.0, 1.0),
    "factor alone": (f"{F}\n%y = mul(%w, %fac)", False, None, 2.5),
    "plain": ("%y = reshape(%w) {shape = [N, 4]}", False, None, 1.0),
}


def chain(score="sigmoid", bias="bias", group_score="top 2", kept="scatter", masked="by group", weights="normalised, factor",
          dropped="-inf", tail="", groups=True) -> str:  # fmt: skip
    limited = [GROUPED, GROUP_SCORE[group_score], KEPT[kept], MASKED[masked].replace("DROPPED", dropped)]
    plain = ["%m = reshape(%b) {shape = [N, 12]}"]
    parts = [
        SCORE[score],
        BIAS[bias],
        *(limited if groups else plain),
        CHOOSE,
        WEIGHTS[weights][0],
        f"return %ids, %y{tail}",
    ]
    return graph(ARGS, "\n".join(parts))


def found(text: str) -> Route:
    (op,) = transformed(text).functions["main"].body.ops
    assert isinstance(op, Route)
    assert op.logits.name == "logits"
    return op


@pytest.mark.parametrize("score", SCORE)
@pytest.mark.parametrize("bias", BIAS)
def test_scores_and_bias(score, bias):
    op = found(chain(score, bias))
    assert op.score == ("softmax" if score == "softmax" else "sigmoid")
    assert op.bias is not None
    assert op.bias.name == "bias"
    assert (op.top_k, op.groups, op.keep, op.group_top, op.dropped) == (4, 4, 2, 2, -math.inf)


@pytest.mark.parametrize("group_score", GROUP_SCORE)
def test_group_scores(group_score):
    assert found(chain(group_score=group_score)).group_top == (1 if group_score == "best" else 2)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("masked", MASKED)
def test_masks(kept, masked):
    op = found(chain(kept=kept, masked=masked))
    assert (op.groups, op.keep) == (4, 2)


@pytest.mark.parametrize("masked", MASKED)
def test_dropped_groups_score_zero(masked):
    assert found(chain(masked=masked, dropped="0.0")).dropped == 0.0


@pytest.mark.parametrize("kept", ["scatter", "one-hot"])
def test_mask_as_a_factor(kept):
    mask = "%km = reshape(%kept) {shape = [N, 4, 1]}\n%kf = cast(%km) {dtype = f32}\n%m3 = mul(%grouped, %kf)\n%m = reshape(%m3) {shape = [N, 12]}"
    text = chain(kept=kept).replace(MASKED["by group"].replace("DROPPED", "-inf"), mask)
    assert found(text).dropped == 0.0


def test_added_mask():
    mask = (
        f"{DROP.replace('DROPPED', '-inf')}\n%zero = constant() {{value = [0.0], dtype = f32}}\n%km = reshape(%kept) {{shape = [N, 4, 1]}}\n"
        "%ka = where(%km, %zero, %drop)\n%m3 = add(%grouped, %ka)\n%m = reshape(%m3) {shape = [N, 12]}"
    )
    assert found(chain().replace(MASKED["by group"].replace("DROPPED", "-inf"), mask)).dropped == -math.inf


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights(weights):
    op = found(chain(weights=weights))
    _, normalize, eps, factor = WEIGHTS[weights]
    assert op.normalize is normalize
    assert op.factor == pytest.approx(factor, rel=1e-12)
    if eps is not None:
        assert op.eps == pytest.approx(eps, rel=1e-12)


def test_no_groups():
    op = found(chain(groups=False))
    assert (op.groups, op.keep) == (1, 1)


def test_no_bias_and_the_values_of_the_choice():
    text = (
        chain("softmax", groups=False).replace(BIAS["bias"] + "\n", "").replace("%m = reshape(%b)", "%m = reshape(%p)")
    )
    assert found(text).bias is None
    assert found(text.replace("%w = take_along(%p, %ids)\n", "").replace("%val, %ids", "%w, %ids")).bias is None


def test_a_router_that_goes_on_in_another_type():
    text = chain(tail="").replace("return %ids, %y", "%yb = cast(%y) {dtype = bf16}\nreturn %ids, %yb")
    assert counts(text) == {"route": 1, "cast": 1}


NEAR = {
    "scores have another user": chain(tail=", %p"),
    "biased scores have another user": chain(tail=", %b"),
    "group scores have another user": chain(tail=", %gs"),
    "the mask has another user": chain(tail=", %kept"),
    "weights carry the bias": chain(groups=False).replace("take_along(%p,", "take_along(%b,"),
    "values carry the bias": chain(groups=False).replace("%w = take_along(%p, %ids)\n", "").replace("%val, %ids", "%w, %ids"),
    "another score": chain().replace("%p = sigmoid(%logits)", "%p = abs(%logits)"),
    "the worst groups": chain().replace("topk(%gs)", "topk(%worst)").replace("%best,", "%worst = neg(%gs)\n%best,"),
    "the dropped groups": chain().replace("where(%km, %grouped, %drop)", "where(%km, %drop, %grouped)"),
    "compared with the best": chain(kept="comparison").replace("start = 1, stop = 2}\n%kept", "start = 0, stop = 1}\n%kept"),
    "less or equal": chain(kept="comparison").replace("ge(%gs, %last)", "le(%gs, %last)"),
    "greater alone": chain(kept="comparison").replace("ge(%gs, %last)", "gt(%gs, %last)").replace("k = 4}\n%w", "k = 3}\n%w"),
    "groups of other scores": chain().replace("%grouped = reshape(%b)", "%other = add(%b, %p)\n%grouped = reshape(%other)")
    .replace("where(%km, %grouped", "where(%km, %gb").replace("%km =", "%gb = reshape(%b) {shape = [N, 4, 3]}\n%km ="),
    "a mask of scattered zeros": chain().replace("[true]", "[false]").replace("[-inf]", "[-1.0]"),
    "kept where the mask is zero": chain(masked="by expert, equal to zero").replace("where(%kz, %drop, %b)", "where(%kz, %b, %drop)"),
    "more experts than the kept groups have": chain(dropped="-9.0").replace("topk(%m) {k = 4}", "topk(%m) {k = 7}").replace("[N, 4]}\nr", "[N, 7]}\nr"),
    "mean of the groups": chain(group_score="best").replace("max(%grouped)", "mean(%grouped)"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR)
def test_no_route(case):
    assert "route" not in counts(NEAR[case])


def test_groups_along_the_other_axis():
    """As many groups as experts in one: a mask over the positions in a group must not be taken for one of groups."""
    square = chain().replace("12]", "16]").replace("[N, 4, 3]", "[N, 4, 4]")
    assert "route" in counts(square)
    wrong = square.replace("%km = reshape(%kept) {shape = [N, 4, 1]}", "%km = reshape(%kept) {shape = [N, 1, 4]}")
    assert "route" not in counts(wrong)


def test_normalised_over_tokens():
    text = chain(weights="normalised").replace(
        "%ws = sum(%w) {axes = [1], keep = true}", "%ws = sum(%w) {axes = [0], keep = true}"
    )
    found_ = counts(text)
    assert found_["route"] == 1
    assert found_["div"] == 1
