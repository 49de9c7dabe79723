"""Child processes that write checkpoints until they are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from fxgraft.checkpoint import file
from tests.checkpoint.scenarios import SCENARIOS


def tensors_of(number: int) -> dict[str, torch.Tensor]:
    """A few hundred kilobytes that say which save they are of."""
    return {f"t{i}": torch.full((64, 256), float(number + i)) for i in range(6)}


def save_for_ever(path: Path, started: Any) -> None:
    torch.set_num_threads(1)
    for number in range(1, 10**6):
        file.write(path, {"number": number}, tensors_of(number))
        started.set()


def die_at(path: Path, point: str) -> None:
    """Save once and be killed by SIGKILL before or after one of the calls that ``write`` makes."""
    where, name = point.split(" ")
    owner = Path if name == "replace" else file
    real = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs) if where == "after" else None
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)
    file.write(path, {"number": 2}, tensors_of(2))


def train_and_die(path: Path, name: str) -> None:
    """Save in mid-course, go on, and be killed in the middle of a later save."""
    torch.set_num_threads(1)
    run = SCENARIOS[name].saved(path)
    run.train(2)
    file._flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    run.manager.save(path)
