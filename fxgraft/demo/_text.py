"""The text: sympy's Python sources, as codes of characters, in three parts that share no file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHARACTERS = "\n\t" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1
"""One more, for every byte that is none of them."""

BATCH, CONTEXT = 16, 64

Batch = tuple[Tensor, Tensor]
"""Codes and the codes that follow them: (N, `CONTEXT`) int64 each."""


@dataclass(frozen=True)
class Text:
    """Each part is one long tensor of codes, uint8: 24 million to train on, a million in each other part."""

    train: Tensor
    held_out: Tensor
    test: Tensor

    def batch(self, random_seed: int, step: int) -> Batch:
        """`BATCH` random pieces of the training text: the same for every run with this random seed."""
        generator = torch.Generator().manual_seed(random_seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - CONTEXT - 1, (BATCH,), generator=generator)
        return _pieces(self.train, starts)

    def batches(self, part: str, pieces: int) -> Iterator[Batch]:
        """``pieces`` pieces of the part ``"held_out"`` or ``"test"``, evenly spread, 32 in a batch."""
        text: Tensor = getattr(self, part)
        starts = torch.linspace(0, len(text) - CONTEXT - 2, pieces).long()
        for some in torch.split(starts, 32):
            yield _pieces(text, some)


def _pieces(text: Tensor, starts: Tensor) -> Batch:
    found = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()


@cache
def load() -> Text:
    """Read the sources.

    Raises:
        FileNotFoundError: sympy is not installed.
    """
    found = find_spec("sympy")
    if found is None or found.origin is None:
        raise FileNotFoundError("the demo reads sympy's sources, which torch installs: pip install sympy")
    folder = Path(found.origin).parent
    parts: dict[str, list[bytes]] = {"train": [], "held_out": [], "test": []}
    for path in sorted(folder.rglob("*.py")):
        parts[_part(path.relative_to(folder).as_posix())].append(path.read_bytes() + b"\n")
    return Text(**{name: _codes(b"".join(files)) for name, files in parts.items()})


def _part(path: str) -> str:
    """The part of a file, by a hash of its path: 90, 5 and 5 %."""
    share = hashlib.sha256(path.encode()).digest()[0] / 256
    return "train" if share < 0.9 else "held_out" if share < 0.95 else "test"


def _codes(text: bytes) -> Tensor:
    table = np.full(256, VOCABULARY - 1, dtype=np.uint8)
    for code, character in enumerate(CHARACTERS):
        table[ord(character)] = code
    return torch.from_numpy(table[np.frombuffer(text, dtype=np.uint8)])
