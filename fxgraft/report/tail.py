"""Reads a log that still grows."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from fxgraft.report.reading import Reader


class Tail:
    """The lines that have come since the last look. A line is given once it is whole.

    A log that became shorter, or that is another file now, is read anew.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None
        self._known: tuple[int, int] | None = None
        self._rest = b""
        self.reader = Reader()

    def look(self) -> bool:
        """Read on; return whether there was anything new. A file that is not there has nothing."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        identity = status.st_dev, status.st_ino
        if self._file is None or identity != self._known or status.st_size < self._file.tell():
            self.close()
            self._file, self._known = self.path.open("rb"), identity
            self._rest, self.reader = b"", Reader()
        more = self._file.read()
        *lines, self._rest = (self._rest + more).split(b"\n")
        for line in lines:
            self.reader.feed(line)
        return bool(more)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
