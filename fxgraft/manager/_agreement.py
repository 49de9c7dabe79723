"""What ranks agree on: which change is next, and in which step it is applied or is given up.

Whatever is decided follows from what the ranks have sent each other, which is the same on all of them, and
from what all have: the host, its seeds, what was asked for. What a rank alone knows (that its code is
there, that something has failed) it sends, and acts on when it receives it, as the others do.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxgraft.distributed.peers import Peers, with_rank
from fxgraft.lifecycle.change import Names

_NEXT, _READY, _FAILED = "next change", "ready to apply", "failed to prepare"


@dataclass
class NextChange:
    """The change that all ranks apply next, from its choice until it is applied or is given up.

    Attributes:
        names: its seeds; None: no change is agreed on yet.
        unaided: of a change that the compiler process cannot help with.
        broken: why that cannot be applied either; sent to the other ranks.
        failures: how often preparing it has failed.
        has_code: whether there is code for it here already, where no job is awaited.
    """

    names: Names | None = None
    unaided: Names | None = None
    broken: str | None = None
    failures: int = 0
    has_code: bool = False


class Agreement:
    """What is agreed on.

    Args:
        peers: the ranks.

    Attributes:
        next: the change, as far as it is known here.
    """

    def __init__(self, peers: Peers):
        self._peers = peers
        self.next = NextChange()

    def receive(self) -> bool:
        """Take over which change the leader says is next; return whether that is another one than before."""
        said = self._peers.received(_NEXT)[0]
        if said is None or said == self.next.names:
            return False
        self.next = NextChange(said)
        return True

    def propose(self, names: Names) -> Names | None:
        """Say that this change is next, if none is yet; return which is. None: until the leader has sent."""
        self._peers.send(_NEXT, self.next.names or names)
        self.next.names = self.next.names or self._peers.received(_NEXT)[0]
        return self.next.names

    def repeat(self) -> None:
        """Say again which change is next: a rank may have lost it."""
        if self.next.names is not None:
            self._peers.send(_NEXT, self.next.names)

    def say_ready(self, names: Names) -> None:
        """Say that this rank can apply what is left of the change in the next step."""
        self._peers.send(_READY, names)

    def say_failed(self, reason: str) -> None:
        """Say that this rank never can."""
        self._peers.send(_FAILED, [self.next.names, reason])

    @property
    def ready(self) -> Names | None:
        """What all ranks can apply now."""
        found = self._peers.received(_READY)
        return found[0] if all(names == found[0] for names in found) else None

    @property
    def failure(self) -> str | None:
        """Why the first rank that has failed cannot apply the change."""
        for rank, said in enumerate(self._peers.received(_FAILED)):
            if said is not None and said[0] == self.next.names:
                return with_rank(self._peers, rank, said[1])
        return None

    def settle(self) -> None:
        """Nothing is agreed on any more: the next change is chosen anew."""
        self.next = NextChange()
        for topic in (_NEXT, _READY, _FAILED):
            self._peers.withdraw(topic)
