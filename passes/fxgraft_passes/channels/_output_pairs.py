"""One output as it was and as it is, element by element, and how much of that rounding explains."""

from __future__ import annotations

import torch
from torch import Tensor

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

_TIMES = 4.0
"""How many times what such runs change a difference may be."""

_TIMES_INSIDE = 2.0
"""The same, where each result of few digits was rounded otherwise: the runs change all that rounding can."""


class OutputPair:
    """An output as it was and as it is, and how much of the difference is explained by rounding.

    Args:
        old: as it was.
        new: as it is.
        inside: the dtype with the fewest digits in which it was computed, if known.

    Attributes:
        off: how far each element is from what it was.
        allowed: how far it may be, as far as is known.
        largest: of ``off``.
        eps: of the dtype that it was computed in; 0 for whole numbers.
        step: by how much, relative to it, a weight of that dtype is changed; 0 for whole numbers.
    """

    def __init__(self, old: Tensor, new: Tensor, inside: torch.dtype | None = None):
        self._old, self._is_number = old, old.is_floating_point() or old.is_complex()
        self._dtype = old.dtype
        if self._is_number and inside is not None:
            self._dtype = max(old.dtype, inside, key=lambda dtype: torch.finfo(dtype).eps)
        self.off = _apart(old, new)
        self.largest = self.off.max().item()
        self.eps = eps = torch.finfo(self._dtype).eps if self._is_number else 0.0
        self.step = step_of(self._dtype) if self._is_number else 0.0
        self.allowed = _OWN * eps * _magnitude(old).nan_to_num(0.0, 0.0, 0.0)
        if 0.0 < self.size < _ORDINARY:
            self.allowed = torch.maximum(self.allowed, _OF_THE_ROW * eps * _row(old))
        self._noise, self._times = torch.zeros_like(self.off), _TIMES if inside is None else _TIMES_INSIDE

    def is_too_far(self) -> bool:
        """Whether no rounding can be the reason."""
        return not self.largest <= _ROUNDING.get(self._dtype, 0.0) * max(self.size, 1e-3)

    @property
    def share(self) -> float:
        """The largest difference of an element, relative to it, or to the median of its row."""
        scale = torch.maximum(_magnitude(self._old), _row(self._old)).clamp_min(1e-30)
        return (self.off / scale).nan_to_num(0.0).max().item()

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
            self.allowed = torch.maximum(self.allowed, self._times * _with_floor(self._noise))

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


def step_of(dtype: torch.dtype) -> float:
    """By how much weights of that dtype are changed, relative to them, to see what rounding does."""
    return float(_NOISE.get(dtype, 1) * torch.finfo(dtype).eps)


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
