"""Library calls beside fused regions: both ways mean the same, the cheaper legal one stays, and what lost is noted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ringc.errors import CodegenError
from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.call import Alternatives, Fused, Launch
from ringc.ir.ops.mixers import Attention
from ringc.ir.text_parse import parse_module
from ringc.ir.types import DType
from ringc.model_defs import load_spec
from ringc.model_defs.lower import lower
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import Target, target

HEAD = "module @m level fused\nsymbol B >= 1\nsymbol N >= 1\nsymbol P >= 1\n\n"

SWIGLU = """func @f(%x: f32[N, 64], %g: f32[48, 64], %u: f32[48, 64]) {
  %a = matmul(%x, %g) {transpose_b = true}
  %b = matmul(%x, %u) {transpose_b = true}
  %s = silu(%a)
  %h = mul(%s, %b)
  return %h
}"""

EXPERTS = """func @f(%x: f32[N, 8], %w: f32[3, 4, 8], %order: i32[2*N / 3], %offsets: i32[4], %weights: f32[2*N / 3, 1]) {
  %two = constant() {value = [2], dtype = i32}
  %token = floordiv(%order, %two)
  %rows = gather(%x, %token)
  %y = segment_matmul(%rows, %w, %offsets)
  %z = mul(%y, %weights)
  return %z
}"""

ATTENTION = """func @f(%q: f32[N / B, 4, 16], %keys: state<f32[P; 9, 2, 16]>, %values: state<f32[P; 9, 2, 16]>, %slots: i32[B],
    %offsets: i32[B + 1], %positions: i32[N]) {
  %o = attention(%q, %keys, %values, %slots, %offsets, %positions) {scale = 0.25}
  return %o
}"""

PLAIN = """func @f(%x: f32[N, 64], %w: f32[48, 64]) {
  %y = matmul(%x, %w) {transpose_b = true}
  return %y
}"""

SLOW = replace(target("cpu"), matrix_rate=1e9, vector_rate=180e9, bandwidth=1e9)
"""A machine on which generated products are far slower than PyTorch's."""


def passed(text: str, passes: str, machine: Target) -> Module:
    module = parse_module(HEAD + text)
    PassManager(parse_pipeline(passes), [verify_each]).run(module, machine)
    return module


def regions(module: Module) -> list[Fused]:
    return [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]


@pytest.mark.parametrize(
    ("text", "families"),
    [
        (SWIGLU, ["library", "library", "row"]),
        (EXPERTS, ["row", "library", "row"]),
        (ATTENTION, ["library"]),
        (PLAIN, ["library"]),
    ],
)
def test_a_region_stands_beside_its_operations_apart(text: str, families: list[str]) -> None:
    module = passed(text, "fuse,library", target("cpu"))
    (choice,) = (op for op in module.functions["f"].body.ops if isinstance(op, Alternatives))
    assert choice.labels == ("fused", "library")
    fused, apart = choice.ways
    assert len(fused.ops) == 1
    assert [op.family for op in apart.ops if isinstance(op, Fused)] == families
    assert len(apart.ops) == len(families)


@pytest.mark.parametrize("text", [SWIGLU, EXPERTS])
@pytest.mark.parametrize("machine", [target("cpu"), SLOW])
def test_whatever_stays_means_the_same(text: str, machine: Target) -> None:
    n, generator = 5, torch.Generator().manual_seed(3)
    if text is SWIGLU:
        shapes = [(n, 64), (48, 64), (48, 64)]
        inputs = [torch.randn(s, generator=generator).double() for s in shapes]
    else:
        order = torch.randperm(2 * n, generator=generator).int()
        offsets = torch.tensor([0, 4, 4, 2 * n], dtype=torch.int32)
        x, w, weights = (torch.randn(s, generator=generator).double() for s in [(n, 8), (3, 4, 8), (2 * n, 1)])
        inputs = [x, w, order, offsets, weights]
    wanted = run(parse_module(HEAD + text), "f", inputs, None, torch.float64)
    made = run(passed(text, "fuse,library,select", machine), "f", inputs, None, torch.float64)
    torch.testing.assert_close(made, wanted)


