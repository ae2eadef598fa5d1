"""Row kernels by Triton: regions in the interpreter against the reference, random ones too, and what ptxas says of ring-mini's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ringc.codegen.check import check_kernel
from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.triton.aot import compile_many
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.codegen.triton.jobs import compile_jobs
from ringc.errors import CodegenError
from ringc.ir.builder import Builder
from ringc.ir.core import Block, Env, Function, Value
from ringc.ir.interpret import run_block
from ringc.ir.ops.index import Gather, TakeAlong
from ringc.ir.ops.pointwise import Abs, Add, Cast, Exp, Gt, Maximum, Minimum, Mul, Neg, Sigmoid, Sub, Where
from ringc.ir.ops.reduce import Max, Mean, Sum
from ringc.ir.ops.rows import RmsNorm, Rope, Silu, Softmax
from ringc.ir.ops.shape import Broadcast, Concat, Reshape, Slice, Transpose
from ringc.ir.ops.source import Iota, scalar
from ringc.ir.symbols import Dim, product, symbol
from ringc.ir.types import DType, TensorType
from tests.codegen.support_kernels import check, check_golden, kernel, offsets_of, run

N = symbol("N")
SIZES = {"N": 37, "B": 3, "P": 5, "S": 48, "R": 5}


def agrees(
    interpreter: InterpreterWorker, made: Kernel, sizes: dict[str, int], *, tolerance: float = 2e-5, seed: int = 0
) -> None:
    """The kernel's results are the reference's, on random inputs that are valid for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{made.name}.py"
        path.write_text(emit(made).text)

        def launch(*tensors: torch.Tensor) -> None:
            interpreter.run(path, *tensors)

        for one in check_kernel(made, launch, sizes, seed=seed):
            assert one.error <= tolerance, f"{one.name} {one.shape}: {one.error:.1e}"


QKV = """
func @qkv(%x: f32[N / B, 176], %wq: f32[24], %cos: f32[N / B, 5], %sin: f32[N / B, 5], %wk: f32[24]) {
  %0 = slice(%x) {axis = 1, start = 0, stop = 72} : f32[N / B, 72]
  %1 = reshape(%0) {shape = [N, 3, 24]} : f32[N / B, 3, 24]
  %2 = slice(%x) {axis = 1, start = 72, stop = 96} : f32[N / B, 24]
  %3 = reshape(%2) {shape = [N, 1, 24]} : f32[N / B, 1, 24]
  %4 = slice(%x) {axis = 1, start = 96, stop = 176, step = 2} : f32[N / B, 40]
  %5 = rms_norm(%1, %wq) : f32[N / B, 3, 24]
  %q = rope(%5, %cos, %sin) : f32[N / B, 3, 24]
  %6 = rms_norm(%3, %wk) : f32[N / B, 1, 24]
  %k = rope(%6, %cos, %sin) {interleaved = true} : f32[N / B, 1, 24]
  return %4, %q, %k
}"""

GATE = """
func @gate(%x: f32[N, 130], %o: f32[N, 6, 10], %w: f32[60]) {
  %0 = slice(%x) {axis = 1, start = 70, stop = 130} : f32[N, 60]
  %1 = reshape(%o) {shape = [N, 4, 15]} : f32[N, 4, 15]
  %2 = rms_norm(%1, _) : f32[N, 4, 15]
  %3 = reshape(%2) {shape = [N, 60]} : f32[N, 60]
  %4 = mul(%3, %w) : f32[N, 60]
  %5 = sigmoid(%0) : f32[N, 60]
  %6 = mul(%4, %5) : f32[N, 60]
  return %6
}"""

