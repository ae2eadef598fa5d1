"""Few rows take their experts' weights where they are: what is rewritten, what isn't, and that it means the same."""

from __future__ import annotations

import pytest
import torch

from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.index import Gather, SortByKey
from ringc.ir.ops.products import GatherMatMul, SegmentMatMul
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target

HEAD = "module @m level fused\nsymbol N >= 1\n\n"
EXPERTS = """func @f(%x: f32[N, 16], %ids: i32[N, 3], %g: f32[5, 8, 16], %u: f32[5, 8, 16], %d: f32[5, 16, 8], %p: f32[N, 3]) {
  %keys = reshape(%ids) {shape = [3*N]}
  %order, %offsets, %places = sort_by_key(%keys) {num_keys = 5}
  %three = constant() {value = [3], dtype = i32}
  %token = floordiv(%order, %three)
  %rows = gather(%x, %token)
  %a = segment_matmul(%rows, %g, %offsets)
  %b = segment_matmul(%rows, %u, %offsets)
  %s = silu(%a)
  %h = mul(%s, %b)
  %y = segment_matmul(%h, %d, %offsets)
  %back = gather(%y, %places)
  %each = reshape(%back) {shape = [N, 3, 16]}
  %p3 = reshape(%p) {shape = [N, 3, 1]}
  %w = mul(%each, %p3)
  %sum = sum(%w) {axes = [1]}
  return %sum
}"""


def rewritten(text: str, rows: tuple[int, int] = (1, 16), on: str = "sm_90") -> Module:
    """The module after the pass; what it computes is compared on the way."""
    module = parse_module(HEAD + text)
    module.functions["f"].notes["rows"] = rows
    before = module.clone()
    PassManager(parse_pipeline("unsorted"), [verify_each]).run(module, target(on))
    generator = torch.Generator().manual_seed(3)
    inputs: list[torch.Tensor] = []
    for arg in module.functions["f"].body.args:
        shape = [d if isinstance(d, int) else 7 for d in arg.type.shape]
        if arg.name == "ids":
            inputs.append(torch.randint(5, shape, generator=generator, dtype=torch.int32))
        else:
            inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    for a, b in zip(run(before, "f", inputs), run(module, "f", inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    return module


def count(module: Module, kind: type) -> int:
    return sum(isinstance(op, kind) for op in module.functions["f"].body.ops)


def test_few_rows_take_weights_by_their_names() -> None:
    module = rewritten(EXPERTS)
    assert count(module, GatherMatMul) == 3
    assert count(module, SegmentMatMul) == count(module, SortByKey) == count(module, Gather) == 0


def test_what_is_read_row_by_row_is_given_row_by_row() -> None:
    text = EXPERTS.replace("  %each = reshape(%back) {shape = [N, 3, 16]}\n", "").replace("return %sum", "return %back")
    module = rewritten(text.partition("  %p3")[0] + "  return %back\n}")
    assert count(module, GatherMatMul) == 3 and count(module, Gather) == 0
    assert [str(d) for d in module.functions["f"].body.outputs[0].shape] == ["3*N", "16"]


@pytest.mark.parametrize(("rows", "on"), [((17, 0), "sm_90"), ((1, 0), "sm_90"), ((1, 16), "cpu"), ((1, 16), "torch")])
def test_many_rows_and_other_devices_keep_the_order(rows: tuple[int, int], on: str) -> None:
    module = rewritten(EXPERTS, rows, on)
    assert count(module, SegmentMatMul) == 3 and count(module, GatherMatMul) == 0


LEAVES = EXPERTS.replace("return %sum", "return %sum, %h")
OTHER_KEYS = EXPERTS.replace("  %keys = reshape(%ids) {shape = [3*N]}\n", "").replace(
    "%ids: i32[N, 3]", "%keys: i32[3*N]"
)
OTHER_ROWS = EXPERTS.replace("value = [3]", "value = [1]")
ORDER_BACK = EXPERTS.replace("return %sum", "return %sum, %again").replace(
    "  %back =", "  %again = gather(%order, %places)\n  %back ="
)
OFFSETS_TOO = EXPERTS.replace("return %sum", "return %sum, %again").replace(
    "  %back =", "  %wide = cast(%offsets) {dtype = f32}\n  %again = gather(%wide, %places)\n  %back ="
)
BESIDE = EXPERTS.replace("mul(%s, %b)", "mul(%s, %q)").replace("%d: f32", "%q: f32[3*N / 5, 8], %d: f32")
ADDED_UP = EXPERTS.replace(
    "  %y = segment_matmul(%h,", "  %t = sum(%h) {axes = [0]}\n  %h2 = mul(%h, %t)\n  %y = segment_matmul(%h2,"
)
READ_AGAIN = EXPERTS.replace(
    "%s = silu(%a)", "%s2 = silu(%a)\n  %r2 = sum(%rows) {axes = [1], keep = true}\n  %s = mul(%s2, %r2)"
)


KEPT = {
    "keys are no choices": OTHER_KEYS,
    "another divisor": OTHER_ROWS,
    "the order itself comes back": ORDER_BACK,
    "offsets come back": OFFSETS_TOO,
    "rows leave": LEAVES,
    "rows are added up": ADDED_UP,
    "tokens' rows are read again": READ_AGAIN,
    "other rows in the order": BESIDE,
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_depends_on_the_order_keeps_it(text: str) -> None:
    module = parse_module(HEAD + text)
    module.functions["f"].notes["rows"] = (1, 16)
    PassManager(parse_pipeline("unsorted"), [verify_each]).run(module, target("sm_90"))
    assert count(module, SortByKey) == 1 and count(module, SegmentMatMul) == 3 and count(module, GatherMatMul) == 0