def test_the_cheaper_way_stays_and_the_other_is_noted() -> None:
    (fused,) = regions(passed(SWIGLU, "fuse,library,select", target("cpu")))
    assert fused.implementation.startswith("tvm.matmul")
    assert [name for name, *_ in fused.lost if name.startswith("library: torch.library + torch.library + tvm.row")]
    first, second, row = regions(passed(SWIGLU, "fuse,library,select", SLOW))
    assert [first.implementation, second.implementation] == ["torch.library"] * 2
    assert row.family == "row"
    assert [name for name, *_ in first.lost if name.startswith("fused: tvm.matmul")]


SLOW_GPU = replace(target("sm_90"), matrix_rate=1e9, bandwidth=1e9, launch=1.0)


def refusal(text: str, machine: Target) -> str:
    """Why the library's way is illegal on a GPU."""
    chosen = regions(passed(text, "fuse,library,select", machine))
    assert not [op for op in chosen if op.implementation.startswith("torch")]
    return next(why for op in chosen for name, _, why, _ in op.lost if name.startswith("library"))


def test_calls_that_wait_for_the_gpu_are_illegal_there() -> None:
    assert "wait for the GPU" in refusal(ATTENTION.replace("f32[", "bf16["), SLOW_GPU)


WIDE_EXPERTS = EXPERTS.replace("f32[N, 8], %w: f32[3, 4, 8]", "bf16[N, 2048], %w: bf16[3, 512, 2048]").replace(
    "%weights: f32", "%weights: bf16"
)


def test_experts_of_a_gpu_may_be_one_call_that_sizes_on_the_device_are_enough_for() -> None:
    chosen = regions(passed(WIDE_EXPERTS, "fuse,library,select", target("sm_90")))
    (product,) = (op for op in chosen if op.family in ("grouped", "library"))
    ways = {product.implementation: "", **{name: why for name, _, why, _ in product.lost}}
    assert "triton.grouped" in ways
    assert ways["library: triton.row + torch.library + triton.row"] == ""


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        (EXPERTS.replace("f32[", "bf16["), "sm_90"),  # an expert's matrix of 4 x 8
        (WIDE_EXPERTS.replace("bf16[", "f32["), "sm_90"),
        (WIDE_EXPERTS, "sm_80"),
    ],
)
def test_the_call_for_experts_is_particular(text: str, machine: str) -> None:
    assert "torch._grouped_mm takes bf16 in rows of a multiple of 8" in refusal(text, target(machine))


ROUTER = """func @f(%x: bf16[N, 2048], %w: bf16[256, 2048]) {
  %logits = matmul(%x, %w) {transpose_b = true, out = f32}
  %experts, %weights = route(%logits, _) {top_k = 8}
  return %experts, %weights
}"""


def test_a_cpu_s_router_stays_with_its_routing() -> None:
    """A call between TVM's kernels costs more than it saves of so small a product."""
    module = passed(ROUTER.replace("bf16[", "f32["), "fuse,library", target("cpu"))
    assert [op.family for op in module.functions["f"].body.ops if isinstance(op, Fused)] == ["route"]
    assert not [op for op in module.functions["f"].body.ops if isinstance(op, Alternatives)]


@pytest.mark.parametrize(("rows", "families"), [((17, 0), ["route"]), ((2048, 0), ["library", "route"])])
def test_a_router_of_many_rows_takes_the_library_for_its_product(rows: tuple[int, int], families: list[str]) -> None:
    module = parse_module(HEAD + ROUTER)
    module.functions["f"].notes["rows"] = rows
    PassManager(parse_pipeline("fuse,library,select"), [verify_each]).run(module, target("sm_90"))
    assert [op.family for op in regions(module)] == families


