"""Row work in front of the recurrent form by Triton: in the interpreter against fp64, and what ptxas says of ring-mini's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.codegen.triton.overlap import WAIT
from ringc.errors import CodegenError
from ringc.passes.target import target
from tests.codegen.support_kernels import check, check_golden, kernel, offsets_of, run

RECURRENT = "triton.linear_recurrent"
SLOPES = [0.7, 0.02, 0.0, 0.9]


@dataclass(frozen=True)
class Front:
    """A region's row work, for `heads` of `dk` and `dv`: its arguments as the IR has them, and the lines that make %q, %k and %v."""

    heads: int
    dk: int
    dv: int
    arguments: str
    lines: str
    slopes: str = "%slopes"

    def kernel(self, implementation: str = RECURRENT, *, dtype: str = "f32", scale: float = 0.3) -> Kernel:
        values, pool = f"{dtype}[N / B, {self.heads}, {self.dv}]", f"state<f32[P; {self.heads}, {self.dk}, {self.dv}]>"
        rest = f"%slopes: f32[{self.heads}], %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]"
        attributes = f'scale = {scale}, form = "recurrent", steepest = 0.9'
        text = f"""
func @front({self.arguments}, {rest}) {{{self.lines}
  %o, %after = linear_attention(%q, %k, %v, {self.slopes}, %state, %slots, %offsets) {{{attributes}}} : {values}, {pool}
  return %o, %after
}}"""
        return kernel(text, implementation)

    def inputs(self, lengths: Sequence[int], slots: Sequence[int]) -> list[torch.Tensor]:
        """Random ones, the state too; whole numbers are positions below 50."""
        sizes = {"N": sum(lengths)}
        given: list[torch.Tensor] = []
        for arg in self.kernel().function.body.args[:-4]:
            shape = [d if isinstance(d, int) else sizes[str(d)] for d in arg.tensor.shape]
            given.append(
                torch.randint(50, shape, dtype=torch.int32) if arg.tensor.dtype.value == "i32" else torch.randn(shape)
            )
        pool = torch.randn(max(slots, default=0) + 3, self.heads, self.dk, self.dv)
        return [
            *given,
            torch.tensor(SLOPES[: self.heads]),
            pool,
            torch.tensor(slots, dtype=torch.int32),
            offsets_of(lengths),
        ]


def wide(heads: int, dim: int, pairs: int, *, dtype: str = "f32", rotation: str = "") -> Front:
    """Ring-linear's: one product of q, k, v and the gate, norms of heads, rotary positions on some channels."""
    size, rows = heads * dim, f"{dtype}[N / B, {heads}, {dim}]"
    arguments = (
        f"%0: {dtype}[N / B, {4 * size}], %query_layernorm: {dtype}[{dim}], %cos: f32[N / B, {pairs}], %sin: f32[N / B, {pairs}], "
        f"%key_layernorm: {dtype}[{dim}]"
    )
    lines = ""
    for i, name in enumerate(("query", "key", "value")):
        lines += f"""
  %{name}_all = slice(%0) {{axis = 1, start = {i * size}, stop = {(i + 1) * size}}} : {dtype}[N / B, {size}]
  %{name if i < 2 else "v"} = reshape(%{name}_all) {{shape = [N, {heads}, {dim}]}} : {rows}"""
    for name in ("query", "key"):
        lines += f"""
  %{name}_normed = rms_norm(%{name}, %{name}_layernorm) : {rows}"""
        if dtype == "f32":
            lines += f"""
  %{name[0]} = rope(%{name}_normed, %cos, %sin){rotation} : {rows}"""
        else:
            lines += f"""
  %{name}_wide = cast(%{name}_normed) {{dtype = f32}} : f32[N / B, {heads}, {dim}]
  %{name}_turned = rope(%{name}_wide, %cos, %sin){rotation} : f32[N / B, {heads}, {dim}]
  %{name[0]} = cast(%{name}_turned) {{dtype = {dtype}}} : {rows}"""
    return Front(heads, dim, dim, arguments, lines)


THREE = Front(
    2, 24, 20,
    "%x: f32[N / B, 48], %z: f32[N / B, 2, 24], %y: f32[N / B, 2, 20], %w: f32[20]",
    """
  %split = reshape(%x) {shape = [N, 2, 24]} : f32[N / B, 2, 24]
  %q = exp(%split) : f32[N / B, 2, 24]
  %k = exp(%z) : f32[N / B, 2, 24]
  %v = rms_norm(%y, %w) : f32[N / B, 2, 20]""",
)  # fmt: skip
"""Three products, a feature map that is 1 at 0, a norm of the values alone."""

