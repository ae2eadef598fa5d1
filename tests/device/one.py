"""One case in a process of its own: `python -m tests.device.one NAME`. A kernel that crashes takes no other with it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tests.device.cases import Outcome, case, check


def main(name: str) -> None:
    try:
        outcome = check(case(name))
    except Exception as error:  # noqa: BLE001 - the table shows whatever a kernel or its compiler raises
        said = str(error).strip().splitlines() or [""]
        outcome = Outcome(
            0, float("nan"), float("nan"), f"{type(error).__name__}: {said[0][:200]} ... {said[-1][:200]}"
        )
    print("OUTCOME " + json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
