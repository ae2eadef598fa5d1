"""What `ringc check` tells apart: roundings of a right kernel, in any order, from a kernel that is a few percent off somewhere.

Kernels here are made up: they compute the right result, by eager PyTorch or by the interpreter, and spoil it before it is handed over.
"""

# ruff: noqa: E501 - the text form of the IR has one operation a line
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from ringc.codegen.backend import Launcher, run_source
from ringc.codegen.check import check_kernel
from ringc.codegen.compare import Compared, coarseness, compare
from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs, sizes_for
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.ir.core import Env
from ringc.ir.interpret import run_block
from ringc.ir.ops.mixers import LinearAttention
from ringc.ir.ops.products import MatMul, SegmentMatMul
from ringc.ir.text_parse import parse_module
from ringc.ir.types import StateType

LINEAR = """(%q: T[N / B, 4, 32], %k: T[N / B, 4, 32], %v: T[N / B, 4, 32], %slopes: f32[4], %s: state<f32[P; 4, 32, 32]>, %slots: i32[B], %offsets: i32[B + 1]) {
  %1, %2 = linear_attention(%q, %k, %v, %slopes, %s, %slots, %offsets) {scale = 0.18, form = "FORM"} : T[N / B, 4, 32], state<f32[P; 4, 32, 32]>
  return %1, %2
}"""

FAMILIES = {
    "row": """(%x: T[N, 128], %y: T[N, 128], %w: T[128]) {
  %1 = add(%x, %y) : T[N, 128]
  %2 = rms_norm(%1, %w) : T[N, 128]
  return %1, %2
}""",
    "row_rope": """(%x: T[N, 128], %w: T[32], %cos: f32[N, 8], %sin: f32[N, 8]) {
  %1 = reshape(%x) {shape = [N, 4, 32]} : T[N, 4, 32]
  %2 = rms_norm(%1, %w) : T[N, 4, 32]
  %3 = cast(%2) {dtype = f32} : f32[N, 4, 32]
  %4 = rope(%3, %cos, %sin) : f32[N, 4, 32]
  %5 = cast(%4) {dtype = T} : T[N, 4, 32]
  return %5
}""",
    "row_append": """(%s: state<T[P; S, 2, 32]>, %slots: i32[N], %at: i32[N], %x: T[N, 2, 32], %w: T[32]) {
  %1 = rms_norm(%x, %w) : T[N, 2, 32]
  %2 = state_append(%s, %slots, %at, %1) : state<T[P; S, 2, 32]>
  return %2
}""",
    "matmul": """(%x: T[N, 128], %w: T[192, 128], %r: T[N, 192]) {
  %1 = matmul(%x, %w) {transpose_b = true} : T[N, 192]
  %2 = add(%1, %r) : T[N, 192]
  return %2
}""",
    "matmul_swiglu": """(%x: T[N, 128], %g: T[96, 128], %u: T[96, 128]) {
  %1 = matmul(%x, %g) {transpose_b = true} : T[N, 96]
  %2 = matmul(%x, %u) {transpose_b = true} : T[N, 96]
  %3 = silu(%1) : T[N, 96]
  %4 = mul(%3, %2) : T[N, 96]
  return %4
}""",
    "grouped": """(%x: T[N / 5, 64], %w: T[5, 96, 64], %offsets: i32[6]) {
  %1 = segment_matmul(%x, %w, %offsets) : T[N / 5, 96]
  return %1
}""",
    "linear_recurrent": LINEAR.replace("FORM", "recurrent"),
    "linear_chunked": LINEAR.replace("FORM", "chunked"),
    "attention": """(%q: T[N / B, 4, 32], %k: state<T[P; S, 2, 32]>, %v: state<T[P; S, 2, 32]>, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) {
  %1 = attention(%q, %k, %v, %slots, %offsets, %positions) {scale = 0.18} : T[N / B, 4, 32]
  return %1
}""",
    "route": """(%x: T[N, 128], %w: f32[16, 128], %bias: f32[16]) {
  %1 = cast(%x) {dtype = f32} : f32[N, 128]
  %2 = matmul(%1, %w) {transpose_b = true, out = f32} : f32[N, 16]
  %experts, %weights = route(%2, %bias) {top_k = 4, groups = 4, keep = 2, factor = 2.5} : i32[N, 4], f32[N, 4]
  return %experts, %weights
}""",
    "sort": """(%x: i32[4*N]) {
  %1, %2, %3 = sort_by_key(%x) {num_keys = 16} : i32[4*N / 16], i32[17], i32[4*N]
  return %1, %2, %3
}""",
}
TYPES = ("f32", "bf16")
EACH = [(family, type) for family in FAMILIES for type in TYPES if (family, type) != ("sort", "bf16")]
each = pytest.mark.parametrize(("family", "type"), EACH)

