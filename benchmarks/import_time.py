"""What ``import fxgraft`` costs over ``import torch``, in fresh processes that take turns.

``python -m benchmarks.import_time`` writes ``benchmarks/results/import_time.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.environment import describe

RESULT = Path(__file__).parent / "results" / "import_time.json"
TORCH, OURS, WITH_OPTIMIZER = "import torch", "import fxgraft", "import torch and make an optimizer"
PROGRAMS = {
    TORCH: "import torch",
    OURS: "import fxgraft",
    # torch imports its compiler when the first optimizer is made: no training program goes without.
    WITH_OPTIMIZER: "import torch; torch.optim.SGD([torch.zeros(1)])",
}
ROUNDS = 11


def measure(rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each program in each round; the first round, which fills caches of files, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds + 1):
        for name, program in PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            found[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in found.items()}


def main() -> None:
    """Measure, write, print."""
    found = measure()
    rows = {}
    for name, seconds in found.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds, found[TORCH], strict=True)]
        rows[name] = {"median_s": statistics.median(seconds), "ratio": statistics.median(ratios)}
    result = {"environment": describe(), "rounds": ROUNDS, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:36} {row['median_s']:.3f} s, {row['ratio']:.3f} of import torch")


if __name__ == "__main__":
    main()
