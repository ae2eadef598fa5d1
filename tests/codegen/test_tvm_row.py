"""Row kernels by TVM: the regions of a model, regions that fusion makes of an odd graph, and random regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch

pytest.importorskip("tvm")

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.tvm.build import import_tvm, module_of, processor
from ringc.codegen.tvm.kept import chosen_stages
from ringc.errors import CodegenError
from ringc.ir.core import Env, Function, Level
from ringc.ir.interpret import run_block
from ringc.ir.ops.composite import primitive
from ringc.ir.symbols import evaluate
from ringc.ir.text_parse import parse_module
from ringc.ir.types import DType, StateType, TensorType
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built, offsets_of
from tests.ir.graphs import B, Graph, M, N, sizes
from tests.ir.strategies import STRATEGIES

TEXTS: dict[str, str] = {
    "residual_norm": """
func @row(%x: f32[N, 40], %r: f32[N, 40], %w: f32[40]) {
  %a = add(%x, %r) : f32[N, 40]
  %y = rms_norm(%a, %w) : f32[N, 40]
  return %a, %y
}""",
    "softmax": """
func @row(%x: f32[N, 27]) {
  %y = softmax(%x) : f32[N, 27]
  return %y
}""",
    "long_softmax": """
func @row(%x: f32[N, 5001]) {
  %y = softmax(%x) : f32[N, 5001]
  return %y
}""",
    "group_norm_gate": """
func @row(%x: f32[N, 3, 24], %z: f32[N, 72], %w: f32[72]) {
  %g = reshape(%x) {shape = [N, 6, 12]} : f32[N, 6, 12]
  %n = rms_norm(%g, _) : f32[N, 6, 12]
  %f = reshape(%n) {shape = [N, 72]} : f32[N, 72]
  %s = sigmoid(%z) : f32[N, 72]
  %1 = mul(%f, %w) : f32[N, 72]
  %y = mul(%1, %s) : f32[N, 72]
  return %y
}""",
    "heads": """
func @row(%x: f32[N, 216], %w: f32[24], %cos: f32[N, 5], %sin: f32[N, 5]) {
  %1 = reshape(%x) {shape = [N, 9, 24]} : f32[N, 9, 24]
  %2 = slice(%1) {axis = 1, start = 0, stop = 5} : f32[N, 5, 24]
  %3 = slice(%1) {axis = 1, start = 5, stop = 7} : f32[N, 2, 24]
  %v = slice(%1) {axis = 1, start = 7, stop = 9} : f32[N, 2, 24]
  %4 = rms_norm(%2, %w) : f32[N, 5, 24]
  %q = rope(%4, %cos, %sin) : f32[N, 5, 24]
  %k = rope(%3, %cos, %sin) {interleaved = true} : f32[N, 2, 24]
  return %v, %q, %k
}""",
    "cache": """
func @row(%x: f32[N, 6, 20], %cos: f32[N, 10], %sin: f32[N, 10], %keys: state<f32[P; S, 2, 20]>,
          %values: state<f32[P; S, 4, 20]>, %slots: i32[N], %positions: i32[N]) {
  %1 = slice(%x) {axis = 1, start = 0, stop = 2} : f32[N, 2, 20]
  %v = slice(%x) {axis = 1, start = 2, stop = 6} : f32[N, 4, 20]
  %k = rope(%1, %cos, %sin) : f32[N, 2, 20]
  %2 = state_append(%keys, %slots, %positions, %k) : state<f32[P; S, 2, 20]>
  %3 = state_append(%values, %slots, %positions, %v) : state<f32[P; S, 4, 20]>
  return %2, %3
}""",
    "cache_of_kept_values": """
func @row(%x: f32[N, 3, 12], %w: f32[12], %keys: state<f32[P; S, 3, 12]>, %sums: state<f32[P; S, 3]>, %tops: state<f32[P; S]>,
          %slots: i32[N], %positions: i32[N]) {
  %k = rms_norm(%x, %w) : f32[N, 3, 12]
  %1 = state_append(%keys, %slots, %positions, %k) : state<f32[P; S, 3, 12]>
  %s = sum(%x) {axes = [2]} : f32[N, 3]
  %2 = state_append(%sums, %slots, %positions, %s) : state<f32[P; S, 3]>
  %t = max(%k) {axes = [1, 2]} : f32[N]
  %3 = state_append(%tops, %slots, %positions, %t) : state<f32[P; S]>
  return %1, %k, %2, %3
}""",
    "combine": """
