"""Attention by TVM: prefill and decoding against fp64, caches filled with NaN where nothing may be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

pytest.importorskip("tvm")

from ringc.codegen.emit import emit
from ringc.codegen.kernel import Kernel
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built, offsets_of


def attention(heads: int, shared: int, d: int, dtype: str = "f32") -> Kernel:
    rows, pool = f"{dtype}[N / B, {heads}, {d}]", f"state<{dtype}[P; S, {shared}, {d}]>"
    return kernel(
        f"""
func @attention(%q: {rows}, %keys: {pool}, %values: {pool}, %slots: i32[B], %offsets: i32[B + 1], %positions: i32[N / B]) {{
  %o = attention(%q, %keys, %values, %slots, %offsets, %positions) {{scale = 0.2}} : {rows}
  return %o
}}""",
        "tvm.attention",
    )


Make = Callable[[int, int, int], Built]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return cache(lambda heads, shared, d: Built(attention(heads, shared, d), tmp_path_factory.mktemp("kernel")))


def inputs(
    heads: int, shared: int, d: int, new: Sequence[int], held: Sequence[int], nobody: Sequence[int] = (), room: int = 0
) -> list[torch.Tensor]:
    """Sequences that held some tokens and get new ones; `room` rows of the caches stay unused."""
    longest = max((a + b for a, b in zip(new, held, strict=True)), default=0) + room
    pool = len(new) + 1
    slots = torch.randperm(pool)[: len(new)].int()
    caches = [torch.randn(pool, longest, shared, d) for _ in range(2)]
    slots[list(nobody)] = -1
    positions = [torch.arange(h, h + n) for n, h in zip(new, held, strict=True)]
    at = torch.cat([*positions, torch.zeros(0, dtype=torch.int64)]).int()
    return [torch.randn(sum(new), heads, d), *caches, slots, offsets_of(new), at]


@pytest.mark.parametrize(
    ("heads", "shared", "d"),
    [(4, 2, 32), (3, 3, 16), (20, 1, 20), (40, 1, 8), (5, 1, 33), (4, 1, 128)],
    ids=str,
)
def test_head_sizes(make: Make, heads: int, shared: int, d: int) -> None:
    make(heads, shared, d).check(inputs(heads, shared, d, [1, 9, 0, 34, 2], [5, 0, 3, 30, 66], nobody=[4]))


@pytest.mark.parametrize(
    ("new", "held"),
    [
        ([1], [0]),
        ([1], [63]),
        ([1], [64]),
        ([1], [200]),
        ([3], [0]),
        ([64], [0]),
        ([65], [64]),
        ([1, 1, 1, 1, 1], [0, 5, 64, 130, 2]),
        ([0, 0], [3, 0]),
        ([8, 16, 0, 7, 1, 33], [0, 64, 1, 57, 100, 3]),
    ],
    ids=str,
)
def test_batches(make: Make, new: list[int], held: list[int]) -> None:
    make(4, 2, 32).check(inputs(4, 2, 32, new, held))


def test_nothing_at_all(make: Make) -> None:
    (o,) = make(4, 2, 32).results(inputs(4, 2, 32, [], [], room=3))
    assert o.shape == (0, 4, 32)


@pytest.mark.parametrize("new", [[1, 1, 1], [40, 3, 20]], ids=str)
def test_nothing_is_read_past_a_sequence(make: Make, new: list[int]) -> None:
    """Rows behind a sequence hold whatever was there: here NaN, which any use would spread."""
    clean = inputs(4, 2, 32, new, [9, 70, 4], room=21)
    torn = [x.clone() for x in clean]
    for b, slot in enumerate(clean[3].tolist()):
        end = int(clean[5][int(clean[4][b + 1]) - 1]) + 1
        for pool in torn[1:3]:
            pool[slot, end:] = float("nan")
    built = make(4, 2, 32)
    assert torch.equal(built.results(torn)[0], built.results(clean)[0])
    built.check(clean)


def test_nobody_gets_zeros(make: Make) -> None:
    given = inputs(4, 2, 32, [1, 20, 1], [9, 0, 30], nobody=[0, 1])
    (o,) = make(4, 2, 32).results(given)
    assert torch.equal(o[:21], torch.zeros(21, 4, 32)) and bool(o[21].abs().max() > 0)


@pytest.mark.parametrize("new", [[1], [40]], ids=str)
def test_large_scores(make: Make, new: list[int]) -> None:
    """Scores of some hundreds: only differences to the largest may be exponentiated."""
    given = inputs(4, 2, 32, new, [90])
    given[0] *= 100
    make(4, 2, 32).check(given)


def test_prefill_is_decoding_token_by_token(make: Make) -> None:
    """The two ways through the kernel give the same."""
    whole = inputs(4, 2, 32, [40], [11])
    (together,) = make(4, 2, 32).results(whole)
    for t in (0, 7, 39):
        one = [whole[0][t : t + 1], *whole[1:4], offsets_of([1]), whole[5][t : t + 1]]
        (alone,) = make(4, 2, 32).results(one)
        torch.testing.assert_close(alone[0], together[t], rtol=2e-5, atol=2e-6)


def test_narrow_types_are_refused() -> None:
    with pytest.raises(CodegenError, match="f32"):
        emit(attention(4, 2, 32, "bf16"))


def test_golden() -> None:
    check_golden("tvm_attention", emit(attention(4, 2, 32)).text)
