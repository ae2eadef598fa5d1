"""Regions as torch code, against the interpreter in double precision."""

# ruff: noqa: E501 - the text form of the IR has one operation a line
from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ringc.codegen.backend import run_source
from ringc.codegen.check import check_kernel
from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel, kernel_of
from ringc.codegen.standalone import kernel_of_file
from ringc.errors import CodegenError
from ringc.ir.core import OPS
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_function

REGIONS = {
    "arithmetic": """(%x: f32[N, 6], %y: f32[6]) {
  %c = constant() {value = [0.5], dtype = f32} : f32[]
  %1 = add(%x, %y) : f32[N, 6]
  %2 = sub(%1, %c) : f32[N, 6]
  %3 = abs(%2) : f32[N, 6]
  %4 = add(%3, %c) : f32[N, 6]
  %5 = sqrt(%4) : f32[N, 6]
  %6 = log(%4) : f32[N, 6]
  %7 = rsqrt(%4) : f32[N, 6]
  %8 = div(%5, %4) : f32[N, 6]
  %9 = maximum(%x, %c) : f32[N, 6]
  %10 = minimum(%x, %y) : f32[N, 6]
  %11 = neg(%10) : f32[N, 6]
  %12 = exp(%11) : f32[N, 6]
  %13 = sigmoid(%12) : f32[N, 6]
  %14 = silu(%13) : f32[N, 6]
  return %6, %7, %8, %9, %14
}""",
    "logic": """(%x: f32[N, 6], %y: f32[N, 6]) {
  %zero = constant() {value = [0.0], dtype = f32} : f32[]
  %inf = constant() {value = [-inf], dtype = f32} : f32[]
  %1 = lt(%x, %y) : bool[N, 6]
  %2 = ge(%x, %zero) : bool[N, 6]
  %3 = and(%1, %2) : bool[N, 6]
  %4 = not(%3) : bool[N, 6]
  %5 = or(%4, %1) : bool[N, 6]
  %6 = where(%3, %x, %zero) : f32[N, 6]
  %7 = where(%5, %y, %zero) : f32[N, 6]
  return %3, %6, %7
}""",
    "shapes": """(%x: f32[N, 12], %t: f32[3, 4]) {
  %1 = reshape(%x) {shape = [N, 3, 4]} : f32[N, 3, 4]
  %2 = transpose(%1) {axes = [0, 2, 1]} : f32[N, 4, 3]
  %3 = slice(%2) {axis = 1, start = 1, stop = 4, step = 2} : f32[N, 2, 3]
  %4 = broadcast(%t) {shape = [N, 3, 4]} : f32[N, 3, 4]
  %5 = concat([%1, %4]) {axis = 2} : f32[N, 3, 8]
  %6 = sum(%5) {axes = [1, 2]} : f32[N]
  %7 = max(%5) {axes = [2], keep = true} : f32[N, 3, 1]
  %8 = mean(%5) {axes = [1]} : f32[N, 8]
  %9 = softmax(%5) : f32[N, 3, 8]
  return %3, %6, %7, %8, %9
}""",
    "indices": """(%x: f32[N, 6], %ids: i32[R], %along: i32[N, 2], %rows: f32[N, 2]) {
  %1 = gather(%x, %ids) : f32[R, 6]
  %2 = take_along(%x, %along) : f32[N, 2]
  %values, %3 = topk(%x) {k = 3} : f32[N, 3], i32[N, 3]
  %4 = iota() {length = N} : i32[N]
  %two = constant() {value = [2], dtype = i32} : i32[]
  %5 = floordiv(%4, %two) : i32[N]
  %6 = mod(%4, %two) : i32[N]
  %7 = scatter_add(%rows, %5) {length = N} : f32[N, 2]
  %8 = cast(%6) {dtype = f32} : f32[N]
  return %1, %2, %values, %3, %7, %8
}""",
    "narrow_product": """(%x: bf16[N, 16], %w: bf16[8, 16]) {
  %1 = matmul(%x, %w) {transpose_b = true, out = f32} : f32[N, 8]
  %2 = cast(%x) {dtype = f32} : f32[N, 16]
  return %1, %2
}""",
    "rows_with_their_own_weights": """(%x: f32[N, 16], %w: f32[5, 8, 16], %ids: i32[N, 3], %v: f32[5, 4, 8]) {
  %1 = gather_matmul(%x, %w, %ids) : f32[N, 3, 8]
  %2 = gather_matmul(%1, %v, %ids) : f32[N, 3, 4]
  return %1, %2
}""",
    "interleaved_rope": """(%x: f32[N, 2, 8], %cos: f32[N, 3], %sin: f32[N, 3]) {
  %1 = rope(%x, %cos, %sin) {interleaved = true} : f32[N, 2, 8]
  return %1
}""",
    "pool": """(%s: state<f32[P; 3, 4]>, %slots: i32[B]) {
  %1 = state_read(%s, %slots) : f32[B, 3, 4]
  %2 = exp(%1) : f32[B, 3, 4]
  %3 = state_write(%s, %slots, %2) : state<f32[P; 3, 4]>
  return %1, %3
}""",
    "append": """(%s: state<f32[P; S, 4]>, %slots: i32[N], %at: i32[N], %x: f32[N, 4]) {
  %1 = state_append(%s, %slots, %at, %x) : state<f32[P; S, 4]>
  return %1
}""",
    "scan": """(%s: f32[B, 4], %x: f32[N / B, 4], %c: f32[4], %offsets: i32[B + 1]) {
  %1, %2 = scan(%s, [%x], [%c], %offsets) ^(%h: f32[4], %t: f32[4], %a: f32[4]) {
    %3 = mul(%h, %a) : f32[4]
    %4 = add(%3, %t) : f32[4]
    %5 = exp(%4) : f32[4]
    %6 = sigmoid(%5) : f32[4]
    return %6, %4
  } : f32[B, 4], f32[N / B, 4]
  return %1, %2
}""",
    "attention": """(%q: f32[N / B, 6, 8], %k: state<f32[P; S, 2, 8]>, %v: state<f32[P; S, 2, 8]>, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) {
  %1 = attention(%q, %k, %v, %slots, %offsets, %positions) {scale = 0.35} : f32[N / B, 6, 8]
  return %1
}""",
    "recurrent": """(%q: f32[N / B, 3, 8], %k: f32[N / B, 3, 8], %v: f32[N / B, 3, 16], %slopes: f32[3], %s: state<f32[P; 3, 8, 16]>, %slots: i32[B], %offsets: i32[B + 1]) {
  %1, %2 = linear_attention(%q, %k, %v, %slopes, %s, %slots, %offsets) {scale = 0.35, form = "recurrent"} : f32[N / B, 3, 16], state<f32[P; 3, 8, 16]>
  return %1, %2
}""",
    "chunked": """(%q: f32[N / B, 3, 8], %k: f32[N / B, 3, 8], %v: f32[N / B, 3, 16], %slopes: f32[3], %s: state<f32[P; 3, 8, 16]>, %slots: i32[B], %offsets: i32[B + 1]) {
  %1, %2 = linear_attention(%q, %k, %v, %slopes, %s, %slots, %offsets) {scale = 0.35, form = "chunked"} : f32[N / B, 3, 16], state<f32[P; 3, 8, 16]>
  return %1, %2
}""",
    "routing": """(%x: f32[N, 12], %bias: f32[12]) {
  %experts, %weights = route(%x, %bias) {top_k = 3, groups = 4, keep = 2, factor = 2.5} : i32[N, 3], f32[N, 3]
  %1 = reshape(%experts) {shape = [3*N]} : i32[3*N]
  %2, %3, %4 = sort_by_key(%1) {num_keys = 12} : i32[3*N / 12], i32[13], i32[3*N]
  return %experts, %weights, %2, %3, %4
}""",
    "experts": """(%x: f32[N / 5, 8], %w: f32[5, 6, 8], %offsets: i32[6]) {
  %1 = segment_matmul(%x, %w, %offsets) : f32[N / 5, 6]
  %2 = exp(%1) : f32[N / 5, 6]
  return %2
}""",
    "segments": """(%offsets: i32[B + 1], %slots: i32[B]) {
  %1 = segment_ids(%offsets) {length = N} : i32[N / B]
  %2 = gather(%slots, %1) : i32[N / B]
  return %2
}""",
}


