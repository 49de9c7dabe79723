"""Changes of the structure that training does not wait for.

A change goes through: its modules are built (in a thread), the code that its structure lacks is
compiled (in the compiler process, where the host is compiled), and it is applied: on the training thread,
at a step boundary, whole or not at all. Until then the host runs what it ran. Everything that is built when
the compiler process is free goes into one structure.

Where that cannot help, the change compiles when it is applied, as it does with ``wait=True``. Whatever
preparing raises is caught in one place, `Background.step`: the change is applied without help, or is given
up, and the log says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from fxgraft.distributed.peers import Peers, with_rank
from fxgraft.errors import DistributedError
from fxgraft.host import engine
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._agreement import Agreement
from fxgraft.manager._compiler_help import CompilerHelp, Promised
from fxgraft.manager._prefetch import Pending
from fxgraft.manager._preparation import NOTHING, Applier, Attempt
from fxgraft.manager._preparing import Preparing
from fxgraft.manager._waiting import Waiting
from fxgraft.manager.reporter import Reporter
from fxgraft.seeds.seed import Seed
from fxgraft_passes import Slot

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost


class Background:
    """The changes in preparation.

    Args:
        lifecycle: carries changes out.
        reporter: is notified.
        peers: the other ranks: all apply the same change in the same step.
        timeout: in seconds, after which a germination whose module is not built, or is not compiled as
            long after that, is given up; None: never.
        helper: ``"auto"``: compile in another process where that can be; ``"off"``: never.

    Attributes:
        waiting: what was asked for and is not applied yet.
        preparing: what of that is compiled for now.
    """

    def __init__(
        self, lifecycle: Lifecycle, reporter: Reporter, peers: Peers, timeout: float | None, helper: str
    ):
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._peers = peers
        self._help = CompilerHelp(helper)
        self.waiting = Waiting(lifecycle, reporter, lambda seed: self.preparing.withdraw(seed))
        self._applier = Applier(lifecycle, self.waiting)
        self._agreement = Agreement(peers)
        self.preparing = Preparing(
            lifecycle, self.waiting, self._applier, self._help, self._agreement, peers.size, timeout
        )
        self._seen_changes = 0
        self._warm: CompiledHost | None = None  # that the compiler process was started for
        self._promised = Promised(self._host, timeout)

    @property
    def is_applying(self) -> bool:
        """Whether a change is applied now."""
        return self._applier.is_under_way

    def germinate(self, seed: Seed, slot: Slot, build: Callable[[], nn.Module]) -> None:
        """Begin to build the module of ``seed``, which is in GERMINATED until it is live."""
        self.waiting.germinate(seed, slot, build, self.preparing.deadline())

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what is in preparation is built, and compiled as far as that was begun.

        Returns whether it was in time. Only `step` lets it be applied, or begins to compile.
        """
        built = all(pending.wait(timeout) for pending in self.waiting.pending.values())
        self._promised.wait(timeout)
        if self.preparing.now is not None:
            self.preparing.now.job.wait(timeout)
        return built

    # At a step boundary

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing. False is not certain."""
        waiting, compiled = self.waiting, self._host.compiled
        if self.preparing.now is not None or waiting.pending or waiting.acts or waiting.fossils:
            return False
        if self._lifecycle.departing:
            return False
        if self._promised:
            return False
        return compiled is None or (self._warm is compiled and compiled.code.changes == self._seen_changes)

    def step(self) -> None:
        """Take in what has come, apply a change that is ready, and begin with the next.

        Raises:
            DistributedError: a rank is gone.
        """
        if self.is_idle:
            return
        attempt = Attempt()
        try:
            self._advance(attempt)
        except DistributedError:
            raise
        except Exception as error:  # of whatever prepares a change: no reason to end the training
            self._recover(attempt, f"{type(error).__name__}: {error}")

    def _advance(self, attempt: Attempt) -> None:
        if self._warm is not (compiled := self._host.compiled) and compiled is not None:
            self._warm = compiled
            if not self._help.is_off:
                self._promised.keep_ready(compiled)
        if self._promised:
            self._promised.take()
        for pending in list(self.waiting.pending.values()):
            self._take_in(pending)
        if not self.preparing.decide(attempt):
            self.preparing.follow()
            is_busy = self.preparing.now is not None or self.preparing.begin(attempt)
            has_decided = self.preparing.decide(attempt)  # one process receives at once what it sends
            if is_busy and not has_decided:
                return
        # Here, and not in the next step: that one compares the code that is new with eager mode.
        if self.preparing.now is None and self.waiting.is_empty:
            self._compile_in_advance()

    @property
    def is_compiling(self) -> bool:
        """Whether the compiler process works for this host."""
        return self.preparing.now is not None or bool(self._promised)

    def _take_in(self, pending: Pending) -> None:
        """Say whether the module of a seed is built, and learn whether it is on all ranks."""
        built, failed = f"{pending.seed.name} is built", f"{pending.seed.name} failed"
        if (trouble := self._why_given_up(pending)) is not None:
            self._peers.send(failed, trouble)
        elif pending.module is not None:
            self._peers.send(built, True)
        for rank, reason in enumerate(self._peers.received(failed)):
            if reason is not None:
                self.waiting.fail(pending.seed, with_rank(self._peers, rank, reason))
                return
        if all(self._peers.received(built)):
            pending.is_agreed = True

    def _why_given_up(self, pending: Pending) -> str | None:
        """Why it fails on this rank, if it does."""
        if pending.is_late:
            return f"not ready after {self.preparing.timeout} s"
        return str(pending.error) if pending.is_built and pending.module is None else None

    def _compile_in_advance(self) -> None:
        """With nothing else to do, compile what the running structure would be better off with."""
        compiled = self._host.compiled
        if compiled is None or compiled.code.changes == self._seen_changes:
            return
        self._seen_changes = compiled.code.changes
        structure, grafts = self._host.structure, self._host.grafts()
        tasks = compiled.wanted.by_calls() or compiled.wanted.settled(structure, grafts)
        try:
            if tasks and self._help.is_there():
                job = engine.compile_in_helper(self._host, structure, grafts, tasks)
                self.preparing.start(job, structure, NOTHING)
        finally:  # what cannot be given to another process compiles here
            for task in tasks if self.preparing.now is None else ():
                task.leave()

    def _recover(self, attempt: Attempt, reason: str) -> None:
        """Preparing has raised: the change is applied without help; where that raises too, it is given up."""
        preparing, change = self.preparing, attempt.change
        prepared, preparing.now = preparing.now, None
        if prepared is not None:
            change = prepared.change if prepared.change != NOTHING else change
            prepared.job.stop()
            prepared.job.leave_rest()
        if change == NOTHING and not attempt.is_choosing:
            self._help.say_once(f"compiling what runs in the background has failed: {reason}")
            return
        agreed = self._agreement.next
        agreed.failures += 1
        if change == NOTHING:
            self._help.say_once(f"choosing the next change has failed: {reason}")
            if agreed.failures > 2:
                self.waiting.fail_all(reason)
                self._agreement.settle()
            return
        if agreed.failures == 1:
            agreed.unaided = change.names
            self._help.say_once(f"a change compiles when it is applied, as preparing it has failed: {reason}")
        elif agreed.failures == 2:
            agreed.broken = reason  # the other ranks receive it, and give the change up in the same step
        else:
            self.waiting.fail_change(change, reason)
            self._agreement.settle()
