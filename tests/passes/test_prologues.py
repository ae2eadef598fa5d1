"""Row work in front of a region, as a part of it: what is offered, what isn't, and that both ways mean the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.call import Alternatives, Fused
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import target

HEAD = "module @m level fused\nsymbol B >= 1\nsymbol N >= 1\nsymbol P >= 1\n\n"

GATE = """func @f(%wide: f32[N, 96], %o: f32[N, 4, 8], %g: f32[32], %w: f32[24, 32], %r: f32[N, 24]) with {rows = [1, 16]} {
  %gate = slice(%wide) {axis = 1, start = 64, stop = 96}
  %s = sigmoid(%gate)
  %groups = reshape(%o) {shape = [N, 2, 16]}
  %one = constant() {value = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], dtype = f32, shape = [16]}
  %n = rms_norm(%groups, %one)
  %flat = reshape(%n) {shape = [N, 32]}
  %scaled = mul(%flat, %g)
  %x = mul(%scaled, %s)
  %p = matmul(%x, %w) {transpose_b = true}
  %y = add(%r, %p)
  return %y
}"""

SWIGLU = """func @f(%x: f32[N, 32], %norm: f32[32], %g: f32[24, 32], %u: f32[24, 32]) with {rows = [1, 1]} {
  %n = rms_norm(%x, %norm)
  %a = matmul(%n, %g) {transpose_b = true}
  %b = matmul(%n, %u) {transpose_b = true}
  %s = silu(%a)
  %h = mul(%s, %b)
  return %h
}"""

ROUTER = """func @f(%x: f32[N, 32], %norm: f32[32], %w: f32[8, 32]) with {rows = [1, 16]} {
  %n = rms_norm(%x, %norm)
  %logits = matmul(%n, %w) {transpose_b = true}
  %experts, %weights = route(%logits, _) {top_k = 2}
  return %experts, %weights
}"""

RECURRENT = """func @f(%wide: f32[N / B, 96], %norm: f32[8], %slopes: f32[4], %state: state<f32[P; 4, 8, 8]>, %slots: i32[B],
    %offsets: i32[B + 1]) with {rows = [1, 16]} {
  %0 = slice(%wide) {axis = 1, start = 0, stop = 32}
  %1 = slice(%wide) {axis = 1, start = 32, stop = 64}
  %2 = slice(%wide) {axis = 1, start = 64, stop = 96}
  %3 = reshape(%0) {shape = [N, 4, 8]}
  %4 = reshape(%1) {shape = [N, 4, 8]}
  %q = rms_norm(%3, %norm)
  %k = rms_norm(%4, %norm)
  %v = reshape(%2) {shape = [N, 4, 8]}
  %o, %s = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {scale = 0.5, form = "recurrent"}
  return %o, %s
}"""


def offered(text: str, on: str = "cpu") -> tuple[Module, list[Alternatives]]:
    """The module after the pass, and its choices; what it computes is compared on the way."""
    module = parse_module(HEAD + text)
    before = module.clone()
    PassManager(parse_pipeline("fuse,prologues"), [verify_each]).run(module, target(on))
    generator = torch.Generator().manual_seed(3)
    inputs: list[torch.Tensor] = []
    for arg in module.functions["f"].body.args:
        if arg.name == "slots":
            inputs.append(torch.tensor([2, 0], dtype=torch.int32))
        elif arg.name == "ids":
            inputs.append(torch.randint(8, (5, 2), generator=generator, dtype=torch.int32))
        elif arg.name == "offsets":
            inputs.append(torch.tensor([0, 2, 5], dtype=torch.int32))
        elif arg.name == "state":
            inputs.append(torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64))
        else:
            shape = [d if isinstance(d, int) else 5 for d in arg.type.shape]
            inputs.append(torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1)
    found = [op for op in module.functions["f"].body.ops if isinstance(op, Alternatives)]
    for way in range(2 if found else 0):
        chosen = module.clone()
        for op in chosen.functions["f"].body.ops:
            if isinstance(op, Alternatives):
                op.ways, op.labels = (op.ways[way],), (op.labels[way],)
        for a, b in zip(
            run(before, "f", [x.clone() for x in inputs], None, torch.float64),
            run(chosen, "f", [x.clone() for x in inputs], None, torch.float64),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    return module, found


@pytest.mark.parametrize(("text", "family"), [(GATE, "matmul"), (SWIGLU, "matmul"), (RECURRENT, "linear_attention")])
def test_row_work_may_be_a_part_of_its_only_reader(text: str, family: str) -> None:
    _, (choice,) = offered(text)
    assert choice.labels == ("apart", "together")
    apart, together = choice.ways
    assert [op.family for op in apart.ops if isinstance(op, Fused)] == ["row", family]
    (region,) = together.ops
    assert isinstance(region, Fused)
    assert region.family == family


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        pytest.param(SWIGLU, "return %h", "return %h, %n", id="something else reads the rows"),
        pytest.param(SWIGLU, "[1, 1]", "[17, 0]", id="any number of rows"),
        pytest.param(SWIGLU, "[1, 1]", "[17, 400]", id="many rows, though not any number"),
        pytest.param(RECURRENT, '"recurrent"', '"chunked", steepest = 0.5', id="the chunked form"),
        pytest.param(RECURRENT, "return %o, %s", "return %o, %s, %q", id="the queries leave"),
        pytest.param(
            GATE,
            "  %y = add(%r, %p)",
            "  %part = slice(%x) {axis = 1, start = 0, stop = 24}\n  %y = mul(%part, %p)",
            id="something behind the product reads the rows",
        ),
    ],
)
def test_what_is_not_offered(text: str, old: str, new: str) -> None:
    assert old in text
    _, found = offered(text.replace(old, new))
    assert not found


@pytest.mark.parametrize("on", ["cpu", "sm_90"])
def test_routing_takes_no_row_work_but_its_own_product(on: str) -> None:
    _, found = offered(ROUTER, on)
    assert not found


LAYER = """func @f(%x: f32[N, 32], %norm: f32[32], %g: f32[24, 32], %w: f32[8, 32], %experts: f32[8, 16, 32], %ids: i32[N, 2])
    with {rows = [1, 1]} {
  %n = rms_norm(%x, %norm)
  %shared = matmul(%n, %g) {transpose_b = true}
  %logits = matmul(%n, %w) {transpose_b = true}
  %best, %weights = route(%logits, _) {top_k = 2}
  %up = gather_matmul(%n, %experts, %ids)
  return %shared, %best, %weights, %up
}"""


def test_one_row_may_be_made_by_each_that_reads_it() -> None:
    """The norm in front of the shared expert, the router and the experts; a row's router is a product of its own for that."""
    module, found = offered(LAYER, "sm_90")
    readers = [region.family for choice in found for region in choice.ways[1].ops if isinstance(region, Fused)]
    assert readers == ["matmul", "matmul", "grouped"]
    left = [op.family for op in module.functions["f"].body.ops if isinstance(op, Fused)]
    assert left == ["route"]


