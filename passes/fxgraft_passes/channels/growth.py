"""How a group of channels grows: the wider tensors, and what else changes with them.

`fxgraft_passes.channels._filling` says what new channels begin as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes.channels._analysis import DOT, MEAN
from fxgraft_passes.channels._filling import Filling, Guess
from fxgraft_passes.channels._grown_layout import Spread, filled, laid_out_as, widened
from fxgraft_passes.channels._guessing import best_guess
from fxgraft_passes.channels._locating import where_it_shows
from fxgraft_passes.channels.comparing import OtherOutputsError, distance
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.layout import Atom
from fxgraft_passes.channels.settings import CannotRunWiderError, Setting, applied, fit
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError

INITS = ("zero", "split")
MOST = 2**24
"""A slip of the pen must not fill the memory."""


@dataclass(frozen=True)
class GroupGrowth:
    """A planned growth of one group; nothing has been changed yet.

    Attributes:
        group: which.
        by: by how many channels.
        init: how new ones begin.
        spreads: path -> the dimensions that grow, and how.
        tensors: path -> the wider tensor.
        fills: path -> what makes the wider one from any tensor of the old shape, as for an average of the
            weights.
        settings: numbers that change with it.
    """

    group: ChannelGroup
    by: int
    init: str
    spreads: Mapping[str, Sequence[tuple[int, Spread]]]
    tensors: Mapping[str, Tensor]
    fills: Mapping[str, Callable[[Tensor], Tensor]]
    settings: Sequence[Setting]

    def of(self, subject: Subject) -> GroupGrowth:
        """The same growth of the subject's tensors of now, which may have been trained since."""
        with torch.no_grad():
            tensors = {path: filled(subject.now(path).detach(), fill) for path, fill in self.fills.items()}
        return replace(self, tensors=tensors)

    @contextmanager
    def in_place(self, subject: Subject) -> Iterator[None]:
        """Inside, the subject is as it will be."""
        with subject.with_tensors(self.tensors), applied(self.settings, subject):
            yield

    def spread(self, path: str, tensor: Tensor, copies: bool) -> Tensor:
        """A tensor of the old shape of ``path`` (a moment of an optimizer) in the new one.

        Old entries are where they belong; new ones are zero, or with ``copies`` those of the entries that
        they are made like.
        """
        wide, fresh = widened(tensor, self.spreads[path])
        return laid_out_as(tensor, wide if copies else torch.where(fresh, torch.zeros_like(wide), wide))


def check(group: ChannelGroup, by: int, init: str) -> int:
    """How many units ``by`` channels are.

    Raises:
        ChannelError: the group cannot grow, or not by that.
        ValueError: for an unknown ``init``.
    """
    check_request(group.name, by, init)
    if group.fixed is not None:
        why = f"it {group.fixed}" if group.fixed.startswith("is ") else group.fixed
        raise ChannelError(
            f"{group.name}: its {group.size} channels cannot grow: {why}. Choose another group of channels"
        )
    if by % group.grain:
        raise ChannelError(
            f"{group.name}: by: expected a multiple of {group.grain}, as its channels come in parts of that; "
            f"got {by}"
        )
    if (tied := _only_tied(group)) is not None:
        raise ChannelError(
            f"{group.name}: expected new channels that can learn; {tied} both makes and reads them, so that "
            f"they would begin with zeros on both sides, whose gradients are zero for ever. Untie it before "
            f"they grow (two parameters with equal values), or give the layer a bias"
        )
    if init == "split" and group.normalised:
        raise ChannelError(
            f"{group.name}: a normalisation is computed over these channels, and copies would change it: use "
            f"init='zero'"
        )
    return by // group.unit


def _only_tied(group: ChannelGroup) -> str | None:
    """The parameter that both makes and reads the channels, where nothing else makes them."""
    makes = {(member.name, member.dimension) for member in group.members if member.role == "producer"}
    is_only = bool(makes) and makes <= _tied(group)
    return min(makes)[0] if is_only and not group.normalised else None


def _tied(group: ChannelGroup) -> set[tuple[str, int]]:
    """The parameters that both make the channels and read them, with the dimension."""
    makes, reads = (
        {(member.name, member.dimension) for member in group.members if member.role == role}
        for role in ("producer", "consumer")
    )
    return makes & reads


def check_request(name: str, by: Any, init: str) -> None:
    """What can be said of a request without the group. Raises as `check` does."""
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(map(repr, INITS))}; got {init!r}")
    if isinstance(by, bool) or not isinstance(by, Integral) or int(by) <= 0:
        raise ChannelError(f"{name}: by: expected a whole number of channels, 1 or more; got {by!r}")
    if int(by) > MOST:
        raise ChannelError(f"{name}: by: expected at most {MOST:,} channels at once; got {by:,}")


def grow(
    subject: Subject,
    group: ChannelGroup,
    by: int,
    init: str,
    seed: int,
    before: Sequence[Tensor] | None = None,
) -> GroupGrowth:
    """Plan it, inside of a session of the subject: wider tensors, and the numbers that go with them.

    Args:
        subject: the model.
        group: one of its groups.
        by: how many channels more.
        init: ``"zero"`` or ``"split"``.
        seed: of the new weights.
        before: the outputs that it is to have, where they are to be compared.

    Raises:
        ChannelError: it cannot grow so.
    """
    units = check(group, by, init)
    growths = group.growths(units)
    expected = {
        mode: [(step.target, step.sizes(growths)) for step in steps]
        for mode, steps in group.analysis.steps.items()
    }
    settings: list[Setting] | None = None
    refused: list[GroupGrowth] = []

    def attempt(guess: Guess) -> tuple[GroupGrowth, float]:
        nonlocal settings
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            plan = Filling(subject, group, growths, init, guess)
            tensors = {path: filled(subject.now(path).detach(), fill) for path, fill in plan.fills.items()}
        if settings is None:  # shapes are those of the first attempt
            try:
                settings = fit(
                    subject, tensors, group.analysis.numbers(growths), plan.settings(tensors), expected
                )
            except CannotRunWiderError as error:
                error.args = (f"{group.name}: {error}",)
                raise
        made = GroupGrowth(group, by, init, plan.spreads, tensors, plan.fills, settings)
        if before is None:
            return made, 0.0
        refused.append(made)
        with made.in_place(subject):
            off = distance(group.name, before, subject).share
        refused.pop()
        return made, off

    try:
        return best_guess(attempt, _guesses(group, growths))
    except OtherOutputsError as error:
        first, tied = refused[0], sorted({name for name, _ in _tied(group)})
        where = where_it_shows(subject, first.tensors, first.in_place(subject), tied)
        error.args = (f"{error}{where}",)
        raise


def _guesses(group: ChannelGroup, growths: Mapping[Atom, int]) -> Iterator[Guess]:
    ratio = max((1 + n / atom.size for atom, n in growths.items() if DOT in atom.hazards), default=1.0)
    for bare in dict.fromkeys((frozenset[str](), group.readers if group.normalised else frozenset[str]())):
        for queries in dict.fromkeys((sqrt(ratio), 1.0)):
            yield Guess(queries, 0.0, bare)
            if MEAN in group.atom.hazards:
                yield Guess(queries, 1.0, bare)
