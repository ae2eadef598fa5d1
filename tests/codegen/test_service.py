"""What a kernel notes of the versions that launch it."""

from __future__ import annotations

from ringc.codegen.service import note_service
from ringc.passes.pipeline import default_pipeline
from tests.passes.support_model import Program, tiny_spec


def test_a_kernel_of_short_sequences_alone_notes_their_length() -> None:
    module = Program(tiny_spec(), default_pipeline(), "sm_90").lowered
    (brief,) = (f for f in module.functions.values() if f.name == "prefill.brief")
    note_service(module)
    limits = {f.name: f.notes["each"] for f in module.functions.values() if "family" in f.notes and "each" in f.notes}
    assert set(limits.values()) == {brief.notes["each"]}
    others = [f for f in module.functions.values() if "family" in f.notes and f.name not in limits]
    assert others, "what longer sequences launch too has no limit"
