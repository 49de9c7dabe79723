"""When the isolation check runs, and what becomes of what it finds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.errors import IsolationError
from fxgraft.host.host import Host
from fxgraft.lifecycle._isolated_inputs import InputWatch
from fxgraft.lifecycle.isolation_check import Violation, check
from fxgraft.seeds.seed import Seed
from fxgraft.telemetry.events import logger
from fxgraft.util.text import listed

DEFAULT_INTERVAL = 500
LATER = 3
"""How many calls of `IsolationMonitor.step` from a change in the background to its check: the one in
which it is applied, the first step with the new structure, and the one that is checked."""


@dataclass(frozen=True)
class _Call:
    """A forward pass to repeat: its arguments, and what the host was converted to then."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    form: object


class IsolationMonitor:
    """Checks the first training step after every change of structure or stage, and every ``interval``.

    A check borrows the inputs of the step's last forward pass; it costs two passes of the model. Where no
    seed is isolated there is nothing to check.

    Args:
        host: what is watched.
        interval: steps between checks; 0 turns the monitor off.
        strict: raise `IsolationError` out of the training step at a violation.
        report: called with each list of violations.
    """

    def __init__(
        self,
        host: Host,
        interval: int,
        strict: bool,
        report: Callable[[list[Violation]], None],
    ):
        self._host = host
        self._interval = interval
        self._strict = strict
        self._report = report
        self._call: _Call | None = None
        self._until_next = interval
        self._inputs = InputWatch()
        self._listens = False
        self.checks = 0
        self.violations = 0

    def follow(self, seeds: Collection[Seed]) -> None:
        """The stages of ``seeds`` have changed."""
        self._inputs.follow(seeds)
        self._listen(self._listens)

    def look_soon(self, after: int = 0) -> None:
        """Check the next training step, or the one that is ``after`` calls of `step` from now."""
        if self._interval:
            self._until_next = after
            self._listen(after <= 1)

    def step(self, seeds: Collection[Seed]) -> None:
        """One training step has passed. Raises `IsolationError` if strict and there was a violation."""
        self._inputs.follow(seeds)
        if not self._interval or not any(seed.is_isolated for seed in seeds):
            self._call = None
            self._listen(False)
            return
        self._until_next -= 1
        call, self._call = self._call, None
        if call is not None and call.form != self._form():
            call = None  # the host was converted since, and does not take these inputs any more
        if call is not None:
            self._until_next = self._interval
        self._listen(self._until_next <= 1)
        if call is not None:
            self._check(seeds, call)

    def _check(self, seeds: Collection[Seed], call: _Call) -> None:
        try:
            found = check(self._host, seeds, call.args, call.kwargs)
        except Exception:
            if self._strict:
                raise
            # The inputs may have changed since: no reason to end a training run.
            logger.exception("the isolation check could not repeat the step's forward pass")
            return
        self._judge(found)

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _torch.is_inside_transform():
            return  # inside vmap, grad and the like, whose tensors do not outlive them
        leaves, form = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self._host.training or not torch.is_grad_enabled() or any(t.is_inference() for t in tensors):
            return
        # Off their graph, which is freed by the time of the check, and may reach into the host itself.
        leaves = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, form)
        self._call = _Call(args, kwargs, self._form())

    def _take_and_look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._take(args, kwargs)
        self._inputs.look(args, kwargs)

    def _form(self) -> object:
        parameter = next(self._host.parameters(), None)
        return None if parameter is None else (parameter.dtype, parameter.device)

    def _listen(self, listen: bool) -> None:
        """Take in what the host is called with, or no longer."""
        self._listens = listen
        wanted: Callable[[tuple[Any, ...], dict[str, Any]], None] | None
        if self._inputs.is_on:
            wanted = self._take_and_look if listen else self._inputs.look
        else:
            wanted = self._take if listen else None
        if self._host._links.on_call != wanted:  # to set an attribute of a module takes longer than to look
            self._host._links.on_call = wanted

    def _judge(self, found: list[Violation]) -> None:
        self.checks += 1
        if not found:
            return
        self.violations += len(found)
        self._report(found)
        if self._strict:
            raise IsolationError(self._describe(found))
        logger.warning(self._describe(found))

    def _describe(self, found: list[Violation]) -> str:
        return (
            f"isolation is violated: {listed(found)}. Expected the bits of a run without the seeds. "
            f"Cull the seeds germinated last, or see what they share with the host"
        )
