"""The global random streams: torch's, Python's and numpy's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxgraft_passes import devices


def state() -> dict[str, Any]:
    """All streams as data and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": devices.accelerator_streams(),  # of whatever kind they are
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
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
