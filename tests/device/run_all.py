"""Checks and times every Triton kernel on a GPU and prints a table: `python -m tests.device.run_all [NAME...]`.

Each kernel is checked in a process of its own, a few at a time, so that one that crashes, hangs or doesn't compile is one line of the
table. Everything ends within 8 minutes: what finds no time is named. Exit code 1 if anything failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.device.cases import Outcome, cases

ROOT = Path(__file__).parents[2]
CHECKS = 280.0
"""Seconds after which no further check is begun."""
WHOLE = 460.0
"""Seconds after which no further timing is begun."""
LONGEST = 150.0
"""Seconds that one kernel's check may take."""
AT_ONCE = 8
"""Checks side by side: they spend their time in compilers and references."""


def checked(name: str, longest: float = LONGEST) -> Outcome:
    """The outcome of a case, run in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.device.one", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=longest,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(0, float("nan"), float("nan"), f"took longer than {longest:.0f} s")
    for line in done.stdout.splitlines():
        if line.startswith("OUTCOME "):
            return Outcome(**json.loads(line.removeprefix("OUTCOME ")))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return Outcome(0, float("nan"), float("nan"), f"the process ended with {done.returncode}: {last[:200]}")


def main(wanted: list[str]) -> int:
    import torch

    from ringc.codegen.triton.jit import prepare_jit
    from ringc.codegen.triton.toolchain import find_toolchain

    started = time.time()
    major, minor = torch.cuda.get_device_capability()
    toolchain = find_toolchain(major * 10 + minor)
    print(
        f"torch {torch.__version__}, Triton {toolchain.triton}, ptxas {toolchain.ptxas.version} ({toolchain.ptxas.origin})"
    )
    for line in prepare_jit(strict=False):
        print(line)
    found = [c for c in cases() if not wanted or any(c.name.startswith(w) for w in wanted)]
    print(f"{'kernel':<22} {'implementation':<58} {'runs':>4} {'random':>8} {'integer':>8}", flush=True)
    failures = 0

    def work(name: str) -> Outcome | None:
        return checked(name) if time.time() - started < CHECKS else None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for case, outcome in zip(found, pool.map(work, [c.name for c in found]), strict=True):
            head = f"{case.name:<22} {str(case.kernel.implementation)[:58]:<58}"
            if outcome is None:
                print(f"{head} not run: no time left", flush=True)
                continue
            failures += bool(outcome.failed)
            said = f"FAILED {outcome.failed}" if outcome.failed else "ok"
            print(f"{head} {outcome.runs:>4} {outcome.random:8.1e} {outcome.integer:8.1e} {said}", flush=True)
    print(f"{len(found)} kernels, {failures} failed, {time.time() - started:.0f} s\n", flush=True)
    environment = os.environ | {"RINGC_DEADLINE": str(started + WHOLE)}
    left = max(30.0, started + WHOLE + 15.0 - time.time())
    try:
        subprocess.run(
            [sys.executable, "-m", "tests.device.timing"], cwd=ROOT, env=environment, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        print("the timings were cut off: no time left")
    print(f"{time.time() - started:.0f} s in all")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
