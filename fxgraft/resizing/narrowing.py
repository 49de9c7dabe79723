"""A host goes back to fewer channels, to be given the weights of a checkpoint from before it grew wider.

Linear(6, 14), Linear(14, 3) ──► Linear(6, 10), Linear(10, 3): which weights these have is not said
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import CheckpointError
from fxgraft.host import engine
from fxgraft.host.channels import Widened, subject_of
from fxgraft.host.growth_history import without_seeds
from fxgraft.host.host import Host
from fxgraft.host.retracing import retrace
from fxgraft.optimizers.wrapped import with_nested
from fxgraft_passes.channels.replacing import set_tensor
from fxgraft_passes.graft import SEEDS


def later_growths(host: Host, others: Sequence[Widened]) -> tuple[Widened, ...]:
    """The growths of the model's own channels that a host must lose to come to another state.

    Those beside the growths of that state, where it is an earlier one of this host; else all: a host that is
    as it was traced can grow into any.

    Args:
        host: as it is now; its seeds do not count.
        others: the growths of that state.

    Raises:
        CheckpointError: the host cannot go back.
    """
    own = without_seeds([placement.seed for placement in host.structure.placements], host.widenings)
    then = [_key(growth) for growth in others if not growth.group.startswith(f"{SEEDS}.")]
    later = own[len(then) :] if [_key(growth) for growth in own[: len(then)]] == then else own
    for growth in later:
        if growth.before is None:
            raise CheckpointError(
                f"the host does not know what it was before {growth.group} grew, as it was loaded in these "
                f"sizes. Trace the model anew, and load the checkpoint into that"
            )
    return later


def shapes_before(host: Host, later: Sequence[Widened]) -> dict[str, list[int]]:
    """Name -> shape, of the tensors of the model's state, before those growths."""
    subject, model = subject_of(host, host.example_call()), host._root
    before = {
        id(subject.now(path)): shape
        for growth in reversed(later)
        if growth.before is not None
        for path, shape in growth.before.shapes.items()
        if path in subject.places
    }
    named = {  # a tensor that is tied has several names
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        name: list(before.get(id(named.get(name)), tensor.shape))
        for name, tensor in host.model_state().items()
        if isinstance(tensor, Tensor)
    }


def narrow(host: Host, later: Sequence[Widened], optimizers: Sequence[Optimizer]) -> list[str]:
    """Take these growths, the last ones, back: in the host, which has no seeds, and in its averages.

    Args:
        host: what its tensors are then is not said: they are to be loaded.
        later: what `later_growths` returned.
        optimizers: forget what they keep for tensors that shrink.

    Returns:
        The paths of the tensors.
    """
    shapes: dict[str, Sequence[int]] = {}
    kept = host.widenings[: len(host.widenings) - len(later)]
    with ExitStack() as undo:
        for each in (host, *host._links.followers):
            subject = subject_of(each, host.example_call())
            for growth in reversed(later):
                assert growth.before is not None
                for path, shape in growth.before.shapes.items():
                    if path in subject.places:  # else of a seed that is gone
                        _shrink(undo, subject.now(path), shape)
                        shapes[path] = shape
                for setting in reversed(growth.before.settings):
                    if setting.path in subject.modules:
                        undo.callback(replace(setting, old=setting.new, new=setting.old).apply(subject))
            undo.callback(engine.widened, each)
            undo.callback(setattr, each, "widenings", each.widenings)
            each.widenings = kept
            engine.widened(each)
            retrace(undo, each, host.example_call())
        undo.pop_all()
    subject = subject_of(host, host.example_call())
    for optimizer in with_nested(optimizers):
        for tensor in map(subject.now, shapes.keys() & subject.places.keys()):
            optimizer.state.pop(tensor, None)
    return list(shapes)


def _shrink(undo: ExitStack, tensor: Tensor, shape: Sequence[int]) -> None:
    undo.callback(set_tensor, tensor, tensor.data, tensor.grad)
    set_tensor(tensor, tensor.data[tuple(slice(size) for size in shape)].clone(), None)


def averages_begin_anew(host: Host, paths: Sequence[str]) -> None:
    """Give averages the host's numbers where they have shrunk: the channels of what is left are not known."""
    ours = subject_of(host, host.example_call())
    for twin in host._links.followers:
        theirs = subject_of(twin, host.example_call())
        with torch.no_grad():
            for path in theirs.places.keys() & ours.places.keys() & set(paths):
                theirs.now(path).copy_(ours.now(path))


def _key(growth: Widened) -> tuple[str, int, str]:
    return growth.group, growth.by, growth.init
