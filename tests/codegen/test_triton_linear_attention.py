"""Linear attention by Triton: both forms in the interpreter against fp64, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.codegen.triton.linear_attention import FORGOTTEN, HORIZON_OF
from ringc.errors import CodegenError
from ringc.ir.text_print import print_function
from tests.codegen.support_kernels import check, check_golden, distance, kernel, offsets_of, reference, run


def mixer(
    heads: int, dk: int, dv: int, implementation: str, *, steepest: float = 0.0, dtype: str = "f32", scale: float = 0.3
) -> Kernel:
    """A kernel of linear_attention alone."""
    form = "recurrent" if "recurrent" in implementation else "chunked"
    keys, values = f"{dtype}[N / B, {heads}, {dk}]", f"{dtype}[N / B, {heads}, {dv}]"
    pool = f"state<f32[P; {heads}, {dk}, {dv}]>"
    slots = "%slots: i32[B], %offsets: i32[B + 1]"
    attributes = f'scale = {scale}, form = "{form}", steepest = {steepest}'
    function = f"""
func @mixer(%q: {keys}, %k: {keys}, %v: {values}, %slopes: f32[{heads}], %state: {pool}, {slots}) {{
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {{{attributes}}} : {values}, {pool}
  return %o, %after
}}"""
    config = dict(item.split("=") for item in implementation.partition("{")[2].rstrip("}").split(",") if item)
    workspace = []
    if form == "chunked":
        workspace = [f"f32[{heads}*B + {heads}*min(N // {config['segment']}, {config['segments']}), {dk}, {dv}]"]
    return kernel(function, implementation, workspace)


def inputs(
    heads: int, dk: int, dv: int, lengths: list[int], slots: list[int], slopes: list[float]
) -> list[torch.Tensor]:
    n, pool = sum(lengths), max(slots, default=0) + 3
    return [
        torch.randn(n, heads, dk),
        torch.randn(n, heads, dk),
        torch.randn(n, heads, dv),
        torch.tensor(slopes[:heads]),
        torch.randn(pool, heads, dk, dv),
        torch.tensor(slots, dtype=torch.int32),
        offsets_of(lengths),
    ]


CHUNKED = "triton.linear_chunked{chunk=16,segment=32,segments=4}"
SLOPES = [0.7, 0.02, 0.0, 0.9, 0.3, 0.001]
RAGGED = ([1, 0, 77, 16, 130], [4, 1, 0, -1, 2])


@pytest.mark.parametrize(("heads", "dk", "dv"), [(3, 32, 32), (1, 16, 48), (2, 24, 20), (2, 128, 64)])
def test_recurrent_is_the_recurrence(
    interpreter: InterpreterWorker, tmp_path: Path, heads: int, dk: int, dv: int
) -> None:
    given = inputs(heads, dk, dv, [3, 0, 1, 5], [2, 0, -1, 5], SLOPES)
    check(interpreter, tmp_path, mixer(heads, dk, dv, "triton.linear_recurrent"), given)


@pytest.mark.parametrize("steepest", [0.0, 0.9], ids=["any slope", "gentle slopes"])
@pytest.mark.parametrize(("heads", "dk", "dv"), [(5, 32, 32), (1, 24, 40), (2, 16, 128), (1, 128, 64)])
def test_chunked_is_the_recurrence(
    interpreter: InterpreterWorker, tmp_path: Path, heads: int, dk: int, dv: int, steepest: float
) -> None:
    given = inputs(heads, dk, dv, *RAGGED, SLOPES)
    check(interpreter, tmp_path, mixer(heads, dk, dv, CHUNKED, steepest=steepest), given)


@pytest.mark.parametrize("implementation", ["triton.linear_recurrent", CHUNKED])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65])
def test_lengths_around_chunks_and_segments(
    interpreter: InterpreterWorker, tmp_path: Path, implementation: str, length: int
) -> None:
    given = inputs(2, 16, 16, [length], [1], [0.4, 0.05])
    check(interpreter, tmp_path, mixer(2, 16, 16, implementation, steepest=0.4), given)


@pytest.mark.parametrize("implementation", ["triton.linear_recurrent", CHUNKED])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=["no sequence", "an empty one", "empty ones"])
def test_without_tokens_nothing_changes(
    interpreter: InterpreterWorker, tmp_path: Path, implementation: str, lengths: list[int]
) -> None:
    given = inputs(2, 16, 16, lengths, list(range(len(lengths))), [0.4, 0.05])
    o, state = run(interpreter, tmp_path, mixer(2, 16, 16, implementation, steepest=0.4), given)
    assert o.shape == (0, 2, 16)
    assert torch.equal(state, given[4])


def test_many_sequences_find_their_pieces(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    lengths = [int(n) for n in torch.randint(0, 90, (13,))]
    given = inputs(1, 16, 16, lengths, [int(s) for s in torch.randperm(15)[:13]], [0.1])
    check(interpreter, tmp_path, mixer(1, 16, 16, CHUNKED, steepest=0.1), given)


def test_a_long_sequence_is_cut_into_as_many_segments_as_were_asked_for(
    interpreter: InterpreterWorker, tmp_path: Path
) -> None:
    made = mixer(1, 16, 16, CHUNKED, steepest=0.05)
    check(interpreter, tmp_path, made, inputs(1, 16, 16, [333], [0], [0.05]))


def test_steep_slopes_stay_finite_in_the_form_that_is_safe_for_all(
    interpreter: InterpreterWorker, tmp_path: Path
) -> None:
    given = inputs(2, 16, 16, [100], [0], [40.0, 9.0])
    check(interpreter, tmp_path, mixer(2, 16, 16, CHUNKED), given)


SEGMENTS = "triton.linear_chunked{chunk=16,segment=64,segments=4}"
"""Four segments of a sequence of 256 tokens."""


@pytest.mark.parametrize("steepest", [0.0, 0.9], ids=["any slope", "gentle slopes"])
def test_heads_that_forget_within_a_segment(interpreter: InterpreterWorker, tmp_path: Path, steepest: float) -> None:
    slopes = [
        0.9,
        0.45,
        0.3,
        0.28,
        0.26,
        0.14,
        0.05,
        0.0,
        1e-7,
    ]  # horizons of 20, 41, 62, 67, 72, 140 tokens and more than there are
    heads = len(slopes)
    given = inputs(heads, 16, 16, [250, 70, 256], [1, 3, -1], slopes)
    made = mixer(heads, 16, 16, SEGMENTS, steepest=steepest)
    check(interpreter, tmp_path, made, given, tolerance=2e-6)
    (o, state), (want, after) = run(interpreter, tmp_path, made, given), reference(made, given)
    for head in range(heads):  # a small head's error would be lost among the others'
        assert distance(o[:, head], want[:, head]) < 2e-6, head
        assert distance(state[:, head], after[:, head]) < 2e-6, head


@pytest.mark.parametrize(
    ("token", "size", "slope"),
    # Of the first segment, a token of its first half; its last token, seen from the third segment.
    [(20, 1e20, 0.9), (63, 1e25, 0.9)],
    ids=["part of a segment", "whole segments"],
)
def test_what_lies_beyond_the_horizon_is_skipped(
    interpreter: InterpreterWorker, tmp_path: Path, token: int, size: float, slope: float
) -> None:
    """A huge token would be seen through its decay, if it weren't skipped: by the head that is gentler, it is."""
    begin = 64 if token < 32 else 128
    assert 0.01 < size * math.exp(-slope * (begin - 1 - token)) < 1e6
    given = inputs(2, 16, 16, [200], [1], [slope, slope / 5])
    huge = [x.clone() for x in given]
    huge[1][token] *= size
    made = mixer(2, 16, 16, SEGMENTS)
    usual, other = (run(interpreter, tmp_path, made, x)[0][begin : begin + 64] for x in (given, huge))
    assert torch.equal(usual[:, 0], other[:, 0])
    assert distance(other[:, 1], usual[:, 1].double()) > 1e3


