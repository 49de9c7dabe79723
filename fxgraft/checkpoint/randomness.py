"""The global random streams: torch's, Python's and numpy's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """All streams as data and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "cpu": torch.get_rng_state(),
        "cuda": devices,
        "python": [version, list(words), gauss],
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
    }


def setter(saved: Mapping[str, Any]) -> Callable[[], None]:
    """What sets the streams to a saved state. Raises now, not then, where the state is not one."""
    version, words, gauss = saved["python"]
    python = (version, tuple(words), gauss)
    random.Random().setstate(python)
    np.random.RandomState().set_state(_numpy(saved["numpy"]))
    torch.Generator().set_state(saved["cpu"])
    devices = list(saved["cuda"]) if torch.cuda.is_available() else []
    for device, stream in zip(range(torch.cuda.device_count()), devices, strict=False):
        torch.Generator(f"cuda:{device}").set_state(stream)

    def apply() -> None:
        random.setstate(python)
        np.random.set_state(_numpy(saved["numpy"]))
        torch.set_rng_state(saved["cpu"])
        for device, stream in zip(range(torch.cuda.device_count()), devices, strict=False):
            torch.cuda.set_rng_state(stream, device)

    return apply


def _numpy(saved: list[Any]) -> tuple[str, Any, int, int, float]:
    kind, keys, position, has_gauss, cached = saved
    return kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached
