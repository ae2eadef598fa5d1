"""Inputs that kernels are timed with: valid at the sizes of every version."""

from __future__ import annotations

import pytest

from ringc.codegen.inputs import TypicalInputs, random_inputs
from ringc.ir.core import Function
from ringc.ir.ops.call import Fused
from ringc.ir.ops.mixers import Attention
from ringc.ir.text_parse import parse_module
from ringc.passes.choices import Regions
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target
from tests.passes.support_model import Program, tiny_spec


@pytest.mark.parametrize("on", ["cpu", "sm_90"])
def test_sequences_fit_into_their_caches(on: str) -> None:
    program = Program(tiny_spec(), parse_pipeline("canonicalize,cse,raise,dce,outline,versions,fuse"), on)
    regions, seen = Regions(target(on)), 0
    for function in program.lowered.functions.values():
        for op in function.body.ops:
            if isinstance(op, Fused) and op.family == "attention":
                region = regions.of(op, function)
                (mixer,) = (o for o in region.body.ops if isinstance(o, Attention))
                notes = {"rows": region.rows, "serves": region.serves}
                inputs = TypicalInputs(Function("f", region.body, **notes), region.typical).all()
                positions = inputs[region.body.args.index(mixer.positions)]
                assert positions.min() >= 0
                assert positions.max() < region.typical["S"]
                seen += 1
    assert seen > 3


def test_rows_name_all_of_the_experts_and_no_others() -> None:
    text = """module @m level fused
    symbol N >= 1
    func @f(%x: f32[N, 4], %w: f32[5, 3, 4], %i: i32[N, 2]) {
      %y = gather_matmul(%x, %w, %i)
      return %y
    }"""
    *_, ids = random_inputs(parse_module(text).functions["f"], {"N": 200})
    assert set(ids.flatten().tolist()) == set(range(5))
