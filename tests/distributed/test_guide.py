"""The program of docs/guides/ddp.md, started as the page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import IN_ITS_OWN_PROCESS, ROOT, code_of


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_program_of_the_guide(ranks: int, tmp_path: Path) -> None:
    program = tmp_path / "grow_ddp.py"
    program.write_text(code_of(ROOT / "docs" / "guides" / IN_ITS_OWN_PROCESS), encoding="utf-8")
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), str(program)],
        cwd=tmp_path, timeout=300, check=False, capture_output=True, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'passes'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # Rank 0 prints this after its assertions. (torch may abort on its way out: docs/distributed.md.)
    assert done.stdout.strip() == "{'a': Seed('a' at '1', FOSSILIZED, alpha=1)}", done.stderr[-3000:]
    assert (tmp_path / "run.fxgraft").exists()
