"""Printing and parsing are the identity, for every operation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.ir.core import OPS, Function, Level, Module
from ringc.ir.levels import verify
from ringc.ir.symbols import Bound
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.ir.types import DType, Layout, Quant, StateType, TensorType, Type
from tests.ir.graphs import B, Graph, M, N, P, insert
from tests.ir.strategies import STRATEGIES

BOUNDS = {"N": Bound(0), "B": Bound(1, 64), "P": Bound(1, None, 8), "S": Bound(1, 4096, 16), "M": Bound()}


def test_every_operation_has_a_strategy() -> None:
    assert set(STRATEGIES) == set(OPS)


def module_of(graph: Graph, level: Level = Level.FUSED) -> Module:
    """A module around a graph whose outputs are all that nothing uses."""
    block = graph.block
    block.set_outputs([v for v in (*block.args, *(r for op in block.ops for r in op.results)) if not v.uses])
    module = Module("some-model", {}, dict(BOUNDS), level)
    for name, body in graph.bodies.items():
        module.add(Function(name, body, family="row"))
    note = st.one_of(st.text(), st.integers(), st.booleans())
    notes = graph.draw(st.dictionaries(st.sampled_from(["entry", "name", "body", "a.b"]), note, max_size=2))
    function = Function("main", block)
    function.notes.update(notes)
    module.add(function)
    return module


def check_round_trip(module: Module) -> None:
    text = print_module(module)
    again = parse_module(text, "printed.ring")
    assert print_module(again) == text
    verify(module)
    verify(again)
    copy = module.clone()
    verify(copy)
    assert print_module(copy) == text
    for made in (again, copy):
        assert (made.name, made.level, made.bounds) == (module.name, module.level, module.bounds)
        assert list(made.functions) == list(module.functions)
        for name, function in module.functions.items():
            assert made.functions[name].notes == function.notes
            assert made.functions[name].body.structural_hash() == function.body.structural_hash()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(data=st.data())
@settings(max_examples=20)
def test_round_trip_of_each_operation(name: str, data: st.DataObject) -> None:
    graph = Graph(data.draw)
    op = insert(graph, STRATEGIES[name])
    check_round_trip(module_of(graph, Level.KERNEL if Level.FUSED not in op.levels else Level.FUSED))


@given(data=st.data())
@settings(max_examples=100)
def test_round_trip_of_graphs(data: st.DataObject) -> None:
    graph = Graph(data.draw, reuse=True)
    fused = sorted(name for name in STRATEGIES if Level.FUSED in OPS[name].levels)
    for name in data.draw(st.lists(st.sampled_from(fused), min_size=2, max_size=8)):
        insert(graph, STRATEGIES[name])
    check_round_trip(module_of(graph))


@st.composite
def types(draw: st.DrawFn) -> Type:
    shape = tuple(
        draw(st.lists(st.sampled_from([0, 1, 7, 128, N, B, 2 * N, N + B + 1, N // 4, -(-N // 64)]), max_size=4))
    )
    if draw(st.booleans()):
        return StateType(draw(st.sampled_from(DType)), draw(st.sampled_from([P, 4, P + 1])), shape)
    segments = draw(st.sampled_from([None, B, M * B, 32])) if shape else None
    fitting: list[tuple[int, ...]] = [b for b in ((128,), (1, 128), (128, 128)) if len(b) <= len(shape)]
    blocks = draw(st.sampled_from(fitting or [()]))
    quant = draw(st.sampled_from([None, Quant(blocks), Quant(blocks, DType.BF16)])) if blocks else None
    layout = (
        Layout(tuple((a, 16) for a in draw(st.sets(st.integers(0, len(shape) - 1), max_size=2)))) if shape else Layout()
    )
    return TensorType(draw(st.sampled_from(DType)), shape, segments, quant, layout)


@given(st.lists(types(), max_size=4))
def test_round_trip_of_types(several: list[Type]) -> None:
    arguments = ", ".join(f"%a{i}: {t}" for i, t in enumerate(several))
    names = ", ".join(f"%a{i}" for i in range(len(several)))
    text = f"module @m level graph\n\nfunc @f({arguments}) {{\n  return {names}".rstrip() + "\n}\n"
    module = parse_module(text)
    assert [a.type for a in module.functions["f"].body.args] == several
    assert print_module(module) == text


def test_names_do_not_change_the_hash() -> None:
    text = "func @f(%x: f32[N]) { %y = exp(%x) return %y }"
    other = "func @g(%p: f32[N]) { %q = exp(%p) in layers.1 return %q }"
    changed = "func @f(%x: f32[N]) { %y = exp(%x) return %x }"
    hashes = [next(iter(parse_module(t).functions.values())).body.structural_hash() for t in (text, other, changed)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rms_norm(%x, _) {eps = 0.0}", "rms_norm(%x, _) {eps = -0.0}"),
        ("rms_norm(%x, _)", "rms_norm(%x, _) {eps = 1e-05}"),
        ("sum(%x) {axes = [0]}", "sum(%x) {axes = [1]}"),
        ("add(%x, %y)", "add(%y, %x)"),
        ("rms_norm(%x, %w)", "rms_norm(%x, _)"),
        (
            'fused([%x]) {family = "row"} ^(%a: f32[4, 4]) { return %a }',
            'fused([%x]) {family = "matmul"} ^(%a: f32[4, 4]) { return %a }',
        ),
        (
            'fused([%x, %y]) {family = "row"} ^(%a: f32[4, 4], %b: f32[4, 4]) { return %a }',
            'fused([%x, %y]) {family = "row"} ^(%a: f32[4, 4], %b: f32[4, 4]) { return %b }',
        ),
    ],
)
def test_what_differs_has_another_hash(one: str, other: str) -> None:
    def hash_of(operation: str) -> str:
        module = parse_module(f"func @f(%x: f32[4, 4], %y: f32[4, 4], %w: f32[4]) {{ %r = {operation} return %r }}")
        return module.functions["f"].body.structural_hash()

    assert hash_of(one) != hash_of(other)
