"""What an expert product may read before the launch in front of it has ended."""

from __future__ import annotations

import pytest

from ringc.ir.ops.call import Launch
from ringc.ir.text_parse import parse_module
from ringc.ir.types import DType
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.target import target
from tests.passes.support_model import Program, tiny_spec


@pytest.mark.parametrize("version", ["decode.one", "decode.few"])
def test_the_down_product_reads_its_weights_and_whose_they_are_early(version: str) -> None:
    module = Program(tiny_spec(), default_pipeline(), "sm_90").lowered
    launches = [op for op in module.functions[f"{version}.linear_moe"].body.ops if isinstance(op, Launch)]
    up, down = (op for op in launches if module.functions[op.kernel].notes["family"] == "grouped")
    (ids,) = (i for i, v in enumerate(up.arguments) if v.type.dtype is DType.I32)
    # Routing stands in front of it, and says which experts are taken; the rows and the weights were there before.
    assert set(module.functions[up.kernel].notes["early"]) == set(range(len(up.arguments))) - {ids}
    early = module.functions[down.kernel].notes["early"]
    beside = {op for op in launches if op.beside}
    assert set(early) == {i for i, v in enumerate(down.arguments) if v.op is not up and v.op not in beside}
    assert {0, 1, 2} - set(early) == {0}  # the rows; the weights and which experts they are of are known


@pytest.mark.parametrize("version", ["decode.one", "decode.few", "decode.many"])
def test_linear_attention_reads_its_state_early(version: str) -> None:
    module = Program(tiny_spec(), default_pipeline(), "sm_90").lowered
    launches = [op for op in module.functions[f"{version}.linear_moe"].body.ops if isinstance(op, Launch)]
    (mixer,) = (op for op in launches if module.functions[op.kernel].notes["family"] == "linear_attention")
    kernel = module.functions[mixer.kernel]
    early = [kernel.body.args[i].name for i in kernel.notes["early"]]
    assert {"state", "slots", "offsets", "query_layernorm", "key_layernorm"} <= set(early)
    # Rotations are made in front of the layers, beside them, and the rows by the product in front.
    assert not {"cos", "sin"} & set(early) and 0 not in kernel.notes["early"]


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


CHOSEN = """module @m level kernel
symbol N >= 1

func @f(%x: f32[N, 8], %i: i32[N, 2]) {{
{lines}
  return %r
}}

func @choice(%x: f32[N, 8]) with {{family = "{family}"}} {{
  %c, %w = route(%x, _) {{top_k = 2}}
  return %c, %w
}}

func @up(%x: f32[N, 8], %v: f32[4, 6, 8], %i: i32[N, 2]) with {{family = "grouped"}} {{
  %1 = gather_matmul(%x, %v, %i)
  return %1
}}

func @down(%h: f32[N, 2, 6], %v: f32[4, 8, 6], %i: i32[N, 2], %w: f32[N, 2], %x: f32[N, 8]) with {{family = "grouped"}} {{
  %1 = gather_matmul(%h, %v, %i)
  %2 = reshape(%w) {{shape = [N, 2, 1]}}
  %3 = mul(%1, %2)
  %4 = sum(%3) {{axes = [1]}}
  %5 = add(%x, %4)
  return %5
}}
"""
V = '  %v = weight() {key = "v", type = f32[4, 6, 8]}\n  %d = weight() {key = "d", type = f32[4, 8, 6]}'
CHOICE = '  %c, %w = launch([%x]) {kernel = "choice", out = [i32[N, 2], f32[N, 2]]}'
UP = '  %u = launch([%x, %v, %c]) {kernel = "up", out = [f32[N, 2, 6]]}'
DOWN = '  %r = launch([%u, %d, %c, %w, %x]) {kernel = "down", out = [f32[N, 8]]}'


@pytest.mark.parametrize(
    ("lines", "family", "up", "down"),
    [
        ([CHOICE, UP, DOWN], "route", (0, 1), (1, 2, 3, 4)),
        ([CHOICE, UP, DOWN], "row", None, (1, 2, 3, 4)),  # what the choice is else may let the next be placed before it waits
        # Where a table says whose rows are, the product doesn't wait for the choice, and the next one must.
        ([CHOICE, UP.replace("%c", "%i"), DOWN.replace("%c", "%i")], "route", (0, 1, 2), (1, 2, 4)),
        ([CHOICE.replace("}", ", beside = true}"), UP, DOWN], "route", None, (1, 4)),
        ([CHOICE, UP.replace("}", ", beside = true}"), DOWN], "route", None, (1, 4)),
    ],
)  # fmt: skip
def test_behind_a_choice_rows_are_there(
    lines: list[str], family: str, up: tuple[int, ...] | None, down: tuple[int, ...]
) -> None:
    module = parse_module(CHOSEN.format(lines="\n".join([V, *lines]), family=family))
    PassManager(parse_pipeline("early")).run(module, target("sm_90"))
    found = [module.functions[name].notes.get("early") for name in ("up", "down")]
    assert found == [up, down]


