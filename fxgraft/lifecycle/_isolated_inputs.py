"""Says so, once, where an input's gradient leaves out a seed that blends.

An isolated seed changes the host's output as soon as it blends, and takes part in no gradient of the host's:
neither in those of parameters, which is what isolation is for, nor in one that is taken with respect to an
*input* (physics-informed losses, forces, gradient penalties). That one is then no derivative of the output.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger

_number = count()
_CHANGING = (Stage.BLENDING, Stage.HOLDING)
_watches: weakref.WeakValueDictionary[int, InputWatch] = weakref.WeakValueDictionary()


class InputWatch:
    """Looks at the inputs of a host while isolated seeds blend there, until it has found one to warn of.

    Attributes:
        is_on: whether there is anything to look for.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._has_said = False
        self._seed = ""
        self._number = next(_number)
        _watches[self._number] = self

    def follow(self, seeds: Iterable[Seed]) -> None:
        """The stages of ``seeds`` may have changed."""
        visible = () if self._has_said else (seed for seed in seeds if _is_in_the_value(seed))
        self._seed = next((seed.name for seed in visible), "")
        self.is_on = bool(self._seed)

    def look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The host is called."""
        if not self.is_on:
            return
        forward = _torch.is_in_forward_mode()
        if forward or torch.is_grad_enabled():
            is_followed = _has_tangent if forward else _requires_grad
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    if is_followed(value):
                        _say(self._number)
                elif isinstance(value, (tuple, list, dict)) and any(
                    map(is_followed, pytree.tree_leaves(value))
                ):
                    _say(self._number)

    def say(self) -> None:
        """Once."""
        if self._has_said:
            return
        self._has_said, self.is_on = True, False
        logger.warning(
            "an input of the host requires grad, and seed %r blends in isolation: a gradient with respect to "
            "that input leaves out what goes through the seed, so it is not the derivative of the output. If "
            "a loss has such gradients (physics-informed losses, forces, gradient penalties on inputs), "
            "germinate(..., isolated=False) and blend at once. This is said once",
            self._seed,
        )


def _say(number: int) -> None:
    watch = _watches.get(number)
    if watch is not None:
        watch.say()


# Under torch.compile(host) it is said while the graph is traced, without a break in it.
_torch.constant_when_compiled(_say)


def _is_in_the_value(seed: Seed) -> bool:
    return seed.stage in _CHANGING and seed.is_isolated


def _requires_grad(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _has_tangent(leaf: object) -> bool:
    """Whether forward-mode differentiation follows it; what requires grad is followed as well."""
    return isinstance(leaf, Tensor) and (leaf.requires_grad or _tangent(leaf) is not None)


def _tangent(tensor: Tensor) -> Tensor | None:
    return unpack_dual(tensor).tangent  # type: ignore[no-untyped-call, no-any-return]
