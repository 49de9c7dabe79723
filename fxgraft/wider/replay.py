"""The growths of a host in a checkpoint: a freshly traced one grows so before it is given weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import ChannelError, CheckpointError
from fxgraft.host.host import Host
from fxgraft.host.widened import Widened
from fxgraft.wider.widening import widen


def records(host: Host) -> list[dict[str, Any]]:
    """The growths of ``host``, as JSON."""
    return [
        {"group": w.group, "by": w.by, "init": w.init, "numbers": [list(n) for n in w.numbers]}
        for w in host.widenings
    ]


def replay(
    undo: ExitStack,
    host: Host,
    saved: Sequence[Any],
    shapes: dict[str, list[int]],
    optimizers: Sequence[Optimizer],
    alone: bool,
) -> None:
    """Let ``host`` have the sizes of a checkpoint.

    Args:
        undo: is given what takes it back; also where this fails.
        host: of the model as it was traced, or of one that has these sizes already.
        saved: what `records` gave.
        shapes: name -> shape, of the tensors of the saved model.
        optimizers: of the host.
        alone: whether no other rank trains it.

    Raises:
        CheckpointError: it cannot have them.
    """
    found = [_checked(record, shapes) for record in saved]
    if not found:
        return
    ours = {n: list(t.shape) for n, t in host.model_state().items() if isinstance(t, Tensor)}
    if ours != shapes:
        if not alone:
            raise CheckpointError(
                "the host of the checkpoint has grown wider, and one that several ranks train cannot: "
                "expected a "
                "host of its sizes. host = fxgraft.load_model(path, model); host.clear(); then wrap that, "
                "and load"
            )
        done = host.widenings
        if list(done) != found[: len(done)]:
            raise CheckpointError(f"expected a host that has grown as that of the checkpoint; it has {done}")
        for record in found[len(done) :]:
            try:
                widen(host, record.group, record.by, record.init, "fresh", optimizers, 0, undo)
            except ChannelError as error:
                raise CheckpointError(
                    f"the host does not grow as that of the checkpoint did: {error}"
                ) from error
    undo.callback(setattr, host, "widenings", host.widenings)
    host.widenings = tuple(found)
    _set_numbers(undo, host, found)


def _set_numbers(undo: ExitStack, host: Host, found: Sequence[Widened]) -> None:
    """What norms were given to make up for their channels: of a host that has those by itself, too."""
    modules = dict(host.named_modules())
    for path, name, value in {(p, n): (p, n, v) for record in found for p, n, v in record.numbers}.values():
        module = modules.get(path)
        if module is None or not isinstance(module.__dict__.get(name), float | None):
            raise CheckpointError(f"the checkpoint has set {path}.{name}, a number that the host has not")
        undo.callback(module.__dict__.__setitem__, name, module.__dict__.get(name))
        module.__dict__[name] = value


def _checked(record: Any, shapes: dict[str, list[int]]) -> Widened:
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    if not isinstance(record, dict) or record.keys() != {"group", "by", "init", "numbers"}:
        raise CheckpointError(f"a growth of channels: expected group, by, init and numbers; got {record!r}")
    group, by, init, numbers = (record[key] for key in ("group", "by", "init", "numbers"))
    if not isinstance(group, str) or type(by) is not int or not 0 < by <= largest:
        raise CheckpointError(f"a growth of channels: expected a name and a number; got {group!r}, {by!r}")
    plain = []
    for number in numbers:
        path, name, value = number
        if not (isinstance(path, str) and isinstance(name, str) and type(value) is float):
            raise CheckpointError(f"{group}: expected a module, a name and a number; got {number!r}")
        plain.append((path, name, value))
    return Widened(group, by, str(init), tuple(plain))
