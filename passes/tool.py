"""Passes on text: what `ringc opt` and the golden tests run."""

from __future__ import annotations

from pathlib import Path

from ringc.ir.levels import verify
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.passes.framework import PassManager, verify_each
from ringc.passes.pipeline import parse_pipeline
from ringc.passes.target import target as find_target


def run_text(text: str, pipeline: str, target: str = "cpu", file: str | Path = "<text>") -> str:
    """The text of a module after a pipeline, verified before and after each pass.

    Raises:
        IRError: the text is no valid module.
        PassError: the pipeline is no list of passes.
    """
    steps = parse_pipeline(pipeline)
    module = parse_module(text, file)
    verify(module)
    PassManager(steps, [verify_each]).run(module, find_target(target))
    return print_module(module)
