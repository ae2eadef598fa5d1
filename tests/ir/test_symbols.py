"""Sizes: arithmetic against Python's integers, text, binding, and that the helpers are memoised."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from ringc.errors import IRError
from ringc.ir import symbols
from ringc.ir.symbols import (
    Bound,
    Dim,
    add,
    bind,
    ceildiv,
    dim_text,
    evaluate,
    floordiv,
    mul,
    parse_dim,
    product,
    shape_text,
    substitute,
    symbol,
    symbols_of,
)
from ringc.ir.types import DType, Layout, Quant, StateType, TensorType, tensor

N, B, T = (symbol(n) for n in ("N", "B", "max_len"))
Values = dict[str, int]


@dataclass
class Both:
    """A size, and the same computed with Python's integers."""

    dim: Dim
    value: Callable[[Values], int]


def leaves() -> st.SearchStrategy[Both]:
    names = st.sampled_from(["N", "B", "max_len"]).map(lambda n: Both(symbol(n), lambda v: v[n]))
    return st.one_of(names, st.integers(0, 40).map(lambda i: Both(i, lambda v: i)))


def grow(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    divisors = st.integers(1, 130)
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: Both(add(p[0].dim, p[1].dim), lambda v: p[0].value(v) + p[1].value(v))),
        st.tuples(inner, inner).map(lambda p: Both(mul(p[0].dim, p[1].dim), lambda v: p[0].value(v) * p[1].value(v))),
        st.tuples(inner, divisors).map(lambda p: Both(floordiv(p[0].dim, p[1]), lambda v: p[0].value(v) // p[1])),
        st.tuples(inner, divisors).map(lambda p: Both(ceildiv(p[0].dim, p[1]), lambda v: -(-p[0].value(v) // p[1]))),
        inner.map(lambda p: Both(mul(-1, p.dim), lambda v: -p.value(v))),
    )


sizes = st.recursive(leaves(), grow, max_leaves=5)
values = st.fixed_dictionaries({n: st.integers(0, 5000) for n in ("N", "B", "max_len")})


@given(sizes)
def test_text_round_trip(both: Both) -> None:
    text = dim_text(both.dim)
    parse_dim.cache_clear()
    assert parse_dim(text) == both.dim
    assert dim_text(parse_dim(text)) == text


@given(sizes, values)
def test_value_is_that_of_integers(both: Both, given_values: Values) -> None:
    assert evaluate(both.dim, given_values) == both.value(given_values)


@given(sizes, values)
def test_text_is_python(both: Both, given_values: Values) -> None:
    assert eval(dim_text(both.dim), {"max": max, "min": min}, dict(given_values)) == both.value(given_values)


@given(sizes, values)
def test_substitution_of_all_symbols_is_the_value(both: Both, given_values: Values) -> None:
    made = substitute(both.dim, given_values)
    assert type(made) is int
    assert made == both.value(given_values)


@given(st.integers(0, 2**60), st.integers(1, 10**6))
def test_division_of_large_sizes_is_exact(n: int, divisor: int) -> None:
    assert evaluate(floordiv(N, divisor), {"N": n}) == n // divisor
    assert evaluate(ceildiv(add(N, 1), divisor), {"N": n}) == -(-(n + 1) // divisor)


def test_max_and_min() -> None:
    largest = parse_dim("max(N, 2 * B, 7)")
    assert parse_dim(dim_text(largest)) == largest
    assert evaluate(largest, {"N": 3, "B": 5}) == 10
    assert evaluate(parse_dim("min(N, B) // 2"), {"N": 3, "B": 5}) == 1


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (mul(N, 8), mul(8, N)),
        (floordiv(mul(8, N), 8), N),
        (floordiv(mul(6, N), 3), mul(2, N)),
        (ceildiv(mul(128, N), 128), N),
        (ceildiv(N, 64), -(-N // 64)),
        (add(add(B, 1), -1), B),
        (add(N, mul(-1, N)), 0),
        (product((N, 4, 16)), mul(64, N)),
        (mul(N, add(B, 1)), add(mul(N, B), N)),
        (product(()), 1),
        (parse_dim("N**2"), mul(N, N)),
        (parse_dim("2*(N + 1) - 2"), mul(2, N)),
    ],
)
def test_equal_sizes_compare_equal(made: Dim, expected: Dim) -> None:
    assert made == expected


@pytest.mark.parametrize(
    "known", [add(2, 3), mul(2, 3), floordiv(7, 2), ceildiv(7, 2), product((2, 3)), parse_dim("7 // 2")]
)
def test_known_sizes_are_python_integers(known: Dim) -> None:
    assert type(known) is int


@given(st.integers(1, 9), st.integers(-5, 9), st.integers(0, 50))
def test_bind_inverts_a_line(slope: int, offset: int, n: int) -> None:
    found: Values = {}
    assert bind(add(mul(slope, N), offset), slope * n + offset, found)
    assert found == {"N": n}


@pytest.mark.parametrize(
    ("dim", "value", "known", "fits", "after"),
    [
        (4, 4, {}, True, {}),
        (4, 5, {}, False, {}),
        (mul(2, N), 7, {}, False, {}),
        (add(B, 1), 0, {}, False, {}),
        (mul(N, B), 6, {}, False, {}),
        (mul(N, B), 6, {"B": 2}, True, {"N": 3, "B": 2}),
        (mul(N, B), 7, {"B": 2}, False, {"B": 2}),
        (mul(N, N), 9, {}, False, {}),
        (floordiv(N, 2), 3, {}, False, {}),
        (floordiv(N, 2), 3, {"N": 7}, True, {"N": 7}),
        (N, 3, {"N": 4}, False, {"N": 4}),
        (mul(N, B), 0, {"B": 0}, True, {"B": 0}),
    ],
)
def test_bind(dim: Dim, value: int, known: Values, fits: bool, after: Values) -> None:
    assert bind(dim, value, known) is fits
    assert known == after


def test_unknown_value() -> None:
    with pytest.raises(IRError, match=r"the size N \+ B|the size B \+ N") as error:
        evaluate(add(N, B), {"N": 2})
    assert "depends on B, which has no value" in error.value.message


@pytest.mark.parametrize(
    "text",
    ["", "N +", "N / 2", "2.5", "N[0]", "f(N)", "N if B else 1", "'N'", "True", "N // 0", "N ** B", "N ** 99", "lambda", "N; B",
     "none", "inf", "f32", "Ñ", "-(-N // 0)", "\0", "(" * 500, "a.b", "max()"],
)  # fmt: skip
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(IRError):
        parse_dim(text)


@pytest.mark.parametrize(
    "name", ["", "a b", "1x", "if", "none", "true", "nan", "bf16", "f8e4m3", "bool", "i32", "max", "x-y", "ﬁ"]
)
def test_names_that_text_could_not_read_back(name: str) -> None:
    with pytest.raises(IRError, match="can't name a size"):
        symbol(name)


def test_symbols_of() -> None:
    assert symbols_of((4, add(N, B), floordiv(T, 2))) == {"N", "B", "max_len"}
    assert shape_text((N, 4)) == "N, 4"


def test_bounds() -> None:
    bound = Bound(8, 64, 8)
    assert [v for v in range(100) if v in bound] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert 10**9 in Bound()
    assert 0 not in Bound()


@pytest.mark.parametrize("helper", ["add", "mul", "floordiv", "ceildiv", "dim_text", "parse_dim"])
def test_helpers_are_memoised(helper: str) -> None:
    function = getattr(symbols, helper)
    arguments = {"dim_text": (add(mul(3, N), B),), "parse_dim": ("3 * N + B // 7",)}.get(helper, (add(mul(3, N), B), 7))
    function.cache_clear()
    function(*arguments)
    before = function.cache_info()
    start = time.perf_counter()
    for _ in range(2000):
        function(*arguments)
    took = time.perf_counter() - start
    after = function.cache_info()
    assert (after.hits, after.misses) == (before.hits + 2000, before.misses)
    assert took < 0.5  # sympy would take seconds


def test_evaluation_compiles_a_size_once() -> None:
    dim = add(ceildiv(mul(3, N), 7), B)
    evaluate(dim, {"N": 1, "B": 1})
    misses = symbols._compiled.cache_info().misses
    for n in range(500):
        assert evaluate(dim, {"N": n, "B": 1}) == -(-3 * n // 7) + 1
    assert symbols._compiled.cache_info().misses == misses


# -- types, whose sizes these are


@pytest.mark.parametrize(
    ("type", "size"),
    [
        (tensor("f32", N, 64), mul(256, N)),
        (tensor("bf16"), 2),
        (tensor("bool", 3), 3),
        (TensorType(DType.F8E4M3, (N, 256), None, Quant((1, 128))), add(mul(256, N), mul(8, N))),
        (TensorType(DType.F8E4M3, (256, 384), None, Quant((128, 128), DType.BF16)), 256 * 384 + 2 * 3 * 2),
        # A block that sticks out of the tensor has a scale all the same.
        (TensorType(DType.F8E4M3, (5, 130), None, Quant((1, 128))), 5 * 130 + 5 * 2 * 4),
        (StateType(DType.F32, symbol("P"), (8, 64, 64)), mul(8 * 64 * 64 * 4, symbol("P"))),
    ],
)
def test_bytes_of_types(type: TensorType | StateType, size: Dim) -> None:
    assert type.bytes == size


def test_layout() -> None:
    assert Layout(((0, 16),)).memory_shape((64, 32)) == (4, 32, 16)
    assert Layout(((1, 8), (0, 16))).memory_shape((60, 32)) == (4, 4, 8, 16)
    assert Layout(((0, 16),)).memory_shape((N, 32)) == (ceildiv(N, 16), 32, 16)
    assert Layout().memory_shape((3, 4)) == (3, 4)


def test_segments_go_with_the_leading_axis() -> None:
    t = tensor("f32", N, 8, segments=B)
    assert t.with_shape((N, 2, 4)).segments == B
    assert t.with_shape((mul(8, N),)).segments is None
    assert t.with_dtype(DType.BF16) == tensor("bf16", N, 8, segments=B)


def test_symbols_are_one_object() -> None:
    assert symbol("N") is N
    assert isinstance(N, sympy.Symbol)
