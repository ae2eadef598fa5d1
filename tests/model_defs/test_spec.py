"""What a spec says about its layers, decays and rotary angles."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from ringc.model_defs import Spec, json_schema, list_presets, load_spec, parse_spec, preset_text, spec_yaml
from ringc.model_defs.decay import half_life, layer_factor, line, power_law
from ringc.model_defs.rotary import plain_frequencies, yarn_frequencies
from ringc.model_defs.spec import Section


def plain(section: Section) -> dict[str, Any]:
    return section.model_dump()


def changed(spec: Spec, **changes: Any) -> Spec:
    """The spec with values at dotted paths replaced, validated again."""
    data = plain(spec)
    for path, value in changes.items():
        *steps, last = path.split("__")
        section = data
        for step in steps:
            section = section[step]
        section[last] = value
    return Spec.model_validate(data)


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", list_presets())
def test_presets_round_trip_through_yaml(preset: str) -> None:
    spec = load_spec(preset)
    assert spec.name == preset
    again = parse_spec(spec_yaml(spec, header=["a header"], comments={("moe", "groups"): "x", ("rope", "theta"): "y"}))
    assert again == spec
    assert hash(again) == hash(spec)
    assert Spec.model_validate(plain(spec)) == spec


@pytest.mark.parametrize("preset", list_presets())
def test_presets_leave_nothing_implied(preset: str) -> None:
    """Every field of every section is written in the file, so that a reader sees all disputed points."""

    def missing(section: Section, raw: dict[str, Any], path: str) -> list[str]:
        out = [f"{path}{name}" for name in type(section).model_fields if name not in raw]
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Section) and name in raw:
                out += missing(value, raw[name], f"{path}{name}.")
        return out

    raw = YAML(typ="safe", pure=True).load(preset_text(preset))
    assert missing(load_spec(preset), raw, "") == []


def test_presets_are_ordered_and_inferred_fields_are_marked() -> None:
    assert list_presets() == [
        "ring-tiny", "ring-small", "ring-mini-linear-2.0", "ring-flash-linear-2.0",
        "ring-mini-2.0", "ring-flash-2.0", "qwen3-8b", "qwen3-32b",
    ]  # fmt: skip
    marked = [line for line in preset_text("ring-flash-linear-2.0").splitlines() if "inferred" in line]
    for key in (
        "norm_groups:",
        "theta:",
        "max_positions:",
        "groups:",
        "scale:",
        "norm_eps:",
        "silu:",
        "shared_experts:",
    ):
        assert any(line.strip().startswith(key) for line in marked), key


def test_the_tiny_preset_has_every_feature() -> None:
    spec = load_spec("ring-tiny")
    assert spec.linear_layers == (0, 1, 3, 4)
    assert spec.softmax_layers == (2, 5, 6)
    assert spec.dense_layers == (0,)
    assert spec.softmax is not None
    assert spec.linear is not None
    assert spec.moe is not None
    assert spec.moe.groups is not None
    assert spec.softmax.kv_heads < spec.heads
    assert spec.linear.norm_groups > 1
    assert spec.rope.rotary_dim < spec.head_dim
    assert spec.moe.groups.keep < spec.moe.groups.count
    assert spec.moe.shared_experts
    assert spec.vocabulary.tokenizer == "bytes"
    widths = (
        spec.hidden,
        spec.attention_width,
        spec.mlp.width,
        spec.moe.width,
        spec.moe.total_shared_width,
        spec.vocabulary.size,
    )
    assert all(width % 16 == 0 for width in widths)


# ---------------------------------------------------------------- layers


def test_layer_kinds_of_the_published_models() -> None:
    mini, flash = load_spec("ring-mini-linear-2.0"), load_spec("ring-flash-linear-2.0")
    assert mini.softmax_layers == (4, 9, 14, 19)
    assert flash.softmax_layers == (7, 15, 23, 31)
    assert mini.dense_layers == (0,)
    assert len(mini.moe_layers) == 19
    assert load_spec("ring-mini-2.0").linear_layers == ()
    assert load_spec("qwen3-8b").dense_layers == tuple(range(36))
    assert (mini.kv_heads(0), mini.kv_heads(4)) == (16, 4)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 24), m=st.integers(0, 9))
def test_layer_kinds(count: int, m: int) -> None:
    base = load_spec("ring-tiny")
    softmax = changed(base, layers__count=count, layers__M=m, mlp__first_k=0)
    linear = changed(base, layers__count=count, layers__M=m, layers__tail="linear", mlp__first_k=0)
    whole = count // (m + 1) * (m + 1)
    for i in range(count):
        ends_group = i % (m + 1) == m
        assert softmax.layer_kind(i) == ("softmax" if ends_group or i >= whole else "linear")
        assert linear.layer_kind(i) == ("softmax" if ends_group else "linear")
    assert sorted(softmax.linear_layers + softmax.softmax_layers) == list(range(count))
    for outside in (-1, count):
        with pytest.raises(IndexError):
            softmax.layer_kind(outside)
        with pytest.raises(IndexError):
            softmax.mlp_kind(outside)


def test_one_line_edits_are_valid() -> None:
    base = load_spec("ring-tiny")
    assert changed(base, layers__M=0).linear_layers == ()
    assert changed(base, moe=None).moe_layers == ()
    assert changed(base, layers__M=9, layers__tail="linear").softmax_layers == ()
    assert changed(base, moe__groups=None, moe__top_k=16).moe is not None
    assert changed(base, heads=6, softmax__kv_heads=3).attention_width == 192
    assert changed(base, linear__decay={"kind": "linear", "first": 0.5, "last": 0.01}).slopes(0)[-1] == pytest.approx(
        0.01, rel=1e-4
    )


def test_specs_are_immutable_and_strict() -> None:
    spec = load_spec("ring-tiny")
    with pytest.raises(ValidationError):
        spec.hidden = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        changed(spec, hidden="128")
    with pytest.raises(ValidationError):
        changed(spec, softmax__kv_heads=3)


# ---------------------------------------------------------------- decay


def test_head_slopes() -> None:
    assert power_law(16)[0] == 2**-0.5
    assert power_law(16)[15] == 2**-8
    assert power_law(32)[0] == 2**-0.25
    assert power_law(32)[31] == 2**-8
    assert power_law(1) == (2**-8,)
    # Six heads: the four of H = 4, then the first two of every second of H = 8.
    assert power_law(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert power_law(12)[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert power_law(4, 4.0) == (0.5, 0.25, 0.125, 0.0625)
    assert line(5, 1.0, 0.2) == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2))
    assert line(1, 0.3, 0.1) == (0.3,)
    assert half_life(power_law(16)[15]) == pytest.approx(177.4, abs=0.1)


@given(heads=st.integers(1, 200))
def test_power_law_has_a_distinct_positive_slope_for_each_head(heads: int) -> None:
    slopes = power_law(heads)
    assert len(slopes) == len(set(slopes)) == heads
    assert all(2**-8 <= slope < 1 for slope in slopes)


@pytest.mark.parametrize(
    ("variant", "layer0", "layer18"),
    [
        ("serving", 0.707114, 0.037223),
        ("hf", 0.744330, 0.074439),
        ("mlx", 0.707114, 0.074439),
        ("none", 0.707107, 0.707107),
    ],
)
def test_layer_factors_of_mini(variant: str, layer0: float, layer18: float) -> None:
    spec = changed(load_spec("ring-mini-linear-2.0"), linear__decay__layer_factor=variant)
    assert spec.slopes(0)[0] == pytest.approx(layer0, abs=5e-7)
    assert spec.slopes(18)[0] == pytest.approx(layer18, abs=5e-7)
    assert len(spec.slopes(18)) == 16


def test_layer_factor_formulas() -> None:
    assert layer_factor("serving", 19, 20, 1e-5) == pytest.approx(1e-5)
    assert layer_factor("hf", 0, 20, 0.0) == 1 + 1 / 19
    assert layer_factor("mlx", 0, 20, 0.0) == layer_factor("mlx", 1, 20, 0.0) == 1
    assert math.isfinite(layer_factor("serving", 0, 1, 1e-5))


def test_explicit_slopes_and_the_decay_of_softmax_layers() -> None:
    decay = {"kind": "explicit", "slopes": [1.0, 0.5, 0.25, 2], "layer_factor": "none"}
    spec = changed(load_spec("ring-tiny"), linear__decay=decay)
    assert spec.slopes(3) == (1.0, 0.5, 0.25, 2.0)
    with pytest.raises(ValueError, match="softmax layer"):
        spec.slopes(2)


def test_a_last_linear_layer_needs_eps() -> None:
    base = load_spec("ring-tiny")
    with pytest.raises(ValidationError, match="layer 6, head 0 is 0"):
        changed(base, layers__tail="linear", linear__decay__eps=0.0)
    assert min(changed(base, layers__tail="linear").slopes(6)) > 0


# ---------------------------------------------------------------- rope


def test_plain_frequencies() -> None:
    rope = load_spec("ring-mini-linear-2.0").rope
    assert len(rope.frequencies) == 32
    assert rope.frequencies[0] == 1
    assert rope.frequencies[31] == pytest.approx(1e6 ** (-62 / 64))
    assert rope.amplitude == 1


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = {"kind": "yarn", "factor": 4.0, "original_positions": 32768}
    rope = changed(load_spec("ring-mini-2.0"), rope__scaling=scaling).rope
    before = plain_frequencies(6e5, 64)
    assert rope.amplitude == pytest.approx(0.1 * math.log(4) + 1)
    ratios = [new / old for new, old in zip(rope.frequencies, before, strict=True)]
    turns = [32768 * f / (2 * math.pi) for f in before]
    for ratio, turned in zip(ratios, turns, strict=True):
        if turned > 64:
            assert ratio == pytest.approx(1)
        if turned < 0.5:
            assert ratio == pytest.approx(1 / 4)
    assert ratios == sorted(ratios, reverse=True)
    assert changed(load_spec("ring-mini-2.0"), rope__scaling={**scaling, "amplitude": 1.5}).rope.amplitude == 1.5


def test_yarn_of_a_short_context_is_finite() -> None:
    freq = yarn_frequencies(10000.0, 8, factor=2.0, original_positions=1, beta_fast=32.0, beta_slow=1.0)
    assert all(0 < f <= 1 for f in freq)


# ---------------------------------------------------------------- schema, writing, imports


def every_property(schema: dict[str, Any]) -> list[dict[str, Any]]:
    sections = [schema, *schema["$defs"].values()]
    return [p for section in sections for p in section.get("properties", {}).values()]


def test_json_schema_describes_every_field() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) >= {"name", "hidden", "layers", "heads", "rope", "mlp"}
    for field in every_property(schema):
        assert "description" in field or "$ref" in field or "const" in field, field
    assert schema["$defs"]["PowerLawDecay"]["properties"]["layer_factor"]["enum"] == ["serving", "hf", "mlx", "none"]


@settings(max_examples=50, deadline=None)
@given(
    description=st.text(max_size=40).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)),
    theta=st.floats(1.5, 1e12),
    eps=st.floats(1e-30, 1e-2),
)
def test_any_text_and_number_survives_writing(description: str, theta: float, eps: float) -> None:
    spec = changed(load_spec("ring-tiny"), description=description, rope__theta=theta, norm_eps=eps)
    assert parse_spec(spec_yaml(spec)) == spec


def test_importing_the_package_is_cheap() -> None:
    code = """
import sys
import ringc.model_defs as m
assert not {"torch", "pydantic", "ruamel.yaml"} & set(sys.modules), "imported too early"
assert m.list_presets()
assert "pydantic" not in sys.modules
m.load_spec("ring-tiny")
assert "torch" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_exists() -> None:
    import ringc.model_defs as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError):
        _ = package.no_such_name
