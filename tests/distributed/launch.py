"""Starts a worker script on several ranks, as a user would: with torchrun, over gloo, on this machine."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 240.0


def torchrun(
    script: str, ranks: int, *args: str | os.PathLike[str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``tests/distributed/<script>`` on ``ranks`` processes; what they print is in the result."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "passes")]),
        "TORCHELASTIC_ERROR_FILE": os.devnull,
    }
    done = subprocess.run(
        [*command, str(Path(__file__).parent / script), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    return done


def cases(worker: str) -> set[str]:
    """What a worker has to pass: its public functions that take nothing."""
    tree = ast.parse((Path(__file__).parent / worker).read_text(encoding="utf-8"))
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.args.args}
    return {name for name in named if name != "main" and not name.startswith("_")}


def passed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """What a worker said it has passed."""
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ok ")}
