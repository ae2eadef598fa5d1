"""Schedulers: crossovers are solved right, unsafe forms are illegal, and selection follows the costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from ringc.codegen.triton import matmul as triton_matmul
from ringc.errors import CodegenError
from ringc.ir.core import Block
from ringc.ir.ops.call import Fused
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.text_parse import parse_module
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.schedules.candidates import candidates, service, typical_sizes
from ringc.passes.schedules.crossovers import Crossover, crossovers, cuts
from ringc.passes.schedules.linear_attention import SAFE_EXPONENT, Problem, forms, segments, switch_length
from ringc.passes.schedules.model import N, at, crossover
from ringc.passes.schedules.predict import predicted_seconds, seconds_at
from ringc.passes.schedules.products import touched_bytes
from ringc.passes.schedules.ranges import schedule_of
from ringc.passes.target import TARGETS, target
from tests.passes.support_model import Program, launched, tiny_spec

MINI = Problem(heads=16, dk=128, dv=128, element=2, steepest=0.71)


@given(fixed=st.floats(0.1, 50), slow=st.floats(1.0, 9.0), fast=st.floats(0.01, 0.9))
def test_a_crossover_is_the_first_length_at_which_the_second_costs_less(fixed: float, slow: float, fast: float) -> None:
    first, second = slow * N, fixed + fast * N
    found = crossover(first, second, "N", {})
    assert found is not None
    assert at(second, {"N": found}) < at(first, {"N": found})
    assert found == 1 or at(second, {"N": found - 1}) >= at(first, {"N": found - 1})


def test_no_crossover_where_the_second_never_wins() -> None:
    assert crossover(sympy.sympify(N), 2 * N + 1, "N", {}) is None


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100"])
def test_long_sequences_are_chunked_and_single_tokens_are_not(name: str) -> None:
    switch = switch_length(MINI, target(name))
    assert switch is not None
    assert 2 <= switch <= 256
    costs = {form: c.seconds for form, c in forms(MINI, target(name)).items()}
    one, long = {"N": 1, "B": 1}, {"N": 8192, "B": 1}
    assert at(costs["recurrent"], one) < at(costs["chunked"], one)
    assert at(costs["chunked"], long) < at(costs["recurrent"], long)


@pytest.mark.parametrize(("dim", "least", "most"), [(16, 8, 64), (32, 2, 8), (64, 1, 2), (128, 1, 1)])
def test_on_the_cpu_blocks_pay_from_the_first_tokens_on(dim: int, least: int, most: int) -> None:
    """What the tables of powers cost is won back by the state's decay, of which a larger head has more."""
    switch = switch_length(replace(MINI, dk=dim, dv=dim), target("cpu"))
    assert switch is not None
    assert least <= switch <= most


def test_the_cpu_block_shrinks_with_the_slope_until_no_block_is_safe() -> None:
    cpu = target("cpu")
    chunk = {s: forms(replace(MINI, steepest=s), cpu)["chunked"] for s in (0.7, 5.0, 10.0, 16.0)}
    assert "chunk=16" in chunk[0.7].implementation
    assert "chunk=8" in chunk[5.0].implementation
    assert "chunk=4" in chunk[10.0].implementation
    assert chunk[16.0].illegal
    assert SAFE_EXPONENT < 4 * 16.0
    assert switch_length(replace(MINI, steepest=16.0), cpu) is None


@pytest.mark.parametrize(("threads", "heads", "tokens", "sequences", "wins"), [
    (16, 2, 4096, 1, True), (16, 2, 64, 1, False), (16, 2, 4096, 16, False), (2, 4, 4096, 1, False),
])  # fmt: skip
def test_segments_pay_where_heads_are_fewer_than_threads(
    threads: int, heads: int, tokens: int, sequences: int, wins: bool
) -> None:
    two = target("cpu")
    machine = replace(two, width=threads, vector_rate=two.vector_rate / two.width * threads)
    problem = replace(MINI, heads=heads, element=4)
    sizes = {"N": tokens, "B": sequences}
    cut, whole = segments(problem, machine), forms(problem, machine)["chunked"]
    assert cut is not None
    assert segments(replace(problem, heads=16), machine) is None
    assert (at(cut.seconds, sizes) < at(whole.seconds, sizes)) == wins


