"""Starts a worker script on several ranks, as a user would: with torchrun, over gloo, on this machine."""

from __future__ import annotations

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
