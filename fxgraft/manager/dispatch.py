"""Carries commands out on a manager, and never raises."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fxgraft import commands
from fxgraft.commands import (
    BLEND,
    CULL,
    DEEPEN,
    FOSSILIZE,
    FUSE,
    PAUSE,
    RESUME,
    SEED,
    WIDEN,
    Command,
    Reply,
)
from fxgraft.commands.inbox import Inbox
from fxgraft.errors import CommandError
from fxgraft.host import engine
from fxgraft.lifecycle import building
from fxgraft.manager.reporter import Reporter
from fxgraft.seeds.config import DEFAULT_MODE, SeedConfig, SeedData
from fxgraft.telemetry import logger
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

Order = tuple[Command, Future[Reply] | None]
"""A command, and what waits for its reply on this rank."""

Message = Command | Mapping[str, Any] | str | bytes

MAX_PARAMETERS = 10**9
"""How many parameters a seed may have that a command asks for: commands are untrusted."""

REMEMBERED = 4096
"""How many command ids a dispatcher remembers, the oldest forgotten first."""


# What a blueprint's configuration must not reach.
_GERMINATE = {"slot_name", "wait", *(f.name for f in dataclasses.fields(SeedConfig))} - {"config"}


class Dispatcher:
    """Turns messages into calls of a manager's methods and their outcome into replies."""

    def __init__(self, manager: SeedManager, reporter: Reporter):
        self._manager, self._reporter = manager, reporter
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self._left: list[Order] = []  # by an interrupt, for the next time

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
        return self._report(command, self._try(command))

    @property
    def is_behind(self) -> bool:
        """Whether commands are left over from a step that was interrupted."""
        return bool(self._left)

    def carry_out(self, orders: Iterable[Order]) -> None:
        """Carry commands out, and give each future its reply.

        All are applied as one change. One that is refused changes nothing for the others; where the change
        as a whole cannot be applied, they are carried out one by one.
        """
        waiting, self._left = [*self._left, *orders], []
        if len(waiting) > 1 and self._carry_out_together(waiting):
            return
        while waiting:
            command, future = waiting.pop(0)
            try:
                _answer(future, self.handle(command))
            except BaseException as interrupt:
                self._interrupted(interrupt, future, waiting)
                raise

    def _interrupted(self, error: BaseException, future: Future[Reply] | None, left: Sequence[Order]) -> None:
        """Ctrl-C: a caller must not wait for ever for its reply; the other commands are for the next time."""
        self._left = list(left)
        if future is not None:
            future.set_exception(error)

    def _carry_out_together(self, orders: list[Order]) -> bool:
        """Carry commands out in one act; return whether it was applied. If not, nothing was changed."""
        reply: Callable[[], Reply]
        replies: list[Callable[[], Reply]] = []
        first: dict[str, Callable[[], Reply]] = {}  # by id: each is carried out once
        try:
            with self._manager.together():
                for command, _ in orders:
                    if command.id is not None and command.id in self._replies:
                        reply = partial(_the_same, self._replies[command.id])
                    elif command.id is not None and command.id in first:
                        reply = first[command.id]
                    else:
                        reply = cache(partial(self._report, command, self._try(command)))
                    replies.append(reply)
                    if command.id is not None:
                        first[command.id] = reply
        except Exception as error:
            logger.info(
                "%d commands were not applied as one: %s: %s", len(orders), type(error).__name__, error
            )
            return False
        except BaseException as interrupt:
            at = min(len(replies), len(orders) - 1)  # the command that was being carried out
            self._interrupted(interrupt, orders[at][1], [*orders[:at], *orders[at + 1 :]])
            raise
        for (_, future), reply in zip(orders, replies, strict=True):
            _answer(future, reply())
        return True

    def _try(self, command: Command) -> Callable[[], Reply]:
        """Carry ``command`` out; what is returned says, when all is done, what became of it."""
        kind = type(command).__name__
        try:
            seed, done = self._carry_out(command)
            return lambda: Reply(True, done(), kind, seed, command.id)
        except Exception as error:
            logger.info("refused %s: %s", kind, error)
            refused = Reply(False, f"{type(error).__name__}: {error}", kind, _subject(command), command.id)
            return partial(_the_same, refused)

    def _report(self, command: Command, outcome: Callable[[], Reply]) -> Reply:
        """The reply, which the sinks receive and which is remembered."""
        reply = outcome()
        self._reporter.command(commands.to_dict(command), reply)
        if command.id is not None:
            self._replies[command.id] = reply
            if len(self._replies) > REMEMBERED:
                self._replies.popitem(last=False)
        return reply

    def submit(self, message: Message, inbox: Inbox) -> Future[Reply]:
        """Queue one message in the ``inbox``; what cannot be read is refused at once."""
        try:
            return inbox.put(commands.parse(message))
        except CommandError as error:
            refused: Future[Reply] = Future()
            refused.set_result(Reply(False, str(error)))
            return refused

    def _carry_out(self, command: Command) -> tuple[str | None, Callable[[], str]]:
        """The seed that the command was about, and what was done, in words."""
        manager = self._manager
        match command:
            case SEED():
                given = arguments(command)
                self._check_size(command)
                seed = manager.germinate(**given)
                return seed.name, lambda: f"{seed.name} is {seed.stage.name} at {seed.slot}"
            case BLEND():
                manager.blend(command.seed, to=command.to, steps=command.steps, schedule=command.schedule)
                to, steps = command.to, command.steps
                return command.seed, lambda: f"alpha goes to {to:g} in {steps} steps"
            case CULL():
                manager.cull(command.seed)
                return command.seed, lambda: "culled"
            case FOSSILIZE():
                manager.fossilize(command.seed, force=command.force)
                return command.seed, lambda: "fossilized: it is a permanent part of the host"
            case PAUSE():
                manager.pause(command.seed)
                return command.seed, lambda: "paused"
            case RESUME():
                manager.resume(command.seed)
                return command.seed, lambda: "resumed"
            case WIDEN():
                self._check_growth(command)
                done = manager.widen(
                    command.group, command.by, init=command.init, optimizer_state=command.optimizer_state
                )
                return None, lambda: f"{done.group} has {done.size} channels"
            case FUSE():
                into = manager.fuse(command.seed)
                return command.seed, lambda: _fused(into.get(command.seed))
            case DEEPEN():
                self._check_blocks(command)
                seeds = manager.deepen(**_options(command))
                names = ", ".join(seed.name for seed in seeds)
                return names, lambda: f"{pluralize(len(seeds), 'block')} more in {command.stack}: {names}"

    def _check_growth(self, command: WIDEN) -> None:
        """Refuse a growth that could exhaust the memory, before any is taken for it."""
        group = engine.untried_channels(self._manager.host).get(command.group)
        if group is None:
            return  # the error is raised where it is looked up
        grown = {member.name for member in group.members if member.role != "norm"}
        numbers = [self._manager.host.get_parameter(name).numel() for name in grown]
        if (size := sum(numbers) * command.by // group.size) > MAX_PARAMETERS:
            raise CommandError(
                f"by: the host would have {size:,} parameters more; a command may ask for {MAX_PARAMETERS:,} "
                "at "
                f"most (fxgraft.manager.dispatch.MAX_PARAMETERS), the manager's widen() for any number"
            )

    def _check_size(self, command: SEED) -> None:
        """Refuse a seed that could exhaust the memory, before any is taken for it."""
        host, mode = self._manager.host, command.mode or DEFAULT_MODE
        slot = host.site(command.slot, command.source)
        size = building.size_on_meta(command.blueprint, slot, mode, command.config)
        if size is not None and size > MAX_PARAMETERS:
            raise CommandError(
                f"config: the seed would have {size:,} parameters; a command may ask for {MAX_PARAMETERS:,} "
                f"at most (fxgraft.manager.dispatch.MAX_PARAMETERS), the manager's germinate() for any number"
            )

    def _check_blocks(self, command: DEEPEN) -> None:
        """Refuse blocks that could exhaust the memory, before any is taken for them."""
        stack = self._manager.host.stacks.get(command.stack)
        if stack is None:
            return  # which is said where they are inserted
        block = self._manager.host.get_submodule(stack.blocks[0])
        given = len(command.at) if isinstance(command.at, list) else 1
        size = sum(p.numel() for p in block.parameters()) * max(command.count, given)
        if size > MAX_PARAMETERS:
            raise CommandError(
                f"count: the blocks would have {size:,} parameters; a command may ask for {MAX_PARAMETERS:,} "
                f"at most (fxgraft.manager.dispatch.MAX_PARAMETERS), the manager's deepen() for any number"
            )


def _options(command: DEEPEN) -> dict[str, Any]:
    """What `SeedManager.deepen` is to be called with."""
    return {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "id"}


def arguments(command: SEED) -> dict[str, Any]:
    """What `SeedManager.germinate` and `SeedManager.plan` are to be called with.

    Raises:
        CommandError: the configuration of the blueprint has a name that is an argument of these.
    """
    taken = command.config.keys() & _GERMINATE
    if "groups" in taken and building.has_option(command.blueprint, "groups"):
        taken = taken - {"groups"}  # which is then the blueprint's
    if taken:
        raise CommandError(
            f"config: {', '.join(sorted(taken))} cannot be set by a command: they "
            f"are arguments of the manager's germinate()"
        )
    given = {f.name: getattr(command, f.name) for f in dataclasses.fields(SeedData)}
    slot, config = given.pop("slot"), given.pop("config")
    return {"slot_name": slot, **given, **config}


def _fused(into: str | None) -> str:
    if into is None:  # inside of the caller's `together`
        return "is fused when the change is made"
    return f"fused: it is a part of {into}"


def _the_same(reply: Reply) -> Reply:
    return reply


def _answer(future: Future[Reply] | None, reply: Reply) -> None:
    if future is not None:
        future.set_result(reply)


def _queued(command: Command) -> Reply:
    said = "waits for the end of the next manager.step()"
    return Reply(True, said, type(command).__name__, _subject(command), command.id, queued=True)


def _subject(command: Command) -> str | None:
    if isinstance(command, WIDEN):
        return None
    return command.name if isinstance(command, SEED | DEEPEN) else command.seed