EXPERT_SUM = """
func @expert_sum(%d: f32[5*N, 48], %places: i32[5*N], %weights: f32[N, 5], %base: f32[N, 48]) {
  %0 = gather(%d, %places) : f32[5*N, 48]
  %1 = reshape(%0) {shape = [N, 5, 48]} : f32[N, 5, 48]
  %2 = reshape(%weights) {shape = [N, 5, 1]} : f32[N, 5, 1]
  %3 = mul(%1, %2) : f32[N, 5, 48]
  %4 = sum(%3) {axes = [1]} : f32[N, 48]
  %5 = add(%4, %base) : f32[N, 48]
  return %5
}"""

APPEND = """
func @append(%x: f32[N, 36], %w: f32[12], %keys: state<f32[P; S, 3, 12]>, %slots: i32[N],
    %positions: i32[N], %ids: state<i32[P; S]>, %tokens: i32[N]) {
  %0 = reshape(%x) {shape = [N, 3, 12]} : f32[N, 3, 12]
  %1 = rms_norm(%0, %w) : f32[N, 3, 12]
  %2 = state_append(%keys, %slots, %positions, %1) : state<f32[P; S, 3, 12]>
  %3 = state_append(%ids, %slots, %positions, %tokens) : state<i32[P; S]>
  return %2, %3
}"""

SEGMENTS = """
func @segments(%offsets: i32[B + 1], %slots: i32[B]) {
  %row = iota() {length = N} : i32[N]
  %segment = segment_ids(%offsets) {length = N} : i32[N / B]
  %start = gather(%offsets, %segment) : i32[N / B]
  %position = sub(%row, %start) : i32[N / B]
  %slot = gather(%slots, %segment) : i32[N / B]
  return %segment, %position, %slot
}"""

EMBED = """
func @embed(%table: f32[50, 96], %ids: i32[N], %w: f32[96]) {
  %x = gather(%table, %ids) : f32[N, 96]
  %0 = rms_norm(%x, %w) : f32[N, 96]
  return %x, %0
}"""

ANGLES = """
func @angles(%positions: i32[N], %frequencies: f32[1, 7]) {
  %0 = cast(%positions) {dtype = f32} : f32[N]
  %1 = reshape(%0) {shape = [N, 1]} : f32[N, 1]
  %2 = mul(%1, %frequencies) : f32[N, 7]
  %cos = cos(%2) : f32[N, 7]
  %sin = sin(%2) : f32[N, 7]
  return %cos, %sin
}"""

INTEGERS = """
func @integers(%a: i32[N, 6], %b: i32[N, 6]) {
  %three = constant() {value = [3], dtype = i32} : i32[]
  %eight = constant() {value = [8], dtype = i32} : i32[]
  %shift = constant() {value = [-5], dtype = i32} : i32[]
  %table = constant() {value = [4, 4, 7, -1, 0, 9], dtype = i32, shape = [6]} : i32[6]
  %0 = add(%a, %shift) : i32[N, 6]
  %1 = floordiv(%0, %three) : i32[N, 6]
  %2 = mod(%0, %eight) : i32[N, 6]
  %3 = mul(%1, %table) : i32[N, 6]
  %4 = add(%3, %2) : i32[N, 6]
  %5 = max(%4) {axes = [1]} : i32[N]
  %6 = sum(%4) {axes = [1], keep = true} : i32[N, 1]
  %7 = lt(%4, %6) : bool[N, 6]
  %8 = not(%7) : bool[N, 6]
  %9 = where(%7, %a, %b) : i32[N, 6]
  return %5, %7, %8, %9
}"""

REDUCTIONS = """
func @reductions(%x: f32[N, 3, 20], %y: f32[N, 20]) {
  %0 = sum(%x) {axes = [1, 2]} : f32[N]
  %1 = max(%x) {axes = [1]} : f32[N, 20]
  %2 = mean(%x) {axes = [2]} : f32[N, 3]
  %3 = mul(%1, %y) : f32[N, 20]
  %4 = sum(%3) {axes = [1], keep = true} : f32[N, 1]
  %5 = softmax(%x) : f32[N, 3, 20]
  %6 = transpose(%5) {axes = [0, 2, 1]} : f32[N, 20, 3]
  %7 = max(%6) {axes = [2]} : f32[N, 20]
  return %0, %2, %4, %6, %7
}"""

