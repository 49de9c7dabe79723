"""Whether a model computes the same as before, on its example call.

Each element is compared by itself: beside a logit that is masked with -1e9, a share of the largest output
would let anything pass. What rounding can do to an element is tried out: the model runs again with weights
and inputs that differ by a few roundings, and what that changes is the rounding of this element. So a small
difference of large values has the rounding of these. Where that does not explain it, and the model computes
in fewer digits than its outputs have (bfloat16 with ``float()`` at the end, autocast), it runs with roundings
of these. Outputs that have few digits themselves are judged by these runs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes.channels._few_digits import FewDigits
from fxgraft_passes.channels._output_pairs import OutputPair, step_of
from fxgraft_passes.channels.recording import tensors_in
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError
from fxgraft_passes.untouched import streams_fixed

_PATTERN = 4099
"""A prime number of random signs, repeated over each tensor: to draw them all takes longer than to run."""

_MANY = torch.finfo(torch.float32).eps
"""Dtypes with a larger one have few digits: other weights would change more than rounding does."""

_RUNS = 6
"""How many such runs there are at most, until all differences are explained."""


class OtherOutputsError(ChannelError):
    """The outputs are not those of before."""


def is_other(old: Tensor, new: Tensor) -> bool:
    """Whether what is computed in between differs by more than any rounding."""
    if not old.numel() or old.is_meta or old.dtype != new.dtype:
        return False
    return OutputPair(old, new).is_too_far()


def outputs(subject: Subject) -> list[Tensor]:
    """What the subject returns for its example, in eval mode; run inside of a session.

    Code that draws random numbers in eval mode, too, draws the same ones each time, and buffers that it
    writes to begin as they are now.
    """
    return _run(subject)


@dataclass(frozen=True)
class Distance:
    """How far outputs are from earlier ones.

    Attributes:
        largest: the largest difference.
        share: the largest one relative to its element, or to the median of its row.
    """

    largest: float
    share: float


def difference(name: str, before: Sequence[Tensor], subject: Subject) -> float:
    """The largest difference of the subject's outputs to earlier ones, see `distance`."""
    return distance(name, before, subject).largest


def distance(name: str, before: Sequence[Tensor], subject: Subject) -> Distance:
    """How far the subject's outputs are from earlier ones; run inside of a session.

    Args:
        name: of what has changed, for messages.
        before: what `outputs` returned then.
        subject: as it is now.

    Raises:
        OtherOutputsError: it is more than rounding.
        ChannelError: it cannot be determined.
    """
    with_data = _with_data(before)
    if not with_data and not any(tensor.is_meta for tensor in before):
        raise ChannelError(
            f"{name}: expected outputs on the example, in eval mode, that have numbers; there are none, so "
            f"that it cannot be seen whether the function is kept. Trace with an example that gives some"
        )
    if with_data and not any(bool(tensor.isfinite().any()) for tensor in with_data):
        raise ChannelError(
            f"{name}: expected outputs on the example that are numbers; they are NaN or inf throughout, and "
            f"do not show whether the function is kept"
        )
    after = outputs(subject)
    _check_form(name, before, after)
    pairs, are_kept = _compared(with_data, after, subject)
    if not are_kept:
        if not _repeats_itself(after, subject):
            raise ChannelError(
                f"{name}: expected a model that returns the same for the same input in eval mode; two runs "
                f"of it differ, so that it cannot be seen whether the function is kept. Keep in buffers what "
                f"it counts or averages"
            )
        worst = max(pairs, key=OutputPair.excess)
        raise OtherOutputsError(
            f"{name}: expected the outputs of before; with more channels {worst.in_words()}: something in "
            f"between depends on how many there are"
        )
    return Distance(
        max((pair.largest for pair in pairs), default=0.0), max((pair.share for pair in pairs), default=0.0)
    )


def _compared(
    before: Sequence[Tensor], after: Sequence[Tensor], subject: Subject
) -> tuple[list[OutputPair], bool]:
    """The outputs that have data, and whether they differ by rounding at most."""
    both = list(zip(before, _with_data(after), strict=True))
    pairs = [OutputPair(old, new) for old, new in both]
    eps = min((pair.eps for pair in pairs if pair.eps), default=1.0)
    if all(pair.is_allowed() for pair in pairs):
        return pairs, not any(pair.is_too_far() for pair in pairs)
    if eps <= _MANY and _are_rounding(pairs, after, lambda seed: _run(subject, seed, _least(pairs))):
        return pairs, True
    eps = min(eps, _MANY)
    look = FewDigits(eps, 0)
    with suppress(Exception):
        _run(subject, inside=look)
    if look.coarsest is None:
        return pairs, False
    pairs = [OutputPair(old, new, look.coarsest) for old, new in both]
    return pairs, _are_rounding(pairs, after, lambda seed: _run(subject, inside=FewDigits(eps, seed)))


