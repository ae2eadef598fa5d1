"""Fusion on small graphs: what joins, what must not, and that the meaning stays."""

from __future__ import annotations

import pytest
import torch

from ringc.ir.interpret import run
from ringc.ir.levels import verify
from ringc.ir.ops.call import Fused
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.front import cut_of_values
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target

HEAD = "module @m level fused\nsymbol N >= 1\n\n"


def fused(text: str) -> list[Fused]:
    """The regions that a function's text is cut into, in order; what it computes is checked on the way."""
    module = parse_module(HEAD + text)
    verify(module)
    before = module.clone()
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("cpu"))
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for arg in module.functions["f"].body.args:
        shape = [5 if not isinstance(d, int) else d for d in arg.type.shape]
        ids = arg.type.dtype == "i32"
        inputs.append(
            torch.randint(0, 5, shape, generator=generator) if ids else torch.randn(shape, generator=generator).double()
        )
    for a, b in zip(
        run(before, "f", inputs, None, torch.float64), run(module, "f", inputs, None, torch.float64), strict=True
    ):
        torch.testing.assert_close(a, b)
    return [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]


def families(regions: list[Fused]) -> list[str]:
    return [r.family for r in regions]


def test_a_residual_joins_the_product() -> None:
    (region,) = fused("""func @f(%x: f32[N, 8], %w: f32[4, 8], %r: f32[N, 4]) {
      %y = matmul(%x, %w) {transpose_b = true}
      %z = add(%r, %y)
      return %z
    }""")
    assert region.family == "matmul"
    assert [op.name for op in region.body.ops] == ["matmul", "add"]


SHARED = """func @f(%x: f32[N, 8], %e: f32[N, 2, 8], %h: f32[N, 4], %down: f32[8, 4], %norm: f32[8]) {
  %sum = sum(%e) {axes = [1]}
  %shared = matmul(%h, %down) {transpose_b = true}
  %both = add(%sum, %shared)
  %y = add(%x, %both)
  %n = rms_norm(%y, %norm)
  return %y, %n
}"""


def test_sum_residual_and_norm_are_one_kernel_behind_the_shared_expert() -> None:
    product, rows = fused(SHARED)
    assert [op.name for op in product.body.ops] == ["matmul"]
    assert [op.name for op in rows.body.ops] == ["sum", "add", "add", "rms_norm"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param("rms_norm(%y, %norm)", "matmul(%y, %wide)", ["row", "matmul", "matmul"], id="no row work behind"),
        # The sum is needed by what leads to the product: one row kernel can't hold both.
        pytest.param("matmul(%h, %down)", "matmul(%sum, %square)", ["row", "matmul", "row"], id="not convex"),
        pytest.param(
            "add(%sum, %shared)", "mul(%shared, %shared)", ["row", "matmul", "row"], id="no row work in front"
        ),
    ],
)
def test_where_the_residual_still_joins_the_product(old: str, new: str, expected: list[str]) -> None:
    text = SHARED.replace(old, new)
    assert text != SHARED
    text = text.replace("%norm: f32[8]", "%norm: f32[8], %wide: f32[8, 8], %square: f32[8, 8]")
    if "%sum" not in text.partition("%shared")[2]:
        text = text.replace("return %y, %n", "return %y, %n, %sum")
    regions = fused(text)
    assert families(regions) == expected
    product = next(r for r in regions if r.family == "matmul")
    assert product.body.ops[-1].name == "add"


def test_a_product_that_others_need_keeps_its_result() -> None:
    first, second = fused("""func @f(%x: f32[N, 8], %w: f32[4, 8], %r: f32[N, 4]) {
      %y = matmul(%x, %w) {transpose_b = true}
      %z = add(%r, %y)
      return %z, %y
    }""")
    assert (first.family, second.family) == ("matmul", "row")


def test_gate_and_up_become_one_kernel() -> None:
    (region,) = fused("""func @f(%x: f32[N, 8], %g: f32[4, 8], %u: f32[4, 8]) {
      %a = matmul(%x, %g) {transpose_b = true}
      %b = matmul(%x, %u) {transpose_b = true}
      %s = silu(%a)
      %h = mul(%s, %b)
      return %h
    }""")
    assert [op.name for op in region.body.ops] == ["matmul", "matmul", "silu", "mul"]


