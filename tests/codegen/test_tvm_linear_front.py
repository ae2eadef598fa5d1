"""Linear attention by TVM with row work in front: it runs inside of the recurrent kernel, and is right whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

from ringc.codegen import standalone
from ringc.codegen.emit import emit
from ringc.codegen.inputs import random_inputs
from ringc.codegen.kernel import Kernel
from ringc.errors import CodegenError
from tests.codegen.support_kernels import check_golden, kernel
from tests.codegen.support_tvm_script import Built, nearly_orthogonal, offsets_of, unevenness

RECURRENT = "tvm.linear_recurrent"

Front = Callable[[int, int, int], tuple[str, str]]
"""Heads, sizes of keys and values -> arguments, operations that make %q, %k and %v."""


def published(h: int, dk: int, dv: int) -> tuple[str, str]:
    """One wide product with a gate behind; norms of queries and keys, rope on half of the channels."""
    one, two, three, r = h * dk, 2 * h * dk, 2 * h * dk + h * dv, dk // 4
    angles = f"%cos: f32[N / B, {r}], %sin: f32[N / B, {r}]"
    return (
        f"%wide: f32[N / B, {three + h * dv}], %query_norm: f32[{dk}], {angles}, %key_norm: f32[{dk}]",
        f"""
  %1 = slice(%wide) {{axis = 1, start = 0, stop = {one}}} : f32[N / B, {one}]
  %2 = reshape(%1) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]
  %3 = slice(%wide) {{axis = 1, start = {one}, stop = {two}}} : f32[N / B, {one}]
  %4 = reshape(%3) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]
  %5 = slice(%wide) {{axis = 1, start = {two}, stop = {three}}} : f32[N / B, {h * dv}]
  %v = reshape(%5) {{shape = [N, {h}, {dv}]}} : f32[N / B, {h}, {dv}]
  %6 = rms_norm(%2, %query_norm) : f32[N / B, {h}, {dk}]
  %q = rope(%6, %cos, %sin) : f32[N / B, {h}, {dk}]
  %7 = rms_norm(%4, %key_norm) : f32[N / B, {h}, {dk}]
  %k = rope(%7, %cos, %sin) : f32[N / B, {h}, {dk}]""",
    )


def unnamed(h: int, dk: int, dv: int) -> tuple[str, str]:
    """Arguments without names, which the kernel gives its own, and one with a name that the kernel uses itself."""
    return (
        f"%0: f32[N / B, {h}, {dk}], %slopes_2: f32[N / B, {h}, {dk}], %qs: f32[N / B, {h}, {dv}]",
        f"""
  %q = rms_norm(%0, _) : f32[N / B, {h}, {dk}]
  %k = sigmoid(%slopes_2) : f32[N / B, {h}, {dk}]
  %v = silu(%qs) : f32[N / B, {h}, {dv}]""",
    )


def flat(h: int, dk: int, dv: int) -> tuple[str, str]:
    """Three products: silu and a norm before heads are told apart, softmax, a scale for each head, a norm of values, a cast."""
    return (
        f"%q0: f32[N / B, {h * dk}], %k0: f32[N / B, {h * dk}], %b: i32[N / B, {h * dv}], %each: f32[{h}, 1]",
        f"""
  %1 = silu(%q0) : f32[N / B, {h * dk}]
  %2 = reshape(%1) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]
  %3 = rms_norm(%2, _) : f32[N / B, {h}, {dk}]
  %q = mul(%3, %each) : f32[N / B, {h}, {dk}]
  %5 = reshape(%k0) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]
  %k = softmax(%5) : f32[N / B, {h}, {dk}]
  %7 = cast(%b) {{dtype = f32}} : f32[N / B, {h * dv}]
  %8 = reshape(%7) {{shape = [N, {h}, {dv}]}} : f32[N / B, {h}, {dv}]
  %v = rms_norm(%8, _) : f32[N / B, {h}, {dv}]""",
    )


def shared(h: int, dk: int, dv: int) -> tuple[str, str]:
    """All heads have one key, from which each makes its norm; values are sums, and cut from a transposed tensor."""
    return (
        f"%start: f32[N / B, 1, {dk}], %t: f32[N / B, {h}, {dk}], %S0: f32[N / B, 3, {dv}, {h}]",
        f"""
  %1 = broadcast(%start) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]
  %k = rms_norm(%1, _) : f32[N / B, {h}, {dk}]
  %2 = sigmoid(%k) : f32[N / B, {h}, {dk}]
  %q = add(%t, %2) : f32[N / B, {h}, {dk}]
  %3 = transpose(%S0) {{axes = [0, 3, 2, 1]}} : f32[N / B, {h}, {dv}, 3]
  %v = sum(%3) {{axes = [3]}} : f32[N / B, {h}, {dv}]""",
    )


def values(h: int, dk: int, dv: int) -> tuple[str, str]:
    """Queries and keys are as they come; values go to the head before, and are gated by a channel of the keys' softmax."""
    kind = f"f32[N / B, {h}, {dv}]"
    return (
        f"%q: f32[N / B, {h}, {dk}], %k: f32[N / B, {h}, {dk}], %v0: {kind}",
        f"""
  %1 = slice(%v0) {{axis = 1, start = 1, stop = {h}}} : f32[N / B, {h - 1}, {dv}]
  %2 = slice(%v0) {{axis = 1, start = 0, stop = 1}} : f32[N / B, 1, {dv}]
  %3 = concat([%1, %2]) {{axis = 1}} : {kind}
  %4 = softmax(%k) : f32[N / B, {h}, {dk}]
  %5 = slice(%4) {{axis = 2, start = 2, stop = 3}} : f32[N / B, {h}, 1]
  %v = mul(%3, %5) : {kind}""",
    )


