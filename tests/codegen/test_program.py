"""The host program: guards in order, buffers that don't overlap while both are in use, states in place."""

# ruff: noqa: E501 - the text form of the IR has one operation a line
from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from ringc.codegen.prepare import prepare_map
from ringc.codegen.program import emit_program
from ringc.errors import CodegenError
from ringc.ir.text_parse import parse_module

MODULE = """module @m level kernel
symbol B >= 1
symbol N >= 1
symbol P >= 1

func @go.short.layer(%x: f32[N, 8], %w: f32[8], %s: state<f32[P; 8]>, %slots: i32[B]) with {rows = [1, 4], buffers = ["32*N"]} {
  %1 = launch([%x, %w]) {kernel = "row_1", out = [f32[N, 8]], buffers = [0]} : f32[N, 8]
  %2 = reshape(%1) {shape = [N, 2, 4]} : f32[N, 2, 4]
  %3, %4 = launch([%2, %s, %slots]) {kernel = "row_2", out = [f32[N, 2, 4], state<f32[P; 8]>], buffers = [-1, -1]} : f32[N, 2, 4], state<f32[P; 8]>
  %5 = reshape(%3) {shape = [N, 8]} : f32[N, 8]
  return %5, %4
}

func @go.short(%x: f32[N, 8], %slots: i32[B], %s: state<f32[P; 8]>) with {entry = "go", guard = "N <= 4", rows = [1, 4], buffers = ["32*N", "32*N"]} {
  %w = weight() {key = "w", type = f32[8]} : f32[8]
  %1 = launch([%x, %w]) {kernel = "row_1", out = [f32[N, 8]], buffers = [0]} : f32[N, 8]
  %2, %3 = call([%1, %w, %s, %slots]) {callee = "go.short.layer", out = [f32[N, 8], state<f32[P; 8]>], buffers = [1, -1]} : f32[N, 8], state<f32[P; 8]>
  %4 = launch([%2, %w]) {kernel = "row_1", out = [f32[N, 8]], buffers = [-1]} : f32[N, 8]
  return %4, %3
}

func @go.long(%x: f32[N, 8], %slots: i32[B], %s: state<f32[P; 8]>) with {entry = "go", guard = "", rows = [5, 0], buffers = []} {
  %w = weight() {key = "w", type = f32[8]} : f32[8]
  %1 = launch([%x, %w]) {kernel = "row_1", out = [f32[N, 8]], buffers = [-1]} : f32[N, 8]
  return %1, %s
}

func @prepare() with {entry = "prepare", keys = ["w"]} {
  %w = param() {source = "model.w", dtype = f32, shape = [8]} : f32[8]
  return %w
}

func @row_1(%x: f32[N, 8], %w: f32[8]) with {family = "row", implementation = "torch.eager"} {
  %1 = mul(%x, %w) : f32[N, 8]
  return %1
}

func @row_2(%x: f32[N, 2, 4], %s: state<f32[P; 8]>, %slots: i32[B]) with {family = "row", implementation = "torch.eager"} {
  %1 = exp(%x) : f32[N, 2, 4]
  %2 = state_read(%s, %slots) : f32[B, 8]
  %3 = state_write(%s, %slots, %2) : state<f32[P; 8]>
  return %1, %3
}
"""


