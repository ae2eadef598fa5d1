"""What an expert product may read before the launch in front of it has ended."""

from __future__ import annotations

import pytest

from ringc.ir.ops.call import Launch
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import target
from tests.passes.support_model import Program, tiny_spec


@pytest.mark.parametrize("version", ["decode.one", "decode.few"])
def test_the_down_product_reads_its_weights_and_whose_they_are_early(version: str) -> None:
    module = Program(tiny_spec(), default_pipeline(), "sm_90").lowered
    launches = [op for op in module.functions[f"{version}.linear_moe"].body.ops if isinstance(op, Launch)]
    up, down = (op for op in launches if module.functions[op.kernel].notes["family"] == "grouped")
    assert "early" not in module.functions[up.kernel].notes  # routing stands in front of it
    early = module.functions[down.kernel].notes["early"]
    assert set(early) == {i for i, v in enumerate(down.arguments) if v.op is not up}
    assert len(early) == len(down.arguments) - 1


def test_a_cpu_s_kernels_read_nothing_early() -> None:
    functions = Program(tiny_spec(), default_pipeline()).lowered.functions.values()
    assert not [f for f in functions if "early" in f.notes]


TEXT = """module @m level kernel
symbol N >= 1

func @f(%x: f32[N, 8], %y: f32[N, 8]) {{
{lines}
  return %b
}}

func @first(%x: f32[N, 8], %y: f32[N, 8]) with {{family = "{first}"}} {{
  %1 = add(%x, %y)
  return %1
}}

func @second(%x: f32[N, 8], %y: f32[N, 8]) with {{family = "grouped"}} {{
  %1 = mul(%x, %y)
  return %1
}}
"""
CALLED = """
func @g(%x: f32[N, 8]) {
  %1 = launch([%x, %x]) {kernel = "first", out = [f32[N, 8]]}
  return %1
}
"""
OUT = "out = [f32[N, 8]]"
A = f'  %a = launch([%x, %y]) {{kernel = "first", {OUT}}}'
B = f'  %b = launch([%a, %y]) {{kernel = "second", {OUT}}}'


@pytest.mark.parametrize(
    ("lines", "first", "early"),
    [
        ([A, B], "grouped", (1,)),
        ([A, B], "row", None),  # it may let the next one be placed before it waits
        ([A.replace("}", ", beside = true}"), B], "grouped", None),  # nothing is known to be in front
        ([A, B.replace("%b", "%c"), B.replace("[%a, %y]", "[%c, %a]")], "grouped", None),  # the one between reads early itself
        ([A, B.replace("%b", "%c"), B.replace("[%a, %y]", "[%c, %y]")], "grouped", (1,)),
        ([A, '  %d = call([%x]) {callee = "g", out = [f32[N, 8]]}', B], "grouped", None),  # nor what a call ends with
        ([A.replace("%a", "%d").replace("}", ", beside = true}"), A, B.replace("%y", "%d")], "grouped", None),
        ([A, B.replace("%b", "%c"), B.replace("[%a, %y]", "[%a, %c]")], "grouped", None),
        ([A, "  %v = reshape(%a) {shape = [8*N]}", "  %w = reshape(%v) {shape = [N, 8]}", B.replace("%a", "%w")], "grouped", (1,)),
    ],
)  # fmt: skip
def test_what_the_launch_in_front_makes_is_waited_for(
    lines: list[str], first: str, early: tuple[int, ...] | None
) -> None:
    module = parse_module(TEXT.format(lines="\n".join(lines), first=first) + CALLED)
    PassManager(parse_pipeline("early")).run(module, target("sm_90"))
    assert module.functions["second"].notes.get("early") == early


def test_a_kernel_reads_early_what_is_early_wherever_it_is_launched() -> None:
    again = f'\nfunc @h(%x: f32[N, 8], %y: f32[N, 8]) {{\n{A}\n  %v = launch([%a, %a]) {{kernel = "second", {OUT}}}\n  return %v\n}}\n'
    module = parse_module(TEXT.format(lines=f"{A}\n{B}", first="grouped") + again)
    PassManager(parse_pipeline("early")).run(module, target("sm_90"))
    assert "early" not in module.functions["second"].notes
