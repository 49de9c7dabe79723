"""From text, dictionaries or objects to commands; everything that comes in is untrusted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fxgraft.commands.messages import TYPES, Command
from fxgraft.errors import CommandError
from fxgraft.util import reading
from fxgraft.util.reading import InvalidDataError, shortened

MAX_BYTES = 65_536
"""A longer command is refused unread."""


def parse(message: Command | Mapping[str, Any] | str | bytes) -> Command:
    """Parse a command from an object, a dictionary or JSON text.

    Args:
        message: a command, a dictionary ``{"type": "SEED", ...}``, or its JSON text (at most 65,536 bytes).

    Raises:
        CommandError: the message is not a command; says where, and what was expected.
    """
    if isinstance(message, Command):
        message = to_dict(message)
    if isinstance(message, Mapping):  # through its text: one set of rules for every form
        message = _encode(message)
    if isinstance(message, (str, bytes, bytearray)):
        message = _decode(message)
    if not isinstance(message, dict):
        raise CommandError(f"expected a JSON object; got {type(message).__name__}")
    kind = message.pop("type", None)
    if not isinstance(kind, str) or kind not in TYPES:
        raise CommandError(f"type: expected one of {', '.join(TYPES)}; got {shortened(kind)}")
    try:
        return reading.read(message, TYPES[kind], kind)
    except InvalidDataError as error:
        raise CommandError(str(error)) from error


def to_dict(command: Command) -> dict[str, Any]:
    """A command as a dictionary of JSON types, without the fields that have their default.

    Args:
        command: any command.
    """
    fields = {
        f.name: getattr(command, f.name)
        for f in dataclasses.fields(command)
        if f.default is dataclasses.MISSING or getattr(command, f.name) != f.default
    }
    return {"type": type(command).__name__, **fields}


def read(lines: Iterable[str | bytes]) -> Iterator[str | bytes]:
    """The messages in a stream of JSON lines (a file, a pipe, a socket's ``makefile``).

    Args:
        lines: text or bytes, one message per line; empty lines are left out.
    """
    return (line for line in lines if line.strip())


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of all commands."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fxgraft command",
        **reading.schema(list(TYPES.values())),
    }


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
        return reading.decode(text)
    except InvalidDataError as error:
        raise CommandError(f"expected a JSON object; got no JSON: {error}") from error
