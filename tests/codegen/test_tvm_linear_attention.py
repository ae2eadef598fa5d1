"""Linear attention by TVM: both forms against fp64, for every shape of a batch and of a head."""

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
from tests.codegen.support_tvm_script import Built, nearly_orthogonal, offsets_of, unevenness

SEGMENTS = "tvm.linear_segments{chunk=16,segment=32,segments=8}"
FORMS = ("tvm.linear_recurrent", "tvm.linear_chunked{chunk=16}", SEGMENTS)


def mixer(heads: int, dk: int, dv: int, implementation: str, dtype: str = "f32") -> Kernel:
    rows, pool = f"{dtype}[N / B, {heads}", f"state<f32[P; {heads}, {dk}, {dv}]>"
    workspace = [f"f32[{heads}*B + {heads}*min(N // 32, 8), {dk}, {dv}]"] if implementation == SEGMENTS else []
    return kernel(
        f"""
func @mixer(%q: {rows}, {dk}], %k: {rows}, {dk}], %v: {rows}, {dv}], %slopes: f32[{heads}],
            %state: {pool}, %slots: i32[B], %offsets: i32[B + 1]) {{
  %o, %after = linear_attention(%q, %k, %v, %slopes, %state, %slots, %offsets) {{scale = 0.3}} : {rows}, {dv}], {pool}
  return %o, %after
}}""",
        implementation,
        workspace,
    )


Make = Callable[[int, int, int, str], Built]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return cache(lambda *sizes: Built(mixer(*sizes), tmp_path_factory.mktemp("kernel")))


