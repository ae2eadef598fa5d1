"""Products of one row by Triton, what stands in front of them included: in the interpreter, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.codegen.triton.overlap import READ_ASKED, WAIT
from ringc.errors import CodegenError
from ringc.ir.text_parse import parse_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.front import before_product
from ringc.passes.pipeline import default_pipeline
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, kernel

TEMPLATE = "triton.gemv"

NORM = """
func @norm(%x: f32[N, {k}], %n: f32[{k}], %w: f32[{m}, {k}]) {{
  %0 = rms_norm(%x, %n) : f32[N, {k}]
  %y = matmul(%0, %w) {{transpose_b = true}} : f32[N, {m}]
  return %y
}}"""

SWIGLU = """
func @swiglu(%x: f32[N, 72], %r: f32[N, 72], %n: f32[72], %gate: f32[40, 72], %up: f32[40, 72], %bias: f32[40]) {
  %0 = add(%x, %r) : f32[N, 72]
  %1 = rms_norm(%0, %n) : f32[N, 72]
  %2 = matmul(%1, %gate) {transpose_b = true} : f32[N, 40]
  %3 = matmul(%1, %up) {transpose_b = true} : f32[N, 40]
  %4 = silu(%2) : f32[N, 40]
  %5 = mul(%4, %3) : f32[N, 40]
  %6 = add(%5, %bias) : f32[N, 40]
  return %5, %6
}"""

GATE = """
func @gate(%wide: f32[N, {wide}], %o: f32[N, 8, {d}], %g: f32[{k}], %w: f32[{m}, {k}], %residual: f32[N, {m}]) {{
  %0 = slice(%wide) {{axis = 1, start = {start}, stop = {wide}}} : f32[N, {k}]
  %1 = reshape(%o) {{shape = [N, {groups}, {e}]}} : f32[N, {groups}, {e}]
  %2 = rms_norm(%1, _) : f32[N, {groups}, {e}]
  %3 = reshape(%2) {{shape = [N, {k}]}} : f32[N, {k}]
  %4 = mul(%3, %g) : f32[N, {k}]
  %5 = sigmoid(%0) : f32[N, {k}]
  %6 = mul(%4, %5) : f32[N, {k}]
  %7 = matmul(%6, %w) {{transpose_b = true}} : f32[N, {m}]
  %8 = add(%residual, %7) : f32[N, {m}]
  return %8
}}"""

SOFTMAX = """
func @softmax(%table: f32[50, 96], %ids: i32[N], %scale: f32[N, 1], %w: f32[96, 37]) {
  %0 = gather(%table, %ids) : f32[N, 96]
  %1 = mul(%0, %scale) : f32[N, 96]
  %2 = softmax(%1) : f32[N, 96]
  %3 = matmul(%2, %w) : f32[N, 37]
  return %3
}"""

ROPE = """
func @rope(%x: f32[N, 4, 24], %cos: f32[N, 8], %sin: f32[N, 8], %w: f32[50, 96]) {
  %0 = rope(%x, %cos, %sin) : f32[N, 4, 24]
  %1 = exp(%0) : f32[N, 4, 24]
  %2 = reshape(%1) {shape = [N, 96]} : f32[N, 96]
  %3 = matmul(%2, %w) {transpose_b = true} : f32[N, 50]
  return %3
}"""

LOGARITHM = """
func @logarithm(%x: f32[N, 72], %w: f32[50, 72]) {
  %0 = abs(%x) : f32[N, 72]
  %1 = log(%0) : f32[N, 72]
  %2 = matmul(%1, %w) {transpose_b = true} : f32[N, 50]
  return %2
}"""

CENTRED = """
func @centred(%x: f32[N, 4, {d}], %scale: f32[N, 4, 1], %n: f32[{k}], %w: f32[20, {k}]) {{
  %0 = mul(%x, %scale) : f32[N, 4, {d}]
  %1 = reshape(%0) {{shape = [N, {k}]}} : f32[N, {k}]
  %2 = max(%1) {{axes = [1], keep = true}} : f32[N, 1]
  %3 = sub(%1, %2) : f32[N, {k}]
  %4 = rms_norm(%3, %n) : f32[N, {k}]
  %5 = matmul(%4, %w) {{transpose_b = true}} : f32[N, 20]
  return %5
}}"""

SCALES = """
func @scales(%x: f32[N, 700], %y: f32[N, 700], %n: f32[700], %gate: f32[48, 700], %up: f32[48, 700]) {
  %0 = exp(%y) : f32[N, 700]
  %1 = sum(%0) {axes = [1]} : f32[N]
  %2 = reshape(%1) {shape = [N, 1]} : f32[N, 1]
  %3 = rsqrt(%2) : f32[N, 1]
  %4 = max(%0) {axes = [1], keep = true} : f32[N, 1]
  %5 = mul(%n, %3) : f32[N, 700]
  %6 = mul(%5, %x) : f32[N, 700]
  %7 = mul(%4, %6) : f32[N, 700]
  %8 = matmul(%7, %gate) {transpose_b = true} : f32[N, 48]
  %9 = matmul(%7, %up) {transpose_b = true} : f32[N, 48]
  %10 = silu(%8) : f32[N, 48]
  %11 = mul(%10, %9) : f32[N, 48]
  return %11
}"""

NESTED = """
func @nested(%x: f32[N, 700], %w: f32[20, 700]) {
  %0 = max(%x) {axes = [1], keep = true} : f32[N, 1]
  %1 = sub(%x, %0) : f32[N, 700]
  %2 = exp(%1) : f32[N, 700]
  %3 = sum(%2) {axes = [1], keep = true} : f32[N, 1]
  %4 = rsqrt(%3) : f32[N, 1]
  %5 = mul(%x, %4) : f32[N, 700]
  %6 = matmul(%5, %w) {transpose_b = true} : f32[N, 20]
  return %6
}"""
"""A factor of the row whose sum rests on another reduction."""

SPREAD_OUT = """
func @spread_out(%x: f32[N, 700], %n: f32[700], %w: f32[20, 700]) {
  %0 = max(%x) {axes = [1], keep = true} : f32[N, 1]
  %1 = mul(%0, %n) : f32[N, 700]
  %2 = matmul(%1, %w) {transpose_b = true} : f32[N, 20]
  return %2
}"""
"""A row's factor times what is the same in all rows."""