def _least(pairs: Sequence[OutputPair]) -> float:
    return min((pair.step for pair in pairs if pair.step), default=0.0)


def _check_form(name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    if len(before) != len(after):
        raise ChannelError(
            f"{name}: expected {len(before)} outputs, as before; the wider model has {len(after)}"
        )
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ChannelError(
                f"{name}: expected outputs of shape {tuple(old.shape)} and {old.dtype} as before; got "
                f"{tuple(new.shape)} and {new.dtype}"
            )


def _are_rounding(
    pairs: Sequence[OutputPair], now: Sequence[Tensor], shake: Callable[[int], list[Tensor]]
) -> bool:
    """Whether runs with other roundings, of ``shake`` and a seed, explain all differences."""
    if any(pair.is_too_far() for pair in pairs):
        return False
    with_data = _with_data(now)
    for seed in range(_RUNS):
        if all(pair.is_allowed() for pair in pairs):
            return True
        try:
            shaken = _with_data(shake(seed))
        except Exception:  # a number that has to be exact, say
            return False
        if len(shaken) != len(with_data):
            return False
        for pair, one, other in zip(pairs, with_data, shaken, strict=True):
            pair.learn(one, other)
    return all(pair.is_allowed() for pair in pairs)


def _repeats_itself(outcome: Sequence[Tensor], subject: Subject) -> bool:
    again = outputs(subject)
    return len(again) == len(outcome) and all(
        one.shape == other.shape and not OutputPair(one, other).is_too_far()
        for one, other in zip(_with_data(outcome), _with_data(again), strict=True)
    )


def _run(
    subject: Subject,
    seed: int | None = None,
    least: float = 0.0,
    inside: AbstractContextManager[Any] | None = None,
) -> list[Tensor]:
    """The outputs; with a seed, of weights and inputs that differ by rounding.

    Args:
        subject: what runs.
        seed: of the signs of the changes; None: as it is.
        least: by how much they differ at least, relative to them: code may compute in another dtype than
            that of its weights, and return that.
        inside: a context in which it runs.
    """
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (subject.args, subject.kwargs))
    signs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def noisy(tensor: Tensor) -> Tensor:
        if seed is None or not _can_round(tensor):
            return tensor
        if (key := (tensor.device, tensor.dtype)) not in signs:
            stream = torch.Generator("cpu").manual_seed(seed)
            drawn = torch.randint(0, 2, (_PATTERN,), generator=stream, device="cpu") * 2 - 1
            step = max(step_of(tensor.dtype), least)
            signs[key] = (1 + drawn.double() * step).to(*key)
        repeated = signs[key].repeat(-(-tensor.numel() // _PATTERN))
        return tensor * repeated[: tensor.numel()].view(tensor.shape)

    with torch.no_grad(), subject.in_mode(False), streams_fixed(), _own_tensors(subject, noisy):
        args, kwargs = pytree.tree_map_only(Tensor, noisy, (args, kwargs))
        with inside or nullcontext():
            result = subject.run(*args, **kwargs)
        return [tensor.detach().clone() for tensor in _returned(result)]


def _returned(value: Any) -> list[Tensor]:
    """What a model returned, as tensors. Objects are opened where there are none; a cache beside is not."""
    return tensors_in(value) or _returned_otherwise(value)


def _returned_otherwise(value: Any, seen: frozenset[int] = frozenset()) -> list[Tensor]:
    """Arrays and numbers as tensors, and those in the attributes of objects of any class."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, (float, complex)):
            found.append(
                torch.tensor(leaf, dtype=torch.complex128 if type(leaf) is complex else torch.float64)
            )
        elif type(leaf).__module__ == "numpy":
            with suppress(TypeError):  # of text, say
                found.append(torch.as_tensor(leaf))
        elif id(leaf) not in seen and not isinstance(leaf, (type, nn.Module)):
            found += _returned_otherwise(_attributes(leaf), seen | {id(leaf)})
    return found


def _attributes(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    return list(getattr(value, "__dict__", {}).values())


@contextmanager
def _own_tensors(subject: Subject, noisy: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace tensors of the subject inside: by buffers that may be written to, by weights with noise."""
    others = {}
    for path in subject.places:
        tensor = subject.now(path).detach()
        if (other := noisy(tensor)) is not tensor:
            others[path] = other
        elif not subject.is_parameter(path):
            others[path] = tensor.clone()
    with subject.with_tensors(others):
        yield


def _with_data(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if not tensor.is_meta and tensor.numel()]


def _can_round(tensor: Tensor) -> bool:
    """Whether its numbers come from rounding; whole ones (counts, masks) are meant as they are."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if tensor.is_complex():
        return True
    first = tensor[:1] if tensor.dim() else tensor  # which mostly says it
    return bool((first != first.round()).any()) or bool((tensor != tensor.round()).any())
