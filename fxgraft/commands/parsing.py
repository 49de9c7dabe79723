"""From text, dictionaries or objects to commands; everything that comes in is untrusted."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fxgraft.commands.messages import BLEND, CULL, FOSSILIZE, PAUSE, RESUME, SEED, TYPES, Command
from fxgraft.errors import CommandError

MAX_BYTES = 65_536
"""A longer command is refused unread."""


def parse(message: Command | Mapping[str, Any] | str | bytes) -> Command:
    """The command in a message of any form.

    Raises:
        CommandError: what is wrong with it, with what was expected.
    """
    if isinstance(message, SEED | BLEND | CULL | FOSSILIZE | PAUSE | RESUME):
        message = to_dict(message)
    if isinstance(message, (str, bytes, bytearray)):
        message = _decode(message)
    if not isinstance(message, Mapping):
        raise CommandError(f"expected a JSON object; got {type(message).__name__}")
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise CommandError(f"type: expected one of {', '.join(TYPES)}; got {_short(kind)}")
    given = {key: value for key, value in message.items() if key != "type"}
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
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", type(None): "null",
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
    hint = typing.get_type_hints(kind)[name]
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


def _decode(text: str | bytes | bytearray) -> Any:
    if len(text) > MAX_BYTES:
        raise CommandError(f"expected at most {MAX_BYTES} bytes; got {len(text)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"expected a JSON object; got no JSON: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
