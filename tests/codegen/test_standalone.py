"""What a library call's file says when it is run by itself. Generated kernels' files: tests/cli/test_inspect.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ringc.codegen import standalone
from ringc.codegen.emit import emit
from ringc.codegen.kernel import kernel_of
from ringc.ir.text_parse import parse_module

PRODUCT = """module @m level kernel
symbol N >= 1

func @matmul_1(%x: DTYPE[N, 16], %w: DTYPE[8, 16]) with {family = "matmul", implementation = "torch.library"} {
  %1 = matmul(%x, %w) {transpose_b = true} : DTYPE[N, 8]
  return %1
}
"""

OF_THIS_CPU = "of this CPU, not of the target: there is no GPU here\n"


def product(folder: Path, dtype: str) -> Path:
    (function,) = parse_module(PRODUCT.replace("DTYPE", dtype)).functions.values()
    path = folder / "matmul_1.py"
    path.write_text(emit(kernel_of(function)).text)
    return path


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_whose_time_it_is_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert standalone.run(product(tmp_path, dtype))
    assert (OF_THIS_CPU in capsys.readouterr().out) == (dtype == "bf16")


@pytest.mark.parametrize(("dtype", "device"), [("f32", "cpu"), ("bf16", "cuda")])
def test_where_it_runs_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str, device: str
) -> None:
    used: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def check(*given: Any) -> bool:
        used.append(given[-1])
        return True

    def measure(*given: Any) -> tuple[float, int]:
        used.append(given[-1])
        return 1e-6, 1

    monkeypatch.setattr(standalone, "_check", check)
    monkeypatch.setattr(standalone, "measure", measure)
    assert standalone.run(product(tmp_path, dtype))
    assert used == [device, device]
    assert capsys.readouterr().out == "1.0 us (median of 1)\n"
