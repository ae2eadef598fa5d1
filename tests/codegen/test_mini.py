"""Models compiled for a GPU, Ring-mini-linear-2.0's first layers at their real sizes among them: registers are enough everywhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import ringc
from ringc.codegen.inspect.resources import Resources
from ringc.model_defs import load_spec

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

RANGE_REDUCTION = 64
"""Bytes of stack at most that the library's sine indexes to reduce a large angle. It is no spill: no register was lacking."""


@pytest.mark.parametrize("name", ["ring-mini-linear-2.0", "ring-tiny"])
def test_no_kernel_spills(name: str, tmp_path: Path) -> None:
    spec = load_spec(name)
    if name != "ring-tiny":
        spec = spec.model_copy(update={"layers": spec.layers.model_copy(update={"count": 5})})
        assert (len(spec.linear_layers), len(spec.softmax_layers)) == (4, 1)
    folder = tmp_path / "model"
    kernels = ringc.compile(spec, folder, target="sm_90").manifest["kernels"]
    assert len(kernels) <= 60
    checked = 0
    for kernel, entry in kernels.items():
        if entry["backend"] != "triton":
            continue
        source = (folder / entry["source"]).read_text(encoding="utf-8")
        has_sine = "tl.sin(" in source
        for part, found in entry["launch"].get("configurations", {kernel: entry["resources"]}).items():
            used = Resources.from_dict(found)
            assert used.local_bytes == 0, (kernel, part)
            if has_sine:
                assert used.stack_bytes <= RANGE_REDUCTION, (kernel, part)
            else:
                assert (used.spill_stores, used.spill_loads, used.stack_bytes) == (0, 0, 0), (kernel, part)
            checked += 1
    assert checked > 10
