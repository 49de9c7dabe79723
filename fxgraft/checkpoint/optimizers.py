"""Optimizers in a checkpoint: the state, and which parameter is where.

``Optimizer.state_dict`` counts parameters by place. The places depend on the course of the run (which
seed went live first, which were culled meanwhile), so names are saved beside them and put back first.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from fxgraft.checkpoint.file import DAMAGED
from fxgraft.checkpoint.packing import convert_like, pack
from fxgraft.errors import CheckpointError
from fxgraft.optimizers.groups import OWNER
from fxgraft.optimizers.wrapped import nested
from fxgraft.telemetry.events import logger

_OF_PARAMETERS_SHAPE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_SEED = "_seeds."

Names = list[list[str | None]]
"""For each group the names of its parameters, None for one that is not the host's."""


def record(
    optimizers: Sequence[Optimizer], model: nn.Module, tensors: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """What a manifest says of ``optimizers``. Raises `CheckpointError` for state that it could not say."""
    for optimizer in optimizers:
        _refuse_hidden_state(optimizer)
        _warn_of_foreign(optimizer, model)
    return [
        {
            "type": type(optimizer).__name__,
            "names": parameter_names(optimizer, model),
            "state": pack(optimizer.state_dict(), f"optimizer.{i}", tensors),
        }
        for i, optimizer in enumerate(optimizers)
    ]


def arrange(optimizers: Sequence[Optimizer], saved: Sequence[Names], model: nn.Module) -> None:
    """Put the parameters of seeds where they were. Raises `CheckpointError` if the host's are elsewhere."""
    orders = [_order(parameter_names(o, model), o, names) for o, names in zip(optimizers, saved, strict=True)]
    for number, (optimizer, names) in enumerate(zip(optimizers, saved, strict=True)):
        found = parameter_names(optimizer, model)
        ours, theirs = _without_seeds(found[i] for i in orders[number]), _without_seeds(names)
        if ours != theirs:
            raise CheckpointError(
                f"optimizer {number}: its groups hold other parameters than those of the checkpoint: "
                f"expected {_short(theirs)}; got {_short(ours)}"
            )
    seeds = {n: p for n, p in model.named_parameters() if n.startswith(_SEED)}
    places, here = _of_seeds(saved), _of_seeds(parameter_names(o, model) for o in optimizers)
    # There may be more than here, where the user unfroze a part that its blueprint freezes.
    if optimizers and not (set(here) <= set(places) <= set(seeds) and len(places) == len(set(places))):
        raise CheckpointError(
            f"the optimizers of the checkpoint hold other parameters than its seeds have. {DAMAGED}"
        )
    for optimizer, names, order in zip(optimizers, saved, orders, strict=True):
        optimizer.param_groups[:] = [optimizer.param_groups[i] for i in order]
        of_host = [
            [n is None or not n.startswith(_SEED) for n in group]
            for group in parameter_names(optimizer, model)
        ]
        for group, kept, wanted in zip(optimizer.param_groups, of_host, names, strict=True):
            for key in ("params", "param_names"):
                if key not in group:
                    continue
                own = iter([entry for entry, keep in zip(group[key], kept, strict=True) if keep])
                by_name: Any = seeds if key == "params" else {n: n for n in seeds}
                group[key][:] = [
                    by_name[n] if n is not None and n.startswith(_SEED) else next(own) for n in wanted
                ]


def _of_seeds(saved: Iterable[Names]) -> list[str]:
    return [n for names in saved for group in names for n in group if n and n.startswith(_SEED)]


def put(optimizer: Optimizer, saved: Names, state: dict[str, Any], model: nn.Module) -> None:
    """Bring the parameters of each group into the order of ``saved`` names, and load the state for it.

    Raises:
        CheckpointError: the groups have other parameters than those of the checkpoint.
    """
    found = parameter_names(optimizer, model)
    if [Counter(group) for group in found] != [Counter(group) for group in saved]:
        raise CheckpointError(
            f"the groups of {type(optimizer).__name__} hold other parameters than those of the checkpoint: "
            f"expected {_short(saved)}; got {_short(found)}"
        )
    for group, ours, theirs in zip(optimizer.param_groups, found, saved, strict=True):
        places: dict[str | None, list[int]] = {}
        for place, name in enumerate(ours):
            places.setdefault(name, []).append(place)
        order = [places[name].pop(0) for name in theirs]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][place] for place in order]
    load(optimizer, state)