MIXER = """module @m level kernel
symbol N >= 1
symbol B >= 1
symbol P >= 1

func @decode(%x: f32[N / B, 1, 4], %o: i32[B + 1], %i: i32[B], %s: state<f32[P; 1, 4, 4]>, %t: f32[1]) with {{entry = "decode"}} {{
{lines}
}}

func @rows(%x: f32[N / B, 1, 4]) with {{family = "row"}} {{
  %1 = exp(%x)
  return %1
}}

func @offsets(%o: i32[B + 1]) with {{family = "sort"}} {{
  %1 = add(%o, %o)
  return %1
}}

func @layer(%x: f32[N / B, 1, 4], %o: i32[B + 1], %i: i32[B], %s: state<f32[P; 1, 4, 4]>, %t: f32[1]) {{
  %y, %r = launch([%x, %x, %x, %t, %s, %i, %o]) {{kernel = "mixer", out = [f32[N / B, 1, 4], state<f32[P; 1, 4, 4]>]}}
  return %y, %r
}}

func @mixer(%q: f32[N / B, 1, 4], %k: f32[N / B, 1, 4], %v: f32[N / B, 1, 4], %t: f32[1], %s: state<f32[P; 1, 4, 4]>, %i: i32[B],
    %o: i32[B + 1]) with {{family = "linear_attention"}} {{
  %y, %r = linear_attention(%q, %k, %v, %t, %s, %i, %o) {{scale = 1.0}}
  return %y, %r
}}
"""
ROWS = '  %r = launch([%x]) {kernel = "rows", out = [f32[N / B, 1, 4]]}'
MIXED = '  %a, %b = call([%r, %o, %i, %s, %t]) {callee = "layer", out = [f32[N / B, 1, 4], state<f32[P; 1, 4, 4]>]}'
AGAIN = MIXED.replace("%a, %b", "%c, %d").replace("%r", "%a").replace("%s", "%b")
SUMS = '  %p = launch([%o]) {kernel = "offsets", out = [i32[B + 1]]}'


@pytest.mark.parametrize(
    ("lines", "early"),
    [
        ([ROWS, MIXED, "  return %a, %b"], (3, 4, 5, 6)),
        ([MIXED.replace("%r", "%x"), "  return %a, %b"], None),  # nothing waits between a state's launches of two runs
        ([ROWS.replace("}", ", beside = true}"), MIXED, "  return %a, %b"], None),
        ([MIXED.replace("%r", "%x"), ROWS, "  return %a, %b, %r"], None),  # nor in front of the first of a run
        (
            [SUMS, MIXED.replace("%r", "%x"), "  return %a, %b, %p"],
            None,
        ),  # what may read early itself waits for nothing
        ([ROWS, MIXED, AGAIN, "  return %c, %d"], (3, 5, 6)),  # the state is one that this run has written
        ([ROWS, SUMS, MIXED.replace("%o", "%p"), "  return %a, %b"], (3, 4, 5)),
    ],
)
def test_what_comes_from_outside_the_program_is_there(lines: list[str], early: tuple[int, ...] | None) -> None:
    module = parse_module(MIXER.format(lines="\n".join(lines)))
    PassManager(parse_pipeline("early")).run(module, target("sm_90"))
    assert module.functions["mixer"].notes.get("early") == early


def test_a_kernel_reads_early_what_is_early_wherever_it_is_launched() -> None:
    again = f'\nfunc @h(%x: f32[N, 8], %y: f32[N, 8]) {{\n{A}\n  %v = launch([%a, %a]) {{kernel = "second", {OUT}}}\n  return %v\n}}\n'
    module = parse_module(TEXT.format(lines=f"{A}\n{B}", first="grouped") + again)
    PassManager(parse_pipeline("early")).run(module, target("sm_90"))
    assert "early" not in module.functions["second"].notes