@pytest.mark.parametrize(
    ("token", "begin", "size", "slope"),
    # 18 tokens before the second segment, of a horizon of 20; 66 before the third, of 67.
    [(45, 64, 1e7, 0.9), (61, 128, 1e8, 0.28)],
    ids=["part of a segment", "whole segments"],
)
def test_what_lies_just_within_the_horizon_is_read(
    interpreter: InterpreterWorker, tmp_path: Path, token: int, begin: int, size: float, slope: float
) -> None:
    """A token so huge that it is as large as the others when it is nearly forgotten."""
    assert 0.5 < size * math.exp(-slope * (begin - 1 - token)) < 2.0
    given = inputs(1, 16, 16, [200], [1], [slope])
    given[1][token] *= size
    made = mixer(1, 16, 16, SEGMENTS)
    (o, _), (want, _) = run(interpreter, tmp_path, made, given), reference(made, given)
    assert distance(o[begin : begin + 4], want[begin : begin + 4]) < 1e-4


def horizon_of(interpreter: InterpreterWorker, folder: Path, slope: float) -> int:
    """What the kernels compute."""
    path = folder / "horizon.py"
    path.write_text(f"""import triton
import triton.language as tl


{HORIZON_OF}


@triton.jit
def ask(slopes, out):
    tl.store(out, horizon_of(tl.load(slopes)))


def launch(slopes, out):
    ask[(1,)](slopes, out)
""")
    out = torch.zeros(1, dtype=torch.int32)
    interpreter.run(path, torch.tensor([slope]), out)
    return int(out)


