"""What a candidate is, and how many are explored at once."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.explore._depths import Depth
from fxgraft.explore._widths import Width
from fxgraft.host.host import Host
from fxgraft.util import validate

Grows = SEED | WIDEN | DEEPEN
"""A command that lets something grow."""

LEAST_PARAMETERS, LEAST_FLOPS = 1_000_000, 10**9
"""A small host may be explored with so much, however small it is."""


@dataclass(frozen=True)
class Candidate:
    """Something that may grow.

    Attributes:
        command: what germinates it.
        parameters, flops: as of `fxgraft.blueprints.Cost`; FLOPs are None where they are not known.
        memory: bytes that learning takes: weights with gradients and two moments, and values kept for the
            backward pass, estimated as three of the slot's.
        width: the channels in whose place the command's branch is tried; None for a branch as such.
        depth: the block that it is; None for a branch.
    """

    command: SEED
    parameters: int
    flops: int | None
    memory: int
    width: Width | None = None
    depth: Depth | None = None

    @property
    def grows(self) -> Grows:
        """The command that lets it grow for good: the command that germinates it, but for layers."""
        if self.width is not None:
            return WIDEN(group=self.width.group, by=self.width.by)
        if self.depth is not None:
            return DEEPEN(stack=self.depth.stack, at=[self.depth.at])
        return self.command


def limits(what: str, given: Mapping[str, int] | None, known: Collection[str], least: int) -> dict[str, int]:
    """What was given as limits, checked.

    Args:
        what: the name of the argument.
        given: name -> number; None: no limits.
        known: the names that there are.
        least: the smallest number.

    Raises:
        TypeError: it is no mapping.
        ValueError: another name, or an invalid number.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{what}: expected a mapping with some of {', '.join(known)}; got {given!r}")
    if strange := [name for name in given if name not in known]:
        raise ValueError(f"{what}: expected {', '.join(known)}; got {strange[0]!r}")
    return {name: validate.integer(f"{what}[{name!r}]", number, least) for name, number in given.items()}


@dataclass(frozen=True)
class Cap:
    """How much is explored at once where the candidates are found by themselves; all of them together.

    Attributes:
        candidates: how many.
        parameters: how many they may have.
        flops: of a forward pass of all at the shape of the example call.
        memory: bytes, see `Candidate`.
    """

    candidates: int
    parameters: int
    flops: int
    memory: int

    @classmethod
    def of(cls, given: Mapping[str, int] | None, host: Host, flops: int | None) -> Cap:
        """The default: 64 candidates, with twice the parameters and twice the FLOPs of the host.

        But a million parameters and 10^9 FLOPs at least; and no limit of memory.

        Args:
            given: what is to be otherwise.
            host: where they grow.
            flops: of the host's forward pass; None where that is not known: then there is no such limit.

        Raises:
            TypeError, ValueError: as of `limits`.
        """
        size = sum(parameter.numel() for parameter in host.host_parameters())
        caps = {
            "candidates": 64,
            "parameters": max(2 * size, LEAST_PARAMETERS),
            "flops": sys.maxsize if flops is None else max(2 * flops, LEAST_FLOPS),
            "memory": sys.maxsize,
        }
        return cls(**{**caps, **limits("cap", given, caps, 1)})

    @classmethod
    def only(cls, given: Mapping[str, int] | None) -> Cap:
        """No limits but those that are given. Raises `ValueError` as `of` does, which is called first."""
        return cls(
            **{**dict.fromkeys(("candidates", "parameters", "flops", "memory"), sys.maxsize), **(given or {})}
        )

    def objection(self, taken: Sequence[Candidate], other: Candidate) -> str | None:
        """Why ``other`` is too much beside those that were taken; None where it is not."""
        if len(taken) >= self.candidates:
            return f"the cap of {self.candidates} candidates"
        together = [*taken, other]
        if sum(candidate.parameters for candidate in together) > self.parameters:
            return f"the cap of {self.parameters:,} parameters for all candidates together"
        if sum(candidate.flops or 0 for candidate in together) > self.flops:
            return f"the cap of {self.flops:,} FLOPs for all candidates together"
        if sum(candidate.memory for candidate in together) > self.memory:
            return f"the cap of {self.memory:,} bytes for all candidates together"
        return None
