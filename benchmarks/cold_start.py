"""How long a model takes from nothing to its first tokens: compile, load weights, first prompt, graphs, steps.

    python -m benchmarks.cold_start [--preset ring-mini-linear-2.0] [--target sm_90] [--prompt 512] [--write]

The compile finds empty caches, and what comes after it is a process of its own, as it is for a user: its first number counts from the
start of the interpreter. Weights are random and made on the device; reading a checkpoint's files comes on top of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import (
    ROOT,
    command_line,
    deliver,
    machine,
    machine_line,
    options,
    table,
    verdict,
)

GOAL = 90.0
"""Seconds from the compile's start to the first token of a captured step, of ring-mini-linear-2.0."""

BATCH = 16


def started(folder: Path, prompt: int) -> dict[str, float]:
    """Seconds of each phase in this process, in order, and of all of them from the process's start on."""
    import psutil
    import torch

    import ringc

    begun = time.time()
    phases = {"start Python, import torch and ringc": begun - psutil.Process().create_time()}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        if model is not None and model.device.type == "cuda":
            torch.cuda.synchronize()
        phases[name] = time.perf_counter() - before

    model: ringc.Model | None = None
    with phase("make and load the weights"):
        model = ringc.load(folder, "random:0")
    ids = torch.randint(model.vocabulary["size"], (1, prompt), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(BATCH, prompt + 16)
    with phase(f"first prompt of {prompt} tokens"):
        logits = model.prefill(ids, cache, slots=[0])
    with phase(f"a decoder of {BATCH} rows: its kernels"):
        decoder = model.decoder(cache, BATCH)
        decoder.enter(0, 0, logits)
    with phase("first step: its graph is captured"):
        decoder.step()
    with phase("second step"):
        decoder.step()
    phases["all of this process"] = time.time() - psutil.Process().create_time()
    return phases


def main() -> None:
    parser = options("cold_start", __doc__)
    parser.add_argument("--preset", default="ring-mini-linear-2.0", help="a preset, or a spec's file")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the first prompt")
    parser.add_argument("--started", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.started is not None:
        print(json.dumps(started(given.started, given.prompt)))
        return

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        empty = {"RINGC_CACHE_DIR": str(Path(folder) / "cache"), "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        environment = {**os.environ, **empty}
        begin = time.perf_counter()
        command = [sys.executable, "-m", "ringc", "compile", given.preset, "-o", str(place), "--target", given.target]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        compiled = time.perf_counter() - begin
        child = [sys.executable, "-m", "benchmarks.cold_start", "--started", str(place), "--prompt", str(given.prompt)]
        done = subprocess.run(child, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    whole = compiled + phases.pop("all of this process")
    rows = [["compile, caches empty", f"{compiled:.2f}"], *([name, f"{s:.2f}"] for name, s in phases.items())]
    goal = f" (goal {GOAL:.0f} s: {verdict(whole, GOAL)})" if given.preset == "ring-mini-linear-2.0" else ""
    found = machine()
    lines = [
        f"{machine_line(found)} `{command_line('cold_start')}`",
        "",
        table([f"{given.preset} for {given.target}", "s"], [*rows, ["all", f"{whole:.2f}{goal}"]]),
    ]
    text = "\n".join(lines)
    result = {"machine": found, "compile": compiled, "phases": phases, "all": whole}
    deliver("cold_start", text, result, given)


if __name__ == "__main__":
    main()
