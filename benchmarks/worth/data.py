"""The data of the workloads: training batches by random seed and step alone, fixed evaluation batches."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from benchmarks.worth.prepare import BROWN, FILES, brown_folder, fashion_folder, sympy_folder

CHARACTERS = "\n\t" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1  # one more for every byte that is none of them
PARTS = ("train", "validation", "test")

Batch = tuple[Tensor, Tensor]


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of this step of this random seed: the same in each arm, and after resuming."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass(frozen=True)
class Text:
    """Characters as codes, uint8, one long tensor for each of `PARTS`."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def batch(self, seed: int, step: int, size: int, context: int) -> Batch:
        """Random pieces of the training text: codes and the codes that follow, (size, context) int64 each."""
        starts = torch.randint(len(self.train) - context - 1, (size,), generator=generator(seed, step))
        return _pieces(self.train, starts, context)

    def evaluation(self, part: str, pieces: int, size: int, context: int, first: int = 0) -> Iterator[Batch]:
        """``pieces`` pieces of that part, evenly spread over it, in batches; others for another ``first``."""
        text = getattr(self, part)
        last = len(text) - context - 2
        starts = (torch.linspace(0, last, pieces).long() + first * context) % (last + 1)
        for some in starts.split(size):
            yield _pieces(text, some, context)


def _pieces(text: Tensor, starts: Tensor, context: int) -> Batch:
    found = text[starts[:, None] + torch.arange(context + 1)].long()
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()


def part_of(path: str) -> str:
    """The part that a file belongs to, by a hash of its path: 90, 5 and 5 %."""
    share = hashlib.sha256(path.encode()).digest()[0] / 256
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


@cache
def sympy_text() -> Text:
    """Sympy's sources, split by file."""
    folder = sympy_folder()
    paths = sorted(folder.rglob("*.py"))
    return _split({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


@cache
def brown_text() -> Text:
    """The Brown corpus without its tags, split by file: English of 1961, 6 million characters."""
    folder = brown_folder()
    return _split({path.name: without_tags(path.read_bytes()) for path in sorted(folder.glob(BROWN))})


def without_tags(tagged: bytes) -> bytes:
    """``The/at jury/nn`` to ``The jury``; empty lines are left out."""
    lines = (b" ".join(word.rpartition(b"/")[0] for word in line.split()) for line in tagged.splitlines())
    return b"\n".join(line for line in lines if line)


def _split(files: dict[str, bytes]) -> Text:
    """Texts by the name of their file, to the parts."""
    texts: dict[str, list[bytes]] = {part: [] for part in PARTS}
    for name, text in files.items():
        texts[part_of(name)].append(text + b"\n")
    return Text(*(_codes(b"".join(texts[part])) for part in PARTS))


def _codes(text: bytes) -> Tensor:
    table = numpy.full(256, VOCABULARY - 1, dtype=numpy.uint8)
    for code, character in enumerate(CHARACTERS):
        table[ord(character)] = code
    return torch.from_numpy(table[numpy.frombuffer(text, dtype=numpy.uint8)])


@dataclass(frozen=True)
class Images:
    """For each of `PARTS` images (N, 1, 28, 28), uint8, and labels (N,), int64."""

    train: Batch
    validation: Batch
    test: Batch

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Random training images, each flipped or not, shifted by up to 2 pixels; float, scaled."""
        draw = generator(seed, step)
        images, labels = self.train
        which = torch.randint(len(images), (size,), generator=draw)
        flipped = torch.rand(size, generator=draw) < 0.5
        shifts = torch.randint(5, (2, size, 1), generator=draw)
        chosen = torch.nn.functional.pad(images[which, 0], (2, 2, 2, 2))
        rows = (shifts[0] + torch.arange(28))[:, :, None]
        columns = torch.arange(28).expand(size, 28)
        columns = torch.where(flipped[:, None], 27 - columns, columns) + shifts[1]
        moved = chosen[torch.arange(size)[:, None, None], rows, columns[:, None, :]]
        return _scaled(moved[:, None]), labels[which]

    def evaluation(self, part: str, count: int, size: int, first: int = 0) -> Iterator[Batch]:
        """``count`` images of that part from the ``first`` on, in batches; past the end it begins anew."""
        images, labels = getattr(self, part)
        for some in (torch.arange(first, first + min(count, len(images))) % len(images)).split(size):
            yield _scaled(images[some]), labels[some]


def _scaled(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.286) / 0.353  # mean and deviation of the training images


@cache
def fashion() -> Images:
    """Fashion-MNIST; the last 5,000 training images are for validation."""
    folder = fashion_folder()
    read = [_idx(folder / name) for name in FILES]
    images, labels, test_images, test_labels = (torch.from_numpy(array.copy()) for array in read)
    images, test_images = images[:, None], test_images[:, None]
    labels, test_labels = labels.long(), test_labels.long()
    return Images(
        (images[:-5000], labels[:-5000]), (images[-5000:], labels[-5000:]), (test_images, test_labels)
    )


def _idx(path: Path) -> numpy.ndarray:
    """A file in the IDX format: magic number, whose last byte is the rank, sizes, bytes."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    sizes = numpy.frombuffer(content, dtype=">i4", count=rank, offset=4)
    return numpy.frombuffer(content, dtype=numpy.uint8, offset=4 + 4 * rank).reshape(sizes)
