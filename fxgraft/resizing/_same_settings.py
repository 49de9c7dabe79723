"""Whether two modules differ in nothing but how many channels they have: classes and all their attributes.

nn.Linear(4, 8)   nn.Linear(4, 6)       the same: 8 and 6 are sizes of their weights
nn.Dropout(0.5)   nn.Dropout(0.1)       differ in p
nn.Hardtanh(0, 6) nn.Hardtanh(0, 2)     differ in max_val
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxgraft import _torch
from fxgraft.seeds.dropout import PrivateDropout
from fxgraft.util.hooks import HOOKS, has_hooks
from fxgraft_passes.bits import same_tensor
from fxgraft_passes.saved_names import PLAIN

IGNORED = {
    "training": "compared by itself, in words",
    "forward": "what the host runs in the place of the class's own code, which computes the same",
    _torch.COMPILED_CALL: "compiled code of the same forward",
    "_parameters": "their names and sizes are compared with the tensors",
    "_buffers": "their names and sizes are compared with the tensors",
    "_modules": "compared one by one",
    _torch.IS_FULL_BACKWARD_HOOK: "says something of hooks only",
    _torch.UNSAVED_BUFFERS: "of the state_dict, which keeps its form",
    **dict.fromkeys(_torch.STATE_HOOKS, "of the state_dict, which keeps its form"),
}
"""Attributes that are not compared, and why."""


class StructureMismatchError(Exception):
    """A branch has another structure than the layers parallel to it; the message is the end of a sentence."""


@dataclass
class Shares:
    """Numbers that are shares of sizes (of heads, say), which have to be the sums once both are one.

    Attributes:
        found: module of the host, the attribute's name, and the number in the host and in the branch.
    """

    found: list[tuple[nn.Module, str, int, int]] = field(default_factory=list)

    def check(self) -> None:
        """Raise `StructureMismatchError` where one is not the sum by now."""
        for module, name, ours, theirs in self.found:
            if (now := module.__dict__.get(name)) != ours + theirs:
                raise StructureMismatchError(
                    f"has {name}={theirs} in a {type(module).__name__}, where the layer has {ours}, and as "
                    f"one they would have {now}"
                )


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without counts."""
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.dim()}
    return {**dict(module.named_parameters()), **buffers}


def sizes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[tuple[int, int]]:
    """The sizes that differ between tensors of the same names."""
    pairs = (zip(ours[key].shape, theirs[key].shape) for key in ours.keys() & theirs.keys())
    return {(a, b) for pair in pairs for a, b in pair if a != b}


