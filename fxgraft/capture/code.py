"""What the code of a function names outside of itself, read from its bytecode; and whose code it is."""

from __future__ import annotations

import dis
import functools
from dataclasses import dataclass
from types import CodeType, FrameType

from fxgraft_passes.snapshot import LIBRARIES

_CATCHES = ("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "POP_EXCEPT")


@dataclass(frozen=True)
class Names:
    """The names of globals in a code object.

    Attributes:
        read: each global with the attributes read of it: ``("settings", "SWITCH")``.
        written: the globals that it assigns or deletes.
    """

    read: tuple[tuple[str, ...], ...]
    written: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> Names:
    """The globals that ``code`` names, whether it comes to them or not."""
    read: dict[tuple[str, ...], None] = {}
    written: dict[str, None] = {}
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain.append(str(instruction.argval))
            continue
        if chain:
            read[tuple(chain)] = None
        chain = []
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = [str(instruction.argval)]
        elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written[str(instruction.argval)] = None
    return Names(tuple(read), tuple(written))


@functools.lru_cache(maxsize=4096)
def _caught_in(code: CodeType) -> tuple[tuple[int, int], ...]:
    """The stretches of ``code`` whose exceptions it catches itself: ``try`` with ``except``, not ``with``."""
    instructions = {i.offset: i for i in dis.get_instructions(code)}
    offsets = sorted(instructions)
    found = []
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        after = [instructions[o] for o in offsets if o >= entry.target]
        if not after or after[0].opname != "PUSH_EXC_INFO":
            continue
        if len(after) > 1 and after[1].opname == "WITH_EXCEPT_START":
            continue
        for instruction in after:
            if instruction.opname in _CATCHES:
                found.append((entry.start, entry.end))
            if instruction.opname in (*_CATCHES, "RERAISE"):
                break
    return tuple(found)


def is_caught(frame: FrameType) -> bool:
    """Whether an exception raised just now below ``frame`` would be caught in it."""
    return any(start <= frame.f_lasti < end for start, end in _caught_in(frame.f_code))


def is_own(frame: FrameType) -> bool:
    """Whether the code of ``frame`` is a model's, and not torch's, fxgraft's or the standard library's."""
    return is_own_module(str(frame.f_globals.get("__name__", "")))


@functools.lru_cache(maxsize=4096)
def is_own_module(name: str) -> bool:
    """Whether a module of Python of that name is of a model's code."""
    return name.split(".")[0] not in LIBRARIES
