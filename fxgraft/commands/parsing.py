"""From text, dictionaries or objects to commands; everything that comes in is untrusted."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fxgraft.commands.messages import TYPES, Command
from fxgraft.errors import CommandError

MAX_BYTES = 65_536
"""A longer command is refused unread."""


def parse(message: Command | Mapping[str, Any] | str | bytes) -> Command:
    """The command in a message of any form.

    Raises:
        CommandError: what is wrong with it, with what was expected.
    """
    if isinstance(message, Command):
        message = to_dict(message)
    if isinstance(message, Mapping):  # through its text: one set of rules for every form
        message = _encode(message)
    if isinstance(message, (str, bytes, bytearray)):
        message = _decode(message)
    if not isinstance(message, dict):
        raise CommandError(f"expected a JSON object; got {type(message).__name__}")
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise CommandError(f"type: expected one of {', '.join(TYPES)}; got {_short(kind)}")
    given = {
        key: _whole(value) if int in _types(TYPES[kind], key) else value
        for key, value in message.items()
        if key != "type"
    }
    _validate(TYPES[kind], given)
    return TYPES[kind](**given)


def to_dict(command: Command) -> dict[str, Any]:
    """The JSON form of a command; what is at its default is left out."""
    fields = {
        f.name: getattr(command, f.name)
        for f in dataclasses.fields(command)
        if f.default is dataclasses.MISSING or getattr(command, f.name) != f.default
    }
    return {"type": type(command).__name__, **fields}


def read(lines: Iterable[str | bytes]) -> Iterator[str | bytes]:
    """The messages in a stream of JSON lines (a file, a pipe, a socket's ``makefile``)."""
    return (line for line in lines if line.strip())


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) that every command satisfies."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fxgraft command",
        "oneOf": [_schema_of(kind) for kind in TYPES.values()],
    }


_JSON_TYPES: dict[Any, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array",
    type(None): "null",
}  # fmt: skip


def _schema_of(kind: type[Command]) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": {"const": kind.__name__}}
    required = ["type"]
    for f in dataclasses.fields(kind):
        properties[f.name] = {"type": [_JSON_TYPES[t] for t in _types(kind, f.name)], **f.metadata}
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            required.append(f.name)
    return {
        "type": "object",
        "description": kind.__doc__,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _types(kind: type[Command], name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(kind).get(name)
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    return tuple(typing.get_origin(option) or option for option in options)


def _validate(kind: type[Command], given: Mapping[str, Any]) -> None:
    rules = _schema_of(kind)
    known = rules["properties"].keys() - {"type"}
    if strange := sorted(set(map(str, given)) - known):
        raise CommandError(f"{kind.__name__}: expected {', '.join(sorted(known))}; got {_short(strange)}")
    if missing := [name for name in rules["required"][1:] if name not in given]:
        raise CommandError(f"{kind.__name__}: {', '.join(missing)} missing")
    for name, value in given.items():
        rule, options = rules["properties"][name], _types(kind, name)
        fits = type(value) in options or (type(value) is int and float in options)
        if not fits:
            expected = " or ".join(rule["type"])
            raise CommandError(f"{kind.__name__}.{name}: expected {expected}; got {_short(value)}")
        if "enum" in rule and value not in rule["enum"]:
            raise CommandError(f"{kind.__name__}.{name}: expected one of {rule['enum']}; got {_short(value)}")
        if "minimum" in rule and not rule["minimum"] <= value <= rule["maximum"]:
            bounds = f"{rule['minimum']} to {rule['maximum']}"
            raise CommandError(f"{kind.__name__}.{name}: expected {bounds}; got {_short(value)}")


def _encode(message: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(message), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"expected a JSON object; got something else in it: {error}") from error


def _decode(text: str | bytes | bytearray) -> Any:
    size = len(text.encode(errors="surrogatepass")) if isinstance(text, str) else len(text)
    if size > MAX_BYTES:
        raise CommandError(f"expected at most {MAX_BYTES} bytes; got {size}")
    try:
        return json.loads(
            text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise CommandError(f"expected a JSON object; got no JSON: {error}") from error


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
        raise ValueError(f"{_short(twice)} is there twice")
    return found


def _whole(value: Any) -> Any:
    """2.0 is an integer, for a JSON schema."""
    return int(value) if type(value) is float and value.is_integer() else value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an endless integer, a bottomless list
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