def test_segments_are_a_candidate_of_the_chunked_form_alone() -> None:
    program = Program(tiny_spec(), parse_pipeline("canonicalize,cse,raise,dce,outline,fuse"))
    regions = [op for f in program.lowered.functions.values() for op in f.body.ops if isinstance(op, Fused)]
    body = next(r.body for r in regions if r.family == "linear_attention")
    (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))

    def names(form: str, on: str) -> list[str]:
        mixer.form = form
        return [c.implementation.partition("{")[0] for c in candidates("linear_attention", body, (17, 0), target(on))]

    assert names("chunked", "cpu") == ["tvm.linear_chunked", "tvm.linear_segments"]
    assert names("recurrent", "cpu") == ["tvm.linear_recurrent"]
    assert names("chunked", "torch") == ["torch.eager"]
    assert names("chunked", "sm_90") == ["triton.linear_chunked"]


def test_steep_slopes_reach_the_scheduler_from_the_spec() -> None:
    spec = tiny_spec()
    assert spec.linear is not None
    decay = {"kind": "explicit", "slopes": (20.0, 1.0, 0.5, 0.1), "layer_factor": "none"}
    linear = spec.linear.model_dump() | {"decay": decay}
    program = Program(type(spec).model_validate(spec.model_dump() | {"linear": linear}), default_pipeline())
    longest = program.lowered.functions["prefill.long"]
    assert longest.notes["form"] == "recurrent"
    assert longest.notes["switch"] is None
    assert "exceeds" in {form: why for form, _, why in longest.notes["forms"]}["chunked"]


def test_an_illegal_form_that_was_asked_for_is_an_error() -> None:
    program = Program(tiny_spec(), parse_pipeline("canonicalize,cse,raise,dce,outline,fuse"))
    regions = [op for f in program.lowered.functions.values() for op in f.body.ops if isinstance(op, Fused)]
    body = next(r.body for r in regions if r.family == "linear_attention")
    (mixer,) = (op for op in body.ops if isinstance(op, LinearAttention))
    mixer.form, mixer.steepest = "chunked", 99.0
    with pytest.raises(CodegenError, match="exp overflows"):
        candidates("linear_attention", body, (17, 0), target("cpu"))


def test_one_row_streams_the_weight_and_many_rows_are_tiled() -> None:
    module = Program(tiny_spec(), default_pipeline()).lowered

    def products(version: str) -> set[str]:
        kernels = [module.functions[k] for k in launched(module, version)]
        return {str(k.notes["implementation"]).partition(",")[0] for k in kernels if k.notes["family"] == "matmul"}

    assert products("decode.one") == {"tvm.matmul{rows=1"}
    assert products("prefill.long") == {"tvm.matmul{rows=8"}


def product(rows: str, inner: int, outer: int) -> str:
    return f"""
func @decode(%x: f32[{rows}, {inner}], %w: f32[{outer}, {inner}]) with {{entry = "decode"}} {{
  %y = matmul(%x, %w) {{transpose_b = true}} : f32[{rows}, {outer}]
  return %y
}}"""


def experts(inner: int, outer: int, count: int, chosen: int) -> str:
    rows = f"{chosen}*N / {count}"
    return f"""
func @decode(%x: f32[{rows}, {inner}], %w: f32[{count}, {outer}, {inner}], %offsets: i32[{count + 1}]) with {{entry = "decode"}} {{
  %y = segment_matmul(%x, %w, %offsets) : f32[{rows}, {outer}]
  return %y
}}"""


def found(text: str, name: str = "cpu") -> dict[str, Crossover]:
    symbols = "".join(f"symbol {s} >= 1\n" for s in "BNR")
    function = parse_module(f"module @m level fused\n{symbols}{text}").functions["decode"]
    return {one.regime: one for one in crossovers([function], target(name))}


