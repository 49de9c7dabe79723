"""The messages between a controller and a manager."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fxgraft.schedules import SCHEDULES
from fxgraft.seeds.config import SeedData


@dataclass(frozen=True, kw_only=True)
class SEED(SeedData):
    """Germinate ``blueprint`` at ``slot``."""

    blueprint: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class BLEND:
    """Move the alpha of ``seed`` to ``to`` within ``steps`` training steps; 0 is at once."""

    seed: str
    to: float = field(default=1.0, metadata={"minimum": 0, "maximum": 1})
    steps: int = field(default=100, metadata={"minimum": 0, "maximum": 10**9})
    schedule: str = field(default="cosine", metadata={"enum": list(SCHEDULES)})
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class CULL:
    """Remove ``seed``."""

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FOSSILIZE:
    """Make ``seed`` a permanent part of the host; with ``force`` from any live stage, isolated or not."""

    seed: str
    force: bool = False
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class PAUSE:
    """Stop the ramp and the updates of ``seed``."""

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RESUME:
    """Continue the ramp and the updates of ``seed`` after a PAUSE."""

    seed: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class WIDEN:
    """Add ``by`` channels to the channel group ``group`` of the host, as ``SeedManager.widen`` does."""

    group: str
    by: int = field(metadata={"minimum": 1, "maximum": 10**6})
    init: str = field(default="zero", metadata={"enum": ["zero", "split"]})
    optimizer_state: str = field(default="fresh", metadata={"enum": ["fresh", "copy"]})
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class DEEPEN:
    """Insert ``count`` more blocks in ``stack``, as ``SeedManager.deepen`` does."""

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


Command = SEED | BLEND | CULL | FOSSILIZE | PAUSE | RESUME | WIDEN | DEEPEN
TYPES: dict[str, type[Command]] = {
    kind.__name__: kind for kind in (SEED, BLEND, CULL, FOSSILIZE, PAUSE, RESUME, WIDEN, DEEPEN)
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
