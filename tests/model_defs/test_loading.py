"""Every mistake in a spec file is one clear message with its place; nothing else comes out."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringc.errors import SpecError
from ringc.model_defs import load_spec, parse_spec, preset_text
from ringc.model_defs.source import MAX_BYTES, MAX_DEPTH, parse

# A complete spec in block style, so that every key has a line of its own.
GOOD = """\
name: small
dtype: bf16
vocabulary:
  size: 300
  tokenizer: bytes
  eos: 257
max_positions: 1024
hidden: 64
layers:
  count: 5
  M: 2
  tail: softmax
heads: 4
head_dim: 16
norm_eps: 1e-6
rope:
  theta: 1e6
  rotary_dim: 8
linear:
  decay:
    kind: power_law
    layer_factor: serving
    eps: 1e-5
  norm_groups: 2
softmax:
  kv_heads: 2
mlp:
  width: 64
  first_k: 1
moe:
  experts: 8
  top_k: 2
  width: 32
  groups: {count: 4, keep: 2}
  router:
    scale: 2.5
head:
  dtype: fp32
"""

# (line of GOOD, what it becomes, message, line, column, help); line and column count from 1.
FIELD_MISTAKES = [
    ("hidden: 64", "hiden: 64", "unknown key 'hiden' in the spec", 8, 1, "did you mean 'hidden'?"),
    (
        "    layer_factor: serving",
        "    layer_factr: hf",
        "unknown key 'layer_factr' in 'linear.decay'",
        22,
        5,
        "did you mean 'layer_factor'?",
    ),
    ("  kv_heads: 2", "  kv_heads: 2\n  xyz: 2", "unknown key 'xyz' in 'softmax'", 27, 3, "known keys: kv_heads"),
    (
        "  kv_heads: 2",
        "  xyz: 2",
        "'softmax' lacks the key 'kv_heads'",
        25,
        1,
        "also: spec.yaml:26:3: unknown key 'xyz'",
    ),
    ("hidden: 64\n", "", "the spec lacks the key 'hidden'", 1, 1, "add `hidden`: Width of the residual stream"),
    ("  experts: 8\n", "", "'moe' lacks the key 'experts'", 30, 1, "add `experts`"),
    ("    kind: power_law\n", "", "'linear.decay' lacks the key 'kind'", 20, 3, "power_law, linear, explicit"),
    ("heads: 4", 'heads: "4"', "'heads' must be an integer, not '4'", 13, 8, "Query heads"),
    ("heads: 4", "heads: 4.0", "'heads' must be an integer, not 4.0", 13, 8, "Query heads"),
    ("heads: 4", "heads: true", "'heads' must be an integer, not true", 13, 8, "Query heads"),
    ("heads: 4", "heads:", "'heads' must be an integer, not null", 13, 7, "Query heads"),
    ("heads: 4", "heads: [4]", "'heads' must be an integer, not a list", 13, 8, "Query heads"),
    ("heads: 4", "heads: -4", "'heads' must be at least 1, not -4", 13, 8, "Query heads"),
    (
        "  count: 5",
        "  count: 1000000000",
        "'layers.count' must be at most 4096, not 1000000000",
        10,
        10,
        "Number of layers",
    ),
    ("heads: 4", f"heads: {'9' * 30}", "'heads' must be at most 4096", 13, 8, "Query heads"),
    ("norm_eps: 1e-6", "norm_eps: 0", "'norm_eps' must be greater than 0.0, not 0", 15, 11, "Epsilon"),
    ("norm_eps: 1e-6", "norm_eps: .nan", "'norm_eps' must be a finite number, not nan", 15, 11, "Epsilon"),
    ("  theta: 1e6", "  theta: 1e999", "'rope.theta' must be a finite number, not inf", 17, 10, "Base of"),
    ("  theta: 1e6", "  theta: abc", "'rope.theta' must be a number, not 'abc'", 17, 10, "Base of"),
    (
        "  rotary_dim: 8",
        "  rotary_dim: 7",
        "'rope.rotary_dim' must be a multiple of 2, not 7",
        18,
        15,
        "Even, at most head_dim",
    ),
    (
        "    layer_factor: serving",
        "    layer_factor: servng",
        "'linear.decay.layer_factor' is 'servng'",
        22,
        19,
        "did you mean 'serving'?",
    ),
    (
        "    kind: power_law",
        "    kind: powerlaw",
        "'linear.decay.kind' is powerlaw, which is not known",
        21,
        11,
        "did you mean 'power_law'?",
    ),
    ("dtype: bf16", "dtype: fp16", "'dtype' is 'fp16'", 2, 8, "choose from: bf16, fp32"),
    ("  tail: softmax", "  tail: none", "'layers.tail' is 'none'", 12, 9, "choose from: softmax, linear"),
    (
        "softmax:\n  kv_heads: 2",
        "softmax: 2",
        "'softmax' must be a section of keys and values, not 2",
        25,
        10,
        "Softmax layers",
    ),
    (
        "  router:\n    scale: 2.5",
        "  router: yes",
        "'moe.router' must be a section of keys and values, not 'yes'",
        35,
        11,
        "How experts",
    ),
    ("{count: 4, keep: 2}", "{count: 4, keep: 2, mask: 1}", "'moe.groups.mask' is 1", 34, 37, "choose from: -inf, 0"),
    ("name: small", "name: a b", "'name' must be made of letters", 1, 7, "Name of the architecture"),
    ("name: small", "name: 2024", "'name' must be text, not 2024", 1, 7, "Name of the architecture"),
]
CROSS_MISTAKES = [
    ("  kv_heads: 2", "  kv_heads: 3", "heads 4 is not a multiple of kv_heads 3", 26, 13, "kv_heads may be 1, 2, 4"),
    (
        "  norm_groups: 2",
        "  norm_groups: 3",
        "heads * head_dim = 4 * 16 = 64 channels can't be cut into 3 equal groups",
        24,
        16,
        "NUMBER|number of groups",
    ),
    ("  rotary_dim: 8", "  rotary_dim: 32", "rotary_dim 32 is larger than head_dim 16", 18, 15, "at most 16"),
    ("groups: {count: 4", "groups: {count: 3", "8 experts can't be cut into 3 equal groups", 34, 19, "divides"),
    ("keep: 2}", "keep: 5}", "5 of 4 groups can't be kept", 34, 28, "at most 4"),
    ("keep: 2}", "keep: 2, score_top: 3}", "a group's score sums 3 experts, but a group has 2", 34, 42, "at most 2"),
    (
        "  top_k: 2",
        "  top_k: 5",
        "top_k 5 is larger than the 4 experts of the 2 kept groups",
        32,
        10,
        "keep more groups",
    ),
    ("  top_k: 2", "  top_k: 9", "top_k 9 is larger than the number of experts 8", 32, 10, "at most 8"),
    ("  first_k: 1", "  first_k: 6", "the first 6 layers are to be dense, but there are 5 layers", 29, 12, "at most 5"),
    ("  first_k: 1", "  first_k: 5", "'moe' is given, but all 5 layers are dense", 29, 12, "moe: null"),
    (
        "  eos: 257",
        "  eos: 300",
        "'eos' is token 300, but the vocabulary has 300 tokens (0 to 299)",
        6,
        8,
        "smaller eos",
    ),
    ("  eos: 257", "  eos: 10", "'eos' is token 10, which the byte tokenizer uses for a byte", 6, 8, "from 256 on"),
    (
        "  size: 300",
        "  size: 100",
        "a vocabulary of 100 tokens is too small for the byte tokenizer",
        4,
        9,
        "at least 256",
    ),
    (
        "softmax:\n  kv_heads: 2",
        "softmax: null",
        "layers 2, 3, 4 are softmax layers, but 'softmax' is not given",
        25,
        10,
        "kv_heads",
    ),
    ("  M: 2", "  M: 7", None, 0, 0, ""),  # all layers are left over, hence softmax: allowed
    (
        "    kind: power_law",
        "    kind: explicit\n    slopes: [0.5, 0.25]",
        "2 slopes are given for 4 heads",
        22,
        13,
        "one slope for each head",
    ),
    (
        "    kind: power_law",
        "    kind: explicit\n    slopes: [0.5, 0, 1, 1]",
        "'linear.decay.slopes[1]' must be greater than 0",
        22,
        19,
        "One positive slope",
    ),
    (
        "    kind: power_law",
        "    kind: linear\n    first: 1\n    linear: 3",
        "'linear.decay' lacks the key 'last'",
        20,
        3,
        "add `last`",
    ),
    (
        "  tail: softmax",
        "  tail: linear\nfp8: {}",
        "hidden = 64 is not a multiple of the 128 columns",
        13,
        1,
        "whole tiles",
    ),
    ("    eps: 1e-5", "    eps: 0", None, 0, 0, ""),  # the last layer is softmax: no decay is 0
    (
        "    kind: power_law",
        "    kind: power_law\n    octaves: 1e6",
        "the decay slope of layer 0, head 0 is 0",
        21,
        11,
        "within fp32",
    ),
    (
        "  rotary_dim: 8",
        "  rotary_dim: 8\n  scaling: {kind: yarn, factor: 4, original_positions: 512, beta_fast: 1}",
        "beta_fast 1 is not above beta_slow 1",
        19,
        72,
        "32 and 1",
    ),
]


def edited(old: str, new: str) -> str:
    # Top-level keys are looked for at the start of a line: `heads` is also the end of `kv_heads`.
    found = re.search(
        re.escape(old) if old.startswith((" ", "{", "groups", "keep")) else rf"(?m)^{re.escape(old)}", GOOD
    )
    assert found is not None
    return GOOD[: found.start()] + new + GOOD[found.end() :]


def error_of(text: str, file: str = "spec.yaml") -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, file)
    return caught.value


def check(error: SpecError, message: str, line: int, column: int, help_: str, text: str) -> None:
    assert message in error.message
    assert error.place is not None
    assert (error.place.line, error.place.column) == (line, column)
    assert error.place.text == text.splitlines()[line - 1].replace("\t", "→")
    assert error.help is not None
    assert re.search(help_, error.help) or help_ in error.help
    assert "Traceback" not in str(error)
    assert f"spec.yaml:{line}:{column}" in str(error)


def test_the_table_starts_from_a_valid_spec() -> None:
    assert parse_spec(GOOD).name == "small"


@pytest.mark.parametrize(
    ("old", "new", "message", "line", "column", "help_"), FIELD_MISTAKES, ids=lambda v: str(v)[:40]
)
def test_wrong_fields(old: str, new: str, message: str, line: int, column: int, help_: str) -> None:
    text = edited(old, new)
    check(error_of(text), message, line, column, help_, text)


@pytest.mark.parametrize(
    ("old", "new", "message", "line", "column", "help_"), CROSS_MISTAKES, ids=lambda v: str(v)[:40]
)
def test_fields_that_do_not_fit_together(
    old: str, new: str, message: str | None, line: int, column: int, help_: str
) -> None:
    text = edited(old, new)
    if message is None:
        parse_spec(text)
    else:
        check(error_of(text), message, line, column, help_, text)


YAML_MISTAKES = [
    ("", "the spec is empty", 1, None, "ring-tiny"),
    ("# only a comment\n", "the spec is empty", 1, None, "ring-tiny"),
    ("- a\n- b\n", "the spec is a list, not a mapping", 1, 1, "example"),
    ("hello\n", "the spec is a single value, not a mapping", 1, 1, "example"),
    ("name: a\nrope:\n\ttheta: 1\n", "the indentation has a tab", 3, 1, "spaces"),
    ("name:\ta\n", "a tab stands where YAML wants a space", 1, 6, "spaces"),
    ("name: a\nname: b\n", "the key 'name' is given twice, first in line 1", 2, 1, "keep one"),
    ("rope: {theta: 1, theta: 2}\n", "the key 'theta' is given twice", 1, 18, "keep one"),
    ("a: &x [1]\nb: *x\n", "the anchor '&x' is not allowed", 1, 4, "write the value out"),
    ("a: *x\n", "the alias '*x' is not allowed", 1, 4, "write the value out"),
    ("a: !!python/object:os.system {}\n", "is not allowed", 1, 4, "remove it"),
    ("a: !secret 1\n", "the tag '!secret' is not allowed", 1, 4, "remove it"),
    ("a: {<<: {b: 1}}\n", "merge keys are not allowed", 1, 5, "write the values out"),
    ("a: 1\n---\nb: 1\n", "more than one YAML document", 2, 1, "one spec in a file"),
    ("%YAML 1.1\n---\na: 1\n", "directives are not allowed", 2, 1, "%"),
    ("? [a, b]\n: 1\n", "a key must be a plain word", 1, 3, "key: value"),
    ("a: [1, 2\nb: 3\n", "not valid YAML", 2, None, "key: value"),
    ("a: 'open\n", "not valid YAML", None, None, "key: value"),
    ("a: b: c\n", "not valid YAML", 1, 5, "key: value"),
    ("a: @b\n", "not valid YAML", 1, 4, "key: value"),
    ('a: "\\UFFFFFFFF"\n', "stands for no character", 1, 5, "character itself"),
    ('a: "\\ud800"\n', "half of a character", 1, 4, "character itself"),
    ("a: \x07\n", "not valid YAML", None, None, "text file"),
    ("a: 0x\n", None, 0, 0, ""),
    (f"a: {'9' * 5000}\n", "is not a number", 1, 4, "decimal"),
    ("a: " + "[" * 200 + "]" * 200 + "\n", f"nested more than {MAX_DEPTH} deep", 1, 4 + MAX_DEPTH - 1, "four levels"),
]


@pytest.mark.parametrize(("text", "message", "line", "column", "help_"), YAML_MISTAKES, ids=lambda v: repr(v)[:40])
def test_wrong_yaml(text: str, message: str | None, line: int | None, column: int | None, help_: str) -> None:
    if message is None:
        parse(text, "spec.yaml")
        return
    error = error_of(text)
    assert message in error.message
    assert error.place is not None
    assert line is None or error.place.line == line
    assert column is None or error.place.column == column
    assert error.help is not None
    assert help_ in error.help


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert "anchor" in error_of("\n".join(lines)).message


def test_a_mistake_that_several_products_make_is_reported_once() -> None:
    error = error_of(preset_text("ring-tiny").replace("fp8: null", "fp8: {}"))
    assert "moe.width = 16 is not a multiple of the 128 columns" in error.message
    assert error.help is not None
    assert [line.partition("moe.")[2][:20] for line in error.help.splitlines()[1:]] == ["shared_experts * sha"]


def test_all_mistakes_of_a_file_are_reported_in_order() -> None:
    text = (
        GOOD.replace("heads: 4", "heads: four", 1)
        .replace("dtype: bf16", "dtyp: bf16", 1)
        .replace("  top_k: 2", "  top_k: 0", 1)
    )
    error = error_of(text)
    assert "unknown key 'dtyp'" in error.message
    assert error.help is not None
    assert error.help.splitlines()[0] == "did you mean 'dtype'?"
    assert [line.strip() for line in error.help.splitlines()[1:]] == [
        "also: spec.yaml:13:8: 'heads' must be an integer, not 'four'",
        "also: spec.yaml:32:10: 'moe.top_k' must be at least 1, not 0",
    ]


def test_all_broken_rules_between_fields_are_reported() -> None:
    text = GOOD.replace("  kv_heads: 2", "  kv_heads: 3").replace("  top_k: 2", "  top_k: 9")
    error = error_of(text)
    assert "kv_heads" in error.message
    assert "top_k 9" in (error.help or "")


def test_the_printed_error_points_at_the_value() -> None:
    error = error_of(edited("    layer_factor: serving", "    layer_factor: servng"))
    assert str(error).splitlines() == [
        "error[RC0100]: 'linear.decay.layer_factor' is 'servng'",
        "  --> spec.yaml:22:19",
        "    |",
        " 22 |     layer_factor: servng",
        "    |                   ^^^^^^",
        "  = help: did you mean 'serving'? choose from: serving, hf, mlx, none",
    ]


# ---------------------------------------------------------------- files


def test_a_preset_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ring-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_spec("ring-tiny").name == "ring-tiny"
    with pytest.raises(SpecError, match="is a folder"):
        load_spec("./ring-tiny/")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)


def test_missing_files_and_presets(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("ring-mini-linear")
    assert "did you mean 'ring-mini-linear-2.0'?" in str(caught.value)
    missing = tmp_path / "none.yaml"
    with pytest.raises(SpecError, match="no such file") as caught:
        load_spec(missing)
    assert caught.value.place is not None
    assert caught.value.place.file == missing
    with pytest.raises(SpecError, match="not valid"):
        load_spec("a\0b.yaml")
    with pytest.raises(SpecError):
        load_spec("x" * 5000 + ".yaml")
    with pytest.raises(SpecError):
        load_spec("")


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b"name: x\n" * MAX_BYTES, "larger than", None),
        (b"\x7fELF\x02\x01\x01\0\0", "binary", 1),
        (b"name: x\nhidden: \xff\xfe\n", "not UTF-8", 2),
        (b"\x93NUMPY\x01\x00", "not UTF-8", 1),
        (b"", "empty", 1),
    ],
)
def test_files_that_are_no_specs(tmp_path: Path, data: bytes, message: str, line: int | None) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(data)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(file)
    assert caught.value.place is not None
    assert caught.value.place.line == line
    assert caught.value.help


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_spec(file) == parse_spec(GOOD)


# ---------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1e6),
        ("1.0e-6", 1e-6),
        ("1E-20", 1e-20),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 17),
        ("-3", -3),
        (".5", 0.5),
        ("true", True),
        ("True", True),
        ("on", "on"),
        ("no", "no"),
        ("null", None),
        ("~", None),
        ("", None),
        ("-inf", "-inf"),
        ("-.inf", float("-inf")),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ('"12"', "12"),
        ("'null'", "null"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"a: {text}", "x").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "value"), [("-inf", "-inf"), ("-.inf", "-inf"), ("0", 0)])
def test_mask_values(text: str, value: object) -> None:
    moe = parse_spec(GOOD.replace("keep: 2}", f"keep: 2, mask: {text}}}")).moe
    assert moe is not None
    assert moe.groups is not None
    assert moe.groups.mask == value


# ---------------------------------------------------------------- robustness


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_file_escapes_as_another_exception(data: st.DataObject) -> None:
    text = preset_text("ring-tiny")
    start = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 40))
    filling = data.draw(
        st.text(alphabet=st.one_of(st.sampled_from("{}[]:,-&*!|>'\"%@`#?\t\n 019e."), st.characters()), max_size=12)
    )
    damaged = text[:start] + filling + text[start + length :]
    with suppress(SpecError):
        parse_spec(damaged)
        return
    with pytest.raises(SpecError) as caught:
        parse_spec(damaged)
    assert caught.value.help
    assert str(caught.value).encode("utf-8")