def test_the_experts_read_what_the_router_gives_back() -> None:
    """They have to wait for its choice, and make nothing again."""
    text = LAYER.replace(", %ids)", ", %best)").replace(", %ids: i32[N, 2]", "")
    module, (shared, router) = offered(text, "sm_90")
    for choice, outputs in ((shared, 1), (router, 2)):
        apart, together = choice.ways
        assert [op.family for op in apart.ops if isinstance(op, Fused)] == ["row", "matmul"]
        assert len(choice.results) == outputs
        (region,) = together.ops
        assert isinstance(region, Fused) and region.family == "matmul"
    given, _ = router.results
    (experts,) = (op for op in module.functions["f"].body.ops if isinstance(op, Fused) and op.family == "grouped")
    assert given in experts.inputs() and [op.name for op in experts.body.ops] == ["gather_matmul"]


@pytest.mark.parametrize(
    ("on", "rows", "count"), [("sm_90", "[1, 1]", 1), ("sm_90", "[2, 16]", 0), ("cpu", "[1, 16]", 0)]
)
def test_one_row_alone_is_given_back(on: str, rows: str, count: int) -> None:
    """Of several rows a kernel in front makes it for both products, though the second needs the first."""
    text = f"""func @f(%x: f32[N, 32], %norm: f32[32], %g: f32[24, 32], %u: f32[24, 32]) with {{rows = {rows}}} {{
  %n = rms_norm(%x, %norm)
  %first = matmul(%n, %g) {{transpose_b = true}}
  %soft = softmax(%first)
  %second = matmul(%n, %u) {{transpose_b = true}}
  %y = mul(%second, %soft)
  return %y
}}"""
    _, found = offered(text, on)
    assert len(found) == count
    assert all(len(choice.results) == 2 for choice in found)