func @row(%rows: f32[4*N / 16, 40], %places: i32[4*N], %weights: f32[N / B, 4], %shared: f32[N / B, 40]) {
  %1 = gather(%rows, %places) : f32[4*N, 40]
  %2 = reshape(%1) {shape = [N, 4, 40]} : f32[N, 4, 40]
  %3 = reshape(%weights) {shape = [N, 4, 1]} : f32[N / B, 4, 1]
  %4 = mul(%2, %3) : f32[N / B, 4, 40]
  %5 = sum(%4) {axes = [1]} : f32[N / B, 40]
  %6 = add(%shared, %5) : f32[N / B, 40]
  return %6
}""",
    "only_derived_size": """
func @row(%x: f32[4*N, 8]) {
  %1 = reshape(%x) {shape = [N, 4, 8]} : f32[N, 4, 8]
  %2 = max(%1) {axes = [1, 2]} : f32[N]
  return %2
}""",
    "slot_of_token": """
func @row(%offsets: i32[B + 1], %slots: i32[B], %ids: i32[N / B]) {
  %0 = segment_ids(%offsets) {length = N} : i32[N / B]
  %1 = gather(%slots, %0) : i32[N / B]
  %2 = add(%1, %ids) : i32[N / B]
  return %2
}""",
    "angles": """
func @row(%positions: i32[N], %frequencies: f32[1, 9]) {
  %0 = cast(%positions) {dtype = f32} : f32[N]
  %1 = reshape(%0) {shape = [N, 1]} : f32[N, 1]
  %2 = mul(%1, %frequencies) : f32[N, 9]
  %cos = cos(%2) : f32[N, 9]
  %sin = sin(%2) : f32[N, 9]
  return %cos, %sin
}""",
    "other_rows": """
func @row(%x: f32[N, 19], %ids: i32[N], %last: i32[R]) {
  %1 = softmax(%x) : f32[N, 19]
  %2 = gather(%1, %ids) : f32[N, 19]
  %3 = add(%2, %x) : f32[N, 19]
  %4 = gather(%3, %last) : f32[R, 19]
  %5 = rms_norm(%4, _) : f32[R, 19]
  return %3, %5
}""",
    "over_rows": """
func @row(%x: f32[N, 37]) {
  %1 = sum(%x) {axes = [0]} : f32[37]
  %2 = max(%x) {axes = [0, 1], keep = true} : f32[1, 1]
  %3 = mean(%x) {axes = [1]} : f32[N]
  %4 = mul(%x, %1) : f32[N, 37]
  %5 = sub(%4, %2) : f32[N, 37]
  return %1, %3, %5
}""",
    "parts": """
func @row(%x: f32[N, 7], %y: f32[N, 22], %ids: i32[N, 5]) {
  %1 = concat([%x, %y, %x]) {axis = 1} : f32[N, 36]
  %2 = reshape(%1) {shape = [N, 9, 4]} : f32[N, 9, 4]
  %3 = transpose(%2) {axes = [0, 2, 1]} : f32[N, 4, 9]
  %4 = slice(%3) {axis = 2, start = 1, stop = 9, step = 3} : f32[N, 4, 3]
  %5 = take_along(%y, %ids) : f32[N, 5]
  %6 = exp(%5) : f32[N, 5]
  %7 = concat([%x, %1]) {axis = 1} : f32[N, 43]
  return %4, %6, %7
}""",
    "masks": """
