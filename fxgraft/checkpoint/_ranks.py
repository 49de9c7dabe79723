"""The random streams of ranks other than 0, in files beside the one that rank 0 writes.

Everything else is the same on all ranks. Ranks do not wait for each other: a file says of which step it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fxgraft.checkpoint import file, randomness
from fxgraft.checkpoint.packing import pack, unpack
from fxgraft.telemetry.events import logger


def save_streams(path: str | os.PathLike[str], rank: int, step: int) -> None:
    """Write this rank's random streams. Raises `CheckpointError` if it cannot be written."""
    tensors: dict[str, Tensor] = {}
    manifest = {"step": step, "random": pack(randomness.state(), "random", tensors)}
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
