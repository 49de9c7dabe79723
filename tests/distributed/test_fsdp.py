"""Hosts that fully_shard has sharded, on real processes: see fsdp_worker.py for what is promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import cases, launch, passed


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_promise_about_sharded_hosts_holds_on(ranks: int, tmp_path: Path) -> None:
    assert passed(launch("fsdp_worker.py", ranks, tmp_path)) == cases("fsdp_worker.py")
