"""Carries commands out on a manager, and never raises."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fxgraft import commands
from fxgraft.commands import BLEND, CULL, FOSSILIZE, PAUSE, RESUME, SEED, Command, Reply
from fxgraft.commands.inbox import Inbox
from fxgraft.errors import CommandError
from fxgraft.lifecycle import nursery
from fxgraft.manager.reporter import Reporter
from fxgraft.telemetry import logger

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

Message = Command | Mapping[str, Any] | str | bytes

MAX_PARAMETERS = 10**9
"""How many parameters a seed may have that a command asks for: commands are untrusted."""

REMEMBERED = 4096
"""How many command ids a dispatcher remembers, the oldest forgotten first."""


# What a blueprint's configuration must not reach.
_GERMINATE = {
    "slot_name", "slot", "blueprint", "source", "name", "mode", "objective", "isolated", "wait", "hyper",
    "optimizer", "groups", "before", "after",
}  # fmt: skip


class Dispatcher:
    """Turns messages into calls of a manager's methods and their outcome into replies."""

    def __init__(self, manager: SeedManager, reporter: Reporter):
        self._manager, self._reporter = manager, reporter
        self._replies: OrderedDict[str, Reply] = OrderedDict()

    def handle(self, message: Message, inbox: Inbox | None = None) -> Reply:
        """Carry one message out; an id that was carried out before gets its reply again.

        Where an ``inbox`` is given it only goes in there, for the end of the next step.
        """
        try:
            command = commands.parse(message)
        except CommandError as error:
            reply = Reply(False, str(error))
            if inbox is None:  # else this may be another thread, and sinks are for the one that trains
                self._reporter.command(None, reply)
            return reply
        if inbox is not None:
            waiting = inbox.put(command)
            # Only what was refused has its reply now; or what the other thread was quick to carry out.
            return waiting.result() if waiting.done() else _queued(command)
        if command.id is not None and command.id in self._replies:
            return self._replies[command.id]
        kind = type(command).__name__
        try:
            seed, done = self._carry_out(command)
            reply = Reply(True, done, kind, seed, command.id)
        except Exception as error:
            logger.info("refused %s: %s", kind, error)
            reply = Reply(False, f"{type(error).__name__}: {error}", kind, _subject(command), command.id)
        self._reporter.command(commands.to_dict(command), reply)
        if command.id is not None:
            self._replies[command.id] = reply
            if len(self._replies) > REMEMBERED:
                self._replies.popitem(last=False)
        return reply

    def carry_out(self, orders: Iterable[tuple[Command, Future[Reply] | None]]) -> None:
        """Carry commands out, and give each future its reply."""
        for command, future in orders:
            try:
                reply = self.handle(command)
            except BaseException as interrupt:  # Ctrl-C: whoever waits for the reply must not for ever
                if future is not None:
                    future.set_exception(interrupt)
                raise
            if future is not None:
                future.set_result(reply)

    def submit(self, message: Message, inbox: Inbox) -> Future[Reply]:
        """Let one message wait in the ``inbox``; what cannot be read is refused at once."""
        try:
            return inbox.put(commands.parse(message))
        except CommandError as error:
            refused: Future[Reply] = Future()
            refused.set_result(Reply(False, str(error)))
            return refused

    def _carry_out(self, command: Command) -> tuple[str, str]:
        """The seed that the command was about, and what was done."""
        manager = self._manager
        match command:
            case SEED():
                given = arguments(command)
                self._check_size(command)
                seed = manager.germinate(**given)
                return seed.name, f"{seed.name} is {seed.stage.name} at {seed.slot}"
            case BLEND():
                manager.blend(command.seed, to=command.to, steps=command.steps, schedule=command.schedule)
                return command.seed, f"alpha goes to {command.to:g} in {command.steps} steps"
            case CULL():
                manager.cull(command.seed)
                return command.seed, "culled"
            case FOSSILIZE():
                manager.fossilize(command.seed)
                return command.seed, "a part of the host now"
            case PAUSE():
                manager.pause(command.seed)
                return command.seed, "paused"
            case RESUME():
                manager.resume(command.seed)
                return command.seed, "goes on"

    def _check_size(self, command: SEED) -> None:
        """Refuse a seed that could exhaust the memory, before any is taken for it."""
        host, mode = self._manager.host, command.mode or "residual"
        slot = host.site(command.slot, command.source)
        size = nursery.size_on_meta(command.blueprint, slot, mode, command.config)
        if size is not None and size > MAX_PARAMETERS:
            raise CommandError(
                f"config: the seed would have {size:,} parameters; a command may ask for {MAX_PARAMETERS:,} "
                f"at most (fxgraft.manager.dispatch.MAX_PARAMETERS), the manager's germinate() for any number"
            )


def arguments(command: SEED) -> dict[str, Any]:
    """What `SeedManager.germinate` and `SeedManager.plan` are to be called with.

    Raises:
        CommandError: the configuration of the blueprint has a name that is an argument of these.
    """
    taken = command.config.keys() & _GERMINATE
    if "groups" in taken and nursery.has_option(command.blueprint, "groups"):
        taken = taken - {"groups"}  # which is then the blueprint's
    if taken:
        raise CommandError(f"config: {', '.join(sorted(taken))} cannot be set by a command")
    return {
        "slot_name": command.slot,
        "blueprint": command.blueprint,
        "source": command.source,
        "name": command.name,
        "mode": command.mode,
        "isolated": command.isolated,
        "before": command.before,
        "after": command.after,
        **command.config,
    }


def _queued(command: Command) -> Reply:
    said = "waits for the end of the next manager.step()"
    return Reply(True, said, type(command).__name__, _subject(command), command.id, queued=True)


def _subject(command: Command) -> str | None:
    return command.name if isinstance(command, SEED) else command.seed