def kernel(name: str) -> Kernel:
    head, body = REGIONS[name].split(" {\n", 1)
    notes = 'with {family = "row", implementation = "torch.eager"}'
    (function,) = parse_module(f"module @m level kernel\n\nfunc @{name}{head} {notes} {{\n{body}\n").functions.values()
    return kernel_of(function)


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("tokens", [1, 37, 150])
def test_a_region_computes_what_it_means(name: str, tokens: int, tmp_path: Path) -> None:
    region = kernel(name)
    path = tmp_path / f"{name}.py"
    path.write_text(emit(region).text)
    sizes = {"N": tokens, "B": min(3, tokens), "P": 5, "S": tokens + 4, "R": min(tokens, 4)}
    for one in check_kernel(region, run_source(path)["launch"], sizes):
        assert one.passed, one


def test_a_product_is_rounded_to_its_type_before_it_is_read_again() -> None:
    """What is summed in f32 is bf16 between operations, too."""
    text = """func @f(%x: bf16[N, 16], %w: bf16[8, 16], %e: bf16[5, 4, 8], %ids: i32[N, 3])
        with {family = "row", implementation = "torch.eager"} {
      %1 = matmul(%x, %w) {transpose_b = true} : bf16[N, 8]
      %2 = gather_matmul(%1, %e, %ids) : bf16[N, 3, 4]
      %3 = cast(%2) {dtype = f32} : f32[N, 3, 4]
      return %3
    }"""
    function = parse_module(f"module @m level fused\nsymbol N >= 1\n{text}").functions["f"]
    body = emit(kernel_of(function)).text
    assert body.count(".to(torch.bfloat16)") == 2
    assert body.count(".float()") == 4


