"""Sharded runs that are saved on some ranks and go on on others: see dcp_worker.py for what is promised."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.launch import cases, launch, passed


def test_a_run_of_two_ranks_goes_on_on_two_on_one_and_on_four(tmp_path: Path) -> None:
    saved = passed(launch("dcp_worker.py", 2, tmp_path, "save"))
    for ranks in (2, 1, 4):
        loaded = passed(launch("dcp_worker.py", ranks, tmp_path, "load"))
        assert saved | loaded == cases("dcp_worker.py")
