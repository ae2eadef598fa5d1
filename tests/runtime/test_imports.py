"""Running an artifact needs torch, safetensors and psutil: the compiler's packages may be absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys

class Blocker:
    blocked = {"pydantic", "ruamel", "sympy", "networkx", "tvm", "tvm_ffi", "triton", "typer", "rich", "click"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ImportError(f"{name} is blocked")

import torch  # imports sympy and others of its own accord, if they are there
for name in [n for n in sys.modules if n.partition(".")[0] in Blocker.blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())

import ringc
model = ringc.load(sys.argv[1], "random:0")
cache = model.new_cache(1, 16)
model.prefill([[1, 2, 3]], cache)
assert model.decode([4], cache).shape == (1, 272)
assert len(list(model.generate([1, 2], max_new_tokens=3, end=None))) == 3
assert model([[1] * 20]).isfinite().all()
loaded = sorted({n.partition(".")[0] for n in sys.modules} & Blocker.blocked)
assert not loaded, loaded
passes = [n for n in sys.modules if n.startswith(("ringc.passes", "ringc.ir", "ringc.model_defs"))]
assert not passes, passes
"""


def test_an_artifact_runs_without_the_compiler_s_packages(tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_folder)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
