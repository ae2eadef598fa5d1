"""Outlining, versions, fusion, layout, kernels and memory: the program means the same after all of them, and has the shape it should."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from ringc.ir.core import Function, Level, Value
from ringc.ir.levels import verify
from ringc.ir.ops.call import Call, Fused, Launch
from ringc.ir.ops.shape import storage_of
from ringc.ir.ops.source import Weight
from ringc.ir.symbols import evaluate, parse_dim, symbol
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.ir.types import TensorType
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.schedules.predict import predicted_seconds
from ringc.passes.target import target
from tests.passes.support_model import Program, inputs_of, tiny_spec


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(tiny_spec(), default_pipeline())


ENTRIES = ["prefill.short", "prefill.long", "decode.one", "decode.few", "decode.many"]


@pytest.fixture(scope="module")
def on_a_gpu() -> Program:
    return Program(tiny_spec(), default_pipeline(), "sm_90")


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_version_for_a_gpu_means_what_the_graph_means(on_a_gpu: Program, entry: str) -> None:
    test_every_version_means_what_the_graph_means(on_a_gpu, entry)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_version_means_what_the_graph_means(program: Program, entry: str) -> None:
    inputs = inputs_of(program, entry.split(".", maxsplit=1)[0], seed=3)
    wanted = program.run_graph(entry.split(".", maxsplit=1)[0], inputs)
    found = program.run_lowered(entry, inputs)
    assert len(wanted) == len(found)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_a_lowered_module_survives_its_text(program: Program) -> None:
    text = print_module(program.lowered)
    again = parse_module(text)
    verify(again)
    assert print_module(again) == text


def test_work_follows_the_number_of_different_layers() -> None:
    small = Program(tiny_spec(count=7), default_pipeline()).lowered
    large = Program(tiny_spec(count=19), default_pipeline()).lowered
    kernels = [n for n, f in small.functions.items() if "family" in f.notes]
    assert len(kernels) == len([n for n, f in large.functions.items() if "family" in f.notes])
    assert len(small.functions) == len(large.functions)


def test_nothing_is_left_unfused(program: Program) -> None:
    assert program.lowered.level is Level.KERNEL
    for function in program.lowered.functions.values():
        if "family" not in function.notes and function.name != "prepare":
            assert {op.name for op in function.body.ops} <= {"launch", "call", "reshape", "weight"}


def test_a_linear_moe_layer_is_few_kernels(program: Program) -> None:
    body = program.lowered.functions["decode.one.linear_moe"].body
    families = Counter(
        program.lowered.functions[op.kernel].notes["family"] for op in body.ops if isinstance(op, Launch)
    )
    assert families["linear_attention"] == families["route"] == families["sort"] == 1
    assert families["grouped"] == 2
    assert sum(families.values()) <= 15


def test_versions_share_kernels_that_are_equal(program: Program) -> None:
    used = {
        version: {
            op.kernel
            for f in program.lowered.functions.values()
            if f.name.startswith(version)
            for op in f.body.ops
            if isinstance(op, Launch)
        }
        for version in ("decode.few", "prefill.short")
    }
    assert used["decode.few"] & used["prefill.short"]


@pytest.mark.parametrize("name", ["cpu", "sm_90"])
def test_the_last_layer_s_wanted_rows_are_made_by_the_other_layers_kernels(name: str) -> None:
    functions = Program(tiny_spec(), default_pipeline(), name).lowered.functions
    used = {f.name: {op.kernel for op in f.body.ops if isinstance(op, Launch)} for f in functions.values()}
    wanted = [name for name in used if ".wanted_" in name]
    assert wanted and all(name.startswith("prefill.") for name in wanted)
    others = set().union(*(kernels for name, kernels in used.items() if name not in wanted))
    assert all(len(used[name]) > 5 and used[name] <= others for name in wanted)
    calls = [op for f in functions.values() for op in f.body.ops if isinstance(op, Call) and op.callee in wanted]
    assert all(call.rows == symbol("R") for call in calls)


def test_the_wanted_rows_cost_what_they_are(program: Program) -> None:
    module = program.lowered
    version, wanted = (module.functions[name] for name in ("prefill.long", "prefill.long.wanted_moe"))
    sizes = {"B": 1, "P": 1, "S": 512}

    def cost(function: Function, **others: int) -> float:
        return predicted_seconds(module, function, sizes | others)

    more = cost(wanted, N=512) - cost(wanted, N=1)
    assert cost(version, R=512, N=512) - cost(version, R=1, N=512) > more > 0


def test_prepare_gives_every_weight_that_is_read(program: Program) -> None:
    keys = program.lowered.functions["prepare"].notes["keys"]
    read = {op.key for f in program.lowered.functions.values() for op in f.body.ops if isinstance(op, Weight)}
    assert read == set(keys)
    assert len(set(keys)) == len(keys)


def test_buffers_of_the_memory_plan_never_hold_two_live_values(program: Program) -> None:
    """Replays the plan: what is written to a buffer stays until its last reader is done, and fits."""
    sizes = {"N": 5, "B": 3, "P": 4, "S": 64, "R": 2}
    for function in program.lowered.functions.values():
        if "buffers" not in function.notes:
            continue
        room = [evaluate(parse_dim(t), sizes) for t in function.notes["buffers"]]
        holds: dict[int, Value] = {}
        where: dict[Value, int] = {}
        for op in function.body.ops:
            for value in op.inputs():
                stored = storage_of(value)
                assert stored not in where or holds[where[stored]] is stored, f"{value} was overwritten before {op}"
            if not isinstance(op, Launch | Call):
                continue
            assert len(op.buffers) == len(op.results)
            read = {where[storage_of(v)] for v in op.inputs() if storage_of(v) in where}
            for value, buffer in zip(op.results, op.buffers, strict=True):
                if buffer >= 0:
                    assert buffer not in read, f"{op} writes what it reads"
                    assert isinstance(value.type, TensorType)
                    assert evaluate(value.type.bytes, sizes) <= room[buffer]
                    holds[buffer] = value
                    where[value] = buffer


def test_pipelines_without_a_form_are_still_fused() -> None:
    """Fusion doesn't depend on versions: a graph that was only raised and outlined fuses too."""
    program = Program(tiny_spec(), parse_pipeline("canonicalize,cse,raise,dce,outline,fuse"))
    regions = [op for f in program.lowered.functions.values() for op in f.body.ops if isinstance(op, Fused)]
    assert {r.family for r in regions} == {"row", "matmul", "grouped", "linear_attention", "attention", "route", "sort"}


