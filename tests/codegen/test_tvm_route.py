"""Routing and sorting by TVM: ids are equal to the reference's, ties included."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

pytest.importorskip("tvm")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built


def route(
    experts: int,
    top_k: int,
    attributes: str = "",
    *,
    inner: int = 0,
    packed: str = "",
    bias: bool = True,
    parallel: int = 1,
) -> Kernel:
    taken = (
        [f"%x: f32[N, {inner}]", f"%w: f32[{experts}, {inner}]{packed}"] if inner else [f"%logits: f32[N, {experts}]"]
    )
    taken += [f"%bias: f32[{experts}]"] if bias else []
    attributes = f"top_k = {top_k}{attributes and ', ' + attributes}"
    product = f"%logits = matmul(%x, %w) {{transpose_b = true, out = f32}} : f32[N, {experts}]" if inner else ""
    return kernel(
        f"""
func @route({", ".join(taken)}) {{
  {product}
  %experts, %weights = route(%logits, {"%bias" if bias else "_"}) {{{attributes}}} : i32[N, {top_k}], f32[N, {top_k}]
  return %experts, %weights
}}""",
        f"tvm.route{{parallel={parallel}}}",
    )


def sort(keys: int, rows: str = "4*N") -> Kernel:
    return kernel(
        f"""
func @sort(%keys: i32[{rows}]) {{
  %order, %offsets, %places = sort_by_key(%keys) {{num_keys = {keys}}} : i32[{rows} / {keys}], i32[{keys + 1}], i32[{rows}]
  return %order, %offsets, %places
}}""",
        "tvm.sort",
    )


GROUPS = "groups = 8, keep = 4, factor = 2.5"
CASES: dict[str, Callable[[], Kernel]] = {
    "grouped": lambda: route(64, 4, GROUPS),
    "zeroed": lambda: route(16, 4, "groups = 4, keep = 2, dropped = 0.0", parallel=0),
    "softmax": lambda: route(37, 5, 'score = "softmax", normalize = false', bias=False),
    "all_groups": lambda: route(24, 24, "groups = 3, keep = 3, eps = 1e-06"),
    "top_3_of_group": lambda: route(100, 6, "groups = 20, keep = 7, group_top = 3"),
    "product": lambda: route(16, 4, "groups = 4, keep = 2, factor = 2.5", inner=72),
    "product_few": lambda: route(20, 4, inner=50, parallel=0),
    "product_packed": lambda: route(40, 4, GROUPS, inner=48, packed="@0x32"),
    "product_packed_16": lambda: route(16, 2, inner=33, packed="@0x16", bias=False),
    "product_by_experts": lambda: route(128, 8, GROUPS, inner=1024, parallel=0),
    "packed_by_experts": lambda: route(128, 8, GROUPS, inner=1024, packed="@0x32", parallel=0),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return cache(lambda name: Built(CASES[name](), tmp_path_factory.mktemp("kernel")))


def inputs(built: Built, rows: int, *, ties: bool) -> list[torch.Tensor]:
    """Normal numbers; with ties, halves, so that many scores are equal and products are exact."""
    made = []
    for arg in built.kernel.function.body.args:
        shape = [d if isinstance(d, int) else rows for d in arg.shape]
        made.append(torch.randint(-1, 2, shape) * 0.5 if ties else torch.randn(shape))
    return made


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("name", CASES)
def test_route(make: Callable[[str], Built], name: str, ties: bool) -> None:
    built = make(name)
    for rows in (0, 1, 2, 3, 4, 9, 70):
        built.check(inputs(built, rows, ties=ties))


def test_all_equal(make: Callable[[str], Built]) -> None:
    """The lowest numbers win."""
    ids, weights = make("grouped").results([torch.zeros(3, 64), torch.zeros(64)])
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(weights, torch.full((3, 4), 0.625))


def test_experts_that_are_switched_off(make: Callable[[str], Built]) -> None:
    """A bias of -inf leaves an expert behind all others, but still before none."""
    built = make("all_groups")
    bias = torch.full((24,), float("-inf"))
    bias[7] = 0.0
    ids, _ = built.results([torch.randn(2, 24), bias])
    assert ids[:, 0].tolist() == [7, 7] and sorted(ids[0].tolist()) == list(range(24))


def test_more_than_a_route_is_refused() -> None:
    made = kernel(
        """
func @route(%x: f32[N, 8]) {
  %1 = exp(%x) : f32[N, 8]
  %experts, %weights = route(%1, _) {top_k = 2} : i32[N, 2], f32[N, 2]
  return %experts, %weights
}""",
        "tvm.route{parallel=0}",
    )
    with pytest.raises(CodegenError, match="nothing else"):
        emit(made)


@pytest.mark.parametrize("keys", [1, 16, 300])
def test_sort(keys: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = Built(sort(keys), tmp_path_factory.mktemp("kernel"))
    for rows in (0, 4, 12, 1000):
        built.check([torch.randint(0, keys, (rows,)).int()])
        built.check([torch.full((rows,), keys - 1).int()])


@pytest.mark.parametrize("name", ["grouped", "product"])
def test_golden(name: str) -> None:
    check_golden(f"tvm_route_{name}", emit(CASES[name]()).text)


def test_golden_sort() -> None:
    check_golden("tvm_sort", emit(sort(16)).text)
