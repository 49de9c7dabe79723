"""The messages between a controller and a manager."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fxgraft.schedules import SCHEDULES
from fxgraft.seeds.config import SeedData


@dataclass(frozen=True, kw_only=True)
class SEED(SeedData):
    """Germinate a seed, as `fxgraft.SeedManager.germinate` does with ``wait=True``.

    Attributes:
        slot: the name of the slot.
        blueprint: a registered name, from ``fxgraft.blueprints.names()``.
        source: an earlier slot, whose value the seed reads. Default None: it reads the value at ``slot``.
        name: the seed's name. Default None: a generated one.
        mode: ``"residual"``, ``"convex"``, ``"gated"`` or ``"channelwise"``. Default None: ``"residual"``.
        isolated: whether it trains in isolation. Default True.
        config: options of the blueprint, by name.
        before: a seed at the same slot, which the new one is placed in front of. Default None.
        after: a seed at the same slot, which the new one is placed behind. Default None: behind all.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    blueprint: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class BLEND:
    """Move the alpha of a seed to a target, as `fxgraft.SeedManager.blend` does.

    Attributes:
        seed: its name.
        to: the target of alpha, 0 to 1. Default 1.
        steps: the length of the ramp, in training steps. Default 100; 0 is at once.
        schedule: the form of the ramp: a registered name. Default ``"cosine"``.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    to: float = field(default=1.0, metadata={"minimum": 0, "maximum": 1})
    steps: int = field(default=100, metadata={"minimum": 0, "maximum": 10**9})
    schedule: str = field(default="cosine", metadata={"enum": list(SCHEDULES)})
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class CULL:
    """Remove a seed, as `fxgraft.SeedManager.cull` does.

    Attributes:
        seed: its name.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FOSSILIZE:
    """Make a seed a permanent part of the host, as `fxgraft.SeedManager.fossilize` does.

    Attributes:
        seed: its name.
        force: True allows it from any live stage, also of an isolated seed, and asks no gate. Default False.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    force: bool = False
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class PAUSE:
    """Stop the ramp and the updates of a seed.

    Attributes:
        seed: its name.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RESUME:
    """Continue the ramp and the updates of a seed after a PAUSE.

    Attributes:
        seed: its name.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class WIDEN:
    """Add channels to the host's own layers, as `fxgraft.SeedManager.widen` does.

    Attributes:
        group: the name of the group, one of ``host.channels``.
        by: how many channels are added, 1 to 1,000,000; a multiple of the group's grain.
        init: ``"zero"`` (the default: new outgoing weights are zero) or ``"split"`` (units are copied).
        optimizer_state: of new entries: ``"fresh"`` (the default: zero) or ``"copy"``.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    group: str
    by: int = field(metadata={"minimum": 1, "maximum": 10**6})
    init: str = field(default="zero", metadata={"enum": ["zero", "split"]})
    optimizer_state: str = field(default="fresh", metadata={"enum": ["fresh", "copy"]})
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FUSE:
    """Merge a permanent seed into the host's own layers, as `fxgraft.SeedManager.fuse` does.

    Attributes:
        seed: its name.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class DEEPEN:
    """Insert blocks in a stack of the host, as `fxgraft.SeedManager.deepen` does.

    Attributes:
        stack: the path of the container, one of ``host.stacks``.
        count: how many blocks, 1 to 1,024. Default 1.
        at: ``"start"``, ``"end"``, or indices of the blocks to insert behind. Default None: spread evenly.
        init: ``"zero"`` (the default: the function is kept), ``"copy"`` or ``"random"``.
        blend: the length of the ramp in training steps. Default 0: the blocks are permanent at once.
        isolated: whether they train in isolation first. Default False.
        optimizer_state: ``"fresh"`` (the default) or ``"copy"``, that of the copied block.
        name: the name of the new blocks. Default None: generated ones.
        like: indices of the blocks to copy. Default None: each copies the block in front of it.
        id: names the command, so that it is carried out once. Default None: no name.
    """

    stack: str
    count: int = field(default=1, metadata={"minimum": 1, "maximum": 1024})
    at: str | list[int] | None = None
    init: str = field(default="zero", metadata={"enum": ["zero", "copy", "random"]})
    blend: int = field(default=0, metadata={"minimum": 0, "maximum": 10**9})
    isolated: bool = False
    optimizer_state: str = field(default="fresh", metadata={"enum": ["fresh", "copy"]})
    name: str | None = None
    like: list[int] | None = None
    id: str | None = None


Command = SEED | BLEND | CULL | FOSSILIZE | PAUSE | RESUME | WIDEN | FUSE | DEEPEN
TYPES: dict[str, type[Command]] = {
    kind.__name__: kind for kind in (SEED, BLEND, CULL, FOSSILIZE, PAUSE, RESUME, WIDEN, FUSE, DEEPEN)
}


@dataclass(frozen=True)
class Reply:
    """The result of a command.

    Attributes:
        accepted: whether it was carried out.
        reason: why it was refused; or what was done.
        command: the type of the command; None if it could not be read.
        seed: the name of its seed, or None.
        id: the ``id`` of the command, or None.
        queued: whether it waits for the end of the next step, because it came from another thread; it may
            still be refused then.
    """

    accepted: bool
    reason: str
    command: str | None = None
    seed: str | None = None
    id: str | None = None
    queued: bool = False

    @property
    def refused(self) -> bool:
        """Whether it was not accepted."""
        return not self.accepted

    def __bool__(self) -> bool:
        return self.accepted

    def to_dict(self) -> dict[str, Any]:
        """The reply as a dictionary of JSON types."""
        return dataclasses.asdict(self)
