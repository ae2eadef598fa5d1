"""What must hold between the fields of a spec. Each rule yields one problem, with the path of the key to mend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ringc.model_defs.spec import Moe, Spec

BYTE_VALUES = 256


class Problem(NamedTuple):
    """One broken rule: the key that is to blame, what is wrong, what to do."""

    path: tuple[str, ...]
    message: str
    help: str


def problems(spec: Spec) -> Iterator[Problem]:
    """All broken rules of a spec whose fields are valid one by one."""
    yield from _vocabulary(spec)
    yield from _attention(spec)
    yield from _decay(spec)
    yield from _mlp(spec)
    if spec.moe is not None:
        yield from _moe(spec.moe)
    yield from _fp8(spec)


def _vocabulary(spec: Spec) -> Iterator[Problem]:
    words = spec.vocabulary
    tokens = {name: token for name in ("bos", "eos", "pad") if (token := getattr(words, name)) is not None}
    for name, token in tokens.items():
        path = ("vocabulary", name)
        if token >= words.size:
            yield Problem(path, f"'{name}' is token {token}, but the vocabulary has {words.size} tokens (0 to {words.size - 1})",
                          f"give a smaller {name}, or a larger vocabulary.size")  # fmt: skip
        elif words.tokenizer == "bytes" and token < BYTE_VALUES:
            yield Problem(path, f"'{name}' is token {token}, which the byte tokenizer uses for a byte of text",
                          f"use a token from {BYTE_VALUES} on")  # fmt: skip
    if words.tokenizer == "bytes" and words.size < BYTE_VALUES:
        yield Problem(("vocabulary", "size"), f"a vocabulary of {words.size} tokens is too small for the byte tokenizer",
                      f"give at least {BYTE_VALUES} tokens, plus the special ones")  # fmt: skip


def _attention(spec: Spec) -> Iterator[Problem]:
    if spec.rope.rotary_dim > spec.head_dim:
        yield Problem(("rope", "rotary_dim"), f"rotary_dim {spec.rope.rotary_dim} is larger than head_dim {spec.head_dim}",
                      f"rotate at most {spec.head_dim} elements of a head")  # fmt: skip
    yarn = spec.rope.scaling
    if yarn is not None and yarn.beta_fast <= yarn.beta_slow:
        yield Problem(("rope", "scaling", "beta_fast"), f"beta_fast {yarn.beta_fast:g} is not above beta_slow {yarn.beta_slow:g}",
                      "the published values are 32 and 1")  # fmt: skip
    if spec.softmax is None:
        if spec.softmax_layers:
            yield Problem(("softmax",), f"layers {_few(spec.softmax_layers)} are softmax layers, but 'softmax' is not given",
                          "add `softmax: {kv_heads: ...}`, or change 'layers' so that all are linear")  # fmt: skip
    elif spec.heads % spec.softmax.kv_heads:
        yield Problem(("softmax", "kv_heads"), f"heads {spec.heads} is not a multiple of kv_heads {spec.softmax.kv_heads}",
                      f"kv_heads may be {_few(_divisors(spec.heads))}")  # fmt: skip
    if spec.linear is None:
        if spec.linear_layers:
            yield Problem(("linear",), f"layers {_few(spec.linear_layers)} are linear layers, but 'linear' is not given",
                          "add a 'linear' section, or set layers.M to 0 for a model of softmax layers")  # fmt: skip
    elif spec.attention_width % spec.linear.norm_groups:
        yield Problem(
            ("linear", "norm_groups"),
            f"heads * head_dim = {spec.heads} * {spec.head_dim} = {spec.attention_width} channels can't be cut into "
            f"{spec.linear.norm_groups} equal groups",
            "norm_groups is the number of groups and must divide heads * head_dim",
        )


def _decay(spec: Spec) -> Iterator[Problem]:
    if spec.linear is None:
        return
    law = spec.linear.decay
    path = ("linear", "decay")
    if law.kind == "explicit" and len(law.slopes) != spec.heads:
        yield Problem(
            (*path, "slopes"),
            f"{len(law.slopes)} slopes are given for {spec.heads} heads",
            "give one slope for each head",
        )
        return
    for layer in spec.linear_layers:
        for head, slope in enumerate(spec.slopes(layer)):
            if slope > 0 and math.isfinite(slope):
                continue
            # With a head law of ordinary numbers only the layer factor can be at fault, and that only without its eps.
            key = "eps" if law.eps == 0 and law.layer_factor != "none" else "kind"
            help_ = (
                "give 'eps' a small positive value such as 1e-5"
                if key == "eps"
                else "choose numbers that keep slopes within fp32"
            )
            yield Problem(
                (*path, key),
                f"the decay slope of layer {layer}, head {head} is {slope:g}: it must be positive and finite",
                help_,
            )
            return


def _mlp(spec: Spec) -> Iterator[Problem]:
    first, count = spec.mlp.first_k, spec.layers.count
    if first > count:
        yield Problem(("mlp", "first_k"), f"the first {first} layers are to be dense, but there are {count} layers",
                      f"give a first_k of at most {count}")  # fmt: skip
    elif first == count and spec.moe is not None:
        yield Problem(("mlp", "first_k"), f"'moe' is given, but all {count} layers are dense",
                      "lower mlp.first_k, or set `moe: null`")  # fmt: skip


def _moe(moe: Moe) -> Iterator[Problem]:
    if moe.top_k > moe.experts:
        yield Problem(("moe", "top_k"), f"top_k {moe.top_k} is larger than the number of experts {moe.experts}",
                      f"give a top_k of at most {moe.experts}")  # fmt: skip
    groups = moe.groups
    if groups is None:
        return
    path = ("moe", "groups")
    if groups.keep > groups.count:
        yield Problem(
            (*path, "keep"), f"{groups.keep} of {groups.count} groups can't be kept", f"keep at most {groups.count}"
        )
    if moe.experts % groups.count:
        yield Problem((*path, "count"), f"{moe.experts} experts can't be cut into {groups.count} equal groups",
                      "use a number of groups that divides the number of experts, or `groups: null`")  # fmt: skip
        return
    size = moe.experts // groups.count
    if groups.score_top > size:
        yield Problem((*path, "score_top"), f"a group's score sums {groups.score_top} experts, but a group has {size}",
                      f"give a score_top of at most {size}")  # fmt: skip
    kept = size * min(groups.keep, groups.count)
    if kept < moe.top_k <= moe.experts:
        yield Problem(("moe", "top_k"), f"top_k {moe.top_k} is larger than the {kept} experts of the {groups.keep} kept groups",
                      "keep more groups, or lower top_k")  # fmt: skip


def _fp8(spec: Spec) -> Iterator[Problem]:
    if spec.fp8 is None:
        return
    widths = {"hidden": spec.hidden, "heads * head_dim": spec.attention_width}
    if "mlp" in spec.fp8.products and spec.dense_layers:
        widths["mlp.width"] = spec.mlp.width
    if spec.moe is not None and "experts" in spec.fp8.products:
        widths["moe.width"] = spec.moe.width
    if spec.moe is not None and "shared_experts" in spec.fp8.products and spec.moe.shared_experts:
        widths["moe.shared_experts * shared_width"] = spec.moe.total_shared_width
    for tensors, columns in (("activation", spec.fp8.activation.tile[1]), ("weight", spec.fp8.weight.tile[1])):
        for name, width in widths.items():
            if width % columns:
                yield Problem(("fp8", tensors, "tile"), f"{name} = {width} is not a multiple of the {columns} columns of a scale tile",
                              "FP8 products need whole tiles: change the width, the tile or fp8.products")  # fmt: skip


def _divisors(n: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, n + 1) if n % d == 0)


def _few(numbers: tuple[int, ...], most: int = 8) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return f"{shown}, ..." if len(numbers) > most else shown
