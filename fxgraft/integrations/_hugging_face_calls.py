"""In which form a Trainer of transformers calls a host: traced anew for that, before anything grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fxgraft import _torch
from fxgraft.host.host import Host
from fxgraft.telemetry import logger

Call = tuple[tuple[Any, ...], dict[str, Any]]


class FirstCall:
    """Waits for the first call that a training makes of the host, and lets ``then`` have it; once.

    That may be of another form than the traced one: seeds would not run in such calls. What a run is resumed
    with has to wait for the slots that there are then.
    """

    def __init__(self, host: Host, then: Callable[[Call | None], None]):
        self._then: Callable[[Call | None], None] | None = then
        self._handle = host.register_forward_pre_hook(
            lambda _, args, kwargs: self.deliver((args, kwargs)), with_kwargs=True
        )

    def cancel(self) -> None:
        """Wait no more."""
        self._handle.remove()
        self._then = None

    def deliver(self, call: Call | None) -> None:
        """Here it is; or None: it does not come any more."""
        then = self._then
        self.cancel()
        if then is not None:
            then(call)


class LatestCalls:
    """The latest calls that a training made of a host, to measure on.

    Args:
        host: which returns a loss, as the models of transformers do.
        number: of calls.
    """

    def __init__(self, host: Host, number: int):
        self._host = host
        self._calls: deque[Call] = deque(maxlen=number)
        self._handle = host.register_forward_pre_hook(self._see, with_kwargs=True)

    def stop(self) -> None:
        """See no more calls."""
        self._handle.remove()

    def losses(self) -> list[float]:
        """The losses of these calls, in eval mode. Raises `TypeError` where the host returns none."""
        self._host.eval()
        return [_loss(self._host.forward(*args, **kwargs)) for args, kwargs in list(self._calls)]

    def _see(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if host.training and torch.is_grad_enabled():
            self._calls.append((args, dict(kwargs)))


def _loss(out: Any) -> float:
    found = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if found is None:
        raise TypeError(
            "GrowCallback('auto'): expected a host that returns a loss; give grow={'evaluate': ...}, a "
            "function that returns one"
        )
    return float(found)


def keep_from_blocks(host: Host) -> None:
    """Keep the number of items in a batch, which only the loss uses, out of the calls of blocks.

    transformers passes it on with all other keywords. A block that is traced with it would run without its
    seeds in each call that has none: in ``predict`` without labels, or in a call of one's own.
    """
    base: Any = getattr(host, "base_model", None)
    if any(child is base for child in host.children()):
        hooks = _torch.pre_hooks(base)
        if _without_number not in hooks.values():
            base.register_forward_pre_hook(_without_number, with_kwargs=True)


def _without_number(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if "num_items_in_batch" not in kwargs:
        return None
    return args, {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}


def trace_for(host: Host, call: Call) -> None:
    """Trace the host anew, where it is called in another form than it was traced in."""
    if (unmet := host.unmet(*call)) is not None:
        logger.info("the host is called in another form than it was traced in (%s): traced anew", unmet)
        host.retrace(*call)