func @row(%x: f32[N, 21], %ids: i32[N]) {
  %0 = constant() {value = [0.5], dtype = f32} : f32[]
  %1 = gt(%x, %0) : bool[N, 21]
  %2 = iota() {length = 21} : i32[21]
  %3 = reshape(%ids) {shape = [N, 1]} : i32[N, 1]
  %4 = le(%2, %3) : bool[N, 21]
  %5 = and(%1, %4) : bool[N, 21]
  %6 = where(%5, %x, %0) : f32[N, 21]
  %7 = add(%2, %3) : i32[N, 21]
  return %5, %6, %7
}""",
}  # fmt: skip

SIZES = {"N": 13, "B": 4, "P": 5, "S": 16, "R": 3}


def case(name: str, parallel: int = 0) -> Kernel:
    return kernel(TEXTS[name], f"tvm.row{{parallel={parallel}}}")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return cache(lambda name: Built(case(name, len(name) % 2), tmp_path_factory.mktemp("kernel")))


def empty_inputs(function: Function, values: Mapping[str, int]) -> list[torch.Tensor]:
    """Zeros, of which there are none where a size is 0."""
    made = []
    for arg in function.body.args:
        shape = (arg.type.slots, *arg.type.shape) if isinstance(arg.type, StateType) else arg.type.shape
        made.append(torch.zeros([evaluate(d, values) for d in shape], dtype=arg.type.dtype.torch))
    return made


@pytest.mark.parametrize("name", TEXTS)
def test_regions_of_a_model(make: Callable[[str], Built], name: str) -> None:
    built = make(name)
    for rows, seed in ((1, 0), (2, 1), (13, 2), (13, 3)):
        built.check(random_inputs(built.kernel.function, {**SIZES, "N": rows, "R": min(3, rows)}, seed))


@pytest.mark.parametrize("name", [n for n in TEXTS if n != "over_rows"])
def test_no_rows(make: Callable[[str], Built], name: str) -> None:
    """Nothing is read or written where there are no rows; states stay as they are."""
    built = make(name)
    inputs = empty_inputs(built.kernel.function, {**SIZES, "N": 0, "R": 0})
    for mine, theirs in zip(built.results(inputs), (built.kernel.function.body.outputs), strict=True):
        assert mine.numel() == 0 or (isinstance(theirs.type, StateType) and not mine.any())


def test_a_slot_that_is_nobodys(make: Callable[[str], Built]) -> None:
    built = make("cache")
    inputs = random_inputs(built.kernel.function, SIZES)
    inputs[5] = torch.full((13,), -1, dtype=torch.int32)
    keys, values = built.results(inputs)
    assert torch.equal(keys, inputs[3]) and torch.equal(values, inputs[4])


@pytest.mark.parametrize("lengths", [[0, 0, 5, 0, 1], [4], [0, 3, 0], [1, 1, 1]])
def test_segments(make: Callable[[str], Built], lengths: list[int]) -> None:
    built = make("slot_of_token")
    slots = torch.arange(10, 10 + len(lengths)).int()
    (out,) = built.results([offsets_of(lengths), slots, torch.zeros(sum(lengths)).int()])
    assert out.tolist() == [10 + b for b, n in enumerate(lengths) for _ in range(n)]


def test_a_size_of_outputs_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "func @row(%offsets: i32[B + 1]) {\n  %1 = segment_ids(%offsets) {length = N} : i32[N / B]\n  return %1\n}"
    built = Built(kernel(text, "tvm.row{parallel=0}"), tmp_path_factory.mktemp("kernel"))
    ids = torch.full((5,), 9, dtype=torch.int32)
    built.launch(offsets_of([2, 0, 3]), ids)
    assert ids.tolist() == [0, 0, 2, 2, 2]


def test_what_is_kept() -> None:
    """Reductions, outputs, and dear values that are read more often than they have elements; the rest is written where it is read."""
    body = primitive(case("softmax").function.body)
    assert [v.op.name for v in chosen_stages(body) if v.op] == ["max", "exp", "sum", "div"]
    long = primitive(case("long_softmax").function.body)
    assert [v.op.name for v in chosen_stages(long) if v.op] == ["max", "sum", "div"]
    norm = primitive(case("residual_norm").function.body)
    assert [v.op.name for v in chosen_stages(norm) if v.op] == ["add", "mean", "rsqrt", "mul"]


def test_vector_loops_have_no_conditions() -> None:
    text = emit(case("heads")).text
    assert "T.vectorized" in text and "if_then_else" not in text and "Select" not in text


def test_what_a_row_kernel_cannot_hold() -> None:
    text = "func @row(%x: f32[N, 8]) {\n  %v, %i = topk(%x) {k = 2} : f32[N, 2], i32[N, 2]\n  return %v\n}"
    with pytest.raises(CodegenError, match="no form for topk"):
        emit(kernel(text, "tvm.row{parallel=0}"))


def test_a_size_that_nothing_says() -> None:
    text = "func @row(%x: f32[8]) {\n  %1 = iota() {length = S} : i32[S]\n  %2 = sum(%1) {axes = [0]} : i32[]\n  return %2\n}"
    with pytest.raises(CodegenError, match="how large S is"):
        emit(kernel(text, "tvm.row{parallel=0}"))


@pytest.mark.parametrize("name", ["heads", "residual_norm"])
def test_golden(name: str) -> None:
    check_golden(f"tvm_row_{name}", emit(case(name, 1)).text)


# -- regions that fusion makes


FUSED = """module @test level graph
symbol N >= 1
symbol B >= 1
func @main(%x: f32[N / B, 45], %y: f32[N / B, 45], %w: f32[45], %offsets: i32[B + 1], %bias: f32[B, 9]) with {entry = "prefill"} {
  %a = sub(%x, %y) : f32[N / B, 45]
  %abs = abs(%a) : f32[N / B, 45]
  %top = max(%abs) {axes = [1], keep = true} : f32[N / B, 1]
  %one = constant() {value = [1.0], dtype = f32} : f32[]
  %safe = add(%top, %one) : f32[N / B, 1]
  %unit = div(%a, %safe) : f32[N / B, 45]
  %wide = reshape(%unit) {shape = [N, 5, 9]} : f32[N / B, 5, 9]
  %turned = transpose(%wide) {axes = [0, 2, 1]} : f32[N / B, 9, 5]
  %soft = softmax(%turned) : f32[N / B, 9, 5]
  %seg = segment_ids(%offsets) {length = N} : i32[N / B]
  %shift = gather(%bias, %seg) : f32[N / B, 9]
  %column = reshape(%shift) {shape = [N, 9, 1]} : f32[N / B, 9, 1]
  %moved = add(%soft, %column) : f32[N / B, 9, 5]
  %flat = reshape(%moved) {shape = [N, 45]} : f32[N / B, 45]
  %scaled = mul(%flat, %w) : f32[N / B, 45]
  %left = slice(%scaled) {axis = 1, start = 0, stop = 45, step = 2} : f32[N / B, 23]
  %right = slice(%scaled) {axis = 1, start = 1, stop = 45, step = 2} : f32[N / B, 22]
  %joined = concat([%left, %right]) {axis = 1} : f32[N / B, 45]
  %out = rms_norm(%joined, %w) : f32[N / B, 45]
  %mean = mean(%out) {axes = [1]} : f32[N / B]
  return %out, %mean
}
"""


def test_a_fused_region(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fusion makes one row kernel of all this, which is right."""
    module = parse_module(FUSED)
    module.level = Level.FUSED
    PassManager(parse_pipeline("fuse,select,kernels")).run(module, target("cpu"))
    made = [f for f in module.functions.values() if f.notes.get("family") == "row"]
    assert len(made) == 1
    built = Built(kernel_of(made[0]), tmp_path_factory.mktemp("kernel"))
    for rows in (1, 3, 40):
        built.check(random_inputs(made[0], {"N": rows, "B": min(rows, 4)}))


