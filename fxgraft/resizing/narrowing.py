"""A host goes back to fewer channels, to be given the weights of a checkpoint from before it grew wider.

Linear(6, 14), Linear(14, 3) ──► Linear(6, 10), Linear(10, 3): which weights these have is not said
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from fxgraft.errors import CheckpointError
from fxgraft.host import engine
from fxgraft.host.channels import Widened, subject_of
from fxgraft.host.growth_history import without_seeds
from fxgraft.host.host import Host
from fxgraft.host.retracing import retrace
from fxgraft_passes.channels.replacing import set_tensor
from fxgraft_passes.graft import SEEDS


def later_growths(host: Host, earlier: Sequence[Widened]) -> tuple[Widened, ...]:
    """The growths of the model's own channels that a host has beside those of an earlier state.

    Args:
        host: as it is now; its seeds do not count.
        earlier: the growths of that state.

    Raises:
        CheckpointError: that state is none of its earlier ones, or the host cannot go back.
    """
    own = without_seeds([placement.seed for placement in host.structure.placements], host.widenings)
    then = [growth for growth in earlier if not growth.group.startswith(f"{SEEDS}.")]
    if not own:
        return ()
    if [_key(growth) for growth in own[: len(then)]] != [_key(growth) for growth in then]:
        raise CheckpointError(
            "the channels of the host have grown otherwise since: expected a checkpoint of this run. Or "
            "trace the model anew, and load it into that"
        )
    later = own[len(then) :]
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


def narrow(host: Host, later: Sequence[Widened]) -> list[str]:
    """Take these growths back, in the host, which has no seeds, and in its averages; return what has shrunk.

    Args:
        host: what its tensors are then is not said: they are to be loaded.
        later: what `later_growths` returned.

    Returns:
        The paths of the tensors.
    """
    shapes: dict[str, Sequence[int]] = {}
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
            each.widenings = each.widenings[: len(each.widenings) - len(later)]
            engine.widened(each)
            retrace(undo, each, host.example_call())
        undo.pop_all()
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
