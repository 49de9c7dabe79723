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
    rests = self._rests_at is self.host.structure  # which host.clear() replaces
    if rests and (loss is None or isinstance(loss, Tensor)) and _has_nothing_to_do(self):
        self._reporter.step += 1
        return
    _step(self, loss)
    # Until something is asked for, the next steps are only counted. All of `_step` takes 10 us where it is in
    # the processor's cache, and 100 us after a training step, which has put everything else there.
    # (Copies may stray for a while after a change; one that is made at rest lacks nothing before the next.)
    is_reported = self._journal.is_kept or bool(self.host._links.copies)
    rests = _has_fossils_only(self) and self.peers.size == 1 and not is_reported
    self._rests_at = self.host.structure if rests else None


def _has_nothing_to_do(self: ManagerCore) -> bool:
    """Whether a step only has to be counted. True is certain; False is not."""
    return (
        not (
            self._routines
            or self._inbox.has_work_for(get_ident())
            or self._dispatcher.is_behind
            or self._acts.open is not None
            or self.host._links.borrowed
        )
        and self._background.is_idle
        and _has_fossils_only(self)
    )


def _has_fossils_only(self: ManagerCore) -> bool:
    """Whether no seed changes any more, which is so where there is none."""
    return all(seed.stage is Stage.FOSSILIZED for seed in self._seeds.values())


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