@pytest.mark.parametrize(
    ("left", "why"),
    [("%y", "another left operand"), ("%x", "results that don't meet")],
)
def test_products_that_are_no_pair_stay_apart(left: str, why: str) -> None:
    use = "%h = mul(%s, %b)\n return %h" if left == "%y" else "return %s, %b"
    regions = fused(f"""func @f(%x: f32[N, 8], %y: f32[N, 8], %g: f32[4, 8], %u: f32[4, 8]) {{
      %a = matmul(%x, %g) {{transpose_b = true}}
      %b = matmul({left}, %u) {{transpose_b = true}}
      %s = silu(%a)
      {use}
    }}""")
    assert families(regions) == ["matmul", "matmul"], why


def test_a_region_is_convex() -> None:
    """The norm needs the product's result, and the sum needs both: the sum can't join the product around the norm."""
    regions = fused("""func @f(%x: f32[N, 8], %w: f32[8, 8]) {
      %y = matmul(%x, %w) {transpose_b = true}
      %n = rms_norm(%y, _)
      %z = add(%y, %n)
      return %z
    }""")
    assert families(regions) == ["matmul", "row"]
    assert [op.name for op in regions[1].body.ops] == ["rms_norm", "add"]


def test_rows_that_nobody_wrote_by_hand_are_one_kernel() -> None:
    (region,) = fused("""func @f(%x: f32[N, 8], %t: f32[9, 8], %ids: i32[N]) {
      %e = gather(%t, %ids)
      %s = add(%x, %e)
      %m = max(%s) {axes = [1], keep = true}
      %d = sub(%s, %m)
      %p = softmax(%d)
      %a = slice(%p) {axis = 1, start = 0, stop = 4}
      %b = slice(%p) {axis = 1, start = 4, stop = 8}
      %c = concat([%b, %a]) {axis = 1}
      %n = rms_norm(%c, _)
      return %n, %s
    }""")
    assert region.family == "row"
    assert len(region.body.ops) == 9


def test_rows_of_different_counts_are_different_kernels() -> None:
    regions = fused("""func @f(%x: f32[N, 8], %y: f32[3, 8]) {
      %a = neg(%x)
      %b = neg(%y)
      return %a, %b
    }""")
    assert families(regions) == ["row", "row"]


def test_element_wise_work_goes_to_its_only_reader() -> None:
    """The gate is cut from the product with q, but only the last kernel wants it: nothing is stored in between."""
    regions = fused("""func @f(%x: f32[N, 8], %w: f32[16, 8], %v: f32[8, 8]) {
      %y = matmul(%x, %w) {transpose_b = true}
      %q = slice(%y) {axis = 1, start = 0, stop = 8}
      %g = slice(%y) {axis = 1, start = 8, stop = 16}
      %n = rms_norm(%q, _)
      %s = sigmoid(%g)
      %o = matmul(%n, %v) {transpose_b = true}
      %m = rms_norm(%o, _)
      %z = mul(%m, %s)
      return %z
    }""")
    assert families(regions) == ["matmul", "row", "matmul", "row"]
    assert [op.name for op in regions[1].body.ops] == ["slice", "rms_norm"]
    assert {"slice", "sigmoid", "rms_norm", "mul"} == {op.name for op in regions[3].body.ops}


def test_a_reshape_between_kernels_is_only_a_view() -> None:
    module = parse_module(
        HEAD
        + """func @f(%x: f32[N, 8], %w: f32[8, 8], %v: f32[4, 4]) {
      %y = matmul(%x, %w) {transpose_b = true}
      %r = reshape(%y) {shape = [2*N, 4]}
      %z = matmul(%r, %v) {transpose_b = true}
      return %z
    }"""
    )
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("cpu"))
    assert [op.name for op in module.functions["f"].body.ops] == ["fused", "reshape", "fused"]


EXPERTS = """func @f(%h: f32[N, 2, 8], %w: f32[4, 6, 8], %ids: i32[N, 2], %p: f32[N, 2, 1], %s: f32[N, 8], %d: f32[6, 8], %x: f32[N, 6],
    %n: f32[6]) with {{rows = [{low}, {high}]}} {{
  %y = gather_matmul(%h, %w, %ids)
  %each = mul(%y, %p)
  %sum = sum(%each) {{axes = [1]}}
  %wide = neg(%sum)
  %shared = matmul(%s, %d) {{transpose_b = true}}
  %both = add(%wide, %shared)
  %next = add(%x, %both)
  %norm = rms_norm(%next, %n)
  return %next, %norm
}}"""