def test_fusion_can_be_switched_off() -> None:
    spec = tiny_spec()
    whole = Program(spec, parse_pipeline("canonicalize,cse,raise,dce,outline,fuse"))
    bare = Program(spec, parse_pipeline("canonicalize,cse,raise,dce,outline,fuse{epilogues=false}"))

    def products(program: Program) -> int:
        regions = [op for f in program.lowered.functions.values() for op in f.body.ops if isinstance(op, Fused)]
        return sum(len(r.body.ops) for r in regions if r.family == "matmul")

    assert products(bare) < products(whole)


@pytest.mark.parametrize("change", ["no_moe", "no_groups", "tied", "softmax_only", "before_down", "interleaved"])
def test_variants_of_the_architecture_lower_and_mean_the_same(change: str) -> None:
    program = Program(tiny_spec(change=change), default_pipeline())
    inputs = inputs_of(program, "prefill", seed=5)
    for a, b in zip(program.run_graph("prefill", inputs), program.run_lowered("prefill.long", inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_the_pass_manager_verifies_between_passes() -> None:
    program = Program(tiny_spec(), [])
    seen: list[str] = []
    PassManager(parse_pipeline("canonicalize,raise"), [verify_each, lambda step: seen.append(step.done.name)]).run(
        program.lowered, target("cpu")
    )
    assert seen == ["canonicalize", "raise"]
    assert replace(target("cpu"), name="x").name == "x"


def test_a_view_of_a_view_lies_in_the_same_memory() -> None:
    text = """module @m level graph
    symbol N >= 1
    func @f(%x: f32[N, 8]) {
      %a = exp(%x)
      %b = reshape(%a) {shape = [N, 2, 4]}
      %c = reshape(%b) {shape = [N, 8]}
      return %c
    }"""
    (view,) = parse_module(text).functions["f"].body.outputs
    assert storage_of(view).name == "a"
