"""The very long prompt's models: presets with as many positions as it has tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.long_prompt import MODELS, spec_with_positions
from ringc.model_defs import load_spec


@pytest.mark.parametrize("preset", MODELS)
def test_a_preset_gets_other_positions_and_stays_what_it_is(preset: str, tmp_path: Path) -> None:
    longer, usual = load_spec(str(spec_with_positions(preset, 200_000, tmp_path))), load_spec(preset)
    assert longer.max_positions == 200_000
    assert longer.model_copy(update={"max_positions": usual.max_positions}) == usual
