"""Products of one left operand become one product and slices, in the order queries, keys, values, the rest."""

# ruff: noqa: E501 - a line of IR text stays a line
from __future__ import annotations

from ringc.ir.core import Module
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.shape import Concat
from ringc.ir.ops.source import Param
from tests.passes.support import counts, graph, transformed


def param(name: str, rows: int, columns: int = 8) -> str:
    return f'%w{name} = param() {{source = "{name}", dtype = f32, shape = [{rows}, {columns}]}}'


def product(name: str, left: str = "x") -> str:
    return f"%{name} = matmul(%{left}, %w{name}) {{transpose_b = true}}"


def weights(module: Module) -> list[list[str]]:
    """The published names that each product's weight is made of."""
    found = []
    for op in module.functions["main"].body.ops:
        if isinstance(op, MatMul):
            parts = op.b.op.parts if isinstance(op.b.op, Concat) else (op.b,)
            found.append([p.op.source for p in parts if isinstance(p.op, Param)])
    return found


LA_ARGS = "%x: f32[N / B, 8], %slopes: f32[2], %pool: state<f32[P; 2, 3, 3]>, %slots: i32[B], %offsets: i32[B + 1]"
LA = """%qh = reshape(%q) {shape = [N, 2, 3]}
%kh = reshape(%k) {shape = [N, 2, 3]}
%vh = reshape(%v) {shape = [N, 2, 3]}
%S0 = state_read(%pool, %slots)
%n = neg(%slopes)
%e = exp(%n)
%decay = reshape(%e) {shape = [2, 1, 1]}
%final, %o = scan(%S0, [%qh, %kh, %vh], [%decay], %offsets) ^(%S: f32[2, 3, 3], %q: f32[2, 3], %k: f32[2, 3], %v: f32[2, 3], %lam: f32[2, 1, 1]) {
  %kc = reshape(%k) {shape = [2, 3, 1]}
  %vr = reshape(%v) {shape = [2, 1, 3]}
  %kv = mul(%kc, %vr)
  %d = mul(%lam, %S)
  %new = add(%d, %kv)
  %qr = reshape(%q) {shape = [2, 1, 3]}
  %oo = matmul(%qr, %new)
  %out = reshape(%oo) {shape = [2, 3]}
  return %new, %out
}
%new_pool = state_write(%pool, %slots, %final)
%of = reshape(%o) {shape = [N, 6]}
%gs = sigmoid(%g)
%y = mul(%of, %gs)
return %y, %new_pool"""
QKVG = {name: f"{param(name, 6)}\n{product(name)}" for name in "qkvg"}


def test_three_products_and_the_gate():
    module = transformed(graph(LA_ARGS, "\n".join([*QKVG.values(), LA])))
    assert weights(module) == [["q", "k", "v", "g"]]


def test_the_gate_is_computed_first():
    module = transformed(graph(LA_ARGS, "\n".join([QKVG["g"], QKVG["v"], QKVG["k"], QKVG["q"], LA])))
    assert weights(module) == [["q", "k", "v", "g"]]


def test_one_product_and_the_gate():
    parts = "\n".join(
        f"%{n} = slice(%qkv) {{axis = 1, start = {6 * i}, stop = {6 * i + 6}}}" for i, n in enumerate("qkv")
    )
    text = graph(LA_ARGS, "\n".join([QKVG["g"], param("qkv", 18), product("qkv"), parts, LA]))
    assert weights(transformed(text)) == [["qkv", "g"]]


def test_heads_are_sliced_off_the_product_before_they_are_shaped():
    parts = "%all = reshape(%qkv) {shape = [N, 6, 3]}\n"
    parts += "\n".join(
        f"%{n}_ = slice(%all) {{axis = 1, start = {2 * i}, stop = {2 * i + 2}}}\n%{n} = reshape(%{n}_) {{shape = [N, 6]}}"
        for i, n in enumerate("qkv")
    )
    text = graph(LA_ARGS, "\n".join([QKVG["g"], param("qkv", 18), product("qkv"), parts, LA]))
    module = transformed(text)
    assert weights(module) == [["qkv", "g"]]
    for op in module.functions["main"].body.ops:
        if op.name == "slice":
            assert isinstance(op.inputs()[0].op, MatMul)


def test_gate_and_up_stay_two_and_the_router_alone():
    names = {"router": 12, "g": 6, "u": 6, "p": 4, "r": 5}
    body = [param(n, rows) for n, rows in names.items()] + [product(n) for n in names]
    body += [
        "%s = sigmoid(%g)",
        "%a = mul(%g, %s)",
        "%h = mul(%u, %a)",
        "%sc = sigmoid(%router)",
        "%val, %ids = topk(%sc) {k = 2}",
    ]
    body += ["%w = take_along(%sc, %ids)", "return %h, %ids, %w, %p, %r"]
    assert sorted(weights(transformed(graph("%x: f32[N, 8]", "\n".join(body))))) == [
        ["g"],
        ["p", "r"],
        ["router"],
        ["u"],
    ]


def test_other_left_operands_and_types_stay():
    body = [param("a", 4), param("b", 4), param("c", 4), product("a"), "%z = abs(%x)", product("b", "z")]
    body += ["%c = matmul(%x, %wc) {transpose_b = true, out = bf16}", "return %a, %b, %c"]
    assert counts(graph("%x: f32[N, 8]", "\n".join(body)))["matmul"] == 3


def test_products_with_plain_weights():
    body = [param("a", 8, 4), param("b", 8, 6), "%a = matmul(%x, %wa)", "%b = matmul(%x, %wb)", "return %a, %b"]
    module = transformed(graph("%x: f32[N, 8]", "\n".join(body)))
    assert weights(module) == [["a", "b"]]


def test_a_product_with_a_computed_matrix_stays():
    body = [param("a", 4), product("a"), "%b = matmul(%x, %m) {transpose_b = true}", "return %a, %b"]
    assert counts(graph("%x: f32[N, 8], %m: f32[4, 8]", "\n".join(body)))["matmul"] == 2
