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
    (end,) = set(joins(program.lowered, layer.body).values())
    between = layer.body.ops[layer.body.ops.index(marked[-1]) + 1 : end]
    launched = [program.lowered.functions[op.kernel].notes["family"] for op in between if isinstance(op, Launch)]
    assert launched == ["route", "grouped", "grouped"]


def test_one_row_s_join_hinders_no_product_from_being_placed_early(program: Program) -> None:
    """The down product reads what ran beside, and asks early for its weights: the join stands in front of the up product."""
    layer = program.lowered.functions["decode.one.linear_moe"]
    (end,) = set(joins(program.lowered, layer.body).values())
    behind = [op for op in layer.body.ops[end:] if isinstance(op, Launch)]
    assert [program.lowered.functions[op.kernel].notes["family"] for op in behind] == ["grouped", "grouped"]
    shared = next(op for op in reversed(layer.body.ops) if isinstance(op, Launch) and op.beside)
    assert behind[1] in shared.results[0].uses and "early" in program.lowered.functions[behind[1].kernel].notes


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
    assert not any(joins(lowered, f.body) for f in lowered.functions.values())


EARLY = """module @m level kernel
symbol N >= 1

func @f(%x: f32[N, 8]) {
  %r = launch([%x, %x]) {kernel = "late", out = [f32[N, 8]]}
  %a = launch([%r, %r]) {kernel = "late", out = [f32[N, 8]], beside = true}
  %m = launch([%r, %r]) {kernel = "early", out = [f32[N, 8]]}
  %n = launch([%m, %m]) {kernel = "early", out = [f32[N, 8]]}
  %y = launch([%n, %a]) {kernel = "early", out = [f32[N, 8]]}
  %b = launch([%y, %y]) {kernel = "late", out = [f32[N, 8]], beside = true}
  %z = launch([%y, %b]) {kernel = "early", out = [f32[N, 8]]}
  return %z
}

func @late(%x: f32[N, 8], %y: f32[N, 8]) with {family = "row"} {
  %1 = add(%x, %y)
  return %1
}

func @early(%x: f32[N, 8], %y: f32[N, 8]) with {family = "grouped", early = [1]} {
  %1 = mul(%x, %y)
  return %1
}
"""


def test_a_join_moves_in_front_of_one_launch_and_of_none_that_runs_beside() -> None:
    """Further, the launches in between would wait for what was to run beside them."""
    module = parse_module(EARLY)
    first, second = joins(module, module.functions["f"].body).values()
    assert (first, second) == (3, 6)
    body = module.functions["f"].body
    middle = next(op for op in body.ops if isinstance(op, Launch) and op.results[0].name == "n")
    middle.beside = True  # another branch stands in front of the reader
    assert next(iter(joins(module, body).values())) == 4
    middle.beside = False
    module.functions["early"].notes.pop("early")
    assert list(joins(module, module.functions["f"].body).values()) == [4, 6]


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
