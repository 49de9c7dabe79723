"""The tensors of host and seeds into a file, and from one: with the versions of their modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.checkpoint._buffers import unsaved_buffers
from fxgraft.checkpoint.file import DAMAGED
from fxgraft.checkpoint.packing import convert_like, pack, unpack
from fxgraft.errors import CheckpointError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.state_loading import ENTRY
from fxgraft.util.bits import overlaps
from fxgraft_passes.graft import SEEDS


def saved_weights(host: Host, departing: Iterable[str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a manifest says of the host's ``state_dict``; its tensors are added to ``tensors``.

    Args:
        host: with its seeds.
        departing: names of seeds that are culled, and whose grafts are still in the graph: they are left out.
        tensors: of the file.

    Raises:
        CheckpointError: there is something in the state that is neither data nor a tensor.
    """
    state, departing = host.state_dict(), tuple(departing)
    # A module that changes states of earlier versions takes one without a version for the earliest.
    versions = dict(getattr(state, "_metadata", {}))
    return {
        "host": pack(_without(departing, state), "host", tensors),
        "versions": pack(_without(departing, versions), "versions", tensors),
        "buffers": pack(_without(departing, unsaved_buffers(host, state)), "buffer", tensors),
    }


def read_weights(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``state_dict`` that `saved_weights` has written; without versions in files of before.

    Raises:
        CheckpointError: what the manifest says is damaged.
    """
    weights = OrderedDict(unpack(manifest["host"], tensors))
    if "versions" in manifest:
        versions = OrderedDict(unpack(manifest["versions"], tensors))
        if strange := [name for name, said in versions.items() if not isinstance(said, Mapping)]:
            raise CheckpointError(f"the version of module {strange[0]!r} is no data of torch's. {DAMAGED}")
        weights._metadata = versions  # type: ignore[attr-defined]
    return weights


def load_weights(undo: ExitStack, host: Host, weights: Mapping[str, Any]) -> None:
    """Load a state that has been checked into ``host``. What can fail then is code of the model's own.

    Args:
        undo: gets callbacks that restore the earlier tensors, where there is such code.
        host: with the seeds of the state.
        weights: from `read_weights`.
    """
    modules = [module for tree in engine.trees(host) for module in tree.modules()]
    if any(map(_loads_by_itself, modules)):
        undo.callback(_put_back, [(t, t.detach().clone()) for t in (*host.parameters(), *host.buffers())])
        for module in filter(_has_extra_state, modules):
            undo.callback(module.set_extra_state, copy.deepcopy(module.get_extra_state()))
    for module in modules:  # torch cannot copy into a value whose elements are one in memory
        for name, buffer in module._buffers.items():
            if buffer is not None and overlaps(buffer):
                undo.callback(module._buffers.__setitem__, name, buffer)
                module._buffers[name] = buffer.clone()
    host.load_state_dict(_in_types_of(weights, host))


def _in_types_of(weights: Mapping[str, Any], host: Host) -> Mapping[str, Any]:
    """With extra states as the modules return them: a file has plain dictionaries and lists alone."""
    extra = [name for name in weights if _torch.is_extra_state(name)]
    if not extra:
        return weights
    found, now = OrderedDict(weights), host.state_dict()
    for name in extra:
        with suppress(CheckpointError):  # of another type by now: the module's own affair
            found[name] = convert_like(weights[name], now.get(name), name)
    if (versions := getattr(weights, "_metadata", None)) is not None:
        found._metadata = versions  # type: ignore[attr-defined]
    return found


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _without(departing: Iterable[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` without those seeds.

    And without the entry that says how seeds are wired where there is no manager's file.
    """
    prefixes = tuple(f"{SEEDS}.{name}." for name in departing)
    return {
        name: value for name, value in state.items() if name != ENTRY and not f"{name}.".startswith(prefixes)
    }


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether a module runs code, which is not torch's, when a state is loaded into it."""
    hooks = _torch.loading_hooks(module)
    methods = (getattr(type(module), name, None) for name in ("_load_from_state_dict", "set_extra_state"))
    return bool(hooks) or any(
        not str(getattr(method, "__module__", "torch.nn")).startswith("torch.") for method in methods
    )


def _put_back(before: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in before:
            tensor.copy_(value)