# -- random regions


ROW_OPERATIONS = [
    "abs", "add", "and", "broadcast", "cast", "concat", "cos", "div", "eq",
    "exp", "floordiv", "gather", "ge", "gt", "iota", "le", "log", "lt",
    "max", "maximum", "mean", "minimum", "mod", "mul", "neg", "not", "or",
    "reshape", "rms_norm", "rope", "rsqrt", "segment_ids", "sigmoid", "silu", "sin", "slice",
    "softmax", "sqrt", "sub", "sum", "take_along", "transpose", "where",
]  # fmt: skip


class F32Graph(Graph):
    def dtype(self) -> DType:
        return DType.F32


@st.composite
def regions(draw: st.DrawFn) -> Graph:
    """A few row operations on each other's results; sizes that are only part of other sizes stand alone in an argument too."""
    graph = F32Graph(draw, reuse=True)
    for size in (N, B, M):
        graph.value(TensorType(DType.F32, (size,)))
    for _ in range(draw(st.integers(1, 6))):
        op = STRATEGIES[draw(st.sampled_from(ROW_OPERATIONS))](graph)
        graph.block.insert(op)
        for value in op.results:
            value.name = draw(st.sampled_from(["", "x", "y", "3", "in"]))
    results = [r for op in graph.block.ops for r in op.results]
    graph.block.set_outputs(r for r in results if not r.uses or draw(st.integers(0, 3)) == 0)
    return graph


@given(regions(), sizes(), st.booleans())
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_random_regions(graph: Graph, values: dict[str, int], parallel: bool) -> None:
    body = graph.block
    shapes = [[evaluate(d, values) for d in v.shape] for v in (*body.args, *body.outputs)]
    assume(all(all(s[1:]) for s in shapes))  # TVM takes no tensor for compact that is empty along a later axis
    made = kernel_of(Function("row", body, family="row", implementation=f"tvm.row{{parallel={int(parallel)}}}"))
    inputs = [x.to(a.type.dtype.torch) for x, a in zip(graph.inputs(values), body.args, strict=True)]
    exact = run_block(body, inputs, Env(dict(values), torch.float64))
    plain = run_block(body, inputs, Env(dict(values)))
    outputs = [
        torch.empty(s, dtype=v.type.dtype.torch) for v, s in zip(body.outputs, shapes[len(body.args) :], strict=True)
    ]
    for x in outputs:
        x.fill_(float("nan") if x.is_floating_point() else 1)
    _launch(made)(*inputs, *outputs)
    for mine, theirs, usual in zip(outputs, exact, plain, strict=True):
        if mine.is_floating_point():
            known = theirs.isfinite() & usual.isfinite() & (theirs.abs() < 1e30)
            if known.any():
                allowed = 16 * (usual.double() - theirs)[known].abs().max() + 2e-6 * theirs[known].abs().max().clamp(
                    min=1
                )
                assert (mine.double() - theirs)[known].abs().max() <= allowed
        elif torch.equal(usual, theirs.to(usual.dtype)):  # else rounding decides a comparison
            assert torch.equal(mine, theirs.to(mine.dtype))


def _launch(made: Kernel) -> Callable[..., None]:
    module = module_of(emit(made).text, made.name)
    launch: Callable[..., None] = import_tvm().compile(module, target=processor().tvm_target())["main"]
    return launch
