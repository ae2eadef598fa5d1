"""A whole layer in primitives, raised: what is found in it, in what words it is written, and how long it takes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Value
from ringc.ir.levels import verify
from ringc.ir.text_parse import parse_module
from ringc.passes.canonicalize import canonicalize_block
from ringc.passes.cse import merge_equal
from ringc.passes.framework import PassManager, Timing
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.raising import Raise, raise_block
from ringc.passes.target import target
from tests.passes.support import names, transformed

LAYER = (Path(__file__).parent / "golden" / "ring_linear_layer.ring").read_text()
FOUND = {
    "linear_attention": 1,
    "route": 1,
    "rope": 2,
    "rms_norm": 5,
    "silu": 2,
    "sigmoid": 1,
    "sort_by_key": 1,
    "segment_matmul": 3,
    "matmul": 6,
}
GONE = {
    "scan",
    "state_read",
    "state_write",
    "scatter_add",
    "topk",
    "take_along",
    "where",
    "exp",
    "sqrt",
    "rsqrt",
    "mean",
    "div",
    "neg",
    "sub",
}

OTHER_WORDS = {
    "norm as a product with 1 / sqrt": ("%nx1 = div(%x, %rt1)", "%ir1 = div(%one, %rt1)\n  %nx1 = mul(%ir1, %x)"),
    "weight multiplied first": ("%q1 = mul(%nq, %wq)", "%q1 = mul(%wq, %nq)"),
    "gate as an exponential": (
        "%gate = sigmoid(%gate_)",
        "%gn = neg(%gate_)\n  %ge = exp(%gn)\n  %gd = add(%ge, %one)\n  %gate = div(%one, %gd)",
    ),
    "q, k, v from three products": (
        LAYER[LAYER.index("  %wqkv = ") : LAYER.index("  %v = slice")]
        + LAYER[LAYER.index("  %v = slice") : LAYER.index("\n\n  # q norm")].split("\n")[0],
        "\n".join(
            f'  %w{n}_ = param() {{source = "attention.{n}.weight", dtype = f32, shape = [16, 12]}}\n'
            f"  %{n}_ = matmul(%h1, %w{n}_) {{transpose_b = true}}\n  %{out} = reshape(%{n}_) {{shape = [N, 2, 8]}}"
            for n, out in (("v", "v"), ("q", "q0"), ("k", "k0"))
        ),
    ),
    "group mask by scatter": (
        "%last = slice(%best) {axis = 1, start = 1, stop = 2}\n  %kept = ge(%gs, %last)",
        (
            "%no = constant() {value = [false], dtype = bool}\n  %yes = constant() {value = [true], dtype = bool}\n"
            "  %nos = broadcast(%no) {shape = [N, 3]}\n  %yeses = broadcast(%yes) {shape = [N, 2]}\n  %kept = scatter(%nos, %besti, %yeses)"
        ),
    ),
    "routing weight before the down product": (
        LAYER[LAYER.index("  %ey = segment_matmul") : LAYER.index("  %routed")],
        (
            "  %wflat = reshape(%weights) {shape = [2*N]}\n  %wsort = gather(%wflat, %order)\n"
            "  %wcol = reshape(%wsort) {shape = [2*N, 1]}\n  %ehw = mul(%eh, %wcol)\n  %eyw = segment_matmul(%ehw, %wed, %offs)\n"
        ),
    ),
    "experts combined by gathering": (
        LAYER[LAYER.index("  %wflat = ") : LAYER.index("\n\n  # shared expert")],
        (
            "  %eyp = gather(%ey, %places)\n  %ey3 = reshape(%eyp) {shape = [N, 2, 12]}\n  %w3 = reshape(%weights) {shape = [N, 2, 1]}\n"
            "  %eyw = mul(%ey3, %w3)\n  %routed = sum(%eyw) {axes = [1]}"
        ),
    ),
    "outer product as a matrix product": ("%kv = mul(%kc, %vr)", "%kv = matmul(%kc, %vr)"),
    "query scaled before the scan": (
        LAYER[LAYER.index("    %c = constant()") : LAYER.index("    %qr = reshape(%qs)")] + "    %qr = reshape(%qs)",
        "    %qr = reshape(%q)",
    ),
}


def in_other_words(*cases: str) -> str:
    text = LAYER
    for case in cases:
        old, new = OTHER_WORDS[case]
        assert old in text, case
        text = text.replace(old, new)
    if "query scaled before the scan" in cases:
        text = text.replace("[%q2, %k2, %v]", "[%q3, %k2, %v]").replace(
            "  %final, ",
            "  %c = constant() {value = [0.3535533905932738], dtype = f32}\n  %q3 = mul(%q2, %c)\n  %final, ",
        )
    return text


def check(text: str) -> Module:
    module = transformed(text, sizes={"N": 5})
    found = names(module)
    assert {name: found[name] for name in FOUND} == FOUND
    assert not GONE & found.keys()
    return module


def test_layer():
    check(LAYER)


@pytest.mark.parametrize("case", OTHER_WORDS)
def test_layer_in_other_words(case):
    check(in_other_words(case))


def test_layer_in_other_words_all_at_once():
    check(in_other_words(*(case for case in OTHER_WORDS if case != "experts combined by gathering")))


def test_raising_twice_changes_nothing():
    module = check(LAYER)
    again = module.clone()
    PassManager([Raise()]).run(again, target("cpu"))
    assert again.functions["main"].body.structural_hash() == module.functions["main"].body.structural_hash()


def test_raising_is_deterministic():
    hashes = {check(LAYER).functions["main"].body.structural_hash() for _ in range(2)}
    assert len(hashes) == 1


def stacked(layers: int) -> Module:
    """The layer several times over, with pools of their own."""
    one = parse_module(LAYER).functions["main"].body
    x, *tokens, pool = one.args
    block = Block([x.type, *(t.type for t in tokens)], ["x", *(t.name for t in tokens)])
    value: Value = block.args[0]
    pools: list[Value] = []
    for i in range(layers):
        mapping = dict(
            zip((x, *tokens, pool), (value, *block.args[1 : 1 + len(tokens)], block.add_arg(pool.type)), strict=True)
        )
        b = Builder(block, scope=f"layers.{i}")
        for op in one.ops:
            changes = {"source": f"layers.{i}.{op.attrs()['source']}"} if op.name == "param" else {}
            copy = b.insert(op.clone(mapping, **changes))
            mapping.update(zip(op.results, copy.results, strict=True))
        value = mapping[one.outputs[0]]
        pools.append(mapping[one.outputs[1]])
    block.set_outputs([value, *pools])
    return Module("stack", {"main": Function("main", block)})


def test_many_layers_are_raised_fast():
    module = stacked(16)
    size = len(module.functions["main"].body.ops)
    assert size > 2000
    timing = Timing()
    start = time.perf_counter()
    PassManager(parse_pipeline("canonicalize,cse,raise"), [timing]).run(module, target("cpu"))
    seconds = time.perf_counter() - start
    verify(module)
    found = names(module)
    assert {name: found[name] for name in FOUND} == {name: 16 * count for name, count in FOUND.items()}
    assert seconds < 1.5 * size / 2000, timing.seconds


def test_rules_report_how_often_they_applied():
    module = parse_module(LAYER)
    hits = raise_block(module.functions["main"].body)
    wanted = {
        "linear_attention": 1,
        "route": 1,
        "rope_halves": 1,
        "rope_rotate_half": 1,
        "rope_rest": 2,
        "combine_by_gather": 1,
        "split_gate_and_up": 1,
    }
    assert Counter({name: hits[name] for name in wanted}) == wanted
    assert hits["merge_projections"] == 1


def test_canonical_graphs_stay_as_they_are():
    """Every rule moves toward the same form: a second run finds nothing to do."""
    module = stacked(2)
    body = module.functions["main"].body
    canonicalize_block(body)
    merge_equal(body)
    canonicalize_block(body)
    once = body.structural_hash()
    canonicalize_block(body)
    merge_equal(body)
    assert body.structural_hash() == once
