"""The real Accelerate on two processes, over gloo: see accelerate_worker.py for what is promised."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.launch import cases, launch, passed


def test_accelerate_grows_saves_and_resumes_on_two_ranks(tmp_path: Path) -> None:
    assert passed(launch("accelerate_worker.py", 2, tmp_path)) == cases("accelerate_worker.py")
