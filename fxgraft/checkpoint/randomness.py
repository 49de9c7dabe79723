"""The global random streams, torch's, Python's and numpy's; of ranks other than 0 in files of their own.

Such a file is beside the one that rank 0 writes: everything else is the same on all ranks. Ranks do not wait
for each other: a file says of which step it is.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxgraft.checkpoint import file
from fxgraft.checkpoint.packing import pack, unpack
from fxgraft.telemetry.events import logger
from fxgraft_passes import devices


def state() -> dict[str, Any]:
    """All streams as data and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": devices.accelerator_streams(),  # of whatever kind they are
        "python": [version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def setter(saved: Mapping[str, Any]) -> Callable[[], None]:
    """What sets the streams to a saved state. Raises now, not then, where the state is not one."""
    version, words, gauss = saved["python"]
    python = (version, tuple(_listed(words)), gauss)
    random.Random().setstate(python)
    np.random.RandomState().set_state(_numpy(saved["numpy"]))
    torch.Generator().set_state(saved["cpu"])
    set_accelerators = devices.set_accelerator_streams(list(saved["cuda"]))

    def apply() -> None:
        random.setstate(python)
        np.random.set_state(_numpy(saved["numpy"]))
        torch.set_rng_state(saved["cpu"])
        set_accelerators()

    return apply


def _numpy(saved: list[Any]) -> tuple[str, Any, int, int, float]:
    kind, keys, position, has_gauss, cached = saved
    return kind, np.array(_listed(keys), dtype=np.uint32), position, has_gauss, cached


def _listed(words: Any) -> list[int]:
    """The words of a stream: a tensor, or a list in a file of an earlier version."""
    return words.tolist() if isinstance(words, Tensor) else list(words)


def save_streams(path: str | os.PathLike[str], rank: int, step: int) -> None:
    """Write this rank's random streams. Raises `CheckpointError` if it cannot be written."""
    tensors: dict[str, Tensor] = {}
    manifest = {"step": step, "random": pack(state(), "random", tensors)}
    file.write(_of(path, rank), manifest, tensors)


def streams_of(path: str | os.PathLike[str], rank: int, step: int) -> Mapping[str, Any] | None:
    """The random streams that a rank saved at that step; None, and said so, if there are none."""
    where = _of(path, rank)
    if where.exists():
        manifest, tensors = file.read(where)
        if manifest.get("step") == step:
            found: Mapping[str, Any] = unpack(manifest["random"], tensors)
            return found
    logger.warning("%s has no random streams of step %s: rank %s goes on with its own", where, step, rank)
    return None


def _of(path: str | os.PathLike[str], rank: int) -> Path:
    return Path(f"{os.fspath(path)}.rank{rank}")