def check(optimizer: Optimizer, saved: Any, names: Names) -> dict[str, Any]:
    """The saved state in the types of this optimizer. Raises `CheckpointError` for what cannot be one.

    What is not the host's may be in another order (seeds of another manager's): it loads its own afterwards.
    """
    state = dict(saved["state"])
    ours = optimizer.state_dict()["param_groups"]
    if len(ours) != len(saved["param_groups"]):
        raise CheckpointError(f"expected {len(saved['param_groups'])} parameter groups; got {len(ours)}")
    groups = []
    for theirs, group in zip(saved["param_groups"], ours, strict=True):
        if missing := group.keys() - theirs.keys():
            raise CheckpointError(
                f"param_groups: {', '.join(sorted(missing))} missing: expected the optimizer of the saved "
                f"run, of the same class and version; got {type(optimizer).__name__}"
            )
        if theirs.get(OWNER) != group.get(OWNER):
            raise CheckpointError(
                f"param_groups: other groups of the seeds' own than those of the seeds. {DAMAGED}"
            )
        if theirs["params"] != group["params"]:
            raise CheckpointError(
                "param_groups: other places than those of the parameters: expected the optimizer's groups in "
                "the order of the saved run"
            )
        groups.append(convert_like(theirs, group, "param_groups"))
    foreign = {place for place, name in enumerate(n for group in names for n in group) if name is None}
    for place, values in state.items():
        if place not in foreign and not isinstance(place, str):  # text: the optimizer's own, as torch has it
            _check_values(_parameters(optimizer), place, values)
    return {**saved, "state": state, "param_groups": groups}


def load(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict`, but without the cast of every tensor to its parameter's dtype."""
    # Clones, which lie where torch puts tensors. Those of a file lie anywhere, and some kernels sum up in
    # another order then.
    saved = {**saved, "state": pytree.tree_map_only(Tensor, torch.clone, saved["state"])}
    optimizer.load_state_dict(saved)
    for place, parameter in enumerate(_parameters(optimizer)):
        exact = saved["state"].get(place, {})
        for key, value in optimizer.state.get(parameter, {}).items():
            kept = exact.get(key)
            if isinstance(value, Tensor) and isinstance(kept, Tensor) and kept.dtype != value.dtype:
                optimizer.state[parameter][key] = kept.to(device=value.device, copy=True)


def _refuse_hidden_state(optimizer: Optimizer) -> None:
    """Raise `CheckpointError` where the ``state_dict`` lacks the state of an optimizer inside of this one."""
    in_state = {id(leaf) for leaf in pytree.tree_leaves(optimizer.state_dict())}
    for inside in nested(optimizer):
        state = pytree.tree_leaves(list(inside.state.values()))
        if any(isinstance(leaf, Tensor) and id(leaf) not in in_state for leaf in state):
            kind = type(optimizer).__name__
            raise CheckpointError(
                f"{kind}.state_dict() lacks the state of the {type(inside).__name__} inside of it, without "
                f"which a run would not go on bit for bit: expected a state_dict() and a load_state_dict() "
                f"of {kind} that carry it"
            )


_said_foreign: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def _warn_of_foreign(optimizer: Optimizer, model: nn.Module) -> None:
    """Say once that an optimizer trains what no checkpoint of the host has: a temperature, another model."""
    count = sum(name is None for group in parameter_names(optimizer, model) for name in group)
    if count and optimizer not in _said_foreign:
        _said_foreign.add(optimizer)
        logger.warning(
            "%s trains %s not of the host: a checkpoint has their state in the optimizer, and not their "
            "values. Save them beside it, and load them before SeedManager.load",
            type(optimizer).__name__,
            "a parameter that is" if count == 1 else f"{count} parameters that are",
        )


def _check_values(parameters: Sequence[nn.Parameter], place: Any, values: Any) -> None:
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(parameters):
        raise CheckpointError(f"optimizer state: there is no parameter at place {place!r}")
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"optimizer state {place}: expected names and values")
    for key in _OF_PARAMETERS_SHAPE:
        value = values.get(key)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.shape != parameters[place].shape:
            raise CheckpointError(f"optimizer state {place}.{key}: expected the parameter's shape")
    step = values.get("step", 0)
    if not isinstance(step, (int, float)) and not (isinstance(step, Tensor) and step.numel() == 1):
        raise CheckpointError(f"optimizer state {place}.step: expected a number; got {step!r}")


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def parameter_names(optimizer: Optimizer, model: nn.Module) -> Names:
    """What ``model`` calls the parameters of each group; None for one that is not its own."""
    known = {id(p): name for name, p in model.named_parameters()}
    return [[known.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]


def _order(found: Names, optimizer: Optimizer, saved: Names) -> list[int]:
    """The groups in the order of those saved: a seed's own goes where it was, the others stay in theirs."""
    own = {i for i, group in enumerate(optimizer.param_groups) if OWNER in group}
    rest = iter([i for i in range(len(found)) if i not in own])
    order = []
    for names in saved:
        place = next((i for i in sorted(own) if set(found[i]) == set(names)), None)
        own.discard(-1 if place is None else place)
        order.append(next(rest, None) if place is None else place)
    return [*(i for i in order if i is not None), *rest, *sorted(own)]


def _without_seeds(names: Iterable[Iterable[str | None]]) -> Names:
    return [[n for n in group if n is None or not n.startswith(_SEED)] for group in names]


def _short(names: Names) -> str:
    text = str(names)
    return text if len(text) <= 120 else text[:117] + "..."
