"""What the code of a function names outside of itself, read from its bytecode; and whose code it is."""

from __future__ import annotations

import builtins
import dis
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

from fxgraft_passes.saved import LIBRARIES

_CATCHES = ("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "POP_EXCEPT")


@dataclass(frozen=True)
class Names:
    """The names in a code object, whether it comes to them or not.

    Attributes:
        read: each global with the attributes read of it: ``("settings", "SWITCH")``.
        written: the globals that it assigns or deletes.
        attributes: what it may read of any object: names of attributes, of what it imports from a module, and
            texts that are names, for ``getattr`` and the like.
        texts: those of them that are texts.
        kept: those of them that it does more with than to call them, or to read an attribute of theirs.
        stored: the names of attributes that it sets.
        imported: the modules of Python that it imports.
    """

    read: tuple[tuple[str, ...], ...]
    written: tuple[str, ...]
    attributes: frozenset[str]
    texts: frozenset[str]
    kept: frozenset[str]
    stored: frozenset[str]
    imported: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> Names:
    """The names in ``code``."""
    found: dict[str, dict[Any, None]] = {kind: {} for kind in ("read", "written", "attributes", "stored")}
    chain: list[str] = []
    instructions = list(dis.get_instructions(code))
    texts = {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    kept = set(texts)
    imported: dict[str, None] = {}
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        name, kind = instruction.argval, instruction.opname
        if kind in _LOADS:
            found["attributes"][name] = None
            if not (_is_method(instruction) or (following is not None and following.opname in _LOADS)):
                kept.add(name)
            if chain:
                chain.append(str(name))
                continue
        if chain:
            found["read"][tuple(chain)] = None
        chain = []
        if kind in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = [str(name)]
        elif kind in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            found["written"][name] = None
        elif kind in ("STORE_ATTR", "DELETE_ATTR"):
            found["stored"][name] = None
        elif kind == "IMPORT_FROM":
            found["attributes"][name] = None
        elif kind == "IMPORT_NAME":
            imported[name] = None
    return Names(
        read=tuple(found["read"]),
        written=tuple(found["written"]),
        attributes=frozenset(found["attributes"]) | texts,
        texts=frozenset(texts),
        kept=frozenset(kept),
        stored=frozenset(found["stored"]) | (texts if "setattr" in code.co_names else frozenset()),
        imported=tuple(imported),
    )


CACHED = type(functools.lru_cache(lambda: None))
"""What ``functools.lru_cache`` and ``functools.cache`` make of a function."""

_LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


def _is_method(instruction: dis.Instruction) -> bool:
    """Whether an attribute is read to be called."""
    if instruction.opname == "LOAD_METHOD":
        return True
    return sys.version_info >= (3, 12) and bool((instruction.arg or 0) & 1)


@dataclass(frozen=True)
class Method:
    """How a function is found in a class.

    Attributes:
        cls: the class of the object that it was called on, or one of its bases.
        name: what it is called there.
        held: what stands under that name: a function, a property, or what wraps one.
        is_overridden: whether that class gives another one for the name: it was called by ``super()``.
    """

    cls: type
    name: str
    held: Any
    is_overridden: bool


def reached(frame: FrameType) -> Method | None:
    """The method, property or the like whose code ``frame`` runs, if it is one."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    leaf = first if isinstance(first, type) else type(first)
    bases = [cls for cls in leaf.__mro__ if is_own_class(cls)]
    for names in ((code.co_name,), None):  # the name of the function, or else any
        for cls in bases:
            for name in names or list(vars(cls)):
                held = cls.__dict__.get(name)
                if held is not None and any(function.__code__ is code for function in functions_of(held)):
                    given = next(base for base in leaf.__mro__ if name in base.__dict__)
                    return Method(cls if given is not cls else leaf, name, held, given is not cls)
    return None


def functions_of(held: Any) -> Iterator[FunctionType]:
    """The functions in what a class has under a name: wrapped ones, those of properties."""
    if isinstance(held, FunctionType):
        yield held
    for inner, _ in wrapped_in(held):
        yield from functions_of(inner)


def wrapped_in(value: Any) -> list[tuple[Any, tuple[str, str]]]:
    """What a function, or what a class has in the place of one, is made of; each with the step to it."""
    names: tuple[str, ...] = ()
    if isinstance(value, FunctionType):
        names = ("__wrapped__",) if "__wrapped__" in value.__dict__ else ()
    elif isinstance(value, (staticmethod, classmethod)):
        names = ("__func__",)
    elif isinstance(value, property):
        names = ("fget",)
    elif isinstance(value, functools.cached_property):
        names = ("func",)
    elif isinstance(value, CACHED):
        names = ("__wrapped__",)
    return [(getattr(value, name), ("attr", name)) for name in names]


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


def compared_in(function: Any) -> list[tuple[str, str]]:
    """The pairs of local variables of which a function asks whether they are the same: ``q is k``."""
    code = getattr(function, "__code__", None)
    loaded: list[str] = []
    found: dict[tuple[str, str], None] = {}
    for instruction in dis.get_instructions(code) if isinstance(code, CodeType) else ():
        if instruction.opname.startswith("LOAD_FAST"):
            value = instruction.argval
            loaded += value if isinstance(value, tuple) else [value]
            continue
        if instruction.opname == "IS_OP" and len(loaded) > 1:
            one, other = loaded[-2:]
            if hasattr(builtins, other):  # which conditions would take for Python's own
                one, other = other, one
            if not hasattr(builtins, other) and one != other:
                found[one, other] = None
        loaded = []
    return list(found)


def is_own(frame: FrameType) -> bool:
    """Whether the code of ``frame`` is a model's, and not torch's, fxgraft's or the standard library's."""
    return is_own_module(str(frame.f_globals.get("__name__", "")))


@functools.lru_cache(maxsize=4096)
def is_own_module(name: str) -> bool:
    """Whether a module of Python of that name is of a model's code."""
    return name.split(".")[0] not in LIBRARIES


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that can be changed


def is_own_class(value: Any) -> bool:
    """Whether it is a class of a model's code: also one made by ``exec`` where no module has a name."""
    if not isinstance(value, type):
        return False
    module = str(value.__module__)
    return is_own_module(module) or (module == "builtins" and bool(value.__flags__ & _HEAP_TYPE))
