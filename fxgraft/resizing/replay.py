"""The growths of a host in a checkpoint: a freshly traced one grows so before it is given weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import ChannelError, CheckpointError
from fxgraft.host.channels import Widened
from fxgraft.host.host import Host
from fxgraft.resizing.widening import widen
from fxgraft_passes.graft import SEEDS


def records(host: Host) -> list[dict[str, Any]]:
    """The growths of ``host``, as JSON."""
    return [
        {
            "group": w.group,
            "by": w.by,
            "init": w.init,
            "numbers": [list(number) for number in w.numbers],
            "seeds": list(w.seeds),
        }
        for w in host.widenings
    ]


class WideningReplay:
    """The growths that a checkpoint says, for a fresh host of the model, or of one that is as wide by itself.

    Args:
        host: the host, without seeds yet.
        saved: what `records` gave.
        shapes: name -> shape, of the tensors of the saved model.
        optimizers: of the host.
        alone: whether no other rank trains it.

    Attributes:
        growths: those that are to be done, in order.

    Raises:
        CheckpointError: the host cannot have them.
    """

    def __init__(
        self,
        host: Host,
        saved: Sequence[Any],
        shapes: dict[str, list[int]],
        optimizers: Sequence[Optimizer],
        alone: bool,
    ):
        self._host, self._optimizers = host, optimizers
        self._all = self.growths = [checked_growth(record, shapes) for record in saved]
        ours = {n: list(t.shape) for n, t in host.model_state().items() if isinstance(t, Tensor)}
        if ours == shapes:
            self.growths = [growth for growth in self._all if growth.group.startswith(f"{SEEDS}.")]
        elif host.widenings:
            raise CheckpointError("expected a freshly traced host; this one has grown wider already")
        if self.growths and not alone:
            raise CheckpointError(
                "the host of the checkpoint has grown wider, and one that several ranks train cannot: "
                "expected "
                "a host of its sizes. host = fxgraft.load_model(path, model); host.clear(); then wrap that, "
                "and "
                "load"
            )

    def do(self, undo: ExitStack, growth: Widened) -> None:
        """Do one of them; ``undo`` gets the callbacks that revert it."""
        try:
            widen(self._host, growth.group, growth.by, growth.init, "fresh", self._optimizers, 0, outer=undo)
        except ChannelError as error:
            raise CheckpointError(
                f"the host does not grow as that of the checkpoint did: {error}. Expected a host of the "
                f"model that was traced in the saved run"
            ) from error

    def end(self, undo: ExitStack) -> None:
        """All are done, and all seeds are there."""
        undo.callback(setattr, self._host, "widenings", self._host.widenings)
        done = [growth for growth in self._host.widenings if growth.before is not None]
        self._host.widenings = tuple(_with_before(growth, done) for growth in self._all)
        _set_numbers(undo, self._host, self._all)


def _with_before(growth: Widened, done: list[Widened]) -> Widened:
    """With what it has changed, where it is among those that were done, in order."""
    for one in done:
        if (one.group, one.by) == (growth.group, growth.by):
            done.remove(one)
            return replace(growth, before=one.before)
    return growth


def _set_numbers(undo: ExitStack, host: Host, found: Sequence[Widened]) -> None:
    """What norms were given to make up for their channels: of a host that has those by itself, too."""
    modules = dict(host.named_modules())
    for path, name, value in {(p, n): (p, n, v) for record in found for p, n, v in record.numbers}.values():
        module = modules.get(path)
        if module is None or not isinstance(module.__dict__.get(name), float | None):
            raise CheckpointError(
                f"the checkpoint has set {path}.{name}, a number that the host has not. Expected a host of "
                f"the model that was traced in the saved run"
            )
        undo.callback(module.__dict__.__setitem__, name, module.__dict__.get(name))
        module.__dict__[name] = value


def checked_growth(record: Any, shapes: dict[str, list[int]]) -> Widened:
    """A growth that `records` gave. Raises `CheckpointError` for anything else."""
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    if not isinstance(record, dict) or record.keys() != {"group", "by", "init", "numbers", "seeds"}:
        raise CheckpointError(
            f"a growth of channels: expected group, by, init, numbers and seeds; got {record!r}"
        )
    group, by, init, numbers = (record[key] for key in ("group", "by", "init", "numbers"))
    if not isinstance(group, str) or type(by) is not int or not 0 < by <= largest:
        raise CheckpointError(f"a growth of channels: expected a name and a number; got {group!r}, {by!r}")
    plain = []
    for number in numbers:
        path, name, value = number
        if not (isinstance(path, str) and isinstance(name, str) and type(value) is float):
            raise CheckpointError(f"{group}: expected a module, a name and a number; got {number!r}")
        plain.append((path, name, value))
    return Widened(group, by, str(init), tuple(plain), tuple(map(str, record["seeds"])))
