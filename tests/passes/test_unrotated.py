"""One row's norms are made in the layers that read them."""

from __future__ import annotations

import pytest
import torch

from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.call import Call, Launch
from ringc.ir.ops.rows import RmsNorm
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import target
from tests.passes.support_model import Program, tiny_spec

LAYERS = """module @m level fused
symbol N >= 1

func @decode(%x: f32[N, 8], %v: f32[8], %w: f32[8], %u: f32[8]) with {{entry = "decode", rows = [{low}, {high}], serves = "decode"}} {{
  %n = rms_norm(%x, %v)
  %a, %m = call([%n, %x, %w]) {{callee = "layer", out = [f32[N, 8], f32[N, 8]]}}
  %b, %k = call([%m, %a, %u]) {{callee = "layer", out = [f32[N, 8], f32[N, 8]]}}
{more}  return %k
}}

func @layer(%n: f32[N, 8], %x: f32[N, 8], %w: f32[8]) {{
  %s = silu(%n)
  %y = add(%x, %s)
  %m = rms_norm(%y, %w)
  return %y, %m
}}
"""
READ = "  %e = exp(%m)\n  %f = add(%e, %k)\n"


def rewritten(low: int = 1, high: int = 1, more: str = "", on: str = "sm_90") -> Module:
    """The module after the pass; what it computes is compared on the way."""
    text = LAYERS.format(low=low, high=high, more=more)
    module = parse_module(text.replace("return %k", "return %f") if more else text)
    before = module.clone()
    PassManager(parse_pipeline("unrotated"), [verify_each]).run(module, target(on))
    inputs = [
        torch.randn(s, generator=torch.Generator().manual_seed(2), dtype=torch.float64) for s in ((3, 8), 8, 8, 8)
    ]
    for a, b in zip(run(before, "decode", inputs), run(module, "decode", inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    return module


def shapes(module: Module) -> tuple[list[int], list[int], int]:
    """Arguments and results of each call, and norms that are left in the entry point."""
    ops = module.functions["decode"].body.ops
    calls = [op for op in ops if isinstance(op, Call)]
    return (
        [len(c.arguments) for c in calls],
        [len(c.results) for c in calls],
        sum(isinstance(op, RmsNorm) for op in ops),
    )


def test_a_layer_takes_the_residual_and_makes_its_norm() -> None:
    module = rewritten()
    # What is left in the entry point is the norm behind the last layer; a layer gives its residual alone.
    assert shapes(module) == ([2, 2], [1, 1], 1)
    layer = module.functions["layer"].body
    assert [op.name for op in layer.ops] == ["rms_norm", "silu", "add"]
    assert [arg.name for arg in layer.args] == ["x", "input_layernorm.weight"]


def test_a_norm_that_others_read_is_made_once() -> None:
    """Behind the first layer, by the entry point; a function can't make one call's norm and take the other's."""
    assert shapes(rewritten(more=READ)) == ([2, 2], [1, 1], 3)


def test_a_norm_may_be_given_back_twice() -> None:
    text = LAYERS.format(low=1, high=1, more="").replace("return %y, %m", "return %y, %m, %m")
    text = text.replace("%m = call", "%m, %q = call").replace("%k = call", "%k, %r = call")
    text = text.replace("out = [f32[N, 8], f32[N, 8]]", "out = [f32[N, 8], f32[N, 8], f32[N, 8]]")
    module = parse_module(text)
    PassManager(parse_pipeline("unrotated"), [verify_each]).run(module, target("sm_90"))
    assert shapes(module)[1] == [1, 1]


def test_norms_of_other_constants_are_made_where_they_were() -> None:
    module = parse_module(
        LAYERS.format(low=1, high=1, more="").replace("rms_norm(%x, %v)", "rms_norm(%x, %v) {eps = 0.5}")
    )
    PassManager(parse_pipeline("unrotated"), [verify_each]).run(module, target("sm_90"))
    assert shapes(module) == ([2, 2], [1, 1], 3)


@pytest.mark.parametrize(("low", "high", "on"), [(2, 16, "sm_90"), (1, 16, "sm_90"), (1, 1, "cpu")])
def test_several_rows_and_a_cpu_keep_it(low: int, high: int, on: str) -> None:
    assert shapes(rewritten(low, high, on=on)) == ([3, 3], [2, 2], 1)


def test_of_a_model_s_step_of_one_row_the_last_norm_alone_is_a_launch() -> None:
    lowered = Program(tiny_spec(), default_pipeline(), "sm_90").lowered
    found: list[str] = []
    for name, function in lowered.functions.items():
        if name.startswith("decode.one."):
            kernels = [lowered.functions[op.kernel] for op in function.body.ops if isinstance(op, Launch)]
            rows = [k for k in kernels if k.notes["family"] == "row"]
            found += [name for k in rows for op in k.body.ops if isinstance(op, RmsNorm) and op.x.tensor.rank == 2]
    assert found == ["decode.one.softmax_moe_2"]  # the last layer's, in front of the head
