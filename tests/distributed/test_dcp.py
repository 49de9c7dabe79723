"""Sharded runs that are saved on some ranks and go on on others: see dcp_worker.py for what is promised."""

from __future__ import annotations

from pathlib import Path

from fxgraft.distributed._dcp import RUN, SHARDS, _point
from tests.distributed.launch import cases, launch, passed


def test_a_run_of_two_ranks_goes_on_on_two_on_one_and_on_four(tmp_path: Path) -> None:
    saved = passed(launch("dcp_worker.py", 2, tmp_path, "save"))
    for ranks in (2, 1, 4):
        loaded = passed(launch("dcp_worker.py", ranks, tmp_path, "load"))
        assert saved | loaded == cases("dcp_worker.py")


def test_a_save_deletes_no_folder_that_is_not_of_a_save(tmp_path: Path) -> None:
    """A date is eight hexadecimal digits, too."""
    for name, inside in (("20261201", "mine.txt"), ("deadbeef", RUN), ("0badf00d", SHARDS), ("00000000", "")):
        (tmp_path / name).mkdir()
        if inside:
            (tmp_path / name / inside).write_bytes(b"")
    (tmp_path / "12345678").write_bytes(b"a file")
    new = tmp_path / "cafecafe"
    new.mkdir()
    assert _point(tmp_path, new) == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "00000000", "12345678", "20261201", "cafecafe", "current",
    ]  # fmt: skip
