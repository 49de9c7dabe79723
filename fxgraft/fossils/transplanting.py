"""What grew, put into a plain model of the grown size: the larger class by hand, or of transformers.

    host                          target
      blocks.0                      blocks.0
      _seeds.new.module      ->     blocks.1
      blocks.1                      blocks.2

Weights and buffers are copied, and the outputs compared. The optimizer's state goes with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft import _torch
from fxgraft.errors import TransplantError
from fxgraft.fossils._containers import CannotContainError
from fxgraft.fossils._example_runs import (
    OutputDifference,
    called,
    returned_by,
    run_example,
)
from fxgraft.fossils._plain_module import Unwrapping
from fxgraft.fossils.unwrapping import refuse_live
from fxgraft.host.host import Host
from fxgraft.optimizers.entries import kept_keys


@dataclass(frozen=True)
class Transplanted:
    """What `transplant` did.

    Attributes:
        renamed: name in ``host.state_dict()`` -> in the target's, of tensors that have another name there.
        max_abs: the largest difference between two elements of the outputs of host and target, for the host's
            example call in eval mode; 0.0 where they are equal to the bit.
    """

    renamed: Mapping[str, str]
    max_abs: float


def transplant(
    host: Host,
    target: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    target_optimizer: Optimizer | None = None,
) -> Transplanted:
    """Copy weights and buffers of a host, with all that grew in it, into a plain model of the grown size.

    Modules are matched by their names, and where names differ by their order in the module around them;
    blocks of a stack by the order in which they run.

    Args:
        host: a host all of whose seeds are fossils.
        target: a model of the size of the host, of the same classes or of classes with the same parameters.
            Its modes, settings and ``requires_grad`` stay.
        optimizer: the optimizer of the host; only with ``target_optimizer``, which gets its state (moments,
            steps) of each parameter. Groups and learning rates are not copied.
        target_optimizer: an optimizer of the same class, for the parameters of ``target``.

    Raises:
        TransplantError: a layer of one has no counterpart in the other (the first one is named), or the
            target does not run the example call, or computes something else with these weights. The target
            is unchanged.
        StageError: the host has seeds that are no fossils.
        ValueError: one optimizer was given, and not the other; they are of different classes; or that of the
            target does not train what it should, or keeps more than that of the host. The target is
            unchanged.
        TypeError: ``target`` is not an ``nn.Module``, ``host`` is not a `Host`, or an optimizer is none.
    """
    refuse_live(host, "transplant")
    if not isinstance(target, nn.Module):
        raise TypeError(f"target: expected an nn.Module; got {type(target).__name__}")
    for name, given in (("optimizer", optimizer), ("target_optimizer", target_optimizer)):
        if given is not None and not isinstance(given, Optimizer):
            raise TypeError(f"{name}: expected one optimizer; got {type(given).__name__}")
    if (optimizer is None) != (target_optimizer is None) or type(optimizer) is not type(target_optimizer):
        raise ValueError(
            f"optimizer, target_optimizer: expected two of one class, or none; got "
            f"{type(optimizer).__name__}, {type(target_optimizer).__name__}"
        )
    try:
        plain = Unwrapping(host, in_containers=True)
    except CannotContainError:
        plain = Unwrapping(host)
    match = _Match(plain.root, target)
    if optimizer is not None and target_optimizer is not None:
        _check_trained(optimizer, target_optimizer, match)
    wanted = returned_by(host)
    with ExitStack() as undo:
        _copy_tensors(undo, match.tensors)
        for source, of_target in match.extra:
            undo.callback(of_target.set_extra_state, copy.deepcopy(of_target.get_extra_state()))
            of_target.set_extra_state(copy.deepcopy(source.get_extra_state()))
        blocks = [match.modules[name] for name in plain.inserted if name in match.modules]
        max_abs = _difference(wanted, _returned(host, target, blocks), match.dtypes)
        if optimizer is not None and target_optimizer is not None:
            _copy_state(optimizer, target_optimizer, match)
        undo.pop_all()
    return Transplanted(_renamed(host, plain, match.names), max_abs)


class _Match:
    """Which tensor of a model is which of another one.

    Attributes:
        names: name of a tensor -> in the target.
        tensors: pairs of them.
        modules: name of a module -> in the target.
        extra: pairs of modules that both have an extra state (``get_extra_state``).
        dtypes: of the first pair whose dtypes differ, in words; else empty.
    """

    def __init__(self, source: nn.Module, target: nn.Module):
        self.names: dict[str, str] = {}
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self.modules: dict[str, str] = {}
        self.extra: list[tuple[nn.Module, nn.Module]] = []
        self.dtypes = ""
        self._match(source, target, "", "")

    def _match(self, source: nn.Module, target: nn.Module, ours: str, theirs: str) -> None:
        self.modules[ours] = theirs
        if all(type(m).get_extra_state is not nn.Module.get_extra_state for m in (source, target)):
            self.extra.append((source, target))
        for kind in ("_parameters", "_buffers"):
            self._match_tensors(source, target, ours, theirs, kind)
        left = {n: m for n, m in source._modules.items() if _has_tensors(m)}
        there = {n: m for n, m in target._modules.items() if _has_tensors(m)}
        pairs = [(name, name) for name in left if name in there]
        rest = [n for n in left if n not in there], [n for n in there if n not in left]
        for ours_name, theirs_name in zip(*rest, strict=False):
            pairs.append((ours_name, theirs_name))
        for lacking, names, who, other in (
            (rest[0][len(rest[1]) :], ours, "the grown model", "the target"),
            (rest[1][len(rest[0]) :], theirs, "the target", "the grown model"),
        ):
            if lacking:
                self._refuse(_joined(names, lacking[0]), who, other, len(left), len(there))
        for a, b in pairs:
            self._match(_child(left, a), _child(there, b), _joined(ours, a), _joined(theirs, b))

    def _refuse(self, layer: str, who: str, other: str, ours: int, theirs: int) -> None:
        hint = ""
        if ".seed_" in f".{layer}":
            hint = (
                ": it is a seed; manager.fuse(name) makes one that is linear, or of the form of what it is "
                "beside, a part of that"
            )
        raise TransplantError(
            f"layer {layer!r} of {who} has no counterpart in {other}{hint} (expected {ours} layers beside "
            f"each other there, as in the grown model; the target has {theirs})"
        )

    def _match_tensors(self, source: nn.Module, target: nn.Module, ours: str, theirs: str, kind: str) -> None:
        mine, others = (
            {n: t for n, t in getattr(m, kind).items() if t is not None} for m in (source, target)
        )
        if kind == "_buffers":  # an unsaved buffer, which is computed where it is needed, may have any size
            mine = {n: t for n, t in mine.items() if _is_saved(source, n) or _same_shape(t, others.get(n))}
            others = {n: t for n, t in others.items() if n in mine or _is_saved(target, n)}
        for name in dict.fromkeys((*mine, *others)):
            a, b = mine.get(name), others.get(name)
            if a is None or b is None:
                who, other = (
                    ("the grown model", "the target") if b is None else ("the target", "the grown model")
                )
                layer = _joined(ours if b is None else theirs, name)
                raise TransplantError(
                    f"{layer!r} of {who} has no counterpart in {other}. Expected a target of the size that "
                    f"has grown, without other layers"
                )
            if b.is_meta and not a.is_meta:
                raise TransplantError(
                    f"{_joined(theirs, name)!r} of the target is on the device meta, and has no data: "
                    f"expected one with memory for its weights, which target.to_empty(device=...) gives it"
                )
            if not _same_shape(a, b):
                raise TransplantError(
                    f"{_joined(theirs, name)!r} of the target: expected shape {tuple(a.shape)}, that of "
                    f"{_joined(ours, name)!r} of the grown model; got {tuple(b.shape)}"
                )
            if a.dtype != b.dtype and not self.dtypes:
                self.dtypes = f"{_joined(theirs, name)!r} is {b.dtype} there, and {a.dtype} in the host"
            self.names[_joined(ours, name)] = _joined(theirs, name)
            self.tensors.append((a, b))


def _child(modules: Mapping[str, nn.Module | None], name: str) -> nn.Module:
    found = modules[name]
    assert found is not None
    return found


def _has_tensors(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in (*module.parameters(), *module.buffers()))


def _is_saved(module: nn.Module, buffer: str) -> bool:
    return buffer not in _torch.unsaved_buffers(module)


def _same_shape(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _copy_tensors(undo: ExitStack, pairs: list[tuple[Tensor, Tensor]]) -> None:
    def put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)

    undo.callback(put_back, [(target, target.detach().clone()) for _, target in pairs])
    with torch.no_grad():
        for source, target in pairs:
            target.copy_(source)


def _returned(host: Host, target: nn.Module, blocks: Sequence[str]) -> Any:
    """What the target returns. ``blocks``: modules that have to run, also where they change no value yet."""
    try:
        with called(map(target.get_submodule, blocks)) as left_out:
            found = run_example(host, target)
    except Exception as error:
        raise TransplantError(
            f"the target does not run the host's example call in eval mode: {type(error).__name__}: {error}. "
            f"Expected a model that takes the arguments of the host"
        ) from error
    if left_out:
        name = next(name for name in blocks if target.get_submodule(name) is left_out[0])
        raise TransplantError(
            f"the target does not run its {name!r}, the counterpart of an inserted block, in the host's "
            f"example call: expected a model of that depth, whose settings say so"
        )
    return found


def _difference(wanted: Any, given: Any, dtypes: str) -> float:
    """The largest one between two elements. Raises `TransplantError` where it is more than rounding.

    And where there is nothing to compare. ``dtypes``: see `_Match`.
    """
    found = OutputDifference.of(wanted, given)
    if found.shapes is not None:
        theirs, ours = found.shapes
        raise TransplantError(
            f"the target returns tensors of shapes {theirs}; expected {ours}, as the host does"
        )
    if not found.is_rounding:
        raise TransplantError(
            f"the target computes something else with these weights: expected the host's output for its "
            f"example call; it differs by up to {found.largest:g}. Are its settings those of the host?"
            + f" {dtypes}"
            * bool(dtypes)
        )
    if found.is_empty:
        raise TransplantError(
            "whether the target computes what the host does cannot be seen: expected numbers in the host's "
            "output for its example call; all of them are NaN. Look at its weights and its example call"
        )
    return found.largest


def _check_trained(optimizer: Optimizer, target_optimizer: Optimizer, match: _Match) -> None:
    trained = {id(p) for group in target_optimizer.param_groups for p in group["params"]}
    for (source, target), name in zip(match.tensors, match.names.values(), strict=True):
        if not isinstance(source, nn.Parameter) or source not in optimizer.state:
            continue
        if id(target) not in trained:
            raise ValueError(
                f"target_optimizer: expected one that trains {name!r} of the target, whose counterpart has "
                f"state in the host's; it does not"
            )
        if not isinstance(target, nn.Parameter):
            continue
        if more := kept_keys(target_optimizer, target) - optimizer.state[source].keys():
            raise ValueError(
                f"target_optimizer: expected the settings of the host's, which decide what is kept of a "
                f"parameter; it keeps {min(more)!r} of {name!r}, and the host's does not"
            )


def _copy_state(optimizer: Optimizer, target_optimizer: Optimizer, match: _Match) -> None:
    for source, target in match.tensors:
        if isinstance(source, nn.Parameter) and source in optimizer.state:
            state = copy.deepcopy(optimizer.state[source])
            target_optimizer.state[target] = {key: _fitting(value, target) for key, value in state.items()}


def _fitting(value: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps, for a parameter of another dtype or device, as ``load_state_dict`` has it."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)


def _renamed(host: Host, plain: Unwrapping, names: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in host.state_dict():
        there = names.get(plain.name_of(name))
        if there is not None and there != name:
            found[name] = there
    return found
