"""The examples of docs/ir.md are what they claim to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ringc.ir.interpret import run
from ringc.ir.levels import verify
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module

PAGE = Path(__file__).parents[2] / "docs" / "ir.md"
EXAMPLES = re.findall(r"```ring\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_examples_are_as_printed(index: int) -> None:
    module = parse_module(EXAMPLES[index], PAGE)
    verify(module)
    assert print_module(module) == EXAMPLES[index]


def test_gated_linear_attention_as_sketched(generator: torch.Generator) -> None:
    (text,) = (e for e in EXAMPLES if "@gla" in e)
    lengths, slots = [3, 0, 5], [2, 0, -1]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rows = sum(lengths)
    q, k, g = (torch.randn(rows, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    v = torch.randn(rows, 2, 4, generator=generator, dtype=torch.float64)
    pool = torch.randn(4, 2, 8, 4, generator=generator, dtype=torch.float64)
    g = torch.nn.functional.logsigmoid(g)
    inputs = [q, k, v, g, pool, torch.tensor(slots, dtype=torch.int32), offsets]
    o, after = run(parse_module(text), "gla", inputs, precision=torch.float64)

    expected = pool.clone()
    for b, slot in enumerate(slots):
        S = pool[slot] if slot >= 0 else torch.zeros(2, 8, 4, dtype=torch.float64)
        for t in range(int(offsets[b]), int(offsets[b + 1])):
            S = torch.stack([torch.diag(g[t, h].exp()) @ S[h] + torch.outer(k[t, h], v[t, h]) for h in range(2)])
            torch.testing.assert_close(o[t], torch.stack([q[t, h] @ S[h] for h in range(2)]))
        if slot >= 0:
            expected[slot] = S
    torch.testing.assert_close(after, expected)