Results = list[torch.Tensor]
Spoil = Callable[[torch.Tensor], None]


@cache
def kernel(family: str, type: str) -> Kernel:
    head, body = FAMILIES[family].replace("T[", f"{type}[").replace("dtype = T", f"dtype = {type}").split(" {\n", 1)
    notes = 'with {family = "row", implementation = "torch.eager"}'
    return kernel_of(parse_module(f"module @m level kernel\n\nfunc @k{head} {notes} {{\n{body}\n").functions["k"])


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kernel], Launcher]:
    """The launcher of a kernel by eager PyTorch."""

    @cache
    def launcher(kernel: Kernel) -> Launcher:
        path = tmp_path_factory.mktemp("eager") / "k.py"
        path.write_text(emit(kernel).text)
        launch: Launcher = run_source(path)["launch"]
        return launch

    return launcher


def places(kernel: Kernel) -> list[int]:
    """Where each result lies among the tensors of a call."""
    following = itertools.count(len(kernel.function.body.args))
    return [
        kernel.in_place[i] if isinstance(value.type, StateType) else next(following)
        for i, value in enumerate(kernel.function.body.outputs)
    ]


def rounded_once(kernel: Kernel) -> Launcher:
    """A kernel that keeps everything in registers: in double precision, rounded when it is written."""
    body = kernel.function.body

    def launch(*given: torch.Tensor) -> None:
        inputs = [x.clone() for x in given[: len(body.args)]]
        sizes = sizes_for(kernel.function)
        made = run_block(body, inputs, Env(sizes, torch.float64))
        for place, result in zip(places(kernel), made, strict=True):
            given[place].copy_(result)

    return launch


def in_another_order(kernel: Kernel, launch: Launcher, seed: int) -> Launcher:
    """The same kernel with the terms of its products added up in another order."""
    body = kernel.function.body
    permuted = {
        arg: body.args.index(arg)
        for op in body.ops
        for arg in op.inputs()
        if isinstance(op, MatMul | SegmentMatMul) and arg in body.args and len(arg.type.shape) > 1
    }

    def changed(*given: torch.Tensor) -> None:
        tensors = list(given)
        for place in permuted.values():
            k = tensors[place].shape[-1]
            order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
            tensors[place] = tensors[place][..., order].contiguous()
        launch(*tensors)

    return changed


def spoiled(kernel: Kernel, launch: Launcher, which: int, spoil: Spoil) -> Launcher:
    """A right kernel whose result of this number is spoiled."""

    def changed(*given: torch.Tensor) -> None:
        launch(*given)
        spoil(given[places(kernel)[which]])

    return changed


def scaled(factor: float) -> Spoil:
    return lambda x: void(x.mul_(factor))


def void(_: object) -> None:
    """Drop a value."""


