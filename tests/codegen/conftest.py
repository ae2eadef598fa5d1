"""What tests of generated kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ringc.codegen.triton.interpret import InterpreterWorker


@pytest.fixture(scope="module")
def interpreter() -> Iterator[InterpreterWorker]:
    """Triton's interpreter in a process of its own; without it where the installed versions can't interpret."""
    pytest.importorskip("triton")
    from ringc.codegen.triton.interpret import InterpreterWorker
    from ringc.codegen.triton.toolchain import installed_versions, known_problems

    for problem in known_problems(installed_versions(), stage="interpreter"):
        if problem.severity == "error":
            pytest.skip(problem.what)
    with InterpreterWorker() as worker:
        yield worker