class TestFewRows:
    """Where versions for few rows end."""

    @pytest.mark.parametrize(
        ("text", "regime", "least", "most"),
        [
            (product("N / B", 512, 2048), "dense products", 2, 2),
            (experts(512, 48, 32, 4), "experts' products", 2, 4),
            (experts(48, 512, 32, 4), "experts' products", 2, 4),
            (experts(128, 16, 16, 4), "experts' products", 4, 10),
        ],
    )
    def test_on_the_cpu_they_are_solved(self, text: str, regime: str, least: int, most: int) -> None:
        """Measured: 2, 4, 2 and 6; small weights are read again at less cost than a tile has."""
        one = found(text)[regime]
        assert one.rows is not None
        assert least <= one.rows <= most
        first, second = (lambda n, text=text: seconds_at(text, {"N": n, "B": n}) for text in (one.first, one.second))
        assert second(one.rows) < first(one.rows)
        assert first(one.few) <= second(one.few)
        assert "solved: tvm." in one.why

    def test_all_products_of_an_entry_point_decide_together(self) -> None:
        small, large = (experts(k, m, 16, 4) for k, m in ((128, 16), (512, 48)))
        functions = [
            parse_module(f"module @m level fused\nsymbol N >= 1\n{t}").functions["decode"] for t in (small, large)
        ]
        rows = [crossovers(fs, target("cpu"))[-1].rows for fs in (functions[:1], functions, functions[1:])]
        assert rows[0] is not None and rows[1] is not None and rows[2] is not None
        assert rows[0] > rows[1] >= rows[2]
        weighed = crossovers([functions[0]] * 50 + functions[1:], target("cpu"))[-1].rows
        assert weighed is not None and rows[1] < weighed <= rows[0]

    def test_rows_that_the_guard_does_not_test_have_no_say(self) -> None:
        assert "dense products" not in found(product("R", 512, 2048))

    def test_on_a_gpu_the_limit_is_that_of_the_kernel_itself(self) -> None:
        one = found(product("N / B", 2048, 2048), "sm_90")["dense products"]
        assert (one.rows, one.first, one.second) == (triton_matmul.FEW + 1, "", "")
        assert "stated limit" in one.why
        assert found(experts(512, 48, 32, 4), "sm_90") == {}

    @pytest.mark.parametrize(
        ("rows", "limits"),
        [
            ([2, 31, 17], [1, 30]),  # the experts' serves the row kernels too
            ([2, 3, 17], [1, 16]),
            ([2, 5, 17], [1, 4, 16]),
            ([None, 1, 17], [16]),  # never, and always
            ([], []),
        ],
    )
    def test_crossovers_that_are_close_share_a_cut(self, rows: list[int | None], limits: list[int]) -> None:
        assert cuts([Crossover(str(i), n, "") for i, n in enumerate(rows)]) == limits

    def test_every_crossover_may_have_a_cut_of_its_own(self) -> None:
        """Of a narrow model with very many experts: tiles of rows, threads and tiles of experts' rows pay far from each other."""
        text = """module @m level fused
symbol B >= 1
symbol N >= 1
func @decode(%x: f32[N / B, 4], %w: f32[4, 4], %g: f32[N / 1024, 4], %e: f32[1024, 1, 4], %offsets: i32[1025]) with {entry = "decode"} {
  %y = matmul(%x, %w) {transpose_b = true} : f32[N / B, 4]
  %z = segment_matmul(%g, %e, %offsets) : f32[N / 1024, 1]
  return %y, %z
}"""
        module = parse_module(text)
        versions = schedule_of(module, module.functions["decode"], target("cpu")).versions
        assert len({v.name for v in versions}) == len(versions) == 5
        assert [v.rows[0] for v in versions[1:]] == [v.rows[1] + 1 for v in versions[:-1]]

    def test_versions_end_where_the_crossovers_are(self) -> None:
        module = Program(tiny_spec(), default_pipeline()).lowered
        versions = [f for f in module.functions.values() if f.notes.get("entry") == "decode"]
        assert len(versions) <= 4
        (notes,) = {f.notes["crossovers"] for f in versions}
        ends = [f.notes["rows"][1] for f in versions]
        assert ends[-1] == 0
        assert ends[:-1] == sorted({1, *cuts([Crossover(*c) for c in notes])})
        assert [f.notes["guard"] for f in versions[:-1]] == [f"N <= {n}" for n in ends[:-1]]


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_version_has_a_predicted_time_that_grows_with_the_tokens(name: str) -> None:
    module = Program(tiny_spec(), default_pipeline(), name).lowered
    for function in module.functions.values():
        if "guard" in function.notes:
            sizes = typical_sizes(*service(function))
            few = predicted_seconds(module, function, sizes)
            more = predicted_seconds(module, function, sizes | {"N": 64 * sizes["N"], "B": 64 * sizes["B"]})
            assert 0 < few < more


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_version_is_priced_at_sizes_that_it_serves(name: str) -> None:
    """They meet its guard, and none of those that are tried before."""
    module = Program(tiny_spec(), default_pipeline(), name).lowered
    tried: dict[str, list[str]] = {}
    for function in module.functions.values():
        if "guard" in function.notes:
            guards = tried.setdefault(function.notes["entry"], [])
            sizes = typical_sizes(*service(function))
            assert not [g for g in guards if eval(g, {}, sizes)], function.name
            assert eval(function.notes["guard"] or "True", {}, sizes), function.name
            assert sizes["B"] <= sizes["R"] <= sizes["N"] <= sizes["B"] * max(1, sizes["S"])
            guards.append(function.notes["guard"])
    assert name != "sm_90" or any(" * B" in guard for guard in tried["prefill"])