def test_every_operation_of_a_region_is_covered() -> None:
    """The regions above, with what they are made of, use every operation that a kernel may hold."""
    elsewhere = {"call", "launch", "fused", "alternatives", "param", "weight", "pack"}
    used = {op.name for name in REGIONS for op in kernel(name).function.body.walk()}
    reached = used | {
        op.name
        for name in REGIONS
        for c in kernel(name).function.body.ops
        if hasattr(c, "meaning")
        for op in c.meaning().walk()
    }
    missing = set(OPS) - elsewhere - reached
    assert missing <= {"cos", "sin", "gt", "eq", "rms_norm"}, (
        missing
    )  # methods and operators alike, and the model's own kernels


def test_the_file_says_what_it_implements(tmp_path: Path) -> None:
    """The function is read back from the file's text, so a file alone can be checked."""
    region = kernel("chunked")
    path = tmp_path / "kernel.py"
    path.write_text(emit(region).text)
    again = kernel_of_file(path)
    assert print_function(again.function) == print_function(region.function)
    path.write_text("x = 1\n")
    with pytest.raises(CodegenError, match="holds no function"):
        kernel_of_file(path)


def test_equal_kernels_give_equal_files() -> None:
    assert emit(kernel("attention")).text == emit(kernel("attention")).text


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_a_library_call_writes_into_its_output(tmp_path: Path, transposed: bool, rows: int) -> None:
    weight = "f32[12, 8]" if transposed else "f32[8, 12]"
    text = f"""module @m level kernel

func @k(%x: f32[N, 8], %w: {weight}) with {{family = "library", implementation = "torch.library"}} {{
  %1 = matmul(%x, %w) {{transpose_b = {str(transposed).lower()}}} : f32[N, 12]
  return %1
}}
"""
    call = kernel_of(parse_module(text).functions["k"])
    path = tmp_path / "k.py"
    path.write_text(emit(call).text)
    assert f"torch.mm(x, w{'.T' if transposed else ''}, out=out)" in path.read_text()
    for one in check_kernel(call, run_source(path)["launch"], {"N": rows}):
        assert one.passed, one


