"""A run to a file, and its structure to the states that other frameworks write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxgraft.errors import CheckpointError
from fxgraft.manager import settings
from fxgraft.manager._core import ManagerCore
from fxgraft.telemetry import logger
from fxgraft.util.interrupts import uninterruptible


def reschedule(self: ManagerCore, schedulers: Sequence[Any]) -> None:
    """Replace the learning-rate schedulers that the manager keeps consistent with the optimizer groups.

    For a second training with the same optimizers, whose new schedulers were made for all groups, those of
    seeds included.

    Args:
        schedulers: all of them, in the place of those that the manager was made with.

    Raises:
        TypeError: one is no scheduler.
    """
    self.__dict__["schedulers"] = found = settings.schedulers_of(schedulers)
    self._lifecycle.registry.reschedule(found)
    self._saver.schedulers = found


def save(self: ManagerCore, path: str | os.PathLike[str]) -> None:
    """Write structure, weights, lifecycle, optimizers, schedulers and random streams to one file.

    It is atomic: a process that is killed at any moment leaves the old file or the new one. What is still in
    preparation (``wait=False``: seeds, growths, fusions, what is done together) is not saved, and named in a
    warning. With several ranks each has to call it: rank 0
    writes the file, the others their random streams beside it, without waiting for each other. For a sharded
    host ``path`` is a folder, in which each rank writes its part; then they wait for each other.

    Args:
        path: the file; it is replaced if it exists.

    Raises:
        CheckpointError: the file cannot be written, the host has seeds of another manager, or a seed
            blends by a schedule without a name.
        StageError: it is called in another thread, inside of `together`, `at_alpha` or `shadow`, or after
            ``host.clear()``, while there are seeds.
    """
    self._inbox.require_here("save")
    self._acts.refuse("save")
    self._refuse_while_borrowed("save")  # alpha and what is frozen differ inside of a context
    self._refuse_cleared("save")
    if strange := self._lifecycle.foreign_seeds():
        raise CheckpointError(
            f"{os.fspath(path)}: expected a host with seeds of this manager only; it has {strange} of "
            f"another one, whose save() knows them. fxgraft.trace(fxgraft.unwrap(host), ...) makes "
            f"fossils a part of a new host"
        )
    self._saver.save(path)
    if (late := self._background.waiting.words) and not self.peers.rank:
        logger.warning(
            "%s: has not what is still prepared in the background (wait=False): %s. A run that goes on from "
            "this file has to ask for it again; or save once it is live",
            path,
            ", ".join(late),
        )


def describe(self: ManagerCore) -> tuple[Tensor, list[str]]:
    """The description of how the seeds are wired (1-D tensor, uint8), and the names of these seeds.

    With ``host.structure_entry = lambda host: manager.describe()`` each ``host.state_dict()`` has it in
    the entry ``_seeds._structure``, and a fresh host that loads such a state grows these seeds.

    Raises:
        CheckpointError: a seed blends by a schedule without a name.
    """
    return self._saver.describe()


@uninterruptible
def lead(self: ManagerCore, entry: Tensor) -> None:
    """Insert and manage the seeds that ``entry`` describes; ``host.load_state_dict`` loads their weights.

    They are added to the optimizers like new seeds.

    Args:
        entry: the description that `describe` of another manager returned. This host has no seeds yet.

    Raises:
        CheckpointError: the entry is damaged, or does not fit the host; or a seed was germinated from
            code, and is not in ``host.seed_blueprints``.
    """
    self._allow("lead other seeds")
    if self.host.structure.placements:
        raise CheckpointError("expected a host without seeds; this one has seeds already")
    self._saver.lead(entry)
