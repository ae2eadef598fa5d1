"""cse and dce, and the rewriting that all rules stand on."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

import pytest

from ringc.ir.builder import Builder
from ringc.ir.core import Block
from ringc.ir.levels import verify
from ringc.ir.ops.pointwise import Abs, Add, Exp, Neg
from ringc.ir.ops.shape import Reshape
from ringc.ir.text_parse import parse_module
from ringc.ir.types import tensor
from ringc.passes.rewrite import NoMatch, Rewriter, apply_rules, need, no_match, pattern, single_user
from tests.passes.support import counts, graph, passed, transformed

# ---------------------------------------------------------------- cse

MERGED = {
    "equal operations": "%a = exp(%x)\n%b = exp(%x)\n%y = mul(%a, %b)\nreturn %y",
    "chains": "%a = exp(%x)\n%b = exp(%x)\n%na = neg(%a)\n%nb = neg(%b)\n%y = mul(%na, %nb)\nreturn %y",
    "commuted operands": "%a = add(%x, %z)\n%b = add(%z, %x)\n%y = mul(%a, %b)\nreturn %y",
    "parameters": '%a = param() {source = "w", dtype = f32, shape = [8]}\n%b = param() {source = "w", dtype = f32, shape = [8]}\n%y = mul(%a, %b)\nreturn %y',
    "constants": "%a = constant() {value = [2.0], dtype = f32}\n%b = constant() {value = [2.0], dtype = f32}\n%y = mul(%a, %b)\nreturn %y",
    "an output twice": "%a = exp(%x)\n%b = exp(%x)\nreturn %a, %b",
    "several results": "%a, %i = topk(%x) {k = 2}\n%b, %j = topk(%x) {k = 2}\nreturn %a, %j",
}


@pytest.mark.parametrize("case", MERGED)
def test_equal_operations_are_merged(case):
    text = graph("%x: f32[N, 8], %z: f32[N, 8]", MERGED[case])
    before = sum(counts(text, "dce").values())
    after = counts(text, "cse")
    assert sum(after.values()) < before
    assert sum(counts(text, "cse,cse").values()) == sum(after.values())


KEPT = {
    "operands in another order": "%a = sub(%x, %z)\n%b = sub(%z, %x)\n%y = mul(%a, %b)\nreturn %y",
    "attributes": "%a = sum(%x) {axes = [0]}\n%b = sum(%x) {axes = [1]}\nreturn %a, %b",
    "signed zeros": "%a = constant() {value = [0.0], dtype = f32}\n%b = constant() {value = [-0.0], dtype = f32}\nreturn %a, %b",
    "types of constants": "%a = constant() {value = [1], dtype = i32}\n%b = constant() {value = [true], dtype = bool}\nreturn %a, %b",
    "parameters": '%a = param() {source = "w", dtype = f32, shape = [8]}\n%b = param() {source = "v", dtype = f32, shape = [8]}\nreturn %a, %b',
}


@pytest.mark.parametrize("case", KEPT)
def test_different_operations_are_not(case):
    text = graph("%x: f32[N, 8], %z: f32[N, 8]", KEPT[case])
    assert counts(text, "cse") == counts(text, "dce")


def scan(body: str) -> str:
    return f"scan(%s, [%x], [], %offsets) ^(%S: f32[2], %x: f32[2]) {{\n{body}\n}}"


def test_scans_are_merged_by_their_bodies():
    args = "%x: f32[N / B, 2], %s: f32[B, 2], %offsets: i32[B + 1]"
    sums = [scan(f"%{n} = add(%S, %x)\nreturn %{n}, %{n}") for n in "ab"]
    product = scan("%b = mul(%S, %x)\nreturn %b, %b")
    for second, expected in ((sums[1], 1), (product, 2)):
        text = graph(args, f"%f, %o = {sums[0]}\n%g, %p = {second}\nreturn %o, %p")
        assert counts(text, "cse") == {"scan": expected}


def test_reads_and_writes_of_states_are_not_merged():
    args = "%pool: state<f32[P; 2]>, %slots: i32[B], %c: f32[B, 2]"
    text = graph(
        args,
        "%a = state_read(%pool, %slots)\n%b = state_read(%pool, %slots)\n%p = state_write(%pool, %slots, %c)\nreturn %a, %b, %p",
    )
    assert counts(text, "cse") == {"state_read": 2, "state_write": 1}


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (("layers.0", "layers.1"), "layers"),
        (("layers.0.mlp", "layers.0.attention"), "layers.0"),
        (("layers.0", "layers.0"), "layers.0"),
        (("embed", "layers.0"), ""),
    ],
)
def test_what_is_shared_belongs_to_the_common_scope(scopes, expected):
    text = graph(
        "%x: f32[N]", f"%a = exp(%x) : f32[N] in {scopes[0]}\n%b = exp(%x) : f32[N] in {scopes[1]}\nreturn %a, %b"
    )
    (op,) = transformed(text, "cse").functions["main"].body.ops
    assert op.scope == expected


# ---------------------------------------------------------------- dce


def test_dead_operations_are_dropped():
    args = "%x: f32[N / B, 2], %s: f32[B, 2], %offsets: i32[B + 1], %pool: state<f32[P; 2]>, %slots: i32[B]"
    body = scan("%a = add(%S, %x)\n%dead = exp(%a)\n%dead2 = neg(%dead)\nreturn %a, %a")
    text = graph(
        args,
        f"%e = exp(%x)\n%n = neg(%e)\n%r = state_read(%pool, %slots)\n%f, %o = {body}\n%p = state_write(%pool, %slots, %f)\nreturn %o",
    )
    module = transformed(text, "dce")
    assert [op.name for op in module.functions["main"].body.ops] == ["scan", "state_write"]
    assert [op.name for op in module.functions["main"].body.ops[0].regions()[0].ops] == ["add"]


# ---------------------------------------------------------------- rewriting


def block(*, chain: int = 1) -> tuple[Block, Builder]:
    made = Block([tensor("f32", 4)], ["x"])
    b = Builder(made)
    value = made.args[0]
    for _ in range(chain):
        value = b(Neg(value))
    made.set_outputs([value])
    return made, b


def test_a_rule_runs_until_it_no_longer_applies():
    @pattern(Neg)
    def two_at_once(op, r):
        inner = op.x.op
        need(isinstance(inner, Neg), "one alone")
        r.replace(op, inner.x)

    body, _ = block(chain=8)
    assert apply_rules(body, [two_at_once]) == {"two_at_once": 4}
    assert body.ops == []
    assert body.outputs == (body.args[0],)
    body.verify_uses()


def test_what_a_failed_rule_wrote_is_taken_back():
    @pattern(Neg)
    def half_done(op, r):
        r(Exp(r(Abs(op.x))))
        no_match("too late")

    body, _ = block()
    assert not apply_rules(body, [half_done])
    assert [op.name for op in body.ops] == ["neg"]
    body.verify_uses()


def test_a_replacement_of_another_type_is_refused():
    @pattern(Neg)
    def reshaped(op, r):
        r.replace(op, r(Reshape(op.x, (2, 2))))

    body, _ = block()
    assert not apply_rules(body, [reshaped])
    assert [op.name for op in body.ops] == ["neg"]


def test_rules_that_do_not_come_to_rest_are_found():
    @pattern(Neg)
    def again(op, r):
        r.replace(op, r(Neg(op.x)))

    body, _ = block()
    with pytest.raises(RuntimeError, match=r"don't come to rest.*again"):
        apply_rules(body, [again], limit=50)


def test_losing_a_second_user_gives_rules_another_chance():
    """`exp` has two users until the second of them is dropped, which happens after the first was looked at."""

    @pattern(Add)
    def needs_single_user(op, r):
        single_user(op.a)
        r.replace(op, r(Abs(op.a)))

    @pattern(Neg)
    def drops(op, r):
        r.replace(op, op.block.args[0])

    body = Block([tensor("f32", 4)], ["x"])
    b = Builder(body)
    e = b(Exp(body.args[0]))
    body.set_outputs([b(Add(e, body.args[0])), b(Neg(e))])
    assert apply_rules(body, [needs_single_user, drops]) == {"drops": 1, "needs_single_user": 1}
    body.verify_uses()


def test_single_user():
    body, b = block()
    x = body.args[0]
    assert single_user(x).name == "neg"
    b(Exp(x))
    with pytest.raises(NoMatch, match="other users"):
        single_user(x)
    with pytest.raises(NoMatch, match="other users"):
        single_user(body.outputs[0])


def test_new_operations_take_the_scope_of_what_they_replace():
    text = graph("%x: f32[N]", "%a = neg(%x) : f32[N] in layers.3\n%b = exp(%a) : f32[N] in layers.3\nreturn %b")
    body = parse_module(text).functions["main"].body
    rewriter = Rewriter(body, body.ops[1])
    made = rewriter(Abs(body.args[0]))
    assert made.op is not None
    assert made.op.scope == "layers.3"
    assert body.ops.index(made.op) == 1


def test_every_pass_leaves_valid_modules():
    module = passed(parse_module(graph("%x: f32[N, 8]", MERGED["chains"])), "canonicalize,cse,dce,raise")
    verify(module)