@pytest.mark.parametrize("slope", [1e-6, 1e-3, 0.0442, 0.0625, 0.25, 0.7071, 3.0, 40.0])
def test_the_horizon_keeps_its_bound(interpreter: InterpreterWorker, tmp_path: Path, slope: float) -> None:
    """The tail of the series from there on is small enough, and the horizon isn't much further away than that needs."""
    horizon = horizon_of(interpreter, tmp_path, slope)
    tail = math.exp(-slope * horizon) / -math.expm1(-slope)
    assert tail <= 2.0**-FORGOTTEN * (1 + 1e-5)
    assert tail >= 2.0**-FORGOTTEN * math.exp(-2.1 * slope) / (
        1 + slope
    )  # it may be two tokens too far, and less than 1 - lam allows


@pytest.mark.parametrize("slope", [0.0, -0.0, 1e-12])
def test_without_decay_nothing_is_forgotten(interpreter: InterpreterWorker, tmp_path: Path, slope: float) -> None:
    assert horizon_of(interpreter, tmp_path, slope) == 10**9 + 1


def cut(heads: int, dk: int, dv: int, *, first: int, width: int, behind: str = "") -> Kernel:
    """A kernel of linear_attention whose values are columns of a wider matrix."""
    values, pool = f"f32[N / B, {heads}, {dv}]", f"state<f32[P; {heads}, {dk}, {dv}]>"
    function = f"""
func @mixer(%wide: f32[N / B, {width}], %q: f32[N / B, {heads}, {dk}], %k: f32[N / B, {heads}, {dk}], %slopes: f32[{heads}], %state: {pool},
    %slots: i32[B], %offsets: i32[B + 1]) {{
  %part = slice(%wide) {{axis = 1, start = {first}, stop = {first + heads * dv}}}
  %v = reshape(%part) {{shape = [N, {heads}, {dv}]}}{behind}
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets)
    {{scale = 0.3, form = "chunked", steepest = 0.4}} : {values}, {pool}
  return %o, %after
}}"""
    return kernel(function, CHUNKED, [f"f32[{heads}*B + {heads}*min(N // 32, 4), {dk}, {dv}]"])


@pytest.mark.parametrize(("heads", "dk", "dv", "first", "width"), [(3, 16, 32, 0, 96), (2, 24, 20, 24, 100)])
def test_values_are_read_where_they_lie(
    interpreter: InterpreterWorker, tmp_path: Path, heads: int, dk: int, dv: int, first: int, width: int
) -> None:
    q, k, v, *others = inputs(heads, dk, dv, *RAGGED, SLOPES)
    wide = torch.randn(len(v), width)
    check(interpreter, tmp_path, cut(heads, dk, dv, first=first, width=width), [wide, q, k, *others])


def test_values_that_have_to_be_made_are_refused() -> None:
    made = cut(2, 16, 16, first=0, width=32, behind="\n  %v1 = neg(%v)").function
    (mixed,) = [op for op in made.body.ops if op.name == "linear_attention"]
    (negated,) = [op for op in made.body.ops if op.name == "neg"]
    mixed.replace_input(mixed.inputs()[2], negated.results[0])
    with pytest.raises(CodegenError, match="alone, but for a cut of its values"):
        emit(kernel(str(print_function(made)), CHUNKED, ["f32[2*B + 2*min(N // 32, 4), 16, 16]"]))


def test_free_slots_of_the_pool_stay_as_they_are(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    given = inputs(2, 16, 16, [40, 70], [3, -1], [0.4, 0.05])
    _, state = run(interpreter, tmp_path, mixer(2, 16, 16, CHUNKED, steepest=0.4), given)
    kept = [i for i in range(len(state)) if i != 3]
    assert torch.equal(state[kept], given[4][kept])
    assert not torch.equal(state[3], given[4][3])


def test_the_reference_sees_the_scale(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    given = inputs(1, 16, 16, [20], [0], [0.4])
    one, two = (reference(mixer(1, 16, 16, CHUNKED, scale=s), given)[0] for s in (0.5, 1.0))
    assert torch.allclose(two, 2 * one)
    check(interpreter, tmp_path, mixer(1, 16, 16, CHUNKED, scale=1.0), given)


def test_only_linear_attention_alone_is_taken() -> None:
    made = mixer(1, 16, 16, "triton.linear_recurrent")
    made.function.body.set_outputs(list(made.function.body.outputs)[:1])
    with pytest.raises(CodegenError, match="outputs aren't those"):
        emit(made)


RING_MINI = {
    name: mixer(16, 128, 128, f"triton.{name}{config}", steepest=0.70711, dtype="bf16", scale=128**-0.5)
    for name, config in (("linear_recurrent", ""), ("linear_chunked", "{chunk=64,segment=256,segments=16}"))
}


@pytest.mark.parametrize("name", RING_MINI)
def test_golden(name: str) -> None:
    check_golden(f"triton_{name}", emit(RING_MINI[name]).text)


@pytest.mark.parametrize("name", RING_MINI)
def test_nothing_spills_at_ring_mini_sizes(name: str) -> None:
    for made in compile_many(compile_jobs(emit(RING_MINI[name]).text, name, 90)):
        assert not made.resources.spills, f"{made.name}: {made.resources}"
