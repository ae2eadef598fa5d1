"""Every preset goes through the passes, for a GPU and for a CPU, without being compiled."""

from __future__ import annotations

import pytest

from ringc.ir.text_print import print_function
from ringc.model_defs import list_presets, load_spec
from ringc.model_defs.lower import lower
from ringc.passes.framework import PassManager
from ringc.passes.pipeline import default_pipeline
from ringc.passes.target import target

MOST = 60
"""Kernels of a model: work follows the number of different layers, not of layers."""


def test_there_are_eight() -> None:
    assert len(list_presets()) == 8


@pytest.mark.parametrize("name", ["sm_90", "cpu"])
@pytest.mark.parametrize("preset", list_presets())
def test_every_kernel_is_chosen(preset: str, name: str) -> None:
    chosen = target(name)
    module = lower(load_spec(preset), chosen.storage)
    PassManager(default_pipeline()).run(module, chosen)
    kernels = [f for f in module.functions.values() if "family" in f.notes]
    assert 0 < len(kernels) <= MOST
    for kernel in kernels:
        assert kernel.notes.get("implementation"), kernel.name
        # What lost is told in the notes; among the operations nothing is left to choose.
        assert all(op.name != "alternatives" for op in kernel.body.ops)
        assert "alternatives" not in print_function(kernel)
