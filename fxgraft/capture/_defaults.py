"""How the default of a parameter reads in a generated signature: itself, or the name of a global."""

from __future__ import annotations

from inspect import Parameter
from typing import Any


class Name:
    """Prints as a bare name where a signature prints a default."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


def printed_default(parameter: Parameter) -> Any:
    """What stands for the default of ``parameter``: `Parameter.empty`, a literal, or a name."""
    if parameter.default is Parameter.empty:
        return Parameter.empty
    simple = parameter.default is None or type(parameter.default) in (bool, int, str)
    return parameter.default if simple else Name(f"_default_{parameter.name}")