def joined(h: int, dk: int, dv: int) -> tuple[str, str]:
    """Heads are told apart, and nothing is computed."""
    return (
        f"%q0: f32[N / B, {h * dk}], %k: f32[N / B, {h}, {dk}], %v: f32[N / B, {h}, {dv}]",
        f"""
  %q = reshape(%q0) {{shape = [N, {h}, {dk}]}} : f32[N / B, {h}, {dk}]""",
    )


FRONTS = {
    "published": published,
    "flat": flat,
    "unnamed": unnamed,
    "shared": shared,
    "values": values,
    "joined": joined,
}


def fronted(front: Front, heads: int, dk: int, dv: int, implementation: str = RECURRENT) -> Kernel:
    arguments, ops = front(heads, dk, dv)
    rows, pool = f"f32[N / B, {heads}, {dv}]", f"state<f32[P; {heads}, {dk}, {dv}]>"
    found = kernel(
        f"""
func @mixer({arguments}, %9: f32[{heads}], %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]) {{{ops}
  %o, %after = linear_attention(%q, %k, %v, %9, %state, %slots, %offsets) {{scale = 0.3}} : {rows}, {pool}
  return %o, %after
}}""",
        implementation,
    )
    found.function.notes["family"] = "linear_attention"
    return found


Make = Callable[[str, int, int, int], Built]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return cache(lambda front, *sizes: Built(fronted(FRONTS[front], *sizes), tmp_path_factory.mktemp("kernel")))


def inputs(made: Kernel, lengths: Sequence[int], nobody: Sequence[int] = ()) -> list[torch.Tensor]:
    """A batch of sequences of these lengths in slots in any order; those in `nobody` have none."""
    pool = len(lengths) + 2
    slots = torch.randperm(pool)[: len(lengths)].int()
    slots[list(nobody)] = -1
    drawn = random_inputs(made.function, {"N": sum(lengths), "B": len(lengths), "P": pool})
    return [*drawn[:-2], slots, offsets_of(lengths)]