def test_guards_are_tried_from_the_most_special_to_one_without() -> None:
    module = Program(tiny_spec(), default_pipeline()).lowered
    guards: dict[str, list[str]] = {}
    for function in module.functions.values():
        if "guard" in function.notes:
            guards.setdefault(function.notes["entry"], []).append(function.notes["guard"])
    assert set(guards) == {"prefill", "decode"}
    assert all(g[-1] == "" and all(g[:-1]) for g in guards.values())


NORMED = """
func @normed(%x: f32[N, 512], %n: f32[512], %w: f32[1536, 512]) {
  %0 = rms_norm(%x, %n) : f32[N, 512]
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 1536]
  return %1
}"""

PARTS = """
func @norm(%x: f32[N, 512], %n: f32[512]) {
  %0 = rms_norm(%x, %n) : f32[N, 512]
  return %0
}

func @product(%0: f32[N, 512], %w: f32[1536, 512]) {
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 1536]
  return %1
}"""


COLUMN_SUMS = """
func @sums(%x: f32[N, 8, 64], %w: f32[16, 64]) {
  %0 = sum(%x) {axes = [1]} : f32[N, 64]
  %1 = matmul(%0, %w) {transpose_b = true} : f32[N, 16]
  return %1
}"""


def bodies(text: str) -> list[Block]:
    return [f.body for f in parse_module(f"module @m level kernel\nsymbol N >= 0\n{text}").functions.values()]


@pytest.mark.parametrize(("name", "saved"), [("cpu", 1), ("torch", 0)])
def test_row_work_in_front_of_a_product_costs_what_both_cost_less_a_launch(name: str, saved: int) -> None:
    (together,), (norm, product) = bodies(NORMED), bodies(PARTS)
    where, sizes = target(name), {"N": 8}
    (row,) = candidates("row", norm, (2, 16), where)
    apart = candidates("matmul", product, (2, 16), where)
    joined = candidates("matmul", together, (2, 16), where)
    assert [c.implementation for c in joined] == [c.implementation for c in apart]
    for a, b in zip(apart, joined, strict=True):
        expected = at(a.seconds, sizes) + at(row.seconds, sizes) - saved * where.launch
        assert at(b.seconds, sizes) == pytest.approx(expected, rel=1e-9)


def test_on_a_gpu_a_product_makes_one_row_itself() -> None:
    (together,), (norm, product) = bodies(NORMED), bodies(PARTS)
    where, sizes = target("sm_90"), {"N": 1}
    (found,) = candidates("matmul", together, (1, 1), where)
    assert (found.implementation, found.illegal) == ("triton.gemv", "")
    alone, tiled = candidates("matmul", product, (1, 1), where)
    assert (alone.implementation, tiled.implementation) == ("triton.gemv", "triton.matmul")
    assert at(alone.seconds, sizes) < at(tiled.seconds, sizes)
    (row,) = candidates("row", norm, (1, 1), where)
    assert at(alone.seconds, sizes) < at(found.seconds, sizes) < at(alone.seconds, sizes) + at(row.seconds, sizes)
    for rows in ((2, 16), (17, 0), (1, 0)):
        (many,) = candidates("matmul", together, rows, where)
        assert "for one row" in many.illegal


def test_on_a_gpu_a_product_refuses_what_it_cant_make() -> None:
    (body,) = bodies(COLUMN_SUMS)
    (found,) = candidates("matmul", body, (1, 1), target("sm_90"))
    assert "'sum'" in found.illegal


@pytest.mark.parametrize("tokens", [1, 16])
def test_rows_that_name_their_experts_touch_as_many_as_sorted_ones(tokens: int) -> None:
    text = """module @m level fused
    symbol N >= 1
    func @named(%x: bf16[N, 64], %w: bf16[256, 32, 64], %i: i32[N, 8]) {
      %y = gather_matmul(%x, %w, %i)
      return %y
    }
    func @sorted(%x: bf16[8*N / 256, 64], %w: bf16[256, 32, 64], %o: i32[257]) {
      %y = segment_matmul(%x, %w, %o)
      return %y
    }"""
    named, ordered = (f.body for f in parse_module(text).functions.values())
    each, rows = 2 * 32 * 64, 8 * tokens
    touched = 256 * (1 - math.exp(-rows / 256)) * each
    for body, others in ((named, tokens * 128 + rows * 68), (ordered, rows * (128 + 64) + 4 * 257)):
        assert at(sympy.sympify(touched_bytes(body)), {"N": tokens}) == pytest.approx(touched + others)