@pytest.mark.parametrize("out", ["bf16", "f32"])
@pytest.mark.parametrize("rows", [1, 37])
def test_experts_in_bf16_are_one_call(tmp_path: Path, rows: int, out: str) -> None:
    """What it makes is bf16: a result in f32 is made another way."""
    text = f"""module @m level kernel

func @k(%x: bf16[N / 3, 16], %w: bf16[3, 8, 16], %offsets: i32[4]) with {{family = "library", implementation = "torch.library"}} {{
  %1 = segment_matmul(%x, %w, %offsets) {{out = {out}}} : {out}[N / 3, 8]
  return %1
}}
"""
    call = kernel_of(parse_module(text).functions["k"])
    path = tmp_path / "k.py"
    path.write_text(emit(call).text)
    assert ("out.copy_(torch._grouped_mm(x, w.mT, offs=offsets[1:]))" in path.read_text()) == (out == "bf16")
    for one in check_kernel(call, run_source(path)["launch"], {"N": rows}):
        assert one.passed, one


def test_a_wider_product_is_asked_for_as_such() -> None:
    """PyTorch has it on a GPU alone: `tests/device/test_library.py` runs it."""
    text = """module @m level kernel

func @k(%x: bf16[N, 16], %w: bf16[8, 16]) with {family = "library", implementation = "torch.library"} {
  %1 = matmul(%x, %w) {transpose_b = true, out = f32} : f32[N, 8]
  return %1
}
"""
    assert "torch.mm(x, w.T, out_dtype=out.dtype, out=out)" in emit(kernel_of(parse_module(text).functions["k"])).text


def test_packed_weights_are_refused() -> None:
    text = 'module @m level kernel\n\nfunc @k(%x: f32[N, 8], %w: f32[16, 8]@0x4) with {family = "matmul", implementation = "torch.eager"} {\n  %1 = matmul(%x, %w) {transpose_b = true} : f32[N, 16]\n  return %1\n}\n'
    with pytest.raises(CodegenError, match=r"reads plain tensors, and %w is a f32\[16, 8\]@0x4"):
        emit(kernel_of(parse_module(text).functions["k"]))


class TestInputs:
    """What random inputs promise."""

    def test_offsets_ascend_from_zero_to_the_rows(self) -> None:
        function = kernel("chunked").function
        for seed in range(20):
            inputs = random_inputs(function, {"N": 9, "B": 3, "P": 5}, seed)
            offsets, slots = inputs[6].tolist(), inputs[5].tolist()
            assert offsets == sorted(offsets)
            assert (offsets[0], offsets[-1]) == (0, 9)
            assert len(set(slots)) == 3
            assert all(-1 <= s < 5 for s in slots)
            assert (inputs[3] > 0).all()

    def test_positions_go_on_from_what_a_cache_holds(self) -> None:
        function = kernel("attention").function
        for seed in range(20):
            inputs = random_inputs(function, {"N": 9, "B": 2, "P": 3, "S": 12}, seed)
            offsets, positions = inputs[4].tolist(), inputs[5]
            for start, stop in pairwise(offsets):
                row = positions[start:stop]
                assert torch.equal(row, torch.arange(stop - start, dtype=row.dtype) + (row[0] if len(row) else 0))
                assert not len(row) or int(row[-1]) < 12

    def test_ids_are_in_range(self) -> None:
        inputs = random_inputs(kernel("indices").function, {"N": 4, "R": 500})
        assert set(inputs[1].tolist()) == {0, 1, 2, 3}
        assert int(inputs[2].max()) < 6