def is_of_one_class(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules are of one class, a dropout of a seed being one of the host's."""
    if isinstance(theirs, PrivateDropout):
        return type(ours) in (theirs.plain, type(theirs))
    return type(ours) is type(theirs)


def check_settings(
    path: str,
    ours: nn.Module,
    theirs: nn.Module,
    known: Collection[tuple[int, int]],
    shares: Shares,
    inside: frozenset[int] = frozenset(),
) -> None:
    """Compare two modules, and all in them.

    Args:
        path: of the host's.
        ours: the host's.
        theirs: the branch's.
        known: what `sizes` gave, of all layers that are compared.
        shares: is given the numbers that have to be sums later.
        inside: ids of what is being compared: modules may hold those around them.

    Raises:
        StructureMismatchError: they differ in more than sizes.
    """
    if parametrize.is_parametrized(theirs) or parametrize.is_parametrized(ours):
        raise StructureMismatchError(
            f"has a parametrized layer (torch.nn.utils.parametrize), or {path} is one: its weight is "
            f"computed, and is no parameter to join. Expected plain weights: remove_parametrizations() first"
        )
    if not is_of_one_class(ours, theirs):
        raise StructureMismatchError(f"has a {type(theirs).__name__} where {path} is a {type(ours).__name__}")
    _check_mode(path, ours, theirs)
    if isinstance(theirs, PrivateDropout):
        if ours.p != theirs.p:
            raise StructureMismatchError(f"has p={theirs.p!r} where {path} has p={ours.p!r}")
        return
    if has_hooks(theirs):
        raise StructureMismatchError(f"has hooks on the module that is like {path}, which would be gone")
    for name in _settings_of(ours) | _settings_of(theirs):
        a, b = (vars(module).get(name, _MISSING) for module in (ours, theirs))
        if _is_share(a, b, known):
            shares.found.append((ours, name, a, b))
        elif not _same(a, b, known, inside | {id(ours)}):
            raise StructureMismatchError(f"has {name}={_text(b)} where {path} has {name}={_text(a)}")
    for name in ours._buffers.keys() | theirs._buffers.keys():
        a, b = (_number(module._buffers.get(name)) for module in (ours, theirs))
        if a != b:
            raise StructureMismatchError(f"has {name}={b} where {path} has {name}={a}")
    _check_batches(path, ours, theirs)
    own, other = dict(ours.named_children()), dict(theirs.named_children())
    if list(own) != list(other) and (own.keys() != other.keys() or isinstance(ours, nn.Sequential)):
        raise StructureMismatchError(f"has the modules {list(other)} where {path} has {list(own)}")
    for name, child in own.items():
        check_settings(f"{path}.{name}", child, other[name], known, shares, inside | {id(ours)})


def _check_mode(path: str, ours: nn.Module, theirs: nn.Module) -> None:
    if ours.training != theirs.training:
        now, then = ("train" if module.training else "eval" for module in (ours, theirs))
        raise StructureMismatchError(
            f"has a {type(theirs).__name__} in {then} mode, and {path} is in {now} mode: as one, both have "
            f"the latter. Expected the same of both: call .train() or .eval() on one of them first"
        )


def _check_batches(path: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Raise `StructureMismatchError` for averages over all batches, of other numbers of batches."""
    now, then = (module._buffers.get("num_batches_tracked") for module in (ours, theirs))
    if now is None or then is None or ours.__dict__.get("momentum", 0.0) is not None:
        return
    if now.item() != then.item():
        raise StructureMismatchError(
            f"has averaged {then.item()} batches and {path} {now.item()}, and with momentum=None one count "
            f"weighs each further batch. Expected a momentum, or a branch from the first step on"
        )


def _number(buffer: Tensor | None) -> float | None:
    """A number that is a buffer; counts, which are whole, go on from those of the layers."""
    is_one = buffer is not None and not buffer.dim() and buffer.is_floating_point()
    return buffer.item() if is_one and buffer is not None else None


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


_MISSING = _Missing()


def _settings_of(module: nn.Module) -> set[str]:
    return vars(module).keys() - IGNORED.keys() - {*HOOKS, *_torch.OF_HOOKS}


def _is_share(a: Any, b: Any, known: Collection[tuple[int, int]]) -> bool:
    """Whether they are whole parts of sizes, as the number of heads is."""
    if type(a) is not int or type(b) is not int or a == b or (a, b) in known or min(a, b) < 1:
        return False
    return any(p % a == 0 and q % b == 0 and p * b == q * a for p, q in known)


def _same(a: Any, b: Any, known: Collection[tuple[int, int]], inside: frozenset[int]) -> bool:
    """Whether two values are equal, or sizes of the two modules."""
    if a is b or id(a) in inside:
        return True
    if type(a) is not type(b):
        return False
    inside |= {id(a)}
    if isinstance(a, PLAIN):
        return (type(a) is int and (a, b) in known) or a == b or (a != a and b != b)
    if isinstance(a, Tensor):
        return same_tensor(a, b)
    if isinstance(a, nn.Module):
        try:
            check_settings("", a, b, known, Shares(), inside)
        except StructureMismatchError:
            return False
        return all(same_tensor(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    return _same_parts(a, b, known, inside)


def _same_parts(a: Any, b: Any, known: Collection[tuple[int, int]], inside: frozenset[int]) -> bool:
    if isinstance(a, Mapping):
        parts: Iterator[tuple[Any, Any]] = ((a[key], b[key]) for key in a if key in b)
        return list(a) == list(b) and all(_same(x, y, known, inside) for x, y in parts)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, known, inside) for x, y in zip(a, b))
    if isinstance(a, functools.partial):
        return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), known, inside)
    if isinstance(a, MethodType):
        return a.__func__ is b.__func__ and _same(a.__self__, b.__self__, known, inside)
    if isinstance(a, FunctionType):  # made anew for each module, as a lambda is
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b)]
        rest = [(f.__defaults__, f.__kwdefaults__) for f in (a, b)]
        return a.__code__ is b.__code__ and _same((cells[0], rest[0]), (cells[1], rest[1]), known, inside)
    if any("__eq__" in vars(cls) for cls in type(a).__mro__[:-1]):
        return bool(a == b)
    return hasattr(a, "__dict__") and _same(vars(a), vars(b), known, inside)


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"another {type(value).__name__}"