def test_experts_give_nothing_back() -> None:
    """Those that are chosen by the results of others make the row again."""
    text = LAYER.partition("  %shared")[0].replace(" %g: f32[24, 32],", "")
    text += """  %first = gather_matmul(%n, %experts, %ids)
  %flat = reshape(%first) {shape = [N, 32]}
  %logits = matmul(%flat, %w) {transpose_b = true}
  %best, %weights = route(%logits, _) {top_k = 2}
  %second = gather_matmul(%n, %experts, %best)
  return %second, %weights
}"""
    _, found = offered(text, "sm_90")
    ways = [[region for region in choice.ways[1].ops if isinstance(region, Fused)] for choice in found]
    assert [[op.name for op in region.body.ops] for (region,) in ways] == [["rms_norm", "gather_matmul"]] * 2


def test_one_row_is_made_once_for_the_experts_and_the_shared_one() -> None:
    """Both are in one kernel, which reads the row."""
    behind = "  %down = gather_matmul(%up, %v, %ids)\n  %sum = sum(%down) {axes = [1]}\n"
    behind += "  %wide = matmul(%shared, %d) {transpose_b = true}\n"
    text = LAYER.replace("%ids: i32[N, 2]", "%ids: i32[N, 2], %v: f32[8, 32, 16], %d: f32[32, 24]")
    text = text.replace("  return %shared", behind + "  %next = add(%sum, %wide)\n  return %next")
    _, found = offered(text, "sm_90")
    ways = [[region for region in choice.ways[1].ops if isinstance(region, Fused)] for choice in found]
    assert sorted(region.family for regions in ways for region in regions) == [
        "grouped",
        "matmul",
    ]  # the other one is the router's
    names = next([op.name for op in region.body.ops] for (region,) in ways if region.family == "grouped")
    assert names.count("rms_norm") == 1 and {"matmul", "gather_matmul"} <= set(names)


@pytest.mark.parametrize(("on", "choices"), [("sm_90", 2), ("cpu", 0)])
def test_a_cpu_s_row_is_made_once_for_several_products(on: str, choices: int) -> None:
    text = LAYER.partition("  %logits")[0].replace("%experts: f32[8, 16, 32], %ids: i32[N, 2]", "%u: f32[24, 32]")
    _, found = offered(text + "  %other = matmul(%n, %w) {transpose_b = true}\n  return %shared, %other\n}", on)
    assert len(found) == choices


def test_a_row_that_its_readers_leave_apart_is_made_once() -> None:
    """Each is priced by itself; where launches cost nothing, none of them makes the norm."""
    module = parse_module(HEAD + LAYER.replace("f32[", "bf16[").replace("ids: bf16", "ids: i32"))
    free = replace(target("sm_90"), launch=1e-9)
    passes = default_pipeline()
    names = [step.name for step in passes]
    PassManager(passes[names.index("fuse") : names.index("layout")], [verify_each]).run(module, free)
    families = [op.family for op in module.functions["f"].body.ops if isinstance(op, Fused)]
    assert sorted(families) == ["grouped", "matmul", "matmul", "route", "row"]


@pytest.mark.parametrize(
    ("old", "new", "on"),
    [
        ("[1, 1]", "[2, 16]", "sm_90"),
        ("[1, 1]", "[1, 1]", "cpu"),
        ("return %shared", "return %n, %shared", "sm_90"),
        ("%up = gather", "%soft = softmax(%n)\n  %up = gather", "sm_90"),
        ("route(%logits", "route(%n", "sm_90"),
    ],
)
def test_what_others_read_is_made_once(old: str, new: str, on: str) -> None:
    text = LAYER.replace(old, new)
    _, found = offered(text.replace("%weights, %up", "%weights, %up, %soft") if "%soft" in new else text, on)
    assert not found


def test_a_target_of_calls_has_nothing_to_offer() -> None:
    _, found = offered(SWIGLU, "torch")
    assert not found