JOINED = """
func @joined(%a: f32[N, 5], %b: f32[N, 27], %c: f32[N, 4, 8], %ids: i32[N, 6]) {
  %0 = reshape(%c) {shape = [N, 32]} : f32[N, 32]
  %1 = concat([%a, %b, %0]) {axis = 1} : f32[N, 64]
  %2 = rms_norm(%1, _) : f32[N, 64]
  %3 = take_along(%2, %ids) : f32[N, 6]
  %4 = slice(%2) {axis = 1, start = 3, stop = 40} : f32[N, 37]
  return %2, %3, %4
}"""

ROWS_JOINED = """
func @rows_joined(%a: f32[N, 9], %b: f32[N, 9], %w: f32[9]) {
  %0 = concat([%a, %b]) {axis = 0} : f32[2*N, 9]
  %1 = rms_norm(%0, %w) : f32[2*N, 9]
  return %1
}"""

MERGED = """
func @merged(%x: f32[N, 4, 24], %w: f32[24]) {
  %0 = reshape(%x) {shape = [4*N, 24]} : f32[4*N, 24]
  %1 = rms_norm(%0, %w) : f32[4*N, 24]
  %2 = reshape(%1) {shape = [N, 96]} : f32[N, 96]
  %3 = softmax(%2) : f32[N, 96]
  return %1, %3
}"""

WIDE = """
func @wide(%x: f32[N, 20000]) {
  %0 = softmax(%x) : f32[N, 20000]
  %1 = max(%x) {axes = [1]} : f32[N]
  return %0, %1
}"""

DIVIDED = """
func @divided(%x: f32[N, 5000], %y: f32[N, 40, 96], %w: f32[96]) {
  %0 = silu(%x) : f32[N, 5000]
  %1 = rms_norm(%y, %w) : f32[N, 40, 96]
  return %0, %1
}"""

FIXED = """
func @fixed(%x: f32[4, 12], %s: f32[12], %t: f32[]) {
  %0 = mul(%x, %s) : f32[4, 12]
  %1 = add(%0, %t) : f32[4, 12]
  %2 = exp(%t) : f32[]
  %3 = sum(%s) {axes = [0]} : f32[]
  return %1, %2, %3
}"""

REGIONS = {
    "qkv": QKV, "gate": GATE, "expert_sum": EXPERT_SUM, "append": APPEND, "segments": SEGMENTS, "embed": EMBED, "angles": ANGLES,
    "integers": INTEGERS, "reductions": REDUCTIONS, "joined": JOINED, "rows_joined": ROWS_JOINED, "merged": MERGED, "fixed": FIXED,
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("name", REGIONS)
def test_regions(interpreter: InterpreterWorker, name: str, rows: int) -> None:
    agrees(interpreter, kernel(REGIONS[name], "triton.row"), {**SIZES, "N": rows, "B": min(rows, 3)})


@pytest.mark.parametrize("text", [WIDE, DIVIDED])
def test_wide_rows(interpreter: InterpreterWorker, text: str) -> None:
    """A row of more elements than a program holds: chunks in a loop, or an axis divided between programs."""
    agrees(interpreter, kernel(text, "triton.row"), {"N": 3})


@pytest.mark.parametrize("lengths", [[0, 0, 5, 0, 1, 0], [1], [0, 3], [70, 0, 0, 90]])
def test_segments_may_be_empty(interpreter: InterpreterWorker, tmp_path: Path, lengths: list[int]) -> None:
    slots = torch.randperm(len(lengths)).to(torch.int32)
    made = kernel(SEGMENTS, "triton.row")
    total = sum(lengths)
    inputs = [offsets_of(lengths), slots]
    # N stands in no argument: its value comes with the results.
    want = run_block(made.function.body, inputs, Env({"N": total, "B": len(lengths)}))
    got = [torch.full((total,), -7, dtype=torch.int32) for _ in want]
    path = tmp_path / "segments.py"
    path.write_text(emit(made).text)
    interpreter.run(path, *inputs, *got)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs.to(torch.int32))


