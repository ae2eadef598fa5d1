"""Memory in one block: where its tensors lie, what they hold, how long they live."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from ringc.runtime.blocks import ALIGNMENT, LARGE_PAGE, zeros

CPU = torch.device("cpu")


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_block_is_cut_into_tensors(large: bool) -> None:
    rows = LARGE_PAGE if large else 3
    shapes = {
        "a": ((rows, 5), torch.float32),
        "b": ((7,), torch.bfloat16),
        "empty": ((0, 4), torch.int32),
        "c": ((), torch.bool),
    }
    made = zeros(shapes, CPU)
    assert {name: (tuple(t.shape), t.dtype) for name, t in made.items()} == shapes
    assert all(t.data_ptr() % ALIGNMENT == 0 for t in made.values() if t.numel())
    assert not any(t.any() for t in made.values())
    made["a"].fill_(1.0)
    made["c"].fill_(True)
    assert not made["b"].any()
    if large:
        assert made["a"].data_ptr() % LARGE_PAGE == 0


def test_one_tensor_keeps_the_block_alive() -> None:
    last = zeros({"a": ((LARGE_PAGE,), torch.uint8), "b": ((1000,), torch.float32)}, CPU)["b"]
    gc.collect()
    last.copy_(torch.arange(1000))
    zeros({"other": ((2 * LARGE_PAGE,), torch.uint8)}, CPU)["other"].fill_(255)
    assert torch.equal(last, torch.arange(1000.0))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own account of a process's memory")
def test_large_pages_are_asked_for() -> None:
    """`hg` among the flags of the mapping: the system gives what it can."""
    block = zeros({"a": ((4 * LARGE_PAGE,), torch.uint8)}, CPU)["a"]
    block.fill_(1)
    flags = ""
    here = False
    with open("/proc/self/smaps", encoding="ascii") as table:  # noqa: PTH123 - no file, but a table of the kernel's
        for line in table:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start, stop = (int(x, 16) for x in head.split("-"))
                here = start <= block.data_ptr() < stop
            elif here and head == "VmFlags:":
                flags = line
    assert " hg" in flags
