"""Messages between ranks: a header of fixed size from each, and notes where there is anything to send.

A rank sends values to a topic; the next exchange carries them to all. Every rank then has the same record of
messages, so decisions that follow from the record alone are the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fxgraft.errors import DistributedError

MAX_NOTE = 1 << 22
"""Bytes that a rank may send at once: more is an error, and not a buffer of that size on each rank."""


class Exchange:
    """The exchanges of one group of ranks.

    Args:
        group: for messages between CPUs (gloo).

    Attributes:
        rank, size: of this process in the group, and of the group.
    """

    def __init__(self, group: dist.ProcessGroup):
        self._group = group
        self.rank, self.size = group.rank(), group.size()
        self._to_send: dict[str, Any] = {}
        self._received: list[dict[str, Any]] = [{} for _ in range(self.size)]
        self._begun: tuple[Any, list[Tensor], bytes, str] | None = None

    def send(self, topic: str, value: Any) -> None:
        """Tell all ranks with every exchange from now to `deliver`. ``value`` is of JSON types."""
        self._to_send[topic] = value

    def deliver(self) -> None:
        """What was sent has arrived."""
        self._to_send = {}

    def received(self, topic: str) -> list[Any]:
        """What each rank sent to ``topic`` in the last exchange; None for one that sent nothing."""
        return [notes.get(topic) for notes in self._received]

    def forget(self, topic: str) -> None:
        """Neither send it nor keep what was received."""
        self._to_send.pop(topic, None)
        for notes in self._received:
            notes.pop(topic, None)

    def begin(self, state: str) -> None:
        """Send the header, and do not wait. ``state`` has to be the same on all ranks."""
        if self._begun is not None:
            return
        note = json.dumps(self._to_send).encode() if self._to_send else b""
        if len(note) > MAX_NOTE:
            raise DistributedError(
                f"rank {self.rank} has {len(note)} bytes to send; {MAX_NOTE} is the most. Send fewer "
                f"commands, or germinate fewer seeds, in one step"
            )
        header = torch.tensor([_digest(state), len(note)])
        headers = [torch.empty_like(header) for _ in range(self.size)]
        with self._in_touch():
            work = dist.all_gather(headers, header, group=self._group, async_op=True)
        self._begun = work, headers, note, state

    def finish(self, state: str) -> None:
        """Receive from everyone; begin now if that was not done.

        Raises:
            DistributedError: the ranks are in different states; with the states of two that differ.
        """
        self.begin(state)
        assert self._begun is not None
        work, headers, note, sent = self._begun
        self._begun = None
        with self._in_touch():
            work.wait()
        digests, lengths = (column.tolist() for column in torch.stack(headers).T)
        if len(set(digests)) > 1:
            self._raise_difference(self.gather(sent.encode()))
        notes = self.gather(note, max(lengths)) if max(lengths) else [b""] * self.size
        self._received = [json.loads(text) if text else {} for text in notes]

    def gather(self, text: bytes, longest: int | None = None) -> list[bytes]:
        """The bytes of every rank. ``longest`` saves an exchange of lengths."""
        if longest is None:
            lengths = self._all(torch.tensor([len(text)]))
            longest = int(torch.stack(lengths).max())
        padded = torch.zeros(8 + longest, dtype=torch.uint8)
        padded[:8] = torch.tensor([len(text)]).view(torch.uint8)
        if text:
            padded[8 : 8 + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        found = []
        for row in self._all(padded):
            length = int(row[:8].clone().view(torch.int64))
            found.append(bytes(row[8 : 8 + length].tolist()))
        return found

    def share(self, value: Any) -> Any:
        """The ``value`` of rank 0, on every rank. Of JSON types. Waits for all ranks."""
        return json.loads(self.gather(json.dumps(value).encode() if self.rank == 0 else b"")[0])

    def mean(self, value: float) -> float:
        """The mean of the ranks' values, the same on each to the bit. Waits for all ranks."""
        found = torch.stack(self._all(torch.tensor([value], dtype=torch.float64)))
        return float(found.mean())

    def _all(self, mine: Tensor) -> list[Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._in_touch():
            dist.all_gather(found, mine, group=self._group)
        return found

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Say what is to be done where a rank is gone."""
        try:
            yield
        except RuntimeError as error:  # of gloo: a closed connection, or the group's time-out
            raise DistributedError(
                f"rank {self.rank} of {self.size} lost the others: {error}. A rank has ended, or makes other "
                f"calls than this one. Start all ranks again from the last checkpoint"
            ) from error

    def _raise_difference(self, states: Sequence[bytes]) -> None:
        texts = [state.decode() for state in states]
        other = next(rank for rank, text in enumerate(texts) if text != texts[0])
        raise DistributedError(
            f"the ranks have drifted apart. Rank 0:\n{texts[0]}\nRank {other}:\n{texts[other]}\n"
            f"Every rank has to make the same calls of the manager, in the same order; commands are for "
            f"rank 0 alone, which tells the others. Go on from the last checkpoint"
        )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