def inputs(
    heads: int, dk: int, dv: int, lengths: Sequence[int], nobody: Sequence[int] = (), slopes: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """A batch of sequences of these lengths in slots in any order; those in `nobody` have none."""
    n, pool = sum(lengths), len(lengths) + 2
    slots = torch.randperm(pool)[: len(lengths)].int()
    slots[list(nobody)] = -1
    slopes = 2.0 ** -torch.arange(heads) if slopes is None else slopes
    made = [torch.randn(n, heads, dk), torch.randn(n, heads, dk), torch.randn(n, heads, dv), slopes]
    return [*made, torch.randn(pool, heads, dk, dv), slots, offsets_of(lengths)]


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize(
    ("heads", "dk", "dv"), [(4, 32, 32), (2, 64, 64), (3, 20, 33), (1, 9, 130), (5, 36, 16)], ids=lambda x: str(x)
)
def test_head_sizes(make: Make, heads: int, dk: int, dv: int, implementation: str) -> None:
    built = make(heads, dk, dv, implementation)
    built.check(inputs(heads, dk, dv, [7, 0, 35, 1, 16], nobody=[3]))


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize(
    ("lengths", "nobody"),
    [([1], []), ([1] * 9, [4]), ([0, 0], []), ([130], []), ([130], [0]), ([64, 17, 0, 1, 15], [1]), ([16, 32], [])],
    ids=str,
)
def test_batches(make: Make, lengths: list[int], nobody: list[int], implementation: str) -> None:
    make(4, 32, 32, implementation).check(inputs(4, 32, 32, lengths, nobody))


@pytest.mark.parametrize("nobody", [[], [0, 1, 2, 3, 4]], ids=["slots", "no slot"])
@pytest.mark.parametrize("slopes", [[1.0, 0.5, 0.25, 0.125], [5.0, 80.0, 1e30, 0.0]], ids=["flat", "steep"])
@pytest.mark.parametrize("implementation", FORMS)
def test_the_rounding_of_a_first_token_is_one_factor(
    make: Make, implementation: str, slopes: list[float], nobody: list[int]
) -> None:
    q, k, v, given, state, *places = inputs(4, 32, 32, [1] * 5, nobody, torch.tensor(slopes))
    q = nearly_orthogonal(q, k)
    made, _ = make(4, 32, 32, implementation).results([q, k, v, given, torch.zeros_like(state), *places])
    assert unevenness(made, v) < 2e-7


@pytest.mark.parametrize(
    ("lengths", "nobody"),
    [
        ([32], []),
        ([64, 33, 31], [1]),
        ([96, 0, 96], [2]),
        ([1, 640, 2], []),
        ([33] * 3, [2]),
        ([640], [0]),
        ([70] * 4, [1]),
    ],
    ids=str,
)
def test_segments_begin_and_end_anywhere(make: Make, lengths: list[int], nobody: list[int]) -> None:
    """As long as a segment, a token more or less, many of them, without a slot, too many sequences to cut; a slow head and steep ones."""
    slopes = torch.tensor([0.001, 0.3, 3.9, 50.0])
    make(4, 32, 32, SEGMENTS).check(inputs(4, 32, 32, lengths, nobody, slopes))


@pytest.mark.parametrize("lengths", [[33] * 3, [32, 64, 1], [129], [1] * 5, [0, 640, 0]], ids=str)
def test_segments_stay_within_their_workspace(make: Make, lengths: list[int]) -> None:
    """Memory behind it isn't touched."""
    built = make(4, 32, 32, SEGMENTS)
    given = inputs(4, 32, 32, lengths)
    rows = 4 * (len(lengths) + min(sum(lengths) // 32, 8))
    memory = torch.full((rows + 64, 32, 32), float("nan"))
    built.launch(*given, torch.empty(sum(lengths), 4, 32), memory[:rows])
    assert memory[rows:].isnan().all()
    assert not memory[: 4 * sum(n > 0 for n in lengths)].isnan().any()


@pytest.mark.parametrize("implementation", FORMS)
def test_nothing_at_all(make: Make, implementation: str) -> None:
    given = inputs(4, 32, 32, [])
    after = make(4, 32, 32, implementation).results(given)[1]
    assert torch.equal(after, given[4])


@pytest.mark.parametrize("implementation", FORMS)
def test_any_decay(make: Make, implementation: str) -> None:
    """None at all, hardly any, at the bound of the chunked form, just past it, and all at once."""
    slopes = torch.tensor([0.0, 1e-6, 3.74, 3.76])
    make(4, 32, 32, implementation).check(inputs(4, 32, 32, [70, 3], slopes=slopes))
    slopes = torch.tensor([80.0, 200.0, 0.7, 12.0])
    make(4, 32, 32, implementation).check(inputs(4, 32, 32, [70, 3], slopes=slopes))


@pytest.mark.parametrize("implementation", FORMS)
def test_other_slots_stay(make: Make, implementation: str) -> None:
    given = inputs(4, 32, 32, [5, 40], nobody=[0])
    after = make(4, 32, 32, implementation).results(given)[1]
    others = [s for s in range(given[4].shape[0]) if s != int(given[5][1])]
    assert torch.equal(after[others], given[4][others])
    assert not torch.equal(after[given[5][1]], given[4][given[5][1]])


def test_misaligned_tensors(make: Make) -> None:
    """A tensor may begin at any of its elements."""
    built = make(4, 32, 32, FORMS[0])
    given = inputs(4, 32, 32, [3, 2])
    want = built.results(given)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in given]
    assert shifted[0].data_ptr() % 64 == 4
    o = torch.cat([want[0].new_zeros(1), want[0].flatten()])[1:].view(want[0].shape).fill_(float("nan"))
    built.launch(*shifted, o)
    assert torch.equal(o, want[0]) and torch.equal(shifted[4], want[1])


def test_narrow_types_are_refused() -> None:
    with pytest.raises(CodegenError, match="f32"):
        emit(mixer(4, 32, 32, FORMS[0], "bf16"))


def test_no_workspace_in_decoding(make: Make) -> None:
    """What is taken from the heap is taken once a task, and decoding takes nothing."""
    assert make(4, 32, 32, FORMS[0]).built.resources["heap_workspaces"] == 0


@pytest.mark.parametrize("implementation", FORMS)
def test_golden(implementation: str) -> None:
    name = implementation.partition("{")[0].replace(".", "_")
    check_golden(name, emit(mixer(4, 32, 32, implementation)).text)