@pytest.mark.parametrize(
    ("heads", "dk", "dv"), [(4, 32, 32), (8, 64, 64), (2, 20, 64), (3, 36, 33), (2, 10, 130)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("front", FRONTS)
def test_fronts(make: Make, front: str, heads: int, dk: int, dv: int) -> None:
    built = make(front, heads, dk, dv)
    built.check(inputs(built.kernel, [7, 0, 35, 1, 16], nobody=[3]))


@pytest.mark.parametrize(
    ("lengths", "nobody"),
    [([1], []), ([1] * 9, [4]), ([0, 0], []), ([200], []), ([130], [0]), ([64, 17, 0, 1, 15], [0, 1])],
    ids=str,
)
@pytest.mark.parametrize("front", ["published", "flat"])
def test_batches(make: Make, front: str, lengths: list[int], nobody: list[int]) -> None:
    built = make(front, 2, 20, 64)
    built.check(inputs(built.kernel, lengths, nobody))


@pytest.mark.parametrize("front", ["published", "flat", "shared"])
def test_one_head(make: Make, front: str) -> None:
    """Several slices of it, each with rows of its own."""
    built = make(front, 1, 16, 64)
    built.check(inputs(built.kernel, [7, 1], nobody=[1]))


@pytest.mark.parametrize("nobody", [[], [0, 1, 2, 3, 4]], ids=["slots", "no slot"])
def test_the_rounding_of_a_first_token_is_one_factor(make: Make, nobody: list[int]) -> None:
    built = make("joined", 4, 32, 32)
    q, k, v, slopes, state, *places = inputs(built.kernel, [1] * 5, nobody)
    q = nearly_orthogonal(q.view(k.shape), k).flatten(1)
    made, _ = built.results([q, k, v, slopes, torch.zeros_like(state), *places])
    assert unevenness(made, v) < 2e-7


def test_nothing_at_all(make: Make) -> None:
    built = make("published", 2, 20, 64)
    given = [*inputs(built.kernel, [0])[:-2], torch.empty(0, dtype=torch.int32), offsets_of([])]
    assert torch.equal(built.results(given)[1], given[-3])


def test_slots(make: Make) -> None:
    """Nothing is written for nobody, nor for sequences of no tokens or of another batch."""
    built = make("published", 4, 32, 32)
    given = inputs(built.kernel, [5, 0, 40], nobody=[0])
    before, slots = given[-3], given[-2].tolist()
    after = built.results(given)[1]
    others = [s for s in range(before.shape[0]) if s != slots[2]]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[slots[2]], before[slots[2]])


def test_no_workspace(make: Make) -> None:
    """What is taken from the heap is taken once a task: it costs as much as a head's rows."""
    assert make("published", 8, 64, 64).built.resources["heap_workspaces"] == 0


def test_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's file checks it."""
    path = tmp_path / "mixer.py"
    path.write_text(emit(fronted(published, 4, 32, 32)).text)
    assert standalone.run(path)
    assert capsys.readouterr().out.count("  ok\n") == 2


def test_golden() -> None:
    check_golden("tvm_linear_front", emit(fronted(published, 8, 64, 64)).text)


def all_heads(h: int, dk: int, dv: int) -> tuple[str, str]:
    arguments, ops = published(h, dk, dv)
    whole = f"""
  %0 = rms_norm(%wide, _) : f32[N / B, {2 * h * (dk + dv)}]"""
    return arguments, whole + ops.replace("slice(%wide)", "slice(%0)")


def test_work_across_heads_is_refused() -> None:
    with pytest.raises(CodegenError, match=r"@mixer: .* more than a part of one head's row"):
        emit(fronted(all_heads, 4, 32, 32))


def test_chunks_take_no_front() -> None:
    with pytest.raises(CodegenError, match="linear_chunked makes a linear_attention and nothing else"):
        emit(fronted(published, 4, 32, 32, "tvm.linear_chunked{chunk=16}"))


def test_what_else_leaves_is_refused() -> None:
    arguments, ops = published(4, 32, 32)
    pool = "state<f32[P; 4, 32, 32]>"
    text = f"""
func @mixer({arguments}, %slopes: f32[4], %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]) {{{ops}
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {{scale = 0.3}} : f32[N / B, 4, 32], {pool}
  return %o, %after, %k
}}"""
    with pytest.raises(CodegenError, match="in front of q, k and v"):
        emit(kernel(text, RECURRENT))
