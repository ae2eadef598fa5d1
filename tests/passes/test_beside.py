"""Launches beside the critical path: which they are, and that memory allows any order."""

from __future__ import annotations

import pytest
import torch

from ringc.codegen.program import emit_program
from ringc.ir.ops.call import Launch
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.passes.framework import PassManager
from ringc.passes.memory import joins
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import target
from tests.passes.support_model import Program, inputs_of, tiny_spec


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(tiny_spec(), default_pipeline(), "sm_90")


@pytest.mark.parametrize("entry", ["prefill.long", "decode.one", "decode.many"])
def test_what_runs_beside_means_the_same(program: Program, entry: str) -> None:
    name = entry.partition(".")[0]
    inputs = inputs_of(program, name, seed=3)
    for a, b in zip(program.run_graph(name, inputs), program.run_lowered(entry, inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_the_shared_expert_runs_beside_routing(program: Program) -> None:
    layer = program.lowered.functions["decode.few.linear_moe"]
    marked = [op for op in layer.body.ops if isinstance(op, Launch) and op.beside]
    families = [program.lowered.functions[op.kernel].notes["family"] for op in marked]
    assert families == ["matmul", "matmul"]
    (end,) = set(joins(layer.body).values())
    between = layer.body.ops[layer.body.ops.index(marked[-1]) + 1 : end]
    launched = [program.lowered.functions[op.kernel].notes["family"] for op in between if isinstance(op, Launch)]
    assert launched == ["route", "grouped", "grouped"]


def test_one_row_s_launches_are_a_line(program: Program) -> None:
    """Its shared expert is a part of the experts' kernels: a join would keep those from being placed early."""
    layer = program.lowered.functions["decode.one.linear_moe"]
    assert not joins(layer.body)
    launched = [op for op in layer.body.ops if isinstance(op, Launch)]
    families = [program.lowered.functions[op.kernel].notes["family"] for op in launched]
    assert families == ["matmul", "linear_attention", "matmul", "matmul", "route", "grouped", "grouped"]
    up, down = launched[-2:]
    assert set(up.results) <= set(down.arguments)


def launches(program: Program, name: str) -> list[Launch]:
    return [op for op in program.lowered.functions[name].body.ops if isinstance(op, Launch)]


def test_few_rows_of_a_gpu_are_not_sorted_by_expert(program: Program) -> None:
    functions = program.lowered.functions
    for version, sorts in (("one", 0), ("few", 0), ("many", 1)):
        names = [functions[op.kernel].notes["family"] for op in launches(program, f"decode.{version}.linear_moe")]
        assert names.count("sort") == sorts, version
    on_cpu = Program(tiny_spec(), default_pipeline())
    names = [on_cpu.lowered.functions[op.kernel].notes["family"] for op in launches(on_cpu, "decode.one.linear_moe")]
    assert "sort" in names


def test_the_host_program_says_so(program: Program) -> None:
    text = emit_program(program.lowered, "sm_90")
    assert text.count("with rt.beside():") == text.count("rt.join()\n") >= 8


def test_a_cpu_s_program_has_none() -> None:
    lowered = Program(tiny_spec(), default_pipeline()).lowered
    assert not any(joins(f.body) for f in lowered.functions.values())


SECONDS = 'with {family = "row", seconds = "%s"}'
LINE = f"""module @m level kernel
symbol N >= 1

func @f(%x: f32[N, 8]) {{
  %a = launch([%x]) {{kernel = "short", out = [f32[N, 8]]}}
  %b = launch([%a]) {{kernel = "short", out = [f32[N, 8]]}}
  %c = launch([%x]) {{kernel = "long", out = [f32[N, 8]]}}
  %d = launch([%b, %c]) {{kernel = "join", out = [f32[N, 8]]}}
  return %d
}}

func @short(%x: f32[N, 8]) {SECONDS % "1.0e-6"} {{
  %y = neg(%x)
  return %y
}}

func @long(%x: f32[N, 8]) {SECONDS % "9.0e-6"} {{
  %y = abs(%x)
  return %y
}}

func @join(%x: f32[N, 8], %z: f32[N, 8]) {SECONDS % "1.0e-6"} {{
  %y = add(%x, %z)
  return %y
}}
"""


@pytest.mark.parametrize(("text", "beside"), [(LINE, ["a", "b"]), (LINE.replace("9.0e-6", "1.0e-6"), ["c"])])
def test_what_takes_longest_is_the_line_that_others_run_beside(text: str, beside: list[str]) -> None:
    module = parse_module(text)
    PassManager(parse_pipeline("beside,memory")).run(module, target("sm_90"))
    ops = module.functions["f"].body.ops
    assert [op.result.name for op in ops if isinstance(op, Launch) and op.beside] == beside
    assert ops[0].result.name == beside[0]
    assert (
        parse_module(print_module(module)).functions["f"].body.structural_hash()
        == module.functions["f"].body.structural_hash()
    )


WRITES = LINE.replace("func @f(%x: f32[N, 8])", "func @f(%x: f32[N, 8], %st: state<f32[P; 8]>, %s: i32[N])").replace(
    'launch([%x]) {kernel = "short"', 'launch([%x, %st, %s]) {kernel = "store"'
)
STORE = f"""
func @store(%x: f32[N, 8], %st: state<f32[P; 8]>, %s: i32[N]) {SECONDS % "1.0e-6"} {{
  %y = neg(%x)
  %new = state_write(%st, %s, %y)
  return %y
}}
"""


def test_what_touches_a_state_stays_in_its_place() -> None:
    """Another launch may read the state between: only the order of operations says what it finds there."""
    module = parse_module(WRITES + STORE)
    PassManager(parse_pipeline("beside,memory")).run(module, target("sm_90"))
    ops = module.functions["f"].body.ops
    assert [op.result.name for op in ops if isinstance(op, Launch) and op.beside] == ["b"]