def test_slot_minus_one_writes_nothing(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    made = kernel(APPEND, "triton.row")
    pools = [torch.randn(3, 8, 3, 12), torch.randint(0, 99, (3, 8), dtype=torch.int32)]
    slots, positions = torch.tensor([-1, 2, -1, 0], dtype=torch.int32), torch.tensor([5, 7, 0, 0], dtype=torch.int32)
    tokens = torch.arange(4, dtype=torch.int32)
    check(
        interpreter, tmp_path, made, [torch.randn(4, 36), torch.randn(12), pools[0], slots, positions, pools[1], tokens]
    )


def test_no_rows(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    check(
        interpreter, tmp_path, kernel(GATE, "triton.row"), [torch.randn(0, 130), torch.randn(0, 6, 10), torch.randn(60)]
    )


# -- regions nobody wrote


class Region:
    """A random region of row operations, each step valid by construction and tame in its numbers."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.block = Block()
        self.b = Builder(self.block)
        self.values: list[Value] = []
        for i in range(self.integer(1, 3)):
            self.argument(f"x{i}", (N, *self.shape()))

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24]), min_size=0, max_size=3)))

    def argument(self, name: str, shape: tuple[Dim, ...], dtype: DType = DType.F32) -> Value:
        value = self.block.add_arg(TensorType(dtype, shape), name)
        if dtype is DType.F32 and shape[:1] == (N,):
            self.values.append(value)
        return value

    def pick(self) -> Value:
        return self.values[self.integer(0, len(self.values) - 1)]

    def fitting(self, x: Value) -> Value:
        """A value of the same shape, or one that broadcasts to it."""
        same = [v for v in self.values if v.shape == x.shape]
        if self.integer(0, 2) and len(same) > 1:
            return same[self.integer(0, len(same) - 1)]
        if x.tensor.rank > 1 and self.integer(0, 1):
            return self.argument(f"w{len(self.block.args)}", x.shape[1:])
        axis = self.integer(1, x.tensor.rank - 1) if x.tensor.rank > 1 else None
        return x if axis is None else self.b(Mean(x, axes=(axis,), keep=True))

    def step(self) -> None:
        x = self.pick()
        rank = x.tensor.rank
        choices = [self.unary, self.binary, self.where, self.by_row, self.cast, self.gather]
        if rank > 1:
            choices += [
                self.reduce,
                self.slice,
                self.rms_norm,
                self.softmax,
                self.reshape,
                self.broadcast,
                self.concat,
                self.take,
            ]
        if rank > 2:
            choices += [self.transpose]
        if rank == 3 and x.shape[2] != 1:
            choices += [self.rope]
        made = choices[self.integer(0, len(choices) - 1)](x)
        if int(product(made.shape[1:])) <= 512:
            self.values.append(made)

    def unary(self, x: Value) -> Value:
        return self.b((Neg, Abs, Sigmoid, Silu)[self.integer(0, 3)](x))

    def binary(self, x: Value) -> Value:
        op = (Add, Sub, Mul, Maximum, Minimum)[self.integer(0, 4)]
        return self.b(op(self.b(Sigmoid(x)) if op is Mul else x, self.fitting(x)))

    def where(self, x: Value) -> Value:
        quarter = self.b(scalar(0.25, DType.F32))
        return self.b(Where(self.b(Gt(x, quarter)), x, self.b(Exp(self.b(Neg(self.b(Abs(x))))))))

    def by_row(self, x: Value) -> Value:
        row = self.b(Cast(self.b(Iota(N)), DType.F32))
        return self.b(Mul(x, self.b(Sigmoid(self.b(Reshape(row, (N, *[1] * (x.tensor.rank - 1))))))))

    def cast(self, x: Value) -> Value:
        positive = self.b(Cast(self.b(Gt(x, self.b(scalar(0.0, DType.F32)))), DType.I32))
        return self.b(Cast(positive, DType.F32))

    def gather(self, x: Value) -> Value:
        return self.b(Gather(x, self.argument(f"i{len(self.block.args)}", (N,), DType.I32)))

    def reduce(self, x: Value) -> Value:
        axes = tuple(sorted({self.integer(1, x.tensor.rank - 1) for _ in range(2)}))
        return self.b((Sum, Max, Mean)[self.integer(0, 2)](x, axes, bool(self.integer(0, 1))))

    def slice(self, x: Value) -> Value:
        axis = self.integer(1, x.tensor.rank - 1)
        size = int(x.shape[axis])
        start = self.integer(0, size - 1)
        return self.b(Slice(x, axis, start, self.integer(start + 1, size), self.integer(1, 2)))

    def rms_norm(self, x: Value) -> Value:
        return self.b(
            RmsNorm(x, self.argument(f"w{len(self.block.args)}", x.shape[-1:]) if self.integer(0, 1) else None)
        )

    def softmax(self, x: Value) -> Value:
        return self.b(Softmax(x))

    def reshape(self, x: Value) -> Value:
        whole = int(product(x.shape[1:]))
        inner = self.data.draw(st.sampled_from([d for d in range(1, whole + 1) if whole % d == 0]))
        return self.b(Reshape(x, (N, whole // inner, inner)))

    def broadcast(self, x: Value) -> Value:
        return self.b(Broadcast(self.b(Max(x, (x.tensor.rank - 1,), True)), (*x.shape[:-1], self.integer(1, 5))))

    def concat(self, x: Value) -> Value:
        axis = self.integer(1, x.tensor.rank - 1)
        others = [v for v in self.values if v.tensor.rank == x.tensor.rank and _beside(v, axis) == _beside(x, axis)]
        return self.b(Concat((x, others[self.integer(0, len(others) - 1)], self.b(Neg(x))), axis))

    def take(self, x: Value) -> Value:
        return self.b(
            TakeAlong(x, self.argument(f"i{len(self.block.args)}", (*x.shape[:-1], self.integer(1, 4)), DType.I32))
        )

    def transpose(self, x: Value) -> Value:
        return self.b(Transpose(x, (0, *reversed(range(1, x.tensor.rank)))))

    def rope(self, x: Value) -> Value:
        half = self.integer(1, int(x.shape[2]) // 2)
        cos, sin = (self.argument(f"a{len(self.block.args)}", (N, half)) for _ in range(2))
        return self.b(Rope(x, cos, sin, bool(self.integer(0, 1))))

    def kernel(self) -> Kernel:
        for _ in range(self.integer(1, 7)):
            self.step()
        made = [v for v in self.values if v.op is not None] or [self.b(Neg(self.values[0]))]
        count = self.integer(1, min(3, len(made)))
        self.block.set_outputs(made[-count:])
        return kernel_of(Function("region", self.block, family="row", implementation="triton.row"))


def _beside(value: Value, axis: int) -> list[Dim]:
    return [d for i, d in enumerate(value.shape) if i != axis]


@settings(max_examples=40)
@given(st.data())
def test_random_regions(interpreter: InterpreterWorker, data: st.DataObject) -> None:
    made = Region(data).kernel()
    rows = data.draw(st.sampled_from([1, 2, 5, 70]))
    inputs = random_inputs(made.function, {"N": rows})
    with tempfile.TemporaryDirectory() as folder:
        check(interpreter, Path(folder), made, inputs, tolerance=1e-4)


# -- what isn't possible


def test_a_sum_over_rows_is_refused() -> None:
    text = "func @down(%x: f32[N, 4]) {\n  %0 = sum(%x) {axes = [0]} : f32[4]\n  return %0\n}"
    with pytest.raises(CodegenError, match="a reduction over N elements"):
        emit(kernel(text, "triton.row"))


def test_another_kind_of_operation_is_refused() -> None:
    text = "func @ranked(%x: f32[N, 4]) {\n  %0, %1 = topk(%x) {k = 2} : f32[N, 2], i32[N, 2]\n  return %0\n}"
    with pytest.raises(CodegenError, match="can't hold 'topk'"):
        emit(kernel(text, "triton.row"))


def test_a_width_that_is_not_known_is_refused() -> None:
    text = "func @unknown(%x: f32[N, S]) {\n  %0 = neg(%x) : f32[N, S]\n  return %0\n}"
    with pytest.raises(CodegenError, match=r"known sizes behind the rows, not \[N, S\]"):
        emit(kernel(text, "triton.row"))


# -- ring-mini's kernels

MINI = {
    "row_qkv": """
func @qkv(%qkvg: bf16[N / B, 8192], %wq: bf16[128], %cos: f32[N / B, 32], %sin: f32[N / B, 32], %wk: bf16[128]) {
  %1 = slice(%qkvg) {axis = 1, start = 0, stop = 2048} : bf16[N / B, 2048]
  %2 = reshape(%1) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %3 = slice(%qkvg) {axis = 1, start = 2048, stop = 4096} : bf16[N / B, 2048]
  %4 = reshape(%3) {shape = [N, 16, 128]} : bf16[N / B, 16, 128]
  %v = slice(%qkvg) {axis = 1, start = 4096, stop = 6144} : bf16[N / B, 2048]
  %6 = rms_norm(%2, %wq) : bf16[N / B, 16, 128]
  %7 = cast(%6) {dtype = f32} : f32[N / B, 16, 128]
  %8 = rope(%7, %cos, %sin) : f32[N / B, 16, 128]
  %q = cast(%8) {dtype = bf16} : bf16[N / B, 16, 128]
  %9 = rms_norm(%4, %wk) : bf16[N / B, 16, 128]
  %10 = cast(%9) {dtype = f32} : f32[N / B, 16, 128]
  %11 = rope(%10, %cos, %sin) : f32[N / B, 16, 128]
  %k = cast(%11) {dtype = bf16} : bf16[N / B, 16, 128]
  return %v, %q, %k
}""",
    "row_gate": """
func @gate(%qkvg: bf16[N / B, 8192], %o: bf16[N / B, 16, 128], %w: bf16[2048]) {
  %2 = slice(%qkvg) {axis = 1, start = 6144, stop = 8192} : bf16[N / B, 2048]
  %3 = reshape(%o) {shape = [N, 4, 512]} : bf16[N / B, 4, 512]
  %4 = rms_norm(%3, _) : bf16[N / B, 4, 512]
  %5 = reshape(%4) {shape = [N, 2048]} : bf16[N / B, 2048]
  %6 = mul(%5, %w) : bf16[N / B, 2048]
  %7 = sigmoid(%2) : bf16[N / B, 2048]
  %8 = mul(%6, %7) : bf16[N / B, 2048]
  return %8
}""",
    "row_expert_sum": """
func @expert_sum(%d: bf16[8*N, 2048], %places: i32[8*N], %weights: f32[N / B, 8]) {
  %2 = gather(%d, %places) : bf16[8*N, 2048]
  %3 = reshape(%2) {shape = [N, 8, 2048]} : bf16[N, 8, 2048]
  %4 = cast(%3) {dtype = f32} : f32[N, 8, 2048]
  %5 = reshape(%weights) {shape = [N, 8, 1]} : f32[N / B, 8, 1]
  %6 = mul(%4, %5) : f32[N / B, 8, 2048]
  %7 = sum(%6) {axes = [1]} : f32[N / B, 2048]
  %8 = cast(%7) {dtype = bf16} : bf16[N / B, 2048]
  return %8
}""",
    "row_append": """
func @append(%qkv: bf16[N / B, 3072], %w: bf16[128], %cos: f32[N / B, 32], %sin: f32[N / B, 32], %keys: state<bf16[P; S, 4, 128]>,
    %slots: i32[N / B], %positions: i32[N / B]) {
  %1 = slice(%qkv) {axis = 1, start = 2048, stop = 2560} : bf16[N / B, 512]
  %2 = reshape(%1) {shape = [N, 4, 128]} : bf16[N / B, 4, 128]
  %3 = rms_norm(%2, %w) : bf16[N / B, 4, 128]
  %4 = cast(%3) {dtype = f32} : f32[N / B, 4, 128]
  %5 = rope(%4, %cos, %sin) : f32[N / B, 4, 128]
  %6 = cast(%5) {dtype = bf16} : bf16[N / B, 4, 128]
  %7 = state_append(%keys, %slots, %positions, %6) : state<bf16[P; S, 4, 128]>
  return %7
}""",
}


@pytest.mark.parametrize("name", MINI)
def test_golden(name: str) -> None:
    check_golden(f"triton_{name}", emit(kernel(MINI[name], "triton.row")).text)


def test_ring_mini_does_not_spill() -> None:
    jobs = [job for text in MINI.values() for job in compile_jobs(emit(kernel(text, "triton.row")).text, "row", 90)]
    for job, made in zip(jobs, compile_many(jobs), strict=True):
        used = made.resources
        assert (used.spill_stores, used.spill_loads, used.stack_bytes) == (0, 0, 0), job.kernel
        assert used.registers <= 64, f"{job.kernel}: {used.registers} registers leave few blocks for a processor"


@pytest.mark.parametrize("view", ["%x", "%view"])
def test_a_result_that_is_read_again_is_rounded_first(
    interpreter: InterpreterWorker, tmp_path: Path, view: str
) -> None:
    """As a kernel reads it that has it from memory."""
    made = kernel(
        f"""
func @rounded(%a: f16[N, 8], %b: f16[N, 8]) {{
  %x = add(%a, %b) : f16[N, 8]
  %view = reshape(%x) {{shape = [N, 2, 4]}} : f16[N, 2, 4]
  %rest = sub(%x, %a) : f16[N, 8]
  return {view}, %rest
}}""",
        "triton.row",
    )
    small = torch.full((3, 8), 2.0**-12, dtype=torch.float16)
    x, rest = run(interpreter, tmp_path, made, [torch.ones_like(small), small])
    assert x.eq(1).all()
    assert rest.eq(0).all()


@pytest.mark.parametrize(
    ("made", "rounded"),
    [
        ("%x = gather(%a, %ids) : f16[N, 8]", 0),
        ("%x = cast(%wide) {dtype = f16} : f16[N, 8]", 1),
        ("%x = concat([%b, %b]) {axis = 1} : f16[N, 8]", 0),
        ("%u = add(%a, %a) : f16[5, 8]\n  %x = gather(%u, %ids) : f16[N, 8]", 1),
    ],
)
def test_what_is_exact_is_not_rounded(made: str, rounded: int) -> None:
    """It was rounded where it was stored, or is rounded anyway."""
    text = f"""
func @exact(%a: f16[5, 8], %ids: i32[N], %wide: f32[N, 8], %b: f16[N, 4]) {{
  {made}
  %rest = abs(%x) : f16[N, 8]
  return %x, %rest
}}"""
    assert emit(kernel(text, "triton.row")).text.count(".to(tl.float16).to(tl.float32)") == rounded


def test_what_is_stored_whole_is_not_rounded() -> None:
    text = """
func @whole(%a: f32[N, 8]) {
  %x = add(%a, %a) : f32[N, 8]
  %rest = abs(%x) : f32[N, 8]
  return %x, %rest
}"""
    assert ".to(" not in emit(kernel(text, "triton.row")).text.partition("def whole")[2].replace(".to(tl.int64)", "")
