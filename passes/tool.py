"""Passes on text: what `ringc opt` and the golden tests run."""

from __future__ import annotations

from pathlib import Path

from ringc.ir.levels import verify
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target_of


def run_text(
    text: str, pipeline: str, target: str = "cpu", file: str | Path = "<text>", device: str | Path | None = None
) -> str:
    """The text of a module after a pipeline, verified before and after each pass.

    Args:
        text: of the module.
        pipeline: the passes.
        target: what they are run for.
        file: where the text comes from, for messages.
        device: the file of a device description, in the place of the target's constants.

    Raises:
        DeviceError: the description can't be used.
        IRError: the text is no valid module.
        PassError: the pipeline is no list of passes.
    """
    steps = parse_pipeline(pipeline)
    module = parse_module(text, file)
    verify(module)
    PassManager(steps, [verify_each]).run(module, target_of(target, device))
    return print_module(module)
