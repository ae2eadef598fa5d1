"""The tuning record: it survives its file, and `select` goes by it where it is complete, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringc.errors import RecordError
from ringc.ir.core import Module
from ringc.ir.ops.call import Fused
from ringc.ir.text_parse import parse_module
from ringc.passes.choices import Region, choices
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.kernels import OutlineKernels
from ringc.passes.pipeline import default_pipeline, parse_pipeline
from ringc.passes.record import Entry, Record, load_record
from ringc.passes.select import Select
from ringc.passes.target import target
from ringc.passes.tool import run_text

CPU = target("cpu")
HEAD = "module @m level fused\nsymbol N >= 1\n\n"
PLAIN = (
    HEAD + "func @f(%x: f32[N, 64], %w: f32[96, 64]) {\n  %y = matmul(%x, %w) {transpose_b = true}\n  return %y\n}\n"
)
GATED = (
    HEAD
    + """func @f(%x: f32[N, 64], %w: f32[96, 64]) {
  %y = matmul(%x, %w) {transpose_b = true}
  %z = silu(%y)
  return %z
}
"""
)


def open_regions(text: str, passes: str = "fuse,library") -> list[Region]:
    """All regions of the one choice of a text."""
    module = parse_module(text)
    PassManager(parse_pipeline(passes), [verify_each]).run(module, CPU)
    (choice,) = choices(module, CPU)
    return choice.regions


def entries(regions: list[Region], **seconds: float) -> list[Entry]:
    """An entry for each legal candidate of these regions, by the beginning of its implementation (`_` for what a name can't hold)."""
    return [
        Entry(r.key, r.what, r.sizes, c.implementation, took)
        for r in regions
        for c in r.legal
        for start, took in seconds.items()
        if c.implementation.replace(".", "_").replace("{", "_").replace("=", "_").startswith(start)
    ]


def selected(text: str, record: Record | None, passes: str = "fuse,library") -> Module:
    module = parse_module(text)
    steps = [*parse_pipeline(passes), Select() if record is None else Select(record)]
    PassManager(steps, [verify_each]).run(module, CPU)
    return module


def regions_of(module: Module) -> list[Fused]:
    return [op for op in module.functions["f"].body.ops if isinstance(op, Fused)]


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    found = entries(open_regions(GATED), tvm_matmul=1.5e-5, torch_library=2e-5, tvm_row=1e-6)
    assert len(found) == 4
    path = tmp_path / "record.json"
    made = Record("cpu", "this machine").merged(found)
    made.save(path)
    read = load_record(path, "cpu")
    assert read == made
    assert list(tmp_path.iterdir()) == [path]
    read.save(path)
    assert load_record(path, "cpu").sha256 == made.sha256


def test_the_file_depends_on_the_numbers_alone() -> None:
    found = entries(open_regions(GATED), tvm_matmul=1.5e-5, torch_library=2e-5, tvm_row=1e-6)
    empty = Record("cpu", "this machine")
    assert empty.merged(found).text() == empty.merged(found[:2]).merged(reversed(found)).text()


def test_tuning_again_replaces_entries_of_the_same_key_and_keeps_the_others() -> None:
    found = entries(open_regions(PLAIN), tvm_matmul=1.5e-5, torch_library=2e-5)
    again = Record("cpu", "").merged(found).merged(entries(open_regions(PLAIN), torch_library=9e-5))
    assert sorted(e.seconds for e in again.entries.values()) == [1.5e-5, 1.5e-5, 9e-5]
    assert len(again.merged([], without=[found[0].key]).entries) == 2


@pytest.mark.parametrize("winner", ["rows=1", "rows=8"])
def test_a_record_settles_a_region(winner: str) -> None:
    rows = {"rows=1": (1e-6, 5e-6), "rows=8": (5e-6, 1e-6)}[winner]
    found = entries(open_regions(PLAIN, "fuse"), tvm_matmul_rows_1=rows[0], tvm_matmul_rows_8=rows[1])
    (region,) = regions_of(selected(PLAIN, Record("cpu", "").merged(found), "fuse"))
    assert winner in region.implementation
    loser = next(name for name, *_ in region.lost)
    assert region.measured == (
        ("N=512", region.implementation, "1e-06", "1e-06"),
        ("N=512", loser, "5e-06", "1e-06"),
    )


def test_a_region_that_is_not_measured_whole_is_settled_by_the_model() -> None:
    (usual,) = regions_of(selected(PLAIN, None, "fuse"))
    assert "rows=8" in usual.implementation
    regions = open_regions(PLAIN, "fuse")
    part = entries(regions, tvm_matmul_rows_1=1e-9)
    elsewhere = [Entry(e.region, e.what, (("N", 3),), e.implementation, 1e-9) for e in entries(regions, tvm=1e-9)]
    for found in (part, elsewhere):
        (region,) = regions_of(selected(PLAIN, Record("cpu", "").merged(found), "fuse"))
        assert region.implementation == usual.implementation
        assert region.measured == ()


def test_ways_are_compared_by_measured_times_where_all_their_parts_are_measured() -> None:
    fast = {"torch_library": 1e-6, "tvm_row": 1e-6}
    found = entries(open_regions(GATED), tvm_matmul=3e-6, **fast)
    call, row = regions_of(selected(GATED, Record("cpu", "").merged(found)))
    assert call.implementation == "torch.library"
    assert row.implementation.startswith("tvm.row")
    way = next(m for m in call.measured if m[1].startswith("fused: tvm.matmul"))
    assert way == ("N=512", way[1], "3e-06", "2e-06")

    found = entries(open_regions(GATED), tvm_matmul=1.5e-6, **fast)
    (product,) = regions_of(selected(GATED, Record("cpu", "").merged(found)))
    assert product.family == "matmul"


def test_ways_of_which_a_part_is_not_measured_are_compared_by_the_model() -> None:
    found = entries(open_regions(GATED), tvm_matmul_rows_1=1.0, tvm_matmul_rows_8=2.0, torch_library=1e-9)
    (product,) = regions_of(selected(GATED, Record("cpu", "").merged(found)))
    # The region's own choice is settled: slow as it is, and not the model's.
    assert "rows=1" in product.implementation
    assert [name for _, name, *_ in product.measured if name.startswith("library")] == []


def test_a_kernel_that_several_versions_share_has_the_times_of_all() -> None:
    text = PLAIN + PLAIN[len(HEAD) :].replace("@f", "@few")
    module = parse_module(text)
    module.functions["few"].notes.update(rows=(2, 16), serves="decode")
    PassManager(parse_pipeline("fuse")).run(module, CPU)
    found = [
        e for c in choices(module, CPU) for e in entries(c.regions, tvm_matmul_rows_1=5e-6, tvm_matmul_rows_8=1e-6)
    ]
    Select(Record("cpu", "").merged(found)).apply(module, CPU)
    OutlineKernels().apply(module, CPU)
    (kernel,) = (f for f in module.functions.values() if "family" in f.notes)
    assert {sizes for sizes, *_ in kernel.notes["measured"]} == {"N=8", "N=512"}
    assert len(kernel.notes["measured"]) == 4


def test_the_option_of_the_pass_is_a_file(tmp_path: Path) -> None:
    found = entries(open_regions(PLAIN, "fuse"), tvm_matmul_rows_1=1e-6, tvm_matmul_rows_8=5e-6)
    path = tmp_path / "record.json"
    Record("cpu", "").merged(found).save(path)
    made = run_text(PLAIN, f"fuse,select{{record={path}}}")
    assert 'implementation = "tvm.matmul{rows=1,block=32}"' in made
    assert run_text(made, "layout") != made  # what is noted survives the text
    with pytest.raises(RecordError, match="of target cpu, and this is target sm_90"):
        run_text(PLAIN, f"fuse,select{{record={path}}}", "sm_90")
    path.write_text(json.dumps({"format_version": 2}))
    with pytest.raises(RecordError, match="format version 2"):
        run_text(PLAIN, f"fuse,select{{record={path}}}")


def test_the_pass_s_text_names_the_record_and_no_path(tmp_path: Path) -> None:
    Record("cpu", "").save(tmp_path / "record.json")
    record = load_record(tmp_path / "record.json", "cpu")
    (step,) = (p for p in default_pipeline(record) if p.name == "select")
    assert str(step) == f"select{{record={record.sha256}}}"
