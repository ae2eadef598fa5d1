"""Rotary positions are found by halves, by pairs and by a rotated copy, with and without a rest."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from tests.passes.support import counts, graph, transformed

ARGS = "%x: f32[N, 4, 12], %cos: f32[N, {half}], %sin: f32[N, {half}]"
TABLES = "%c = reshape(%cos) {{shape = [N, 1, {half}]}}\n%s = reshape(%sin) {{shape = [N, 1, {half}]}}"


def cut(name: str, start: int, stop: int, step: int = 1, of: str = "x", axis: int = 2) -> str:
    return f"%{name} = slice(%{of}) {{axis = {axis}, start = {start}, stop = {stop}, step = {step}}}"


def turn(first: str = "%ac, %bs", second: str = "%bc, %as") -> str:
    return f"%ac = mul(%a, %c)\n%bs = mul(%s, %b)\n%bc = mul(%c, %b)\n%as = mul(%a, %s)\n%o1 = sub({first})\n%o2 = add({second})"


def halves(half: int, tail: str = "", turned: str | None = None) -> str:
    """The first 2 * half of 12 channels turn."""
    rest = 2 * half < 12
    parts = [TABLES.format(half=half), cut("a", 0, half), cut("b", half, 2 * half), turned or turn()]
    parts += [cut("rest", 2 * half, 12)] if rest else []
    parts += [f"%y = concat([%o1, %o2{', %rest' if rest else ''}]) {{axis = 2}}", f"return %y{tail}"]
    return graph(ARGS.format(half=half), "\n".join(parts))


@pytest.mark.parametrize("half", [2, 4, 6])
@pytest.mark.parametrize("second", ["%bc, %as", "%as, %bc"])
def test_halves(half, second):
    assert counts(halves(half, turned=turn(second=second))) == {"rope": 1}


def test_halves_with_a_negated_term():
    turned = "%ac = mul(%a, %c)\n%nb = neg(%b)\n%bs = mul(%nb, %s)\n%bc = mul(%c, %b)\n%as = mul(%a, %s)\n%o1 = add(%bs, %ac)\n%o2 = add(%bc, %as)"
    assert counts(halves(4, turned=turned)) == {"rope": 1}


def test_halves_concatenated_twice():
    body = "\n".join([TABLES.format(half=4), cut("t", 0, 8), cut("a", 0, 4, of="t"), cut("b", 4, 8, of="t"), turn(), cut("rest", 8, 12),
                      "%r = concat([%o1, %o2]) {axis = 2}", "%y = concat([%r, %rest]) {axis = 2}", "return %y"])  # fmt: skip
    assert counts(graph(ARGS.format(half=4), body)) == {"rope": 1}


def test_halves_by_reshape():
    body = "\n".join([
        "%c = reshape(%cos) {shape = [N, 1, 1, 6]}", "%s = reshape(%sin) {shape = [N, 1, 1, 6]}",
        "%p = reshape(%x) {shape = [N, 4, 2, 6]}", cut("a", 0, 1, of="p"), cut("b", 1, 2, of="p"), turn(),
        "%o = concat([%o1, %o2]) {axis = 2}", "%y = reshape(%o) {shape = [N, 4, 12]}", "return %y",
    ])  # fmt: skip
    found = counts(graph(ARGS.format(half=6), body))
    assert found["rope"] == 1
    assert found.keys() <= {"rope", "reshape"}


def test_broadcast_tables():
    body = halves(4).replace(
        "%a = slice", "%cw = broadcast(%c) {shape = [N, 4, 4]}\n%sw = broadcast(%s) {shape = [N, 4, 4]}\n%a = slice"
    )
    body = body.replace("%ac = mul(%a, %c)", "%ac = mul(%a, %cw)").replace("%as = mul(%a, %s)", "%as = mul(%a, %sw)")
    assert counts(body) == {"rope": 1}


def pairs(half: int, stacked: str, split: str) -> str:
    rest = 2 * half < 12
    if split == "strided":
        parts = [TABLES.format(half=half), cut("a", 0, 2 * half, 2), cut("b", 1, 2 * half, 2), turn()]
        parts += [
            f"%q1 = reshape(%o1) {{shape = [N, 4, {half}, 1]}}",
            f"%q2 = reshape(%o2) {{shape = [N, 4, {half}, 1]}}",
        ]
    else:
        parts = [
            f"%c = reshape(%cos) {{shape = [N, 1, {half}, 1]}}",
            f"%s = reshape(%sin) {{shape = [N, 1, {half}, 1]}}",
        ]
        parts += [cut("t", 0, 2 * half), f"%p = reshape(%t) {{shape = [N, 4, {half}, 2]}}", cut("a", 0, 1, of="p", axis=3),
                  cut("b", 1, 2, of="p", axis=3), turn(), "%q1 = reshape(%o1) {shape = [N, 4, HALF, 1]}".replace("HALF", str(half)),
                  "%q2 = reshape(%o2) {shape = [N, 4, HALF, 1]}".replace("HALF", str(half))]  # fmt: skip
    parts += [f"%q = concat([{stacked}]) {{axis = 3}}", f"%r = reshape(%q) {{shape = [N, 4, {2 * half}]}}"]
    parts += (
        [cut("rest", 2 * half, 12), "%y = concat([%r, %rest]) {axis = 2}"]
        if rest
        else ["%y = reshape(%r) {shape = [N, 4, 12]}"]
    )
    return graph(ARGS.format(half=half), "\n".join([*parts, "return %y"]))


@pytest.mark.parametrize("half", [2, 4, 6])
@pytest.mark.parametrize("split", ["strided", "reshape"])
def test_pairs(half, split):
    module = transformed(pairs(half, "%q1, %q2", split))
    (rope,) = module.functions["main"].body.ops
    assert rope.name == "rope"
    assert rope.attrs()["interleaved"] is True


ROTATED = """%n = neg(%b)
%r = concat([%n, %a]) {axis = 2}
%p1 = mul(%t, %c2)
%p2 = mul(%s2, %r)
%z = add(%p1, %p2)"""
FULL = {
    "concatenated": "%cc = concat([%cos, %cos]) {{axis = 1}}\n%ss = concat([%sin, %sin]) {{axis = 1}}\n"
    "%c2 = reshape(%cc) {{shape = [N, 1, {r}]}}\n%s2 = reshape(%ss) {{shape = [N, 1, {r}]}}",
    "after the reshape": "%c1 = reshape(%cos) {{shape = [N, 1, {half}]}}\n%s1 = reshape(%sin) {{shape = [N, 1, {half}]}}\n"
    "%c2 = concat([%c1, %c1]) {{axis = 2}}\n%s2 = concat([%s1, %s1]) {{axis = 2}}",
    "of twice the angles": "%aa = concat([%cos, %cos]) {{axis = 1}}\n%cc = cos(%aa)\n%ss = sin(%aa)\n"
    "%c2 = reshape(%cc) {{shape = [N, 1, {r}]}}\n%s2 = reshape(%ss) {{shape = [N, 1, {r}]}}",
}


@pytest.mark.parametrize("half", [3, 6])
@pytest.mark.parametrize("tables", FULL)
@pytest.mark.parametrize("order", ["%s2, %r", "%r, %s2"])
def test_rotate_half(half, tables, order):
    r = 2 * half
    parts = [
        FULL[tables].format(half=half, r=r),
        cut("t", 0, r),
        cut("a", 0, half, of="t"),
        cut("b", half, r, of="t"),
        ROTATED.replace("%s2, %r", order),
    ]
    parts += [cut("rest", r, 12), "%y = concat([%z, %rest]) {axis = 2}", "return %y"] if r < 12 else ["return %z"]
    found = counts(graph(ARGS.format(half=half), "\n".join(parts)))
    assert found["rope"] == 1
    assert found.keys() <= {"rope", "cos", "sin"}


def test_rotate_half_with_tables_by_position():
    body = "\n".join([
        "%tc = concat([%ct, %ct]) {axis = 1}", "%ts = concat([%st, %st]) {axis = 1}", "%cc = gather(%tc, %positions)",
        "%ss = gather(%ts, %positions)", "%c2 = reshape(%cc) {shape = [N, 1, 12]}", "%s2 = reshape(%ss) {shape = [N, 1, 12]}",
        cut("t", 0, 12), cut("a", 0, 6, of="t"), cut("b", 6, 12, of="t"), ROTATED, "return %z",
    ])  # fmt: skip
    assert counts(graph("%x: f32[N, 4, 12], %ct: f32[S, 6], %st: f32[S, 6], %positions: i32[N]", body)) == {
        "gather": 2,
        "rope": 1,
    }


def test_heads_that_are_columns_of_a_product():
    body = "\n".join([TABLES.format(half=4), "%h = reshape(%p) {shape = [N, 3, 12]}", cut("x", 0, 1, of="h", axis=1), cut("a", 0, 4),
                      cut("b", 4, 8), turn(), cut("rest", 8, 12), "%y = concat([%o1, %o2, %rest]) {axis = 2}", "return %y"])  # fmt: skip
    found = counts(graph("%p: f32[N, 36], %cos: f32[N, 4], %sin: f32[N, 4]", body))
    assert found == {"slice": 1, "reshape": 1, "rope": 1}


NEAR = {
    "turned the other way": halves(
        4, turned=turn("%ac, %bs", "%bc, %as").replace("%o1 = sub", "%o1 = add").replace("%o2 = add", "%o2 = sub")
    ),
    "the same half twice": halves(4).replace(cut("b", 4, 8), cut("b", 0, 4)),
    "halves apart": halves(4).replace(cut("b", 4, 8), cut("b", 5, 9)),
    "halves exchanged": halves(4)
    .replace(cut("b", 4, 8), cut("b_", 4, 8))
    .replace("%a =", "%b =")
    .replace("%b_ =", "%a ="),
    "another sine": halves(4).replace("%as = mul(%a, %s)", "%s2 = abs(%s)\n%as = mul(%a, %s2)"),
    "a product has another user": halves(4, ", %ac"),
    "a half has another user": halves(4, ", %o1"),
    "pairs exchanged": pairs(4, "%q2, %q1", "strided"),
    "pairs laid out as halves": halves(4)
    .replace(cut("a", 0, 4), cut("a", 0, 8, 2))
    .replace(cut("b", 4, 8), cut("b", 1, 8, 2)),
    "angles of heads": halves(4).replace("[N, 4]", "[4, 4]").replace("shape = [N, 1, 4]", "shape = [4, 4]"),
}


@pytest.mark.parametrize("case", NEAR)
def test_no_rope(case):
    assert "rope" not in counts(NEAR[case])


def test_a_rest_from_elsewhere_stays_outside():
    found = counts(halves(4).replace(cut("rest", 8, 12), cut("rest", 0, 4)))
    assert found["rope"] == found["concat"] == 1
