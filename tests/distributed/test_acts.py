"""Acts that fail on one of several ranks, and sharded hosts: see acts_worker.py for what is promised."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.launch import cases, launch, passed


def test_every_promise_about_acts_holds(tmp_path: Path) -> None:
    assert passed(launch("acts_worker.py", 2, tmp_path)) == cases("acts_worker.py")
