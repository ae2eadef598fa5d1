"""How long one very long prompt takes, in chunks: the hybrid model against the same family with softmax attention everywhere.

    python -m benchmarks.long_prompt [--tokens 131072] [--chunk 32768] [--target sm_90] [--write]

Each model is compiled, its preset with as many positions as the prompt has, and measured by `ringc bench --entry prefill` in a process of
its own, one after the other: both don't fit beside each other. Weights and tokens are random.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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

MODELS = ("ring-mini-linear-2.0", "ring-mini-2.0")
FLOOR, FASTER = 1.6, 2.5
"""Goals at 131072 tokens: the hybrid model's time over its floor, and how many times as fast as the other it is."""


def spec_with_positions(preset: str, positions: int, folder: Path) -> Path:
    """A preset as a file, for texts of so many tokens.

    Raises:
        SystemExit: the preset's text names no number of positions.
    """
    show = [sys.executable, "-m", "ringc", "presets", preset]
    text = subprocess.run(show, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    longer, count = re.subn(r"^max_positions: \d+", f"max_positions: {positions}", text, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"the preset {preset} says no max_positions")
    path = folder / f"{preset}.yaml"
    path.write_text(longer, encoding="utf-8")
    return path


def measured(preset: str, tokens: int, chunk: int, target: str, rounds: int) -> dict[str, Any]:
    """What `ringc bench` says of a preset's prefill, as it writes it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = spec_with_positions(preset, tokens, folder)
        ringc = [sys.executable, "-m", "ringc"]
        artifact, numbers = folder / "artifact", folder / "numbers.json"
        make = [*ringc, "compile", str(spec), "-o", str(artifact), "--target", target]
        subprocess.run(make, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        sizes = ["--entry", "prefill", "--tokens", str(tokens), "--chunk", str(chunk), "--rounds", str(rounds)]
        bench = [*ringc, "bench", str(artifact), *sizes, "--json", str(numbers)]
        subprocess.run(bench, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(numbers.read_text(encoding="utf-8"))
        return found


def main() -> None:
    parser = options("long_prompt", __doc__)
    parser.add_argument("--tokens", type=int, default=131072, help="of the prompt")
    parser.add_argument("--chunk", type=int, default=32768, help="tokens that are taken at a time")
    parser.add_argument("--models", default=",".join(MODELS), help="presets, the hybrid one first")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    found = machine()
    models = given.models.split(",")
    results = {m: measured(m, given.tokens, given.chunk, given.target, given.rounds) for m in models}
    rows = []
    for model, numbers in results.items():
        most = max(numbers["kernels"], key=lambda k: float(k["seconds"]))
        rows.append(
            [
                model,
                f"{numbers['seconds']:.3g}",
                f"{numbers['tokens_per_second']:.0f}",
                f"{numbers['ratio_to_floor']:.3f}",
                f"{most['kernel']} ({most['implementation']}) {most['share']:.0%}",
            ]
        )
    first, *others = results.values()
    goals = [f"over its floor {first['ratio_to_floor']:.3f} (goal {FLOOR}: {verdict(first['ratio_to_floor'], FLOOR)})"]
    for other in others:
        ratio = other["seconds"] / first["seconds"]
        goals.append(f"{ratio:.2f} times as fast (goal {FASTER}: {verdict(ratio, FASTER, higher=True)})")
    text = "\n".join(
        [
            f"{machine_line(found)} `{command_line('long_prompt')}`",
            "",
            table([f"prompt of {given.tokens}", "s", "tokens a second", "/ floor", "most of it"], rows),
            "",
            f"{models[0]}: {', '.join(goals)}.",
        ]
    )
    deliver("long_prompt", text, {"machine": found, "models": results}, given)


if __name__ == "__main__":
    main()
