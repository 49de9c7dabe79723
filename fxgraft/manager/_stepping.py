"""What a manager does once per training step."""

from __future__ import annotations

from threading import get_ident

from torch import Tensor

from fxgraft.manager._core import ManagerCore, Routine
from fxgraft.seeds.stage import Stage
from fxgraft.util.interrupts import uninterruptible
from fxgraft.util.losses import check_loss


def step(self: ManagerCore, loss: float | Tensor | None = None) -> None:
    """Advance every seed by one training step; call it once per step, after ``optimizer.step()``.

    Commands from other threads are carried out at its end. The thread that calls it is the training thread.

    Args:
        loss: the loss of this step, for the sinks: a number or a tensor on any device (its mean is used).

    Raises:
        DistributedError: the ranks differ in structure, or one has ended.
        IsolationError: isolation is violated, and the manager is ``strict``.
        TypeError: ``loss`` is neither a number nor a tensor of real numbers; nothing was done.
        StageError: inside `shadow` or a similar context, while another thread is inside of it, or after
            ``host.clear()``, while there are seeds.
    """
    # Until something is asked for, steps are only counted. All of `_step` takes 10 us where it is in the
    # processor's cache, and 100 us after a training step, which has put everything else there.
    is_plain = loss is None or isinstance(loss, Tensor)
    if self._rest.holds() and is_plain and not self._inbox.has_work_for(get_ident()):
        self._reporter.step += 1
        return
    self._rest.forget()
    _step(self, loss)
    if _has_nothing_to_do(self):
        self._rest.note()


def _has_nothing_to_do(self: ManagerCore) -> bool:
    """Whether the next steps only have to be counted, as long as nothing is asked for."""
    # Copies may stray for a while after a change; one that is made at rest lacks nothing before the next.
    is_watched = self._journal.is_kept or bool(self.host._links.copies) or self.peers.size > 1
    is_waiting = self._routines or self._dispatcher.is_behind or not self._background.is_idle
    has_fossils_only = all(seed.stage is Stage.FOSSILIZED for seed in self._seeds.values())
    return has_fossils_only and not is_watched and not is_waiting


@uninterruptible
def _step(self: ManagerCore, loss: float | Tensor | None) -> None:
    check_loss(loss)
    self._inbox.begin_step()
    try:
        self._refuse_while_borrowed("step")
        self._acts.refuse("step")
        self._refuse_cleared("step")
        self.peers.settle()
        self._reporter.step += 1
        self._lifecycle.registry.keep_in_step()
        self._background.step()
        self._lifecycle.advance([seed for seed in self._seeds.values() if not seed.paused])
        self._journal.step(loss)
        if self.host._links.copies:
            self._reporter.stray_copies(self.host._links.copies.stray(self.host))
        self.monitor.step(self._seeds.values())
        for routine in list(self._routines):
            _advance(self, routine, loss)
        self._dispatcher.carry_out(self.peers.orders(self._inbox))
    finally:
        self._inbox.end_step()


def _advance(manager: ManagerCore, routine: Routine, loss: float | Tensor | None) -> None:
    """One step of what goes on beside the training; what ends, or raises, goes on no more."""
    try:
        routine.step(loss)
    except BaseException:
        manager._routines.remove(routine)
        raise
    if routine.done:
        manager._routines.remove(routine)
