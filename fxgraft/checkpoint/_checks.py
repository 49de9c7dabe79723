"""Whether a checkpoint fits the host, the seeds, the optimizers and the schedulers that are given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fxgraft import _torch
from fxgraft.checkpoint.packing import convert_like
from fxgraft.errors import CheckpointError
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger
from fxgraft.util.text import listed, pluralize
from fxgraft_passes.graft import SEEDS


def check_model(host: Host, saved: Iterable[Sequence[Any]]) -> None:
    """Raise `CheckpointError` where the tensors of the model are others than those that were saved.

    What ``get_extra_state`` returned is the module's own affair: ``set_extra_state`` takes it, or raises.
    """
    state = host.model_state()
    ours = {n: (list(t.shape), str(t.dtype)) for n, t in state.items() if isinstance(t, Tensor)}
    ours = {name: form for name, form in ours.items() if not _torch.is_extra_state(name)}
    theirs = {n: (shape, dtype) for n, shape, dtype in saved if not _torch.is_extra_state(n)}
    if different := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
        name = different[0]
        raise CheckpointError(
            f"the checkpoint is of another host: {len(different)} tensors differ; the first is {name}: "
            f"expected {ours.get(name, 'nothing')}, as in the host; got {theirs.get(name, 'nothing')}"
        )


def check_types(what: str, saved: Sequence[Mapping[str, Any]], given: Sequence[Any]) -> None:
    """Raise `CheckpointError` where optimizers or schedulers are of other classes than the saved ones."""
    ours, theirs = [type(x).__name__ for x in given], [x["type"] for x in saved]
    if ours != theirs:
        wanted, got = (", ".join(names) or "none" for names in (theirs, ours))
        raise CheckpointError(f"{what}: expected {wanted}, as in the checkpoint; got {got}")


def check_weights(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where the tensors of host and seeds are others than those that were saved."""
    ours, theirs = ({n: _form(n, value) for n, value in values.items()} for values in (given, saved))
    if different := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
        name = different[0]
        raise CheckpointError(
            f"the checkpoint's weights do not fit its seeds: {', '.join(different[:3])}. For {name} expected "
            f"{ours.get(name, 'nothing')}, as in the host; got {theirs.get(name, 'nothing')}. Expected "
            f"blueprints that make the modules of the saved run; and where the host has grown deeper or "
            f"wider, the model as it was when that run began"
        )


def frozen(host: Host) -> list[str]:
    """The parameters of the host, without those of seeds, that do not require gradients."""
    return [
        name
        for name, parameter in host.named_parameters()
        if not parameter.requires_grad and not name.startswith(f"{SEEDS}.")
    ]


def warn_of_frozen(path: str | os.PathLike[str], host: Host, saved: Any) -> None:
    """Say which parameters of the host train that did not in the saved run, and the other way round."""
    if not isinstance(saved, list):  # in files of earlier versions
        return
    ours, theirs = set(frozen(host)), {name for name in saved if isinstance(name, str)}
    for names, what in ((theirs - ours, "do"), (ours - theirs, "do not")):
        if names:
            logger.warning(
                "%s: %s of the host %s require gradients, other than in the saved run (%s). To go on as it "
                "would have, freeze the fresh host in the same way before load",
                path,
                pluralize(len(names), "parameter"),
                what,
                listed(sorted(names), ", "),
            )


def other_modes(host: Host) -> list[str]:
    """The modules of the host, without those of seeds, that are in another mode than the host itself."""
    return [
        name
        for name, module in host.named_modules()
        if module.training != host.training and not f"{name}.".startswith(f"{SEEDS}.")
    ]


def warn_of_modes(path: str | os.PathLike[str], host: Host, saved: Any) -> None:
    """Say which modules of the host are in another mode beside it than in the saved run."""
    if not isinstance(saved, list):  # in files of earlier versions
        return
    ours, theirs = set(other_modes(host)), {name for name in saved if isinstance(name, str)}
    if different := sorted(ours ^ theirs):
        logger.warning(
            "%s: %s of the host in another mode, train or eval, than in the saved run (%s). To go on as it "
            "would have, set the modes of the fresh host before load",
            path,
            pluralize(len(different), "module"),
            listed(different, ", "),
        )


def _form(name: str, value: Any) -> tuple[Any, ...]:
    if _torch.is_extra_state(name):
        return ("extra state",)
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value),)


def scheduler_state(scheduler: Any, saved: Mapping[str, Any]) -> Any:
    """The state to load into a scheduler. Raises `CheckpointError` where it is one of another form."""
    ours = scheduler.state_dict()
    if ours.keys() != saved.keys():
        raise CheckpointError(f"{type(scheduler).__name__}: expected {sorted(ours)}; got {sorted(saved)}")
    return convert_like(saved, ours, type(scheduler).__name__)