@pytest.mark.parametrize(
    ("text", "rows", "chosen"),
    [
        (EXPERTS, (17, 64), "triton.grouped"),
        (PLAIN, (2, 16), "triton.matmul"),  # the weight is streamed
        (PLAIN, (17, 64), "torch.library"),  # tiles with few rows reach less of the bandwidth
    ],
)
def test_few_rows_on_a_gpu(text: str, rows: tuple[int, int], chosen: str) -> None:
    if text == EXPERTS:
        wide = (
            WIDE_EXPERTS.replace("bf16[3, 512", "bf16[256, 512").replace("/ 3", "/ 256").replace("i32[4]", "i32[257]")
        )
    else:
        wide = PLAIN.replace("64]", "2048]").replace("48,", "8192,").replace("f32[", "bf16[")
    module = parse_module(HEAD + wide)
    module.functions["f"].notes["rows"] = rows
    PassManager(parse_pipeline("fuse,library,select"), [verify_each]).run(module, target("sm_90"))
    (product,) = (op for op in regions(module) if op.family != "row")
    assert product.implementation == chosen
    if (text, rows) == (PLAIN, (2, 16)):
        assert {chosen, *(n for n, *_ in product.lost)} == {"triton.matmul", "library: torch.library"}


NAMED = """func @f(%x: bf16[N, 2048], %w: bf16[256, 512, 2048], %ids: i32[N, 8]) {
  %y = gather_matmul(%x, %w, %ids)
  return %y
}"""


@pytest.mark.parametrize("rows", [(1, 1), (2, 16)])
def test_few_rows_take_experts_weights_row_by_row(rows: tuple[int, int]) -> None:
    module = parse_module(HEAD + NAMED)
    module.functions["f"].notes["rows"] = rows
    PassManager(parse_pipeline("fuse,library,select"), [verify_each]).run(module, target("sm_90"))
    (product,) = regions(module)
    assert product.implementation == "triton.gemv"


def test_many_rows_do_not() -> None:
    module = parse_module(HEAD + NAMED)
    module.functions["f"].notes["rows"] = (17, 64)
    with pytest.raises(CodegenError, match="with each further one all of its weight is read once more"):
        PassManager(parse_pipeline("fuse,library,select"), [verify_each]).run(module, target("sm_90"))


def test_a_gpu_takes_the_library_where_it_is_faster() -> None:
    many = PLAIN.replace("f32[", "bf16[").replace("64", "4096").replace("48", "4096")
    (product,) = regions(passed(many, "fuse,library,select", target("sm_90")))
    assert product.implementation == "torch.library"
    wide = many.replace("transpose_b = true", "transpose_b = true, out = f32")
    (product,) = regions(passed(wide, "fuse,library,select", target("sm_90")))
    assert product.implementation == "torch.library"
    wider = many.replace("return %y", "%z = cast(%y) {dtype = f32}\n  return %z")
    assert regions(passed(wider, "fuse,library,select", target("sm_90")))[0].implementation == "triton.matmul"


def test_on_the_torch_target_everything_is_a_library_call_already() -> None:
    (region,) = regions(passed(SWIGLU, "fuse,library,select", target("torch")))
    assert region.implementation == "torch.eager"


def test_wanted_rows_are_not_taken_for_a_long_prompt() -> None:
    """One of a prompt's tokens may be wanted: PyTorch's attention, which is for runs of tokens, is for the other layers."""
    module = lower(load_spec("ring-mini-linear-2.0"), DType.BF16)
    PassManager(default_pipeline()).run(module, target("sm_90"))
    found = {}
    for name in ("prefill.longest.softmax_moe", "prefill.longest.wanted_moe"):
        kernels = [module.functions[op.kernel] for op in module.functions[name].body.ops if isinstance(op, Launch)]
        (found[name],) = (k for k in kernels if any(isinstance(op, Attention) for op in k.body.ops))
    library, generated = (str(kernel.notes["implementation"]) for kernel in found.values())
    assert library == "torch.library" and generated.startswith("triton.attention{")
