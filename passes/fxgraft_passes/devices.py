"""What is one device's own: random streams, autocast, waiting, memory. All questions about devices are here.

Devices are those of tensors, of any type that ``torch.accelerator`` knows (CUDA, XPU, MPS, …) beside the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fxgraft_passes import _torch

CPU = torch.device("cpu")


def accelerator() -> str | None:
    """The type of this machine's accelerator (``"cuda"``, …); None where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def types() -> tuple[str, ...]:
    """The types of devices on this machine, the CPU first."""
    found = accelerator()
    return ("cpu",) if found is None else ("cpu", found)


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are there (not so on ``meta``)."""
    return tensor.device.type != "meta"


def is_free_to_look_at(flag: Tensor) -> bool:
    """Whether the value of a 0-d tensor can be had without waiting or specialising: in eager, on a CPU."""
    is_plain = type(flag) is Tensor and flag.is_cpu and flag.dim() == 0
    # Not while something looks on that may record operations for later, or have no values at all.
    return is_plain and not torch.compiler.is_compiling() and not _torch.is_watched()


def wait(tensor: Tensor) -> None:
    """Wait until the device of ``tensor`` has done what was asked of it, as a clock needs it."""
    if tensor.device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(tensor.device)


def type_of(values: Sequence[Any]) -> str:
    """The type of the device that the first tensor of ``values`` is on; the CPU where there is no tensor."""
    return next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")


# Autocast


def is_autocast(*kinds: str) -> bool:
    """Whether autocast is on for one of these types of devices; by default for one of this machine's."""
    return any(map(torch.is_autocast_enabled, kinds or types()))


def autocast(kind: str) -> torch.dtype | None:
    """The dtype of the autocast that is on for this type of device; None where none is."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


# Random streams


def indices() -> range:
    """The numbers of the accelerators of this machine."""
    return range(torch.accelerator.device_count() if accelerator() is not None else 0)


def accelerator_streams() -> list[Tensor]:
    """The state of the global random stream of each accelerator."""
    return [_module().get_rng_state(index) for index in indices()]


def set_accelerator_streams(states: Sequence[Tensor]) -> Callable[[], None]:
    """What sets these streams, as far as there are devices. Raises now, not then, where a state is none."""
    kind, pairs = accelerator(), list(zip(indices(), states, strict=False))
    for index, state in pairs:
        torch.Generator(f"{kind}:{index}").set_state(state)

    def apply() -> None:
        for index, state in pairs:
            _module().set_rng_state(state, index)

    return apply


def global_streams() -> list[Tensor]:
    """The state of the global random stream of each device, the CPU's first.

    Of accelerators only those that this process has used: to ask another one would start it.
    """
    is_in_use = accelerator() is not None and _module().is_initialized()
    return [torch.get_rng_state(), *(accelerator_streams() if is_in_use else ())]


@contextmanager
def streams_kept() -> Iterator[None]:
    """Put the global random stream of each device back afterwards."""
    kind = accelerator()
    with torch.random.fork_rng(list(indices()), device_type=kind or "cuda"):
        yield


def generator(device: torch.device) -> torch.Generator:
    """A stream of its own for numbers on ``device`` (for those on ``meta``, which has none, the CPU's)."""
    return torch.Generator(CPU if device.type == "meta" else device)


# Memory


def peak_memory(device: torch.device, step: Callable[[], object]) -> int:
    """The most bytes that tensors on an accelerator take while ``step`` runs."""
    torch.accelerator.synchronize(device)
    torch.accelerator.reset_peak_memory_stats(device)
    step()
    torch.accelerator.synchronize(device)
    return torch.accelerator.max_memory_allocated(device)


def _module() -> Any:
    """``torch.cuda``, or what stands for it where the accelerator is another one."""
    return getattr(torch, cast(str, accelerator()))