BY_HAND = Front(
    3, 24, 32,
    "%x: f32[N / B, 3, 24], %cos: f32[N / B, 5], %sin: f32[N / B, 5], %v: f32[N / B, 3, 32]",
    """
  %a = slice(%x) {axis = 2, start = 0, stop = 5} : f32[N / B, 3, 5]
  %b = slice(%x) {axis = 2, start = 5, stop = 10} : f32[N / B, 3, 5]
  %rest = slice(%x) {axis = 2, start = 10, stop = 24} : f32[N / B, 3, 14]
  %c = reshape(%cos) {shape = [N, 1, 5]} : f32[N / B, 1, 5]
  %s = reshape(%sin) {shape = [N, 1, 5]} : f32[N / B, 1, 5]
  %ac = mul(%a, %c) : f32[N / B, 3, 5]
  %bs = mul(%b, %s) : f32[N / B, 3, 5]
  %one = sub(%ac, %bs) : f32[N / B, 3, 5]
  %bc = mul(%b, %c) : f32[N / B, 3, 5]
  %as = mul(%a, %s) : f32[N / B, 3, 5]
  %two = add(%bc, %as) : f32[N / B, 3, 5]
  %q = concat([%one, %two, %rest]) {axis = 2} : f32[N / B, 3, 24]
  %k = softmax(%q) : f32[N / B, 3, 24]""",
)  # fmt: skip
"""A concatenation along the key axis, of arguments alone; a maximum and a sum of a head."""

TABLES = Front(
    2, 16, 16,
    "%x: f32[N / B, 32], %k: f32[N / B, 2, 16], %y: f32[N / B, 2, 16], %cos: f32[50, 8], %sin: f32[50, 8], %positions: i32[N / B]",
    """
  %split = reshape(%x) {shape = [N, 2, 16]} : f32[N / B, 2, 16]
  %c = gather(%cos, %positions) : f32[N / B, 8]
  %s = gather(%sin, %positions) : f32[N / B, 8]
  %q = rope(%split, %c, %s) : f32[N / B, 2, 16]
  %v = rms_norm(%y, _) : f32[N / B, 2, 16]
  %steeper = add(%slopes, %slopes) : f32[2]""",
    "%steeper",
)  # fmt: skip
"""Angles from tables at positions; a norm of values as wide as keys; slopes that are computed."""

GROUPS = Front(
    2, 32, 16,
    "%x: f32[N / B, 2, 32], %u: f32[N / B, 2, 1], %v: f32[N / B, 2, 16], %w: f32[8]",
    """
  %groups = reshape(%x) {shape = [N, 2, 4, 8]} : f32[N / B, 2, 4, 8]
  %normed = rms_norm(%groups, %w) : f32[N / B, 2, 4, 8]
  %q = reshape(%normed) {shape = [N, 2, 32]} : f32[N / B, 2, 32]
  %k = broadcast(%u) {shape = [N, 2, 32]} : f32[N / B, 2, 32]""",
)  # fmt: skip
"""Norms of parts of a head; keys that are the same in all channels."""

ROWS = Front(
    3, 8, 8,
    "%x: f32[N / B, 24], %w: f32[24], %k: f32[N / B, 3, 8], %table: f32[9, 24]",
    """
  %normed = rms_norm(%x, %w) : f32[N / B, 24]
  %q = reshape(%normed) {shape = [N, 3, 8]} : f32[N / B, 3, 8]
  %of = segment_ids(%offsets) {length = N} : i32[N / B]
  %biases = gather(%table, %of) : f32[N / B, 24]
  %v = reshape(%biases) {shape = [N, 3, 8]} : f32[N / B, 3, 8]""",
)  # fmt: skip
"""A norm over all heads, and a search for each token's sequence."""

JOINED = Front(
    2, 24, 20,
    "%q: f32[N / B, 2, 24], %k: f32[N / B, 2, 24], %a: f32[N / B, 2, 7], %b: f32[N / B, 2, 13], %w: f32[20]",
    """
  %y = concat([%a, %b]) {axis = 2} : f32[N / B, 2, 20]
  %v = rms_norm(%y, %w) : f32[N / B, 2, 20]""",
)  # fmt: skip
"""A norm of a concatenation that is not as long as keys."""

FRONTS = {
    "ring": wide(2, 64, 16),
    "whole rope, no power of two": wide(3, 24, 12),
    "pairs side by side": wide(2, 24, 10, rotation=" {interleaved = true}"),
    "four warps": wide(1, 128, 32),
    "three products": THREE,
    "rope by hand": BY_HAND,
    "tables": TABLES,
    "groups": GROUPS,
    "rows": ROWS,
    "joined": JOINED,
}


@pytest.mark.parametrize("name", FRONTS)
def test_row_work_and_recurrence_are_one_kernel(interpreter: InterpreterWorker, tmp_path: Path, name: str) -> None:
    front = FRONTS[name]
    check(interpreter, tmp_path, front.kernel(), front.inputs([3, 0, 1, 5], [2, 0, -1, 5]))


@pytest.mark.parametrize("name", ["ring", "three products"])
def test_long_sequences(interpreter: InterpreterWorker, tmp_path: Path, name: str) -> None:
    front = FRONTS[name]
    check(interpreter, tmp_path, front.kernel(), front.inputs([70, 1], [0, 3]))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=["no sequence", "an empty one", "empty ones"])
