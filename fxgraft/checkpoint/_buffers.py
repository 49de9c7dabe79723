"""The buffers that a ``state_dict`` leaves out: a run goes on with them all the same.

A model may fill, enlarge or empty such a buffer as it runs: a table of positions, a mask, a cache. A fresh
model has it as it was built, so the file's takes its place, in whatever form it is.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.errors import CheckpointError
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger
from fxgraft.util.bits import overlaps, same_tensor
from fxgraft.util.text import listed

_EXPECTED = "Expected a host of the model that was saved, and blueprints that make the modules of the run"


def unsaved_buffers(host: Host, saved: Container[str]) -> dict[str, Tensor | None]:
    """Name -> buffer, of host and seeds; None where one is registered and empty. Shared ones have all names.

    Args:
        host: with its seeds.
        saved: its ``state_dict``, or the names in it.
    """
    every = host.named_buffers(remove_duplicate=False)
    found: dict[str, Tensor | None] = {n: b for n, b in every if n not in saved}
    return found | dict.fromkeys(_empty(host))


def check_buffers(host: Host, saved: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where ``host`` has buffers that are not saved, or no place for one that is."""
    ours = unsaved_buffers(host, host.state_dict())
    shared = {id(ours[name]) for name in saved if name in ours}  # files of before have one of their names
    if missing := [n for n, b in ours.items() if b is not None and n not in saved and id(b) not in shared]:
        raise CheckpointError(
            f"the host has a buffer {missing[0]}, and the checkpoint has none ({len(missing)} such). "
            f"{_EXPECTED}"
        )
    for name, value in saved.items():
        if not isinstance(value, Tensor | None) or not (name in ours or _has_place(host, name)):
            raise CheckpointError(
                f"the checkpoint has a buffer {name}, for which the host has no place. {_EXPECTED}"
            )


def load_buffers(where: str | os.PathLike[str], host: Host, saved: Mapping[str, Tensor | None]) -> None:
    """Give ``host`` the buffers of a checkpoint, which were checked; say which were of another form.

    Args:
        where: the checkpoint, for what is said.
        host: with the seeds of the checkpoint.
        saved: name -> buffer.
    """
    ours, others = unsaved_buffers(host, host.state_dict()), []
    made: dict[int, Tensor] = {}  # in the place of a buffer that several modules share
    for name, value in _of_all_names(ours, saved).items():
        mine = ours.get(name)
        is_alike = _form(mine) == _form(value)
        if is_alike and mine is not None and value is not None and not overlaps(mine):
            with torch.no_grad():
                mine.copy_(value)
            continue
        path, _, leaf = name.rpartition(".")
        module = host.get_submodule(path)
        if value is not None:
            value = value.to(_device(host, module) if mine is None else mine.device, copy=True)
            if mine is not None and (same := made.setdefault(id(mine), value)) is not value:
                value = same if same_tensor(same, value) else value
        module._buffers[leaf] = value
        _torch.unsaved_buffers(module).add(leaf)
        if not is_alike:
            others.append(f"{name} is {_form(value)}, and was {_form(mine)}")
    if others:
        logger.warning(
            "%s: buffers that are in no state_dict are now as in the saved run: %s. Where the model did not "
            "fill them as it ran, load into a model that is built as the saved one was",
            where,
            listed(others),
        )


def _of_all_names(
    ours: Mapping[str, Tensor | None], saved: Mapping[str, Tensor | None]
) -> dict[str, Tensor | None]:
    """With each name of a buffer that modules of the host share: files of before have one of them."""
    given = {id(ours[name]): value for name, value in saved.items() if ours.get(name) is not None}
    return {**{name: given[id(mine)] for name, mine in ours.items() if id(mine) in given}, **saved}


def _empty(host: Host) -> Iterator[str]:
    for path, module in host.named_modules():
        for leaf in _torch.unsaved_buffers(module):
            if leaf in module._buffers and module._buffers[leaf] is None:
                yield f"{path}.{leaf}" if path else leaf


def _has_place(host: Host, name: str) -> bool:
    """Whether a buffer of that name could be registered."""
    path, _, leaf = name.rpartition(".")
    try:
        module = host.get_submodule(path)
    except AttributeError:
        return False
    return bool(leaf) and not hasattr(module, leaf)


def _form(value: Tensor | None) -> str:
    return "none" if value is None else f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _device(host: Host, module: nn.Module) -> torch.device:
    """Where a buffer of ``module`` belongs that it does not have yet."""
    for tree in (module, host):
        for tensor in (*tree.parameters(), *tree.buffers()):
            return tensor.device
    return torch.device("cpu")