@pytest.mark.parametrize(
    ("rows", "product", "behind"),
    [
        ((1, 1), ["gather_matmul", "mul", "sum", "neg", "matmul", "add", "add"], ["rms_norm"]),
        # Of several rows the shared expert has until the norm's kernel, which adds it.
        ((2, 16), ["gather_matmul", "mul", "sum", "neg"], ["add", "add", "rms_norm"]),
    ],
)
def test_a_product_adds_up_its_row_s_experts(rows: tuple[int, int], product: list[str], behind: list[str]) -> None:
    module = parse_module(HEAD + EXPERTS.format(low=rows[0], high=rows[1]))
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("sm_90"))
    regions = [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]
    made = {region.family: [op.name for op in region.body.ops] for region in regions}
    dense = {} if "matmul" in product else {"matmul": ["matmul"]}
    assert made == {"grouped": product, "row": behind} | dense


def test_a_product_adds_up_its_row_s_experts_and_no_more() -> None:
    module = parse_module(
        HEAD
        + """func @f(%h: f32[N, 2, 8], %w: f32[4, 6, 8], %ids: i32[N, 2]) with {rows = [1, 1]} {
      %y = gather_matmul(%h, %w, %ids)
      %sum = sum(%y) {axes = [1]}
      %all = sum(%sum) {axes = [1]}
      return %all
    }"""
    )
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("sm_90"))
    (product,) = (op for op in module.functions["f"].body.ops if isinstance(op, Fused) and op.family == "grouped")
    assert [op.name for op in product.body.ops] == ["gather_matmul", "sum"]


MIXED = """func @f(%w: f32[N / B, 24], %k: f32[N / B, 2, 4], %a: f32[2], %s: state<f32[P; 2, 4, 4]>, %slots: i32[B], %o: i32[B + 1]) {
  %0 = slice(%w) {axis = 1, start = 8, stop = 16}
  %v = reshape(%0) {shape = [N, 2, 4]}
  %1 = slice(%w) {axis = 1, start = 0, stop = 8}
  %2 = neg(%1)
  %q = reshape(%2) {shape = [N, 2, 4]}
  %y, %after = linear_attention(%q, %k, %v, %a, %s, %slots, %o) {scale = 1.0, form = "chunked", steepest = 0.5}
  return %y, %after
}"""


@pytest.mark.parametrize(
    ("device", "old", "new", "expected"),
    [
        ("sm_90", "", "", ["slice", "reshape", "linear_attention"]),
        ("sm_90", '"chunked"', '"recurrent"', ["linear_attention"]),
        ("sm_90", "stop = 16}", "stop = 24, step = 2}", ["linear_attention"]),
        ("sm_90", "return %y", "return %v, %y", ["linear_attention"]),
        ("sm_90", "return %y", "return %0, %y", ["linear_attention"]),
        ("sm_90", "%1 = slice", "%3 = neg(%0)\n  %1 = slice", ["linear_attention"]),
        ("sm_90", "%0 = slice(%w)", "%3 = neg(%w)\n  %0 = slice(%3)", ["linear_attention"]),
        ("cpu", "", "", ["linear_attention"]),
        ("torch", "", "", ["linear_attention"]),
    ],
    ids=[
        "cut",
        "recurrent",
        "with steps",
        "wanted elsewhere",
        "the cut is given back",
        "the cut is read",
        "of row work",
        "on a CPU",
        "by torch",
    ],
)
def test_the_chunked_form_reads_its_values_where_they_lie(device: str, old: str, new: str, expected: list[str]) -> None:
    module = parse_module(
        "module @m level fused\nsymbol N >= 1\nsymbol B >= 1\nsymbol P >= 1\n\n" + MIXED.replace(old, new)
    )
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target(device))
    regions = [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]
    (mixed,) = [r for r in regions if r.family == "linear_attention"]
    assert [op.name for op in mixed.body.ops] == expected


@pytest.mark.parametrize(
    ("wide", "cut"),
    [
        ("bf16[N / B, 4, 4]", "{axis = 1, start = 2, stop = 4}"),
        ("bf16[N / B, 2, 8]", "{axis = 2, start = 4, stop = 8}"),
    ],
    ids=["heads", "a part of each head"],
)
def test_only_columns_of_a_matrix_are_a_cut(wide: str, cut: str) -> None:
    text = f"""func @f(%w: {wide}, %q: bf16[N / B, 2, 4], %a: f32[2], %s: state<f32[P; 2, 4, 4]>, %slots: i32[B], %o: i32[B + 1]) {{
      %0 = slice(%w) {cut}
      %v = reshape(%0) {{shape = [N, 2, 4]}}
      %y, %after = linear_attention(%q, %q, %v, %a, %s, %slots, %o) {{scale = 1.0, form = "chunked", steepest = 0.5}}
      return %y, %after
    }}"""
    module = parse_module("module @m level fused\nsymbol N >= 1\nsymbol B >= 1\nsymbol P >= 1\n\n" + text)
    (mixed,) = [op for op in module.functions["f"].body.ops if isinstance(op, LinearAttention)]
    assert cut_of_values(mixed) is None


