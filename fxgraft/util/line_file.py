"""A file of lines that is appended to while a run goes on, and that a killed run leaves readable."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class LineFile:
    """Appends lines to a file, each in one write.

    An existing file is continued; missing folders are created. The file is closed by `close`, or when this
    object is deleted.

    Args:
        path: the file, in UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (lives as long as this object)
        if _is_torn(Path(path)):  # by a process that was killed: the next line begins on its own
            self._file.write("\n")
        weakref.finalize(self, self._file.close)

    def write(self, line: str) -> None:
        """Append one line.

        Args:
            line: its text, without a line break.
        """
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_torn(path: Path) -> bool:
    """Whether the last line of a file has no line break."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
