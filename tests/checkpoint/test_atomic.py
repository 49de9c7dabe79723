"""A process killed at any moment of a save leaves the old file or the new one, and nothing that harms."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.checkpoint import writer
from tests.checkpoint.scenarios import AFTER, SCENARIOS
from tests.forks import FORKS
from tests.harness import assert_same_bits

KILLS = int(os.environ.get("FXGRAFT_KILLS", "30"))
POINTS = [f"{when} {call}" for call in ("save_file", "_flush", "replace") for when in ("before", "after")]


def number_in(path: Path) -> int:
    manifest, tensors = file.read(path)
    assert_same_bits(tensors, writer.tensors_of(manifest["number"]), "tensors")
    return manifest["number"]


def strays(path: Path) -> list[Path]:
    return [p for p in path.parent.iterdir() if p != path]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    path, chance = tmp_path / "run.ckpt", random.Random(0)
    file.write(path, {"number": 0}, writer.tensors_of(0))
    survived = []
    for _ in range(KILLS):
        started = FORKS.Event()
        child = FORKS.Process(target=writer.save_for_ever, args=(path, started))
        child.start()
        assert started.wait(60)
        time.sleep(chance.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        survived.append(number_in(path))
        assert len(strays(path)) <= 1, "what earlier writers left was not swept"
    assert len(set(survived)) > 1, "all kills hit the same save: the moments are not random"
    file.write(path, {"number": 7}, writer.tensors_of(7))
    assert number_in(path) == 7
    assert not strays(path)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_step_of_a_save(point: str, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    file.write(path, {"number": 1}, writer.tensors_of(1))
    child = FORKS.Process(target=writer.die_at, args=(path, point))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert number_in(path) == (2 if point == "after replace" else 1)
    file.write(path, {"number": 3}, writer.tensors_of(3))
    assert number_in(path) == 3
    assert not strays(path)


def test_a_first_save_that_is_killed_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    child = FORKS.Process(target=writer.die_at, args=(path, "before replace"))
    child.start()
    child.join()
    assert not path.exists()
    with pytest.raises(CheckpointError):
        file.read(path)


def test_a_run_killed_after_a_save_in_mid_blend_resumes(tmp_path: Path) -> None:
    path, scenario = tmp_path / "run.ckpt", SCENARIOS["blending"]
    child = FORKS.Process(target=writer.train_and_die, args=(path, "blending"))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed = scenario.load(path)
    assert resumed.manager.seeds["a"].stage.name == "BLENDING"
    losses = resumed.train(AFTER)
    assert losses == scenario.saved(tmp_path / "straight.ckpt").train(AFTER)


def test_the_scratch_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    other = tmp_path / f"{file._prefix(path)}{os.getppid()}.0.part"
    other.mkdir()
    file.write(path, {"number": 1}, writer.tensors_of(1))
    assert strays(path) == [other]


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def not_permitted(*args: Any, **kwargs: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def half_written(tensors: Any, scratch: Path, **kwargs: Any) -> None:
    scratch.write_bytes(b"half of a")
    no_space()


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (file, "save_file", no_space),
        (file, "save_file", half_written),
        (file, "save_file", not_permitted),
        (file, "_flush", no_space),
        (Path, "replace", not_permitted),
    ],
)
def test_a_save_that_fails_leaves_the_old_file(
    owner: Any, name: str, fault: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    file.write(path, {"number": 1}, writer.tensors_of(1))
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fault)
        with pytest.raises(CheckpointError, match="could not be written"):
            file.write(path, {"number": 2}, writer.tensors_of(2))
    assert number_in(path) == 1
    assert not strays(path)


def test_a_real_limit_on_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    file.write(path, {"number": 1}, writer.tensors_of(1))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            file.write(path, {"number": 2}, writer.tensors_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert number_in(path) == 1
    assert not strays(path)


@pytest.mark.parametrize("place", ["missing/run.ckpt", ".", "x" * 300])
def test_a_place_that_cannot_be_is_an_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        file.write(tmp_path / place, {"number": 1}, writer.tensors_of(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        {"manifest": {"x": object()}},
        {"manifest": {"x": float("nan")}},
        {"manifest": {}, "tensors": {"t": torch.empty(2, device="meta")}},
        {"manifest": {}, "tensors": {"t": torch.eye(2).to_mkldnn()}},
    ],
    ids=["object", "nan", "meta", "mkldnn"],
)
def test_content_that_cannot_be_saved_is_an_error(content: dict, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    file.write(path, {"number": 1}, writer.tensors_of(1))
    with pytest.raises(CheckpointError, match="could not be written"):
        file.write(path, content["manifest"], content.get("tensors", {}))
    assert number_in(path) == 1
    assert not strays(path)


def test_a_name_as_long_as_names_can_be_and_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / ("x" * 255), tmp_path / "latest"
    link.symlink_to(path.name)
    file.write(link, {"number": 1}, writer.tensors_of(1))
    assert link.is_symlink()
    assert number_in(path) == 1


def test_the_file_has_the_permissions_that_new_files_have(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    file.write(tmp_path / "run.ckpt", {}, {})
    assert stat.S_IMODE((tmp_path / "run.ckpt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# What is there that is no file, and what others left


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    manager = fxgraft.SeedManager(fxgraft.trace(nn.Linear(2, 2), (torch.randn(1, 2),)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link, tmp_path):
        with pytest.raises(CheckpointError, match="plain file"):
            manager.save(path)
    assert pipe.is_fifo()
    host = fxgraft.trace(nn.Linear(2, 2), (torch.randn(1, 2),))
    with pytest.raises(CheckpointError, match="plain file"):  # to open it would wait for ever
        fxgraft.SeedManager.load(pipe, host)


def test_what_an_earlier_process_of_the_same_number_left_is_swept(tmp_path: Path) -> None:
    """In a container each run is process 1."""
    path = tmp_path / "run"
    manager = fxgraft.SeedManager(fxgraft.trace(nn.Linear(2, 2), (torch.randn(1, 2),)))
    for number in range(4):
        stray = tmp_path / f"{file._prefix(path)}{os.getpid()}.{number}.part"
        stray.mkdir()
        (stray / "file").write_bytes(b"half")
    manager.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_names_that_are_bytes(tmp_path: Path) -> None:
    model, example = nn.Linear(2, 2), (torch.randn(1, 2),)
    manager = fxgraft.SeedManager(fxgraft.trace(model, example))
    manager.save(os.fsencode(tmp_path / "café"))
    fxgraft.SeedManager.load(os.fsencode(tmp_path / "café"), fxgraft.trace(model, example))
    with pytest.raises(CheckpointError, match="utf-8"):
        manager.save(os.fsencode(tmp_path / "latin") + b"\xe9")
