"""Fossils that become part of the host's own layers, in a live run.

* A linear fossil is merged into the weights of the layer in front of it, as `fxgraft.fold` does.
* A branch with the structure of the layers parallel to it is joined to them: its channels become theirs.

Then the fossil is gone, and the region runs its class's own forward again where there is no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.errors import ChannelError, SlotError, StageError
from fxgraft.fossils.folding import Folding
from fxgraft.fossils.linear_maps import NotAffineError
from fxgraft.host import engine
from fxgraft.host.channels import subject_of
from fxgraft.host.growth_history import without_seeds
from fxgraft.host.host import Host
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.optimizers.entries import is_element_wise
from fxgraft.optimizers.group_index import groups_with
from fxgraft.optimizers.wrapped import with_nested
from fxgraft.resizing._joined_state import check_owner, other_settings
from fxgraft.resizing._joining import Known, freezing, hooks_are_lost, join
from fxgraft.resizing._same_settings import StructureMismatchError
from fxgraft.seeds.seed import Seed
from fxgraft.slots.structure import Placement, Structure
from fxgraft.telemetry.events import logger
from fxgraft.util.hooks import hooked_parameter
from fxgraft_passes import Phase
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.replacing import set_tensor


@dataclass(frozen=True)
class _Training:
    """How the training of a fossil is another one as a part of a layer.

    Attributes:
        settings: hyper-parameters that it had otherwise: of its optimizer, and of that which trains it then.
        coupled: the kinds of optimizers that move what they train as a whole.
    """

    settings: dict[str, tuple[Any, Any]]
    coupled: tuple[str, ...]


Settings = dict[str, _Training]
"""Fossil -> how it is trained otherwise then."""


@dataclass(eq=False)
class PlannedFusion:
    """Fossils to be fused, all of them or none, as a part of a change.

    Attributes:
        lifecycle: of the host.
        names: the fossils; empty: all those that can be fused then.
        optimizers: of the host.
        into: fossil -> the layer that it has become part of; filled in once that stays.
        tell: is given each pair, and the largest difference of the outputs in the example call.
    """

    lifecycle: Lifecycle
    names: Sequence[str]
    optimizers: Sequence[Optimizer]
    into: dict[str, str]
    tell: Callable[[str, str, float], None]

    _found: dict[str, str] = field(default_factory=dict)
    _settings: Settings = field(default_factory=dict)
    _max_abs: float = 0.0
    _seeds: list[Seed] = field(default_factory=list)
    _known: Known = field(default_factory=dict)
    _of: object = None  # what the host was when those were made

    @property
    def words(self) -> str:
        """Which fossils are fused; and into what, as soon as that is known."""
        if self._found:
            return f"the fusion of {', '.join(f'{name} into {into}' for name, into in self._found.items())}"
        return f"the fusion of {', '.join(self.names) or 'all fossils that can be'}"

    def plan(self) -> bool:
        """Nothing: what fits what is found out as it is done."""
        return False

    def dry_run(self, undo: ExitStack) -> None:
        """As `carry_out`, with all checks: they decide what is fused."""
        self.carry_out(undo)

    def carry_out(self, undo: ExitStack) -> None:
        """Do it; the traces that it makes are used the next time, if it is reverted.

        Raises:
            SlotError: one of ``names`` cannot be fused.
            StageError: one of them is not there any more.
            ChannelError: the outputs would differ.
        """
        host = self.lifecycle.host
        now = host.structure.key, host.widenings
        if self._of != now:
            self._of, self._known = now, {}
        there = dict(self.lifecycle.seeds)
        self._settings = {}
        self._found, self._max_abs = _fuse_all(
            undo, self.lifecycle, self.names, self.optimizers, self._known, self._settings
        )
        self._seeds = [there[name] for name in self._found]

    def completed(self) -> None:
        """The change was applied."""
        for seed in self._seeds:
            self.lifecycle.forget_training(seed)
            self.tell(seed.name, self._found[seed.name], self._max_abs)
            if (differ := self._settings.get(seed.name)) is not None:
                _warn_of_training(seed.name, self._found[seed.name], differ)
        self.into.update(self._found)
        self._known, self._seeds = {}, []

    def failed(self, reason: str) -> None:
        """The change has failed."""
        self._known = {}


def _fuse_all(
    undo: ExitStack,
    lifecycle: Lifecycle,
    wanted: Sequence[str],
    optimizers: Sequence[Optimizer],
    known: Known,
    settings: Settings,
) -> tuple[dict[str, str], float]:
    """Fossil -> the layer that it has become part of; and by how much the outputs differ, at most."""
    host = lifecycle.host
    if gone := [name for name in wanted if name not in lifecycle.seeds]:
        raise StageError(f"no seed {gone[0]!r} here; there are: {', '.join(lifecycle.seeds) or 'none'}")
    into: dict[str, str] = {}
    max_abs = 0.0
    subject = subject_of(host, host.example_call())
    with subject.session():
        before = outputs(subject)
    for name in [p.seed for p in host.structure.placements if p.spec.fossil is not None]:
        if name not in (wanted or lifecycle.seeds):
            continue
        with ExitStack() as one:
            try:
                into[name] = _fuse(one, host, name, set(into), optimizers, known, settings)
            except (NotAffineError, StructureMismatchError, ChannelError) as why:
                if wanted:
                    raise SlotError(
                        f"seed {name!r} cannot be fused: it {why}. It stays as it is; fuse() without "
                        f"names takes those that can be"
                    ) from why
                continue
            try:
                max_abs = _difference(host, into, before)
            except ChannelError:  # each by itself: the others are fused all the same
                if wanted:
                    raise
                del into[name]
                continue
            undo.push(one.pop_all())
    if not into:
        return into, 0.0
    lifecycle.take_out(undo, [lifecycle.seeds[name] for name in into])
    for each in (host, *host._links.followers):
        undo.callback(setattr, each, "widenings", each.widenings)
        each.widenings = without_seeds(into, each.widenings)
    return into, max_abs


def _difference(host: Host, fused: Mapping[str, str], before: Sequence[Tensor]) -> float:
    """By how much the outputs differ without the fossils that are fused by now."""
    rest = Structure(tuple(p for p in host.structure.placements if p.seed not in fused))
    with engine.probing(host, rest, Phase.SETTLED if rest.placements else host.phase):
        subject = subject_of(host, host.example_call())
        with subject.session():
            return difference(", ".join(fused), before, subject)


def _fuse(
    undo: ExitStack,
    host: Host,
    name: str,
    fused: set[str],
    optimizers: Sequence[Optimizer],
    known: Known,
    settings: Settings,
) -> str:
    placement = _placement(host, name)
    in_front = _in_front(host, placement, fused)
    if placement.slot.source is not None:
        # Here, because it imports networkx, which takes a while.
        from fxgraft.resizing._same_structure import counterparts

        found = counterparts(host, placement, host.graft(name).module)
        training = _other_training(host, name, found.same, optimizers)
        group = join(undo, host, placement, found.same, optimizers, known)
        found.shares.check()
        settings[name] = training
        return group
    if in_front is not None:
        raise NotAffineError(f"stands behind {in_front!r}, which is not fused")
    for each in (host, *host._links.followers):
        layer = _merge(undo, each, _placement(each, name), optimizers if each is host else ())
    return layer


def _other_training(
    host: Host, seed: str, same: Mapping[str, str], optimizers: Sequence[Optimizer]
) -> _Training:
    parameters = dict(host.named_parameters())
    theirs = dict(host.graft(seed).module.named_parameters())
    pairs = [(parameters[path], theirs[name]) for path, name in same.items() if path in parameters]
    settings = {key: both for pair in pairs for key, both in other_settings(*pair, optimizers).items()}
    coupled = {
        type(optimizer).__name__: None
        for optimizer in with_nested(optimizers)
        for ours, _ in pairs
        if next(groups_with([optimizer], ours), None) is not None and not is_element_wise(optimizer, ours)
    }
    return _Training(settings, tuple(coupled))


def _warn_of_training(seed: str, layer: str, differ: _Training) -> None:
    if differ.coupled:
        logger.warning(
            "seed %s: %s computes the update of a parameter from all of it together; as a part of %s it is "
            "updated together with that layer, and both move otherwise than apart. Expected as it is, or an "
            "optimizer that moves each entry by itself (AdamW), or no fusion",
            seed,
            " and ".join(differ.coupled),
            layer,
        )
    if not differ.settings:
        return
    then, now = (", ".join(f"{name}={both[i]}" for name, both in differ.settings.items()) for i in (0, 1))
    logger.warning(
        "seed %s: the optimizer trained it with %s; as a part of %s it is trained with %s from now on",
        seed,
        then,
        layer,
        now,
    )


def _placement(host: Host, name: str) -> Placement:
    return next(p for p in host.structure.placements if p.seed == name)


def _in_front(host: Host, placement: Placement, fused: set[str]) -> str | None:
    """A seed at the same place that runs before, and stays."""
    for other in host.structure.by_region[host.structure.runs_in(placement)]:
        if other.seed == placement.seed:
            return None
        if other.slot.node is placement.slot.node and other.seed not in fused and other.slot.reader is None:
            return other.seed
    return None


def _merge(undo: ExitStack, host: Host, placement: Placement, optimizers: Sequence[Optimizer]) -> str:
    """A linear fossil, into the weights of the layer in front of it."""
    folding = Folding(host)
    if placement.slot.source is not None:
        raise NotAffineError(f"reads {placement.slot.source.name!r}, and not the value that it is added to")
    name, layer = folding.layer(placement.slot)
    fossil = host.graft(placement.seed).module
    if (hooked := hooked_parameter(fossil)) is not None:
        raise NotAffineError(hooks_are_lost(hooked, name))
    _check_learning(fossil, name, layer)
    check_owner(name, list(layer.parameters()), list(fossil.parameters()), optimizers)
    before = {key: p.detach().clone() for key, p in layer._parameters.items() if p is not None}
    undo.callback(_put_back, layer, before)
    with torch.no_grad():
        folding.merge(placement)
    if layer._parameters.keys() - {k for k, p in layer._parameters.items() if p is None} != before.keys():
        raise NotAffineError(f"has a bias, and {name!r} has none: no optimizer would train a new one")
    return name


def _check_learning(fossil: nn.Module, name: str, layer: nn.Module) -> None:
    """Raise `NotAffineError` where the fossil trains and the layer is frozen, or the other way round."""
    theirs, ours = ([p.requires_grad for p in module.parameters()] for module in (fossil, layer))
    if theirs and any(theirs) != any(ours):
        raise NotAffineError(freezing(name, any(ours)))


def _put_back(layer: nn.Module, before: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, parameter in layer._parameters.items():
            if key not in before:
                layer._parameters[key] = None
            elif parameter is not None:
                set_tensor(parameter, before[key], parameter.grad)
