"""What a log of a run begins with: the host, its slots, the seeds that are there, and the versions."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import torch

from fxgraft.host.host import Host
from fxgraft.seeds.seed import Seed


def summarize_run(host: Host, seeds: Iterable[Seed]) -> dict[str, Any]:
    """The data of the event ``run_began``, in JSON types."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": type(host._root).__name__,
        "parameters": sum(parameter.numel() for parameter in host.host_parameters()),
        "slots": [
            {
                "name": slot.name,
                "shape": [*map(int, slot.shape)],
                "dtype": str(slot.dtype).removeprefix("torch."),
            }
            for slot in host.slots.values()
        ],
        "seeds": [seed.to_dict() for seed in seeds],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
