"""Objects from data that came from outside: commands, configurations, checkpoints. msgspec checks them.

A dataclass says what its fields may be: by its annotations, and in the metadata of a field by ``enum``,
``minimum`` and ``maximum``. Names that it does not have are refused. ::

    BLEND.to: expected 0 to 1; got 7
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import msgspec

T = TypeVar("T")

_NAMES = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array",
    tuple: "array", types.NoneType: "null",
}  # fmt: skip


class InvalidDataError(ValueError):
    """Data is not what it has to be: says where, what was expected, and what was given."""


# Text


def decode(text: str | bytes | bytearray) -> Any:
    """JSON, without what only Python takes for it: NaN, infinities, a name twice, halves of characters.

    Raises:
        InvalidDataError: it is none.
    """
    try:
        found = json.loads(
            text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_duplicates
        )
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InvalidDataError(str(error)) from error
    return found


def _finite(text: str) -> float:
    """JSON has no NaN and no inf; Python's reader takes them, and makes an inf of 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shortened(twice)} is there twice")
    return found


# Objects


def read(data: Any, kind: type[T], where: str = "") -> T:
    """An object of the dataclass ``kind``, and of those in its fields.

    Args:
        data: names -> values, as from JSON; a whole number may be written as 2.0.
        kind: a dataclass.
        where: what to call the whole in an error.

    Raises:
        InvalidDataError: a name, a type or a bound does not fit.
    """
    import msgspec  # on demand: most users read nothing

    if not isinstance(data, Mapping):
        raise InvalidDataError(
            f"{where or 'the data'}: expected an object with fields; got {shortened(data)}"
        )
    given = _whole({str(name): value for name, value in data.items()}, kind)
    try:
        msgspec.convert(given, checked(typing.cast(Any, kind)))  # names and bounds
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise InvalidDataError(_reason(str(error), kind, given, where)) from error


@cache
def checked(kind: Any, tag: bool = False) -> type[msgspec.Struct]:
    """What a dataclass says of its fields, as a type of msgspec's; with a ``tag`` its name is in ``type``."""
    import msgspec

    hints, members = typing.get_type_hints(kind), list[Any]()
    for f in dataclasses.fields(kind):
        wanted = _wanted(hints[f.name], f.metadata)
        if f.default is not dataclasses.MISSING:
            members.append((f.name, wanted, f.default))
        elif f.default_factory is not dataclasses.MISSING:
            members.append((f.name, wanted, msgspec.field(default_factory=f.default_factory)))
        else:
            members.append((f.name, wanted))
    return msgspec.defstruct(
        kind.__name__,
        members,
        kw_only=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": kind.__doc__},
        tag=kind.__name__ if tag else None,
    )


def schema(kinds: Sequence[type[Any]]) -> dict[str, Any]:
    """The JSON schema of an object of one of ``kinds``, which says in ``type`` which one it is."""
    import msgspec

    structs = [checked(typing.cast(Any, kind), tag=True) for kind in kinds]
    found, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    return {"oneOf": list(found), "$defs": parts}


def _wanted(hint: Any, rules: Mapping[str, Any]) -> Any:
    import msgspec

    if "enum" in rules:
        return typing.Literal[tuple(rules["enum"])]
    if "minimum" in rules or "maximum" in rules:
        bounds = msgspec.Meta(ge=rules.get("minimum"), le=rules.get("maximum"))
        return typing.Annotated[hint, bounds]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return checked(typing.cast(Any, hint))
    if isinstance(hint, types.UnionType):
        return typing.Union[tuple(_wanted(part, {}) for part in typing.get_args(hint))]  # noqa: UP007
    return hint


def _whole(value: Any, hint: Any) -> Any:
    """2.0 is an integer, for a JSON schema."""
    options = _options(hint)
    if type(value) is float and value.is_integer() and int in options and float not in options:
        return int(value)
    if type(value) is dict and (holder := _dataclass_in(hint)) is not None:
        hints = typing.get_type_hints(holder)
        return {name: _whole(item, hints.get(name)) for name, item in value.items()}
    if type(value) is list:
        inner = next((typing.get_args(part) for part in _parts(hint) if typing.get_origin(part) is list), ())
        return [_whole(item, inner[0]) for item in value] if inner else value
    return value


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a field may hold, or None."""
    return next((part for part in _parts(hint) if dataclasses.is_dataclass(part)), None)


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _options(hint: Any) -> list[Any]:
    return [typing.get_origin(part) or part for part in _parts(hint)]


# What is wrong

_PLACE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)


def _reason(said: str, kind: type[Any], data: Any, where: str) -> str:
    """In our words, from msgspec's, of which only the place counts."""
    match = _PLACE.fullmatch(said)
    assert match is not None
    rules: Mapping[str, Any] = {}
    hint: Any = kind
    path = where
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", match[2] or ""):
        path = f"{path}[{index}]" if index else f"{path}.{name}".lstrip(".")
        data = data[int(index)] if index else data[name]
        holder = _dataclass_in(hint)
        if holder is not None and name:
            rules = next(f.metadata for f in dataclasses.fields(holder) if f.name == name)
            hint = typing.get_type_hints(holder)[name]
        else:
            items = next((typing.get_args(part) for part in _parts(hint) if typing.get_args(part)), (None,))
            rules, hint = {}, items[0] if index else None
    text, path = match[1], path or "the data"
    holder = _dataclass_in(hint)
    if holder is not None and isinstance(data, Mapping) and text.startswith("Object "):
        known = {f.name: f for f in dataclasses.fields(holder)}
        if strange := sorted(data.keys() - known.keys()):
            return f"{path}: expected {', '.join(sorted(known))}; got {shortened(strange)}"
        needed = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        return f"{path}: {', '.join(name for name in needed if name not in data)} missing"
    if not text.startswith(("Expected", "Invalid", "Integer")):
        return text if not where else f"{where}: {text}"  # what the class itself refuses
    return f"{path}: expected {_described(hint, rules, text)}; got {shortened(data)}"


def _described(hint: Any, rules: Mapping[str, Any], text: str) -> str:
    if "enum" in rules:
        return f"one of {list(rules['enum'])}"
    if "minimum" in rules and "maximum" in rules and "got" not in text:
        return f"{rules['minimum']} to {rules['maximum']}"
    if "minimum" in rules and "got" not in text:
        return f"{rules['minimum']} or more"
    if hint is not None:
        return " or ".join(_NAMES.get(option, "object") for option in _options(hint))
    return text.removeprefix("Expected ").partition(", got")[0].strip("`")


def shortened(value: Any) -> str:
    """A value as it stands in an error."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an endless integer, a bottomless list
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