def test_rows_are_not_gathered_in_front_of_weights_that_are_named() -> None:
    module = parse_module(
        HEAD
        + """func @f(%t: f32[9, 8], %r: i32[N, 2], %w: f32[4, 6, 8], %ids: i32[N, 2]) with {rows = [2, 16]} {
      %x = gather(%t, %r)
      %y = gather_matmul(%x, %w, %ids)
      return %y
    }"""
    )
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("sm_90"))
    assert families([op for op in module.functions["f"].body.ops if isinstance(op, Fused)]) == ["row", "grouped"]


TOKEN = """func @f(%x: f32[N, 8], %o: f32[N, 8], %gate: f32[4, 8], %w: f32[4, 6, 8], %v: f32[4, 8, 6], %p: f32[N, 2, 1], %a: f32[6, 8],
    %b: f32[6, 8], %d: f32[8, 6]) with {rows = [1, 1]} {
  %n = rms_norm(%x, _)
  %logits = matmul(%n, %gate) {transpose_b = true}
  %best, %weights = route(%logits, _) {top_k = 2}
  %up = gather_matmul(%n, %w, %best)
  %one = matmul(%n, %a) {transpose_b = true}
  %two = matmul(%n, %b) {transpose_b = true}
  %silu = silu(%one)
  %each = mul(%silu, %two)
  %wide = gather_matmul(%up, %v, %best)
  %sum = sum(%wide) {axes = [1]}
  %last = matmul(%each, %d) {transpose_b = true}
  %both = add(%sum, %last)
  %next = add(%x, %both)
  return %next
}"""
UP = ["gather_matmul", "matmul", "matmul", "silu", "mul"]
OTHER = "matmul(%o, %a) {transpose_b = true}\n  %two = matmul(%o"
DOWN = ["gather_matmul", "sum", "matmul", "add", "add"]


@pytest.mark.parametrize(
    ("old", "new", "on", "expected"),
    [
        ("_)", "_)", "sm_90", [UP, DOWN]),
        ("_)", "_)", "cpu", []),
        ("[1, 1]", "[2, 16]", "sm_90", []),
        ("matmul(%n, %a) {transpose_b = true}\n  %two = matmul(%n", OTHER, "sm_90", [DOWN]),  # another row's
        ("return %next", "return %next, %each", "sm_90", [DOWN]),
        ("%each = mul(%silu, %two)", "%most = max(%up) {axes = [1]}\n  %e = mul(%silu, %two)\n  %each = mul(%e, %most)", "sm_90", [DOWN]),
        ("return %next", "return %next, %last", "sm_90", []),
        ("%both = add(%sum, %last)", "%half = silu(%last)\n  %both = add(%sum, %half)", "sm_90", []),
        ("%d: f32[8, 6]", "%d: f32[1, 6]", "sm_90", []),  # one number for all columns of the sum
    ],
)  # fmt: skip
def test_one_row_s_shared_expert_joins_the_experts(old: str, new: str, on: str, expected: list[list[str]]) -> None:
    module = parse_module(HEAD + TOKEN.replace(old, new))
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target(on))
    regions = [op for op in module.functions["f"].body.ops if isinstance(op, Fused) and op.family == "grouped"]
    made = [[op.name for op in region.body.ops] for region in regions]
    assert [names for names in made if "matmul" in names] == expected


def test_a_shared_expert_of_any_width_is_left_as_it_is() -> None:
    """A kernel of sums takes a weight's row whole."""
    text = TOKEN.replace(
        "%a: f32[6, 8],\n    %b: f32[6, 8], %d: f32[8, 6]", "%a: f32[M, 8], %b: f32[M, 8], %d: f32[8, M]"
    )
    assert text != TOKEN
    module = parse_module(HEAD.replace("symbol N", "symbol M >= 1\nsymbol N") + text)
    PassManager(parse_pipeline("fuse"), [verify_each]).run(module, target("sm_90"))
    regions = [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]
    assert not [r for r in regions if r.family == "grouped" and "matmul" in [op.name for op in r.body.ops]]