def test_without_tokens_nothing_changes(interpreter: InterpreterWorker, tmp_path: Path, lengths: list[int]) -> None:
    front = FRONTS["ring"]
    given = front.inputs(lengths, list(range(len(lengths))))
    o, state = run(interpreter, tmp_path, front.kernel(), given)
    assert o.shape == (0, 2, 64)
    assert torch.equal(state, given[-3])


def test_other_slots_stay_as_they_are(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    front = FRONTS["three products"]
    given = front.inputs([4, 0, 7], [3, 1, -1])
    _, state = run(interpreter, tmp_path, front.kernel(), given)
    kept = [i for i in range(len(state)) if i != 3]
    assert torch.equal(state[kept], given[-3][kept])
    assert not torch.equal(state[3], given[-3][3])


def test_what_it_cant_do_is_refused() -> None:
    product = Front(1, 16, 16, "%x: f32[N / B, 16], %w: f32[16, 16], %k: f32[N / B, 1, 16], %v: f32[N / B, 1, 16]", """
  %p = matmul(%x, %w) : f32[N / B, 16]
  %q = reshape(%p) {shape = [N, 1, 16]} : f32[N / B, 1, 16]""")  # fmt: skip
    with pytest.raises(CodegenError, match="'matmul'"):
        emit(product.kernel())
    long = Front(1, 16, 16, "%x: f32[N / B, 1, 16, 80], %k: f32[N / B, 1, 16], %v: f32[N / B, 1, 16]", """
  %q = sum(%x) {axes = [3]} : f32[N / B, 1, 16]""")  # fmt: skip
    with pytest.raises(CodegenError, match="more than 64 elements"):
        emit(long.kernel())
    with pytest.raises(CodegenError, match="takes linear_attention alone"):
        emit(FRONTS["ring"].kernel("triton.linear_chunked{chunk=16,segment=32,segments=4}"))
    other = Front(1, 16, 16, "%q: f32[N / B, 1, 16], %k: f32[N / B, 1, 16], %v: f32[N / B, 1, 16]", "").kernel()
    other.function.body.set_outputs([*other.function.body.outputs, other.function.body.args[0]])
    with pytest.raises(CodegenError, match="outputs aren't those"):
        emit(other)


def test_slots_are_an_argument() -> None:
    text = """
func @front(%q: f32[N / B, 1, 16], %slopes: f32[1], %state: state<f32[P; 1, 16, 16]>, %others: i32[B], %offsets: i32[B + 1]) {
  %slots = add(%others, %others) : i32[B]
  %o, %after = linear_attention(%q, %q, %q, %slopes, %state, %slots, %offsets) {scale = 1.0} : f32[N / B, 1, 16], state<f32[P; 1, 16, 16]>
  return %o, %after
}"""
    with pytest.raises(CodegenError, match="the slots of linear_attention"):
        emit(kernel(text, RECURRENT))


RING_MINI = wide(16, 128, 32, dtype="bf16").kernel(dtype="bf16", scale=128**-0.5)


def test_golden() -> None:
    check_golden("triton_linear_front", emit(RING_MINI).text)


@pytest.mark.parametrize("late", ["", "state", "slots", "offsets", "slopes"])
def test_the_state_is_read_in_front_of_the_wait_if_nothing_read_there_is_late(late: str) -> None:
    made = wide(16, 128, 32, dtype="bf16").kernel(dtype="bf16", scale=128**-0.5)
    args = [arg.name for arg in made.function.body.args]
    made.function.notes["early"] = tuple(i for i, name in enumerate(args) if i and name not in ("cos", "sin", late))
    front, _, behind = emit(made, target("sm_90")).text.partition("def recurrent(")[2].partition(WAIT)
    assert ("tl.load(state_at" in front) == (not late)
    assert "for token in range(first, end):" in behind and f"tl.load({args[0]} +" not in front


def test_nothing_spills_at_ring_mini_sizes() -> None:
    (made,) = compile_many(compile_jobs(emit(RING_MINI).text, "linear_front", 90))
    assert not made.resources.spills, made.resources
    assert made.resources.registers <= 102, made.resources  # five blocks of four warps on a processor


def test_every_front_compiles() -> None:
    jobs = [job for front in FRONTS.values() for job in compile_jobs(emit(front.kernel()).text, "linear_front", 90)]
    assert len(jobs) == len(FRONTS)
    for made in compile_many(jobs):
        assert not made.resources.spills, made.resources


def test_all_loads_of_a_token_stand_before_its_arithmetic() -> None:
    lines = emit(RING_MINI).text.partition("for token in")[2].splitlines()[1:]
    loads = [i for i, line in enumerate(lines) if "tl.load(" in line]
    assert loads == list(range(7))  # q and k with their partners, v, cos and sin