def one_row_of_another(x: torch.Tensor) -> None:
    x[x.shape[0] // 2] = x[0].clone()


def rows_off_by_one(x: torch.Tensor) -> None:
    x.copy_(x.roll(1, 0))


def last_column_not_written(x: torch.Tensor) -> None:
    x[..., -1] = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max


def one_slice_scaled(axis: int, factor: float) -> Spoil:
    return lambda x: void(x.select(axis, x.shape[axis] // 2).mul_(factor))


SPOILS: dict[str, Spoil] = {
    "all 2 % up": scaled(1.02),
    "all 2 % down": scaled(0.98),
    "a row of another": one_row_of_another,
    "rows off by one": rows_off_by_one,
    "last column not written": last_column_not_written,
    "a row 2 % off": one_slice_scaled(0, 1.02),
    "a column 2 % off": one_slice_scaled(-1, 1.02),
    "a row of zeros": one_slice_scaled(0, 0.0),
    "a column of zeros": one_slice_scaled(-1, 0.0),
}


def spoils(kernel: Kernel) -> Iterator[tuple[int, str, Spoil]]:
    """All that can go wrong with each result."""
    for which, value in enumerate(kernel.function.body.outputs):
        type = value.type
        for name, spoil in SPOILS.items():
            whole = not isinstance(type, StateType) and not type.dtype.is_float
            if not (whole and ("%" in name or "zeros" in name)):
                yield which, name, spoil


def wrong(found: list[Compared]) -> list[Compared]:
    return [one for one in found if not one.passed]


class TestRightKernels:
    @each
    @pytest.mark.parametrize("seed", range(2))
    def test_eager_code_passes(self, eager: Callable[[Kernel], Launcher], family: str, type: str, seed: int) -> None:
        made = kernel(family, type)
        for n in (1, 70):
            sizes = {"N": n, "B": min(3, n), "P": 5, "S": n + 11, "R": 1}
            assert not wrong(check_kernel(made, eager(made), sizes, seed=seed))

    @each
    @pytest.mark.parametrize("seed", range(2))
    def test_one_rounding_passes(self, family: str, type: str, seed: int) -> None:
        made = kernel(family, type)
        assert not wrong(check_kernel(made, rounded_once(made), seed=seed))

    @pytest.mark.parametrize("type", TYPES)
    @pytest.mark.parametrize("family", ["matmul", "matmul_swiglu", "grouped"])
    @pytest.mark.parametrize("seed", range(4))
    def test_sums_in_another_order_pass(
        self, eager: Callable[[Kernel], Launcher], family: str, type: str, seed: int
    ) -> None:
        made = kernel(family, type)
        assert not wrong(check_kernel(made, in_another_order(made, eager(made), seed), seed=seed))

    @pytest.mark.parametrize("type", TYPES)
    def test_a_state_rounded_between_chunks_passes(self, eager: Callable[[Kernel], Launcher], type: str) -> None:
        """As tensor cores take it: the keys, decayed, are rounded to the rows' type."""
        made = kernel("linear_chunked", type)
        launch = eager(made)

        def rounding(*given: torch.Tensor) -> None:
            launch(*given)
            state = given[4]
            state.copy_(state.to(torch.bfloat16 if type == "bf16" else torch.float32))

        assert not wrong(check_kernel(made, rounding))


class TestWrongKernels:
    @each
    def test_each_result_spoiled_in_each_way_is_refused(
        self, eager: Callable[[Kernel], Launcher], family: str, type: str
    ) -> None:
        made = kernel(family, type)
        for which, name, spoil in spoils(made):
            found = check_kernel(made, spoiled(made, eager(made), which, spoil))
            assert [found.index(one) for one in wrong(found)] == [which], (name, found)

    @each
    def test_a_single_token_two_percent_off_is_refused(
        self, eager: Callable[[Kernel], Launcher], family: str, type: str
    ) -> None:
        made = kernel(family, type)
        sizes = {"N": 1, "B": 1, "P": 3, "S": 8, "R": 1}
        for which, value in enumerate(made.function.body.outputs):
            if isinstance(value.type, StateType) or value.type.dtype.is_float:
                assert wrong(check_kernel(made, spoiled(made, eager(made), which, scaled(1.02)), sizes))

    @pytest.mark.parametrize("type", TYPES)
    @pytest.mark.parametrize("form", ["recurrent", "chunked"])
    @pytest.mark.parametrize("head", [0, 3])
    def test_a_head_whose_state_is_not_decayed_is_refused(
        self, eager: Callable[[Kernel], Launcher], form: str, type: str, head: int
    ) -> None:
        made = kernel(f"linear_{form}", type)
        (op,) = (op for op in made.function.body.ops if isinstance(op, LinearAttention))
        slopes = made.function.body.args.index(op.slopes)

        def without_decay(*given: torch.Tensor) -> None:
            tensors = list(given)
            tensors[slopes] = given[slopes].clone()
            tensors[slopes][head] = 0.0
            eager(made)(*tensors)

        rows, state = check_kernel(made, without_decay)
        assert not rows.passed
        assert not state.passed

    @pytest.mark.parametrize("type", TYPES)
    def test_a_product_that_leaves_out_its_last_term_is_refused(
        self, eager: Callable[[Kernel], Launcher], type: str
    ) -> None:
        """One of 128."""
        made = kernel("matmul", type)

        def short(*given: torch.Tensor) -> None:
            x = given[0].clone()
            x[:, -1] = 0
            eager(made)(x, *given[1:])

        assert wrong(check_kernel(made, short))


class TestMeasures:
    """One matrix against another, in bf16: rows of sizes from 1 to 1/1000."""

    def exact(self) -> torch.Tensor:
        x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return x * torch.logspace(0, -3, 40, dtype=torch.float64)[:, None]

    def found(self, made: torch.Tensor) -> Compared:
        exact = self.exact()
        return compare("x", made.to(torch.bfloat16), exact, exact.to(torch.bfloat16), 0.0)

    def test_rounding_passes(self) -> None:
        one = self.found(self.exact())
        assert one.passed
        assert one.error > 0

    @pytest.mark.parametrize("row", [0, 20, 39])
    def test_a_wrong_row_is_found_whatever_its_size(self, row: int) -> None:
        made = self.exact()
        made[row] *= 1.02
        one = self.found(made)
        assert not one.passed
        assert one.error == pytest.approx(0.02, rel=0.1)
        # What is wrong in the largest row is wrong in all columns.
        assert one.measure.startswith("mean at [") if row == 0 else one.measure == f"mean at [{row}"

    def test_a_bad_row_of_the_plain_computation_excuses_no_other(self) -> None:
        exact = self.exact()
        plain, made = exact.to(torch.bfloat16), exact.clone()
        plain[3], made[30] = 0.0, made[30] * 1.02
        one = compare("x", made.to(torch.bfloat16), exact, plain, 0.0)
        assert not one.passed
        assert one.measure == "mean at [30"

    @pytest.mark.parametrize(("type", "coarse"), [(torch.float32, 0.0), (torch.bfloat16, 2.0**-8)])
    def test_a_huge_row_excuses_no_other(self, type: torch.dtype, coarse: float) -> None:
        exact = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        exact[3] *= 1e7
        plain, made = exact.to(type), exact.clone()
        assert compare("x", plain, exact, plain, coarse).passed
        made[30] *= 1.02
        one = compare("x", made.to(type), exact, plain, coarse)
        assert not one.passed
        assert one.measure == "mean at [30"

    def test_rows_of_zeros_excuse_no_other(self) -> None:
        exact = self.exact() * 1e-6
        exact[5:] = 0.0
        made = exact.clone()
        assert compare("x", made, exact, exact, 0.0).passed
        made[2] *= 1.02
        assert not compare("x", made, exact, exact, 0.0).passed

    def test_elements_that_are_no_numbers(self) -> None:
        for value in (float("nan"), float("inf")):
            made = self.exact()
            made[-1, -1] = value
            assert not self.found(made).passed

    def test_rows_that_should_be_zero(self) -> None:
        exact = self.exact()
        exact[7] = 0.0
        assert compare("x", exact, exact, exact, 0.0).passed
        made = exact.clone()
        made[7] = 1e-4
        assert not compare("x", made, exact, exact, 0.0).passed

    def test_nothing_and_zeros(self) -> None:
        for x in (torch.zeros(0, 4), torch.zeros(64, 4)):
            assert compare("x", x, x.double(), x, 0.0).passed

    def test_one_wrong_integer(self) -> None:
        x = torch.arange(100, dtype=torch.int32)
        made = x.clone()
        made[5] = 6
        one = compare("x", made, x, x, 0.0)
        assert (one.passed, one.error) == (False, 0.01)
        assert compare("x", x, x, x, 0.0).passed


def test_what_products_may_be_off_by() -> None:
    """One rounding of bf16 for the chunked form, and nothing of the kind for the others."""
    assert coarseness(kernel("linear_chunked", "bf16").function.body) == 2**-8
    assert coarseness(kernel("linear_recurrent", "bf16").function.body) == 0
    assert coarseness(kernel("row", "bf16").function.body) == 0
    assert 0 < coarseness(kernel("matmul", "bf16").function.body) < 2e-6
    assert random_inputs(kernel("matmul", "bf16").function, {"N": 3})[0].dtype == torch.bfloat16
