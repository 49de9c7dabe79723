"""Whether a model computes the same as before, on its example call.

Each element is compared by itself: beside a logit that is masked with -1e9, a share of the largest output
would let anything pass. What rounding can do to an element is tried out: the model runs again with weights
and inputs that differ by a few roundings, and what that changes is the rounding of this element. So a small
difference of large values has the rounding of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft_passes.channels.recording import tensors_in
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError
from fxgraft_passes.untouched import streams_fixed

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far outputs may differ at most, as a share of the largest of them, whatever is tried out."""

_OWN = 4
"""Roundings of its own size that an element may differ by."""

_OF_THE_ROW = 16
"""Roundings of the median magnitude in its row that an element may differ by, where nothing is large: sums
that are added up in another order. It saves the runs that try out rounding in most models."""

_ORDINARY = 1e3
"""From which size on a value may be one that masks others, and says nothing of their size."""

_NOISE = {torch.float64: 64, torch.float32: 64, torch.float16: 2, torch.bfloat16: 2}
"""By how many roundings weights and inputs differ in the runs that tell what rounding can do."""

_PATTERN = 4099
"""A prime number of random signs, repeated over each tensor: to draw them all takes longer than to run."""

_RUNS = 6
"""How many such runs there are at most, until all differences are explained."""

_TIMES = 4.0
"""How many times what such runs change a difference may be."""


class OtherOutputsError(ChannelError):
    """The outputs are not those of before."""


def is_other(old: Tensor, new: Tensor) -> bool:
    """Whether what is computed in between differs by more than any rounding."""
    return bool(old.numel()) and not old.is_meta and old.dtype == new.dtype and _Pair(old, new).is_too_far()


def outputs(subject: Subject) -> list[Tensor]:
    """What the subject returns for its example, in eval mode; run inside of a session.

    Code that draws random numbers in eval mode, too, draws the same ones each time, and buffers that it
    writes to begin as they are now.
    """
    return _run(subject)


def difference(name: str, before: Sequence[Tensor], subject: Subject) -> float:
    """The largest difference of the subject's outputs to earlier ones; run inside of a session.

    Args:
        name: of what has changed, for messages.
        before: what `outputs` returned then.
        subject: as it is now.

    Raises:
        OtherOutputsError: it is more than rounding.
        ChannelError: it cannot be determined.
    """
    with_data = _with_data(before)
    if with_data and not any(bool(tensor.isfinite().any()) for tensor in with_data):
        raise ChannelError(
            f"{name}: expected outputs on the example that are numbers; they are NaN or inf throughout, and "
            f"do not show whether the function is kept"
        )
    after = outputs(subject)
    _check_form(name, before, after)
    pairs = [_Pair(old, new) for old, new in zip(with_data, _with_data(after), strict=True)]
    if any(pair.is_too_far() for pair in pairs) or not _are_rounding(pairs, after, subject):
        if not _repeats_itself(after, subject):
            raise ChannelError(
                f"{name}: expected a model that returns the same for the same input in eval mode; two runs "
                f"of it differ, so that it cannot be seen whether the function is kept. Keep in buffers what "
                f"it counts or averages"
            )
        worst = max(pairs, key=_Pair.excess)
        raise OtherOutputsError(
            f"{name}: expected the outputs of before; with more channels {worst.in_words()}: something in "
            f"between depends on how many there are"
        )
    return max((pair.largest for pair in pairs), default=0.0)


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


class _Pair:
    """An output as it was and as it is, and how much of the difference is explained by rounding.

    Attributes:
        off: how far each element is from what it was.
        allowed: how far it may be, as far as is known.
        largest: of ``off``.
        step: by how much, relative to it, a weight of its dtype is changed; 0 for whole numbers.
    """

    def __init__(self, old: Tensor, new: Tensor):
        self._old, self._is_number = old, old.is_floating_point() or old.is_complex()
        self.off = _apart(old, new)
        self.largest = self.off.max().item()
        eps = torch.finfo(old.dtype).eps if self._is_number else 0.0
        self.step = _step(old.dtype) if self._is_number else 0.0
        self.allowed = _OWN * eps * _magnitude(old).nan_to_num(0.0, 0.0, 0.0)
        if 0.0 < self.size < _ORDINARY:
            self.allowed = torch.maximum(self.allowed, _OF_THE_ROW * eps * _row(old))
        self._noise = torch.zeros_like(self.off)

    def is_too_far(self) -> bool:
        """Whether no rounding can be the reason."""
        return not self.largest <= _ROUNDING.get(self._old.dtype, 0.0) * max(self.size, 1e-3)

    @property
    def size(self) -> float:
        """The largest magnitude of what it was."""
        magnitude = _magnitude(self._old)
        finite = magnitude[magnitude.isfinite()]
        return finite.max().item() if finite.numel() else 0.0

    def is_allowed(self) -> bool:
        """Whether each element is as near as it has to be."""
        return bool((self.off <= self.allowed).all())

    def learn(self, now: Tensor, shaken: Tensor) -> None:
        """What rounding changed in one more run."""
        if now.shape == shaken.shape and self._is_number:
            self._noise = torch.maximum(self._noise, _apart(now, shaken).nan_to_num(0.0, 0.0, 0.0))
            self.allowed = torch.maximum(self.allowed, _TIMES * _with_floor(self._noise))

    def excess(self) -> float:
        """How much further than it may an element is, at most."""
        return self._beyond().max().item()

    def in_words(self) -> str:
        """How far the element is that differs by the most above what it may."""
        index = int(self._beyond().argmax())
        off, old = self.off.flatten()[index].item(), self._old.flatten()[index].item()
        return f"they differ by {off:.3g}, where one is {old:.3g} and the largest is {self.size:.3g}"

    def _beyond(self) -> Tensor:
        return (self.off - self.allowed).nan_to_num(torch.inf)


