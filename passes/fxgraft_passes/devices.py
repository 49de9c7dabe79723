"""What is one device's own: random streams, autocast, waiting, memory. All questions about devices are here.

Devices are those of tensors, of any type that ``torch.accelerator`` knows (CUDA, XPU, MPS, …) beside the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def is_meta(device: torch.device) -> bool:
    """Whether tensors there have no numbers."""
    return device.type == "meta"


def is_cpu(device: torch.device) -> bool:
    """Whether it is the CPU."""
    return device.type == "cpu"


CASTS = ("cpu", "cuda")
"""The types of devices that tensors and modules have a method of their name for, that brings them there."""


def with_autocast(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """The types of devices whose autocast matters for operations on ``tensors``, that of the CPU first."""
    return tuple(dict.fromkeys(("cpu", *(t.device.type for t in tensors if has_data(t)))))


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are there (not so on ``meta``)."""
    return tensor.device.type != "meta"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that memory did not suffice raised ``error``, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # the CPU's


def is_free_to_look_at(flag: Tensor) -> bool:
    """Whether the value of a 0-d tensor can be had without waiting or specialising: in eager, on a CPU."""
    is_plain = type(flag) is Tensor and flag.is_cpu and flag.dim() == 0
    # Not under a mode that may record operations for later, or have no values at all.
    return is_plain and not torch.compiler.is_compiling() and not _torch.is_watched()


@contextmanager
def default(device: torch.device) -> Iterator[None]:
    """Make this the default device inside, whatever torch's default device is."""
    if torch.get_default_device() == device:  # nothing in between each call, then
        yield
        return
    with device:
        yield


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


Autocasts = tuple[bool, tuple[tuple[str, torch.dtype], ...]]
"""Whether casts of weights are kept, and the dtype for each type of device for which autocast is on."""


def autocasts() -> Autocasts:
    """What autocast is on, whichever devices the tensors at hand are on."""
    on: tuple[tuple[str, torch.dtype], ...] = ()
    if _torch.is_any_autocast():
        kinds = filter(torch.is_autocast_enabled, _torch.autocast_devices())
        on = tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)
    return torch.is_autocast_cache_enabled(), on


@contextmanager
def under_autocasts(wanted: Autocasts) -> Iterator[None]:
    """Let this autocast be on inside, and no other."""
    before = autocasts()
    if before == wanted:
        yield
        return
    _set_autocasts(before, wanted)
    try:
        yield
    finally:
        _set_autocasts(wanted, before)
        forget_casts()  # those that were made inside


def _set_autocasts(before: Autocasts, wanted: Autocasts) -> None:
    # Not by `torch.autocast`: that refuses devices that this machine has not.
    for kind, _ in before[1]:
        torch.set_autocast_enabled(kind, False)
    for kind, dtype in wanted[1]:
        torch.set_autocast_enabled(kind, True)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(wanted[0])


def forget_casts() -> None:
    """Clear autocast's casts of weights: after they were changed, and after a run that leaves no trace.

    Inside of ``torch.autocast`` a forward leaves casts of the weights for the forwards that follow there,
    which stay as they are where a weight changes.
    """
    torch.clear_autocast_cache()


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
    return torch.Generator(CPU if is_meta(device) else device)


# Memory, and the device that is used where none is named


def make_current(device: torch.device) -> None:
    """Let ``device`` be the one that its type uses where none is named; nothing for the CPU.

    Else a process that works for the second accelerator takes memory on the first one, too.
    """
    if device.index is not None and device.type == accelerator():
        torch.accelerator.set_device_index(device.index)


def free_memory() -> None:
    """Give back what this process keeps of accelerators' memory and uses for no tensor."""
    if accelerator() is not None and _module().is_initialized():
        torch.accelerator.empty_cache()


def peak_memory(device: torch.device, step: Callable[[], object]) -> int:
    """The most bytes that tensors on an accelerator take while ``step`` runs."""
    torch.accelerator.synchronize(device)
    torch.accelerator.reset_peak_memory_stats(device)
    step()
    torch.accelerator.synchronize(device)
    return torch.accelerator.max_memory_allocated(device)


def _module() -> Any:
    """``torch.cuda``, or the module of another accelerator."""
    return getattr(torch, cast(str, accelerator()))
