"""Which launches of a program a layer's experts are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.moe_layer import layer_steps

ONE = ["row", "shared*", "shared*", "route", "sort", "grouped", "grouped", "join", "row"]
APART = ["row", "shared*", "shared*", "library", "route", "sort", "grouped", "grouped", "join", "row"]
LINE = ["library", "row", "route", "sort", "grouped", "grouped", "join", "row"]


@pytest.mark.parametrize(
    ("layer", "first", "last"), [(ONE, "shared*", "join"), (APART, "shared*", "join"), (LINE, "route", "join")]
)
@pytest.mark.parametrize("number", [0, 1])
def test_they_begin_with_what_runs_beside_them_and_end_where_it_has_joined(
    layer: list[str], first: str, last: str, number: int
) -> None:
    names = ["embedding", *layer, "attention", *layer]
    bound = SimpleNamespace(steps=[SimpleNamespace(kernel=n, beside=n.endswith("*")) for n in names])
    start, end = layer_steps(bound, [n.rstrip("*") for n in names], number)  # type: ignore[arg-type] # only its steps
    begin = 1 + number * (len(layer) + 1)
    assert (start, end) == (begin + layer.index(first), begin + layer.index(last) + 1)
