"""What a host is bound to: callbacks on what happens to it, and the deep copies of it that live.

A copy that was made before the host grew lacks what grew since. That is as it should be for one that is
kept for comparison. Where the host's weights are still written into it (a moving average, a target
network), what grew is missing there, and nothing says so: pairs are made by order, and the shorter list ends.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fxgraft.util.tensors import local_tensor

if TYPE_CHECKING:
    from fxgraft.host.host import Host


_PARAMETERS, _ELEMENTS = 8, 16
"""How many parameters are looked at in a copy, and how many elements of each."""


@dataclass
class _CopyRecord:
    """What is known of a copy.

    Attributes:
        place: file and line where it was made.
        is_torchs: whether an ``AveragedModel`` made it: then it is an average before it is updated, and its
            update fails where it lacks seeds, after half of its work.
        sample: some of its weights, at the first look since its structure is another; None before.
        lacks: what it lacked at the last look.
        done: whether there is nothing more to say of it.
    """

    place: str
    is_torchs: bool = False
    sample: list[Tensor] | None = None
    lacks: frozenset[str] = frozenset()
    done: bool = False


class Copies:
    """The copies of one host, weakly. It looks at steps 1, 2, 4, 8, … after each change of the structure."""

    def __init__(self) -> None:
        self._seen: MutableMapping[Host, _CopyRecord] = weakref.WeakKeyDictionary()
        self._structure: object = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, copy: Host) -> None:
        """Remember a copy that was made just now."""
        self._seen[copy] = _CopyRecord(*_caller())

    def stray(self, host: Host) -> list[tuple[str, list[str]]]:
        """Copies that weights are written into, and that lack seeds of ``host``: each is returned once.

        Call it once in each step. One that follows, has a manager of its own, or is trained itself is none.

        Returns:
            Where the copy was made, and which seeds it lacks, or has too many.
        """
        if host.structure is not self._structure:
            self._structure, self._steps = host.structure, 0
        self._steps += 1
        if self._steps & (self._steps - 1):
            return []
        found = []
        for copy, seen in list(self._seen.items()):
            if seen.done or copy in host._links.followers:
                continue
            lacks = frozenset(_differences(host, copy))
            lasting, seen.lacks = lacks & seen.lacks, lacks
            if not lacks:
                seen.sample = None
                continue
            if seen.is_torchs and (missing := _names(host) ^ _names(copy)):
                seen.done = True
                found.append((seen.place, sorted(missing)))
                continue
            sample, is_trained = _sample(copy)
            before, seen.sample = seen.sample, sample if seen.sample is None else seen.sample
            if is_trained or _is_led(copy):
                seen.done = True
            elif before is not None and lasting and not _same(before, sample):
                seen.done = True
                found.append((seen.place, sorted(lasting)))
        return found


def _names(host: Host) -> set[str]:
    return {placement.seed for placement in host.structure.placements}


def _differences(host: Host, copy: Host) -> Iterator[str]:
    """The seeds that one of them has alone, or that count in the host and not at all in the copy."""
    ours = {placement.seed: placement for placement in host.structure.placements}
    theirs = {placement.seed: placement for placement in copy.structure.placements}
    yield from ours.keys() ^ theirs.keys()
    for name in ours.keys() & theirs.keys():
        if ours[name].kind != theirs[name].kind:
            yield name
        elif theirs[name].spec.fossil is None:
            alpha = ours[name].spec.fossil
            counts = bool(alpha) if alpha is not None else bool((host.graft(name).alpha != 0).any())
            if counts and not bool((copy.graft(name).alpha != 0).any()):
                yield name


def _is_led(copy: Host) -> bool:
    led_by = copy._links.led_by
    return led_by is not None and led_by() is not None


def _sample(copy: Host) -> tuple[list[Tensor], bool]:
    """Some of its floating weights, and whether one of these has a gradient: it is trained then."""
    weights = [p for p in copy.parameters() if p.is_floating_point() and p.numel() and not p.is_meta]
    some = weights[:: max(1, len(weights) // _PARAMETERS)]
    with torch.no_grad():
        flat = [local_tensor(parameter).detach().reshape(-1) for parameter in some]
        return [t[:: max(1, len(t) // _ELEMENTS)].clone() for t in flat], any(
            p.grad is not None for p in some
        )


def _same(before: list[Tensor], now: list[Tensor]) -> bool:
    # Of another dtype or device, or more of them: converted in the meantime, which is no sign of an average.
    pairs = list(zip(before, now, strict=False))
    return all(
        a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or torch.equal(a, b)
        for a, b in pairs
    )


def _caller() -> tuple[str, bool]:
    """The caller that made the copy: the first frame outside of torch, ``copy`` and fxgraft.

    Returns:
        File and line, and whether an ``AveragedModel`` was asked for.
    """
    is_torchs = False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        is_torchs |= frame.f_code is AveragedModel.__init__.__code__
        if module not in ("torch", "copy", "fxgraft"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}", is_torchs
        frame = frame.f_back
    return "unknown", is_torchs


def _no_followers() -> MutableMapping[Host, Callable[[Host, Host], None]]:
    return weakref.WeakKeyDictionary()


@dataclass
class Links:
    """What a host is bound to. A copy of it, or a host from a file, has none of these.

    Attributes:
        on_call: called with the arguments of every forward pass, or None.
        on_replaced: called with what ``load_state_dict(assign=True)`` has replaced, old -> new; or None.
        on_structure: called in the place of growing with the entry of a state to be loaded that says how its
            seeds are wired, or with None where the state has all of the model and no seeds; or None.
        on_write: called in the place of the model's own ``save_pretrained`` while something has grown, with
            that and its arguments; None refuses.
        followers: copies of the host (weakly) -> what is called with host and copy after each swap.
        copies: the deep copies of the host that live.
        led_by: the lifecycle of the host's manager (weakly), or None. What it says of stages and alphas
            (its ``steering()``) holds, whatever a state says.
        borrowed: the context in which the host runs in another form now, in words, or None.
    """

    on_call: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None
    on_replaced: Callable[[Mapping[nn.Parameter, nn.Parameter]], None] | None = None
    on_structure: Callable[[Tensor | None], None] | None = None
    on_write: Callable[..., None] | None = None
    followers: MutableMapping[Host, Callable[[Host, Host], None]] = field(default_factory=_no_followers)
    copies: Copies = field(default_factory=Copies)
    led_by: weakref.ref[Any] | None = None
    borrowed: str | None = None
