"""The experts' rows are combined by gathering, also where a graph scatters; the routing weight stays where it was written."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from tests.passes.support import counts, graph, names, transformed

ARGS = "%x: f32[N, 8], %ids: i32[N, 2], %weights: f32[N, 2]"
SORT = """%flat = reshape(%ids) {shape = [2*N]}
%order, %offsets_, %places = sort_by_key(%flat) {num_keys = 3}
%k = constant() {value = [2], dtype = i32}
%token = floordiv(%order, %k)"""
ROWS = {
    "token": "%rows = gather(%x, %token)",
    "repeated rows": "%x3 = reshape(%x) {shape = [N, 1, 8]}\n%xw = broadcast(%x3) {shape = [N, 2, 8]}\n%xf = reshape(%xw) {shape = [2*N, 8]}\n"
    "%rows = gather(%xf, %order)",
}
EXPERT = """%wg = param() {source = "e.*.g", dtype = f32, shape = [3, 6, 8]}
%wu = param() {source = "e.*.u", dtype = f32, shape = [3, 6, 8]}
%wd = param() {source = "e.*.d", dtype = f32, shape = [3, 8, 6]}
%g = segment_matmul(%rows, %wg, %offsets_)
%u = segment_matmul(%rows, %wu, %offsets_)
%s = sigmoid(%g)
%a = mul(%g, %s)
%h = mul(%a, %u)"""
SORTED_WEIGHTS = (
    "%wf = reshape(%weights) {shape = [2*N]}\n%ws = gather(%wf, %order)\n%wc = reshape(%ws) {shape = [2*N, 1]}"
)
DOWN = "%y = segment_matmul(%h, %wd, %offsets_)"
AFTER = f"{DOWN}\n{SORTED_WEIGHTS}\n%yw = mul(%y, %wc)"
BEFORE = f"{SORTED_WEIGHTS}\n%hw = mul(%h, %wc)\n%yw = segment_matmul(%hw, %wd, %offsets_)"
SCATTER = "%z = scatter_add(%yw, %TOKEN) {length = N}\nreturn %z"
TOKEN = {
    "token": "",
    "gathered count": "%n = iota() {length = N}\n%n2 = reshape(%n) {shape = [N, 1]}\n%nw = broadcast(%n2) {shape = [N, 2]}\n"
    "%nf = reshape(%nw) {shape = [2*N]}\n%token2 = gather(%nf, %order)\n",
}
COMMON = {"sort_by_key": 1, "param": 3, "segment_matmul": 3, "silu": 1, "sum": 1, "floordiv": 1, "constant": 1}


def moe(rows: str = "token", weight: str = AFTER, token: str = "token") -> str:
    name = "token" if token == "token" else "token2"
    return graph(
        ARGS, "\n".join([SORT, ROWS[rows], EXPERT, weight, TOKEN[token] + SCATTER.replace("%TOKEN", f"%{name}")])
    )


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("token", TOKEN)
def test_weight_after_the_down_product(rows, token):
    found = counts(moe(rows, token=token), ranges={"ids": 3})
    # Rows into the experts, and out of them; the weights are no longer sorted.
    assert found == COMMON | {"gather": 2, "reshape": 3, "mul": 2}


def test_weight_before_the_down_product():
    found = counts(moe(weight=BEFORE), ranges={"ids": 3})
    assert found == COMMON | {"gather": 3, "reshape": 4, "mul": 2}


def test_combine_is_in_the_one_form():
    module = transformed(moe(), ranges={"ids": 3})
    (total,) = [op for op in module.functions["main"].body.ops if op.name == "sum"]
    assert total.attrs()["axes"] == (1,)
    weighted = total.inputs()[0].op
    assert weighted is not None
    assert weighted.name == "mul"
    rows, weights = (v.op for v in weighted.inputs())
    assert rows is not None
    assert weights is not None
    assert weights.inputs()[0].name == "weights"
    gathered = rows.inputs()[0].op
    assert gathered is not None
    assert gathered.name == "gather"
    assert gathered.inputs()[1].name == "places"


def test_combine_by_gather_stays():
    text = graph(ARGS, "\n".join([SORT, ROWS["token"], EXPERT, DOWN, "%yg = gather(%y, %places)", "%y3 = reshape(%yg) {shape = [N, 2, 8]}",
                 "%w3 = reshape(%weights) {shape = [N, 2, 1]}\n%yw = mul(%y3, %w3)\n%z = sum(%yw) {axes = [1]}\nreturn %z"]))  # fmt: skip
    assert counts(text, ranges={"ids": 3}) == COMMON | {"gather": 2, "reshape": 3, "mul": 2}


NEAR = {
    "not the order of the sort": moe().replace("%token = floordiv(%order, %k)", "%token = floordiv(%order, %k)\n%t2 = floordiv(%places, %k)")
    .replace("scatter_add(%yw, %token)", "scatter_add(%yw, %t2)"),
    "another number of choices": moe().replace("value = [2], dtype = i32", "value = [4], dtype = i32"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR)
def test_stays_scattered(case):
    assert counts(NEAR[case], ranges={"ids": 3})["scatter_add"] == 1


def test_weights_in_another_order_stay_on_the_rows():
    text = moe().replace("gather(%wf, %order)", "gather(%wf, %places)")
    module = transformed(text, ranges={"ids": 3})
    assert names(module)["scatter_add"] == 0
    (total,) = [op for op in module.functions["main"].body.ops if op.name == "sum"]
    summed = total.inputs()[0].op
    assert summed is not None
    assert summed.name == "reshape"