def gate(groups: int, extent: int, m: int = 48) -> str:
    """The gate of linear attention with so many groups of a size."""
    k = groups * extent
    return GATE.format(wide=k + 40, start=40, d=k // 8, k=k, groups=groups, e=extent, m=m)


ALONE = """
func @alone(%x: f32[N, {k}], %w: f32[{m}, {k}], %r: f32[N, {m}]) {{
  %0 = matmul(%x, %w) {{transpose_b = true}} : f32[N, {m}]
  %1 = add(%r, %0) : f32[N, {m}]
  return %1, %0
}}"""

REGIONS = {
    "alone": ALONE.format(k=64, m=50),
    "given_back": NORM.format(k=72, m=50).replace("return %y", "return %0, %y"),
    "given_back_behind": NORM.format(k=96, m=600).replace("return %y", "return %y, %0"),
    "given_back_long": NORM.format(k=1200, m=20).replace("return %y", "return %0, %y"),
    "given_back_longer_than_a_tile": NORM.format(k=8200, m=16).replace("return %y", "return %0, %y"),
    "given_back_of_groups": gate(4, 22).replace("return %8", "return %8, %6"),
    "alone_uneven": ALONE.format(k=80, m=3),
    "alone_in_loops": ALONE.format(k=20000, m=4),
    "norm": NORM.format(k=72, m=50),
    "norm_long": NORM.format(k=1200, m=20),
    "norm_longer_than_a_tile": NORM.format(k=8200, m=16),
    "swiglu": SWIGLU,
    "gate_1": gate(1, 96),
    "gate_4": gate(4, 64),
    "gate_4_uneven": gate(4, 22),
    "gate_4_in_tiles": gate(4, 256),
    "gate_2_long": gate(2, 600, 16),
    "softmax": SOFTMAX,
    "rope": ROPE,
    "infinite_behind_the_last": LOGARITHM,
    "centred": CENTRED.format(d=24, k=96),
    "centred_long": CENTRED.format(d=300, k=1200),
    "centred_longer_than_a_tile": CENTRED.format(d=2050, k=8200),
    "scales": SCALES,
    "nested": NESTED,
    "spread_out": SPREAD_OUT,
}


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("name", REGIONS)
def test_products(interpreter: InterpreterWorker, tmp_path: Path, name: str, rows: int) -> None:
    """One row and several; groups of many lengths, whole rows, and rows that are read in a loop."""
    made = kernel(REGIONS[name], TEMPLATE)
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": rows}))


def test_every_argument_may_have_a_name_of_the_kernel(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    text = (
        REGIONS["gate_4"].replace("%wide", "%left").replace("%o", "%group").replace("%g:", "%k:").replace("%g)", "%k)")
    )
    made = kernel(text, TEMPLATE)
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": 5}))


UP = """
func @up(%x: {t}[N / B, {k}],{norm} %gate: {t}[{e}, {m}, {k}], %ids: i32[N, {j}], %up: {t}[{e}, {m}, {k}]) {{
{made}  %1 = gather_matmul({x}, %gate, %ids) : {t}[N, {j}, {m}]
  %2 = gather_matmul({x}, %up, %ids) : {t}[N, {j}, {m}]
  %3 = silu(%1) : {t}[N, {j}, {m}]
  %4 = mul(%3, %2) : {t}[N, {j}, {m}]
  return %4
}}"""

DOWN = """
func @down(%h: {t}[N, {j}, {k}], %w: {t}[{e}, {m}, {k}], %ids: i32[N, {j}], %weights: f32[N / B, {j}, 1], %r: {t}[N / B, {m}]) {{
  %0 = gather_matmul(%h, %w, %ids) : {t}[N, {j}, {m}]
  %1 = cast(%0) {{dtype = f32}} : f32[N, {j}, {m}]
  %2 = mul(%1, %weights) : f32[N / B, {j}, {m}]
  %3 = sum(%2) {{axes = [1]}} : f32[N / B, {m}]
  %4 = cast(%3) {{dtype = {t}}} : {t}[N / B, {m}]
  %5 = add(%r, %4) : {t}[N / B, {m}]
  return %5
}}"""


SHARED_UP = """
func @shared_up(%x: {t}[N / B, {k}], %n: {t}[{k}], %gate: {t}[{e}, {m}, {k}], %ids: i32[N, {j}], %up: {t}[{e}, {m}, {k}], %a: {t}[{s}, {k}],
    %b: {t}[{s}, {k}]) {{
  %0 = rms_norm(%x, %n) : {t}[N / B, {k}]
  %1 = matmul(%0, %a) {{transpose_b = true}} : {t}[N / B, {s}]
  %2 = matmul(%0, %b) {{transpose_b = true}} : {t}[N / B, {s}]
  %3 = silu(%1) : {t}[N / B, {s}]
  %4 = mul(%3, %2) : {t}[N / B, {s}]
  %5 = gather_matmul(%0, %gate, %ids) : {t}[N, {j}, {m}]
  %6 = gather_matmul(%0, %up, %ids) : {t}[N, {j}, {m}]
  %7 = silu(%5) : {t}[N, {j}, {m}]
  %8 = mul(%7, %6) : {t}[N, {j}, {m}]
  return %8, %4
}}"""

GIVEN_UP = SHARED_UP.replace(" %n: {t}[{k}],", "").replace(SHARED_UP.splitlines()[3] + "\n", "").replace("%0", "%x")
"""Of a row that the router's kernel gave back."""

SHARED_DOWN = """
func @shared_down(%h: {t}[N, {j}, {k}], %w: {t}[{e}, {m}, {k}], %ids: i32[N, {j}], %weights: f32[N / B, {j}, 1], %s: {t}[N / B, {s}],
    %d: {t}[{m}, {s}], %r: {t}[N / B, {m}]) {{
  %0 = gather_matmul(%h, %w, %ids) : {t}[N, {j}, {m}]
  %1 = cast(%0) {{dtype = f32}} : f32[N, {j}, {m}]
  %2 = mul(%1, %weights) : f32[N / B, {j}, {m}]
  %3 = sum(%2) {{axes = [1]}} : f32[N / B, {m}]
  %4 = cast(%3) {{dtype = {t}}} : {t}[N / B, {m}]
  %5 = matmul(%s, %d) {{transpose_b = true}} : {t}[N / B, {m}]
  %6 = add(%4, %5) : {t}[N / B, {m}]
  %7 = add(%r, %6) : {t}[N / B, {m}]
  return %7
}}"""


def shared(text: str, experts: int, j: int, k: int, m: int, s: int, dtype: str = "f32") -> str:
    """Products of a row's experts, and the shared expert's, whose rows between its products have `s` elements, beside them."""
    return text.format(t=dtype, e=experts, j=j, k=k, m=m, s=s)


def up(experts: int, j: int, k: int, m: int, dtype: str = "f32", *, norm: bool = False) -> str:
    """The gated products of each row's experts, and with it the row's norm."""
    made = f"  %0 = rms_norm(%x, %n) : {dtype}[N / B, {k}]\n" if norm else ""
    given = f" %n: {dtype}[{k}]," if norm else ""
    return UP.format(t=dtype, e=experts, j=j, k=k, m=m, norm=given, made=made, x="%0" if norm else "%x")


def down(experts: int, j: int, k: int, m: int, dtype: str = "f32") -> str:
    """The sum of each row's experts, and a residual."""
    return DOWN.format(t=dtype, e=experts, j=j, k=k, m=m)


EXPERTS = {
    "up": up(8, 4, 48, 40),
    "up_behind_a_norm": up(8, 3, 72, 20, norm=True),
    "up_of_one": up(5, 1, 64, 24),
    "down": down(8, 4, 40, 24),
    "down_uneven": down(6, 3, 72, 50),
    "down_of_one": down(5, 1, 64, 24),
    "as_many_experts_as_elements": down(8, 4, 4, 24),
    "beside_what_is_no_product": """
func @beside(%h: f32[N, 3, 40], %w: f32[8, 24, 40], %ids: i32[N, 3], %r: f32[N, 3, 24]) {
  %0 = gather_matmul(%h, %w, %ids) : f32[N, 3, 24]
  %1 = silu(%r) : f32[N, 3, 24]
  %2 = mul(%0, %1) : f32[N, 3, 24]
  return %2, %1
}""",
    "beside_what_is_no_product_behind_a_norm": up(8, 3, 72, 20, norm=True)
    .replace(", %ids:", ", %r: f32[N, 3, 20], %ids:")
    .replace("  return %4", "  %5 = silu(%r) : f32[N, 3, 20]\n  return %4, %5"),
    "not_summed": """
func @alone(%h: f32[N, 3, 40], %w: f32[8, 24, 40], %ids: i32[N, 3]) {
  %0 = gather_matmul(%h, %w, %ids) : f32[N, 3, 24]
  return %0
}""",
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts(interpreter: InterpreterWorker, tmp_path: Path, name: str, rows: int, early: bool) -> None:
    """Rows with experts of their own, some of them the same; weights read in front of the wait or behind it."""
    made = kernel(EXPERTS[name], TEMPLATE)
    if early:
        made.function.notes["early"] = tuple(range(len(made.function.body.args)))
    body = emit(Kernel(made.function, made.implementation), target("sm_90")).text.partition("\ndef ")[2]
    front, wait, behind = body.partition(WAIT)
    assert wait and (".to(tl.int64) *" in front) == early and "tl.store" in behind
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": rows, "B": rows}))


SHARED = {
    "up": shared(SHARED_UP, 8, 3, 48, 40, 40),
    "up_of_other_columns": shared(SHARED_UP, 8, 4, 72, 24, 50),
    "up_of_one_choice": shared(SHARED_UP, 5, 1, 64, 24, 24),
    "up_of_a_given_row": shared(GIVEN_UP, 8, 3, 48, 40, 40),
    "up_of_one_product": shared(SHARED_UP, 8, 3, 48, 40, 20)
    .replace("  %2 = matmul(%0, %b) {transpose_b = true} : f32[N / B, 20]\n", "")
    .replace("mul(%3, %2)", "mul(%3, %3)")
    .replace(",\n    %b: f32[20, 48]", ""),
    "down": shared(SHARED_DOWN, 8, 4, 40, 24, 40),
    "down_of_other_columns": shared(SHARED_DOWN, 6, 3, 40, 50, 80),
    "down_uneven": shared(SHARED_DOWN, 6, 3, 96, 50, 72),
    "down_of_one_choice": shared(SHARED_DOWN, 5, 1, 64, 24, 32),
}  # fmt: skip


PARTS = ("dense", "experts")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("name", SHARED)
def test_experts_and_the_shared_one(
    interpreter: InterpreterWorker, tmp_path: Path, name: str, rows: int, early: bool
) -> None:
    """The shared expert's first products in programs of their own, its last one as a term of the sum."""
    made = kernel(SHARED[name], TEMPLATE)
    if early:
        named = next(i for i, v in enumerate(made.function.body.args) if v.name == "ids")
        made.function.notes["early"] = tuple(i for i in range(len(made.function.body.args)) if i != named)
    text = emit(Kernel(made.function, made.implementation), target("sm_90")).text
    check(interpreter, tmp_path, made, random_inputs(made.function, {"N": rows, "B": rows}))
    if name.startswith("up"):
        dense, experts = (text.partition(f"def shared_up_{part}(")[2].partition("@triton")[0] for part in PARTS)
        front, _, behind = dense.partition(WAIT)
        # The shared expert's programs wait for nothing but to write, where all that they read is there.
        assert ("tl.load(x " in front, "tl.load(" in behind) == (early, not early) and "tl.store(" not in front
        assert ("tl.sum(" in front) == early
        assert "tl.load(" not in experts.partition(WAIT)[0] and "ids" not in dense


@pytest.mark.parametrize("text", [up(8, 4, 48, 40), SHARED["up"], SHARED["down"]])
def test_one_row_s_experts_leave_the_caches_first(text: str) -> None:
    """Of several rows some have the same."""
    made = kernel(text, TEMPLATE)
    several = emit(made).text
    made.function.notes["rows"] = (1, 1)
    one = emit(made).text
    weights = {"gate", "up", "up_2", "w", "a", "b", "d"}
    loads = [line.partition("tl.load(")[2] for line in one.splitlines() if "tl.load(" in line]
    assert {load.split()[0] for load in loads if "evict_first" in load} == weights & {load.split()[0] for load in loads}
    assert "evict_first" not in several


def test_experts_ask_for_all_of_their_weights_at_once_unless_they_make_the_row() -> None:
    given, made = (emit(kernel(up(8, 4, 48, 40, norm=norm), TEMPLATE)).text for norm in (False, True))
    assert (READ_ASKED in given, READ_ASKED in made) == (True, False)
    asked, _, behind = given.partition(READ_ASKED)
    assert "tl.load(gate" in asked and "tl.load(up" in asked and "tl.load(x" in behind


def test_what_the_kernel_in_front_makes_is_read_behind_the_wait() -> None:
    """All that is given early stands in front of it, norms' weights as well, and nothing else."""
    made = kernel(MINI["norm"], TEMPLATE)
    made.function.notes["early"] = (1, 2)
    front, _, behind = emit(made, target("sm_90")).text.partition(WAIT)
    assert "tl.load(w +" in front and "tl.load(weight +" in front
    assert "tl.load(x +" in behind and "tl.load(x +" not in front
    made = kernel(MINI["experts_down"], TEMPLATE)
    made.function.notes["early"] = (1, 2, 3)
    front, _, behind = emit(made, target("sm_90")).text.partition(WAIT)
    assert [front.count(f"tl.load({name} +") for name in ("h", "w", "ids", "weights", "r")] == [0, 8, 8, 8, 0]
    assert [behind.count(f"tl.load({name} +") for name in ("h", "w", "ids", "weights", "r")] == [8, 0, 0, 0, 1]


def test_experts_that_are_computed_are_known_behind_the_wait(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    """Where what they are computed of comes from the kernel in front."""
    text = EXPERTS["not_summed"].replace("%ids: i32[N, 3]", "%ids: i32[N, 3], %more: i32[N, 3]")
    text = text.replace(
        "  %0 = gather_matmul(%h, %w, %ids)",
        "  %i = minimum(%ids, %more) : i32[N, 3]\n  %0 = gather_matmul(%h, %w, %i)",
    )
    made = kernel(text, TEMPLATE)
    inputs = random_inputs(made.function, {"N": 5, "B": 5})
    for early, behind in (((), True), ((1, 2), True), ((1, 2, 3), False)):
        made.function.notes["early"] = early
        front = (
            emit(Kernel(made.function, made.implementation), target("sm_90"))
            .text.partition("\ndef ")[2]
            .partition(WAIT)[0]
        )
        assert ("tl.load(" not in front) == behind
        check(interpreter, tmp_path, made, inputs)


def test_rows_of_a_column_follow_each_other() -> None:
    """What several rows name is read from memory once, while it is in the second-level cache."""
    text = emit(kernel(EXPERTS["down"], TEMPLATE)).text
    assert "row = (program % N).to(tl.int64)" in text
    assert "column = program // N" in text


def test_a_row_s_experts_are_rounded_before_they_are_added_up() -> None:
    """As a kernel rounds them that writes them to memory."""
    text = emit(kernel(down(256, 8, 512, 2048, "bf16"), TEMPLATE)).text
    assert text.count("= tl.sum(") == 8
    assert text.count(".to(tl.bfloat16).to(tl.float32)") == 9
    # So is the shared expert's result, which several rows' kernel writes to memory.
    text = emit(kernel(shared(SHARED_DOWN, 256, 8, 512, 2048, 512, "bf16"), TEMPLATE)).text
    assert text.count("= tl.sum(") == 9
    assert text.count(".to(tl.bfloat16).to(tl.float32)") == 10


COLUMN_SCALE = """
func @scaled(%x: f32[N, 64], %w: f32[16, 64]) {
  %0 = reshape(%x) {shape = [N, 4, 16]} : f32[N, 4, 16]
  %1 = sum(%0) {axes = [1], keep = true} : f32[N, 1, 16]
  %2 = mul(%0, %1) : f32[N, 4, 16]
  %3 = reshape(%2) {shape = [N, 64]} : f32[N, 64]
  %4 = matmul(%3, %w) {transpose_b = true} : f32[N, 16]
  return %4
}"""

TWO_EXTENTS = """
func @two_extents(%x: f32[N, 64], %w: f32[16, 64]) {
  %0 = reshape(%x) {shape = [N, 4, 16]} : f32[N, 4, 16]
  %1 = rms_norm(%0, _) : f32[N, 4, 16]
  %2 = reshape(%1) {shape = [N, 64]} : f32[N, 64]
  %3 = rms_norm(%2, _) : f32[N, 64]
  %4 = matmul(%3, %w) {transpose_b = true} : f32[N, 16]
  return %4
}"""

MOVED = """
func @moved(%x: f32[N, 64], %w: f32[16, 64]) {
  %0 = reshape(%x) {shape = [N, 4, 16]} : f32[N, 4, 16]
  %1 = rms_norm(%0, _) : f32[N, 4, 16]
  %2 = transpose(%1) {axes = [0, 2, 1]} : f32[N, 16, 4]
  %3 = reshape(%2) {shape = [N, 64]} : f32[N, 64]
  %4 = matmul(%3, %w) {transpose_b = true} : f32[N, 16]
  return %4
}"""

CUT = """
func @cut(%x: f32[N, 64], %w: f32[16, 48]) {
  %0 = rms_norm(%x, _) : f32[N, 64]
  %1 = slice(%0) {axis = 1, start = 0, stop = 48} : f32[N, 48]
  %2 = matmul(%1, %w) {transpose_b = true} : f32[N, 16]
  return %2
}"""

SPREAD = """
func @spread(%x: f32[N, 64], %w: f32[16, 64]) {
  %0 = reshape(%x) {shape = [N, 8, 8]} : f32[N, 8, 8]
  %1 = sum(%0) {axes = [2]} : f32[N, 8]
  %2 = reshape(%1) {shape = [N, 1, 8]} : f32[N, 1, 8]
  %3 = mul(%0, %2) : f32[N, 8, 8]
  %4 = reshape(%3) {shape = [N, 64]} : f32[N, 64]
  %5 = matmul(%4, %w) {transpose_b = true} : f32[N, 16]
  return %5
}"""

WANTED = """
func @wanted(%x: f32[N, 16], %w: f32[16, 16]) {
  %0 = rms_norm(%x, _) : f32[N, 16]
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 16]
  %2 = add(%0, %1) : f32[N, 16]
  return %2
}"""

GIVEN_HALFWAY = """
func @given_halfway(%x: f32[N, 16], %w: f32[16, 16]) {
  %0 = silu(%x) : f32[N, 16]
  %1 = rms_norm(%0, _) : f32[N, 16]
  %2 = matmul(%1, %w) {transpose_b = true} : f32[N, 16]
  return %0, %2
}"""

BEHIND = """
func @behind(%x: f32[N, 16], %w: f32[16, 16]) {
  %0 = silu(%x) : f32[N, 16]
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 16]
  %2 = softmax(%1) : f32[N, 16]
  return %2
}"""

OTHER = """
func @other(%x: f32[N, 8], %y: f32[N, 8], %w: f32[16, 8]) {
  %0 = silu(%x) : f32[N, 8]
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 16]
  %2 = matmul(%y, %w) {transpose_b = true} : f32[N, 16]
  %3 = add(%1, %2) : f32[N, 16]
  return %3
}"""


NOT_CHOICES = """
func @not_choices(%h: f32[N, 3, 40], %w: f32[8, 24, 40], %ids: i32[N, 3]) {
  %0 = gather_matmul(%h, %w, %ids) : f32[N, 3, 24]
  %1 = sum(%0) {axes = [2]} : f32[N, 3]
  return %1
}"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COLUMN_SCALE, "takes other elements than 4 neighbours of 64"),
        (TWO_EXTENTS, r"'mean' of \[N, 64\] takes other elements"),
        (MOVED, "'transpose' moves elements behind a reduction"),
        (CUT, "takes 64 elements, of which 48 are no multiple"),
        (SPREAD, r"gives \[N, 1, 8\] behind a reduction"),
        (WANTED, "is wanted behind the product too"),
        (GIVEN_HALFWAY, "is wanted behind the product too"),
        (up(8, 4, 48, 40, norm=True).replace("return %4", "return %0, %4"), "is wanted behind the product too"),
        (
            up(8, 4, 48, 40).replace("  return %4", "  %5 = silu(%x) : f32[N / B, 48]\n  return %4, %5"),
            "is made of no product",
        ),
        (BEHIND, "'max' behind the product isn't pointwise"),
        (OTHER, "one left operand"),
        (NOT_CHOICES, "'sum' behind the product isn't pointwise"),
        (
            NOT_CHOICES.replace("[2]", "[1]")
            .replace("%1 : f32[N, 3]", "")
            .replace("f32[N, 3]\n", "f32[N, 24]\n")
            .replace("return %1", "%2 = sum(%1) {axes = [1]} : f32[N]\n  return %2"),
            "'sum' behind the product isn't pointwise",
        ),
    ],
)
def test_what_cant_be_made_piece_by_piece_is_refused(text: str, said: str) -> None:
    with pytest.raises(CodegenError, match=said):
        emit(kernel(text, TEMPLATE))


@pytest.mark.parametrize("text", REGIONS.values(), ids=REGIONS)
def test_a_pass_is_told_the_same(text: str) -> None:
    assert before_product(kernel(text, TEMPLATE).function.body) == ""


@pytest.mark.parametrize("text", [COLUMN_SCALE, TWO_EXTENTS, MOVED, CUT, SPREAD, WANTED, OTHER])
def test_a_pass_is_told_why_not(text: str) -> None:
    assert before_product(kernel(text, TEMPLATE).function.body)


MINI = {
    "norm": """
func @norm(%x: bf16[N / B, 2048], %w: bf16[2048], %weight: bf16[8192, 2048]) {
  %n = rms_norm(%x, %w) : bf16[N / B, 2048]
  %y = matmul(%n, %weight) {transpose_b = true} : bf16[N / B, 8192]
  return %y
}""",
    "gate": """
func @gate(%0: bf16[N / B, 8192], %1: bf16[N / B, 16, 128], %g_norm: bf16[2048], %dense: bf16[2048, 2048], %residual: bf16[N / B, 2048]) {
  %2 = slice(%0) {axis = 1, start = 6144, stop = 8192} : bf16[N / B, 2048]
  %3 = reshape(%1) {shape = [N, 4, 512]} : bf16[N / B, 4, 512]
  %4 = rms_norm(%3, _) : bf16[N / B, 4, 512]
  %5 = reshape(%4) {shape = [N, 2048]} : bf16[N / B, 2048]
  %6 = mul(%5, %g_norm) : bf16[N / B, 2048]
  %7 = sigmoid(%2) : bf16[N / B, 2048]
  %8 = mul(%6, %7) : bf16[N / B, 2048]
  %9 = matmul(%8, %dense) {transpose_b = true} : bf16[N / B, 2048]
  %10 = add(%residual, %9) : bf16[N / B, 2048]
  return %10
}""",
    "swiglu": """
func @swiglu(%x: bf16[N / B, 2048], %w: bf16[2048], %gate_proj: bf16[5120, 2048], %up_proj: bf16[5120, 2048]) {
  %0 = rms_norm(%x, %w) : bf16[N / B, 2048]
  %1 = matmul(%0, %gate_proj) {transpose_b = true} : bf16[N / B, 5120]
  %2 = matmul(%0, %up_proj) {transpose_b = true} : bf16[N / B, 5120]
  %3 = silu(%1) : bf16[N / B, 5120]
  %4 = mul(%3, %2) : bf16[N / B, 5120]
  return %4
}""",
    "shared": """
func @shared(%x: bf16[N / B, 2048], %w: bf16[2048], %gate_proj: bf16[512, 2048], %up_proj: bf16[512, 2048]) {
  %0 = rms_norm(%x, %w) : bf16[N / B, 2048]
  %1 = matmul(%0, %gate_proj) {transpose_b = true} : bf16[N / B, 512]
  %2 = matmul(%0, %up_proj) {transpose_b = true} : bf16[N / B, 512]
  %3 = silu(%1) : bf16[N / B, 512]
  %4 = mul(%3, %2) : bf16[N / B, 512]
  return %4
}""",
    "qkv": """
func @qkv(%x: bf16[N / B, 2048], %w: bf16[2048], %weight: bf16[3072, 2048]) {
  %n = rms_norm(%x, %w) : bf16[N / B, 2048]
  %y = matmul(%n, %weight) {transpose_b = true} : bf16[N / B, 3072]
  return %y
}""",
}

MINI["head"] = (
    MINI["norm"]
    .replace("8192", "157184")
    .replace("true}", "true, out = f32}")
    .replace("bf16[N / B, 157184]", "f32[N / B, 157184]")
)


def test_a_wide_shared_expert_has_warps_enough() -> None:
    """What is added to the sum of experts may be more than they are: a thread holds a row of it."""
    for width, warps in ((64, 1), (8192, 2), (65536, 8)):
        text = emit(kernel(shared(SHARED_DOWN, 8, 2, 512, 64, width, "bf16"), TEMPLATE)).text
        assert f'"num_warps": {warps},' in text
        assert "and 1 of 64 columns" in text or width == 64


MOE = """module @m level fused
symbol N >= 1

func @f(%x: bf16[N, 64], %norm: bf16[64], %gate: bf16[8, 64], %w: bf16[8, 48, 64], %u: bf16[8, 48, 64], %v: bf16[8, 64, 48],
    %a: bf16[40, 64], %b: bf16[40, 64], %d: bf16[64, 40]) with {rows = [1, 1]} {
  %n = rms_norm(%x, %norm)
  %logits = matmul(%n, %gate) {transpose_b = true, out = f32}
  %best, %weights = route(%logits, _) {top_k = 2}
  %one = gather_matmul(%n, %w, %best)
  %two = gather_matmul(%n, %u, %best)
  %silu = silu(%one)
  %each = mul(%silu, %two)
  %wide = gather_matmul(%each, %v, %best)
  %exact = cast(%wide) {dtype = f32}
  %each_weight = reshape(%weights) {shape = [N, 2, 1]}
  %weighted = mul(%exact, %each_weight)
  %total = sum(%weighted) {axes = [1]}
  %sum = cast(%total) {dtype = bf16}
  %three = matmul(%n, %a) {transpose_b = true}
  %four = matmul(%n, %b) {transpose_b = true}
  %silu_2 = silu(%three)
  %shared = mul(%silu_2, %four)
  %last = matmul(%shared, %d) {transpose_b = true}
  %both = add(%sum, %last)
  %next = add(%x, %both)
  return %next
}
"""


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("%both", "%both", 4),  # router, choice, up, down
        # A norm that the down product can't make: it has two left operands.
        ("%last = matmul(%shared", "%again = rms_norm(%shared, _)\n  %last = matmul(%again", 6),
        ("%both = add(%sum, %last)", "%s = sigmoid(%last)\n  %both = mul(%sum, %s)", 6),
        ("%both = add(%sum, %last)", "%both = mul(%sum, %last)", 4),
        ("%d: bf16[64, 40]", "%d: bf16[1, 40]", 6),
    ],
)
def test_one_row_s_layer_has_kernels(old: str, new: str, count: int) -> None:
    """Whatever accompanies the experts, all regions have a kernel."""
    module = parse_module(MOE.replace(old, new))
    steps = default_pipeline()
    names = [step.name for step in steps]
    PassManager(steps[names.index("fuse") : names.index("kernels") + 1], [verify_each]).run(module, target("sm_90"))
    made = [f for f in module.functions.values() if "family" in f.notes]
    assert len(made) == count
    for function in made:
        assert "def launch(" in emit(kernel_of(function), target("sm_90")).text


MINI["router"] = """
func @router(%x: bf16[N / B, 2048], %n: bf16[2048], %gate: bf16[256, 2048]) {
  %0 = rms_norm(%x, %n) : bf16[N / B, 2048]
  %1 = matmul(%0, %gate) {transpose_b = true, out = f32} : f32[N / B, 256]
  return %0, %1
}"""
MINI["experts_up"] = up(256, 8, 2048, 512, "bf16")
MINI["experts_down"] = down(256, 8, 512, 2048, "bf16")
MINI["shared_up"] = shared(GIVEN_UP, 256, 8, 2048, 512, 512, "bf16")
MINI["shared_down"] = shared(SHARED_DOWN, 256, 8, 512, 2048, 512, "bf16")


@pytest.mark.parametrize("name", ["norm", "gate", "router", "experts_up", "experts_down", "shared_up"])
def test_golden(name: str) -> None:
    check_golden(f"triton_gemv_{name}", emit(kernel(MINI[name], TEMPLATE)).text)


def test_ring_mini_does_not_spill() -> None:
    jobs = {name: compile_jobs(emit(kernel(text, TEMPLATE)).text, "matmul", 90) for name, text in MINI.items()}
    made = compile_many([job for (job,) in jobs.values()])
    for name, compiled in zip(jobs, made, strict=True):
        used = compiled.resources
        assert (used.spill_stores, used.spill_loads, used.stack_bytes) == (0, 0, 0), name
        # A thread keeps 64 to 128 elements of a weight on their way; with 168 registers a processor still holds 12 warps.
        assert used.registers <= 168, (name, used.registers)


def test_a_view_of_what_is_read_is_not_rounded() -> None:
    text = """
func @viewed(%x: f16[N, 4, 24], %w: f16[50, 96]) {
  %0 = reshape(%x) {shape = [N, 96]} : f16[N, 96]
  %1 = matmul(%0, %w) {transpose_b = true} : f16[N, 50]
  return %1
}"""
    assert ".to(tl.float16).to(tl.float32)" not in emit(kernel(text, "triton.gemv")).text