def _are_rounding(pairs: Sequence[_Pair], now: Sequence[Tensor], subject: Subject) -> bool:
    with_data = _with_data(now)
    least = min((pair.step for pair in pairs if pair.step), default=0.0)
    for seed in range(_RUNS):
        if all(pair.is_allowed() for pair in pairs):
            return True
        try:
            shaken = _with_data(_run(subject, seed, least))
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
        one.shape == other.shape and not _Pair(one, other).is_too_far()
        for one, other in zip(_with_data(outcome), _with_data(again), strict=True)
    )


def _step(dtype: torch.dtype) -> float:
    return float(_NOISE.get(dtype, 1) * torch.finfo(dtype).eps)


def _run(subject: Subject, seed: int | None = None, least: float = 0.0) -> list[Tensor]:
    """The outputs; with a seed, of weights and inputs that differ by rounding.

    Args:
        subject: what runs.
        seed: of the signs of the changes; None: as it is.
        least: by how much they differ at least, relative to them: code may compute in another dtype than
            that of its weights, and return that.
    """
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (subject.args, subject.kwargs))
    signs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def noisy(tensor: Tensor) -> Tensor:
        if seed is None or not _can_round(tensor):
            return tensor
        if (key := (tensor.device, tensor.dtype)) not in signs:
            stream = torch.Generator("cpu").manual_seed(seed)
            drawn = torch.randint(0, 2, (_PATTERN,), generator=stream, device="cpu") * 2 - 1
            step = max(_step(tensor.dtype), least)
            signs[key] = (1 + drawn.double() * step).to(*key)
        repeated = signs[key].repeat(-(-tensor.numel() // _PATTERN))
        return tensor * repeated[: tensor.numel()].view(tensor.shape)

    with torch.no_grad(), subject.in_mode(False), streams_fixed(), _own_tensors(subject, noisy):
        args, kwargs = pytree.tree_map_only(Tensor, noisy, (args, kwargs))
        return [tensor.detach().clone() for tensor in tensors_in(subject.run(*args, **kwargs))]


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


def _magnitude(tensor: Tensor) -> Tensor:
    """Of each element, in a dtype that has the digits for differences."""
    if tensor.is_complex():
        return tensor.abs()
    return tensor.to(torch.float64 if tensor.dtype is torch.float64 else torch.float32).abs()


def _row(tensor: Tensor) -> Tensor:
    """The median magnitude in the row of each element: in its last dimension."""
    magnitude = _magnitude(tensor).nan_to_num(0.0, 0.0, 0.0)
    return magnitude.median(-1, keepdim=True).values if tensor.dim() else magnitude


def _apart(old: Tensor, new: Tensor) -> Tensor:
    """How far each element is from what it was; 0 where both are NaN, or the same infinity."""
    if not (old.is_floating_point() or old.is_complex()):
        return (old != new).float()
    alike = (old == new) | (old.isnan() & new.isnan())
    wide = old.dtype if old.is_complex() or old.dtype is torch.float64 else torch.float32
    off = (new.to(wide) - old.to(wide)).abs()
    return torch.where(alike, torch.zeros_like(off), off)


def _with_floor(noise: Tensor) -> Tensor:
    """The noise; where none was seen, the least of the element's row, or else of all."""
    if not noise.dim():
        return noise
    seen = torch.where(noise > 0, noise, torch.inf)
    floor = seen.amin(-1, keepdim=True)
    floor = torch.where(floor.isinf(), seen.min(), floor)
    return torch.where(noise > 0, noise, floor.nan_to_num(posinf=0.0))