class Block:
    """Memory by name: a buffer, or a view of it."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.shape = shape

    def view(self, *shape: int) -> Block:
        return Block(self.name, shape)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}"


class Recorder:
    """An `rt` that writes down what it is asked."""

    def __init__(self, **sizes: int) -> None:
        self.__dict__.update(sizes)
        self.launches: list[str] = []
        self.frames: list[tuple[int, ...]] = []
        self.depth = 0

    def weight(self, key: str) -> Block:
        return Block(key, (8,))

    @contextmanager
    def frame(self, *sizes: int) -> Any:
        self.frames.append(sizes)
        self.depth += 1
        depth = self.depth
        yield lambda number, shape, dtype: Block(f"frame{depth}.{number}.{dtype}", shape)
        self.depth -= 1

    def launch(self, kernel: str, *tensors: Block) -> None:
        self.launches.append(f"{kernel}({', '.join(map(repr, tensors))})")

    def copy(self, source: Block, target: Block) -> None:
        self.launches.append(f"copy({source}, {target})")


def recorded(text: str, tokens: int, entry: str = "go") -> Recorder:
    names: dict[str, Any] = {}
    exec(emit_program(parse_module(text), "torch"), names)
    rt = Recorder(N=tokens, B=2, P=3, R=1, S=1)
    names[entry](rt, Block("x", (tokens, 8)), Block("slots", (2,)), Block("s", (3, 8)), Block("logits", (tokens, 8)))
    return rt


def test_a_version_runs_its_layers_in_order() -> None:
    assert recorded(MODULE, 4).launches == [
        "row_1(x[4, 8], w[8], frame1.0.f32[4, 8])",
        "row_1(frame1.0.f32[4, 8], w[8], frame2.0.f32[4, 8])",
        # The result goes to the caller's buffer under another shape; the state is its argument.
        "row_2(frame2.0.f32[4, 2, 4], s[3, 8], slots[2], frame1.1.f32[4, 2, 4])",
        "row_1(frame1.1.f32[4, 8], w[8], logits[4, 8])",
    ]


def test_guards_are_tested_in_order() -> None:
    assert len(recorded(MODULE, 4).launches) == 4
    assert recorded(MODULE, 5).launches == ["row_1(x[5, 8], w[8], logits[5, 8])"]


def test_frames_have_the_planned_bytes() -> None:
    assert recorded(MODULE, 3).frames == [(96, 96), (96,)]


def test_a_guard_may_name_several_sizes() -> None:
    text = MODULE.replace('"N <= 4"', '"N < 3 * B"')
    assert len(recorded(text, 5).launches) == 4
    assert len(recorded(text, 6).launches) == 1


def test_an_argument_that_is_given_back_is_copied() -> None:
    launch = (
        '  %1 = launch([%x, %w]) {kernel = "row_1", out = [f32[N, 8]], buffers = [-1]} : f32[N, 8]\n  return %1, %s\n'
    )
    assert launch in MODULE
    text = MODULE.replace(launch, "  return %x, %s\n")
    assert recorded(text, 5).launches == ["copy(x[5, 8], logits[5, 8])"]


def test_without_a_version_for_the_rest_nothing_is_written() -> None:
    with pytest.raises(CodegenError, match="no version of go"):
        emit_program(parse_module(MODULE.replace('guard = ""', 'guard = "N < 9"')), "torch")


def test_equal_modules_give_equal_text() -> None:
    assert emit_program(parse_module(MODULE), "cpu") == emit_program(parse_module(MODULE), "cpu")


def test_unplanned_memory_is_refused() -> None:
    text = MODULE.replace("buffers = [0]} : f32[N, 8]\n  %2 = reshape", "buffers = [-1]} : f32[N, 8]\n  %2 = reshape")
    with pytest.raises(CodegenError, match="has no memory"):
        emit_program(parse_module(text), "torch")


class TestPrepareMap:
    """How published tensors become prepared ones, read off the IR."""

    def prepared(self, body: str) -> dict[str, Any]:
        text = f'module @m level kernel\n\nfunc @prepare() with {{entry = "prepare", keys = ["k"]}} {{\n{body}  return %k\n}}\n'
        return prepare_map(parse_module(text))["k"]

    def test_parts_laid_end_to_end_and_packed(self) -> None:
        found = self.prepared(
            '  %a = param() {source = "a", dtype = f32, shape = [4, 6]} : f32[4, 6]\n'
            '  %b = param() {source = "b", dtype = f32, shape = [8, 6]} : f32[8, 6]\n'
            "  %c = concat([%a, %b]) {axis = 0} : f32[12, 6]\n"
            "  %k = pack(%c) {blocks = [[0, 4]]} : f32[12, 6]@0x4\n",
        )
        assert found["blocks"] == [[0, 4]]
        assert [(p["source"], p["region"]) for p in found["parts"]] == [
            ("a", [[0, 4], [0, 6]]),
            ("b", [[4, 12], [0, 6]]),
        ]

    def test_stacks_transposes_and_conversions(self) -> None:
        found = self.prepared(
            '  %a = param() {source = "e.*.w", dtype = bf16, shape = [5, 4, 6]} : bf16[5, 4, 6]\n'
            "  %b = cast(%a) {dtype = f32} : f32[5, 4, 6]\n"
            "  %k = transpose(%b) {axes = [0, 2, 1]} : f32[5, 6, 4]\n",
        )
        assert (found["dtype"], found["shape"]) == ("f32", [5, 6, 4])
        (part,) = found["parts"]
        assert (part["source"], part["stack"], part["shape"], part["steps"]) == (
            "e.*.w",
            5,
            [4, 6],
            [["permute", [0, 2, 1]]],
        )

    def test_a_cut_of_parts(self) -> None:
        found = self.prepared(
            '  %a = param() {source = "a", dtype = f32, shape = [4, 6]} : f32[4, 6]\n'
            '  %b = param() {source = "b", dtype = f32, shape = [4, 6]} : f32[4, 6]\n'
            "  %c = concat([%a, %b]) {axis = 0} : f32[8, 6]\n"
            "  %k = slice(%c) {axis = 0, start = 3, stop = 8} : f32[5, 6]\n",
        )
        assert [(p["source"], p.get("steps"), p["region"][0]) for p in found["parts"]] == [
            ("a", [["slice", [0, 3, 4]]], [0, 1]),
            ("b", None, [1, 5]),
        ]

    def test_what_is_made_of_constants_is_a_table(self) -> None:
        found = self.prepared(
            "  %a = constant() {value = [1.0, 4.0], dtype = f32, shape = [2]} : f32[2]\n  %k = sqrt(%a) : f32[2]\n"
        )
        assert found["table"] == [1.0, 2.0]

    def test_arithmetic_on_weights_is_refused(self) -> None:
        with pytest.raises(CodegenError, match="made by exp"):
            self.prepared('  %a = param() {source = "a", dtype = f32, shape = [4]} : f32[4]\n  %k = exp(%a) : f32[4]\n')
