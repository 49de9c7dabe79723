"""The sizes of values in an inserted block that has other sizes than the block whose graphs it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from fxgraft.capture.region import Region
from fxgraft.errors import ChannelError, SlotError
from fxgraft.host.insertions import path_of, regions_within
from fxgraft_passes import FindSlots, devices
from fxgraft_passes.metadata import metadata
from fxgraft_passes.untouched import untouched

if TYPE_CHECKING:
    from fxgraft.host.host import Host

_Call = tuple[tuple[Any, ...], dict[str, Any], devices.Autocasts]
"""What a block was called with, and the autocast in which it was."""


def observe(host: Host) -> None:
    """Run the example call, and take the sizes of the values in such blocks from there; leaves no trace.

    Raises:
        SlotError: they do not run in it.
    """
    unseen = host._traced.unseen_blocks
    if not unseen:
        return
    regions = {
        name: region
        for seed in unseen
        for name, region in regions_within(path_of(seed), host._traced.regions).items()
    }
    try:
        args, kwargs = host.example_call()
    except ChannelError:
        return  # of a copy: it is looked at once that is known again
    calls: dict[str, _Call] = {}
    model = [host._root, *(graft.module for graft in host.grafts().values())]
    with ExitStack() as stack:
        stack.enter_context(host.compiled.stopped() if host.compiled else nullcontext())
        stack.enter_context(untouched(*model, also=host._external_state.roots(host._root)))
        stack.enter_context(torch.no_grad())
        for name, region in regions.items():
            handle = region.module.register_forward_pre_hook(_keeping(calls, name), with_kwargs=True)
            stack.callback(handle.remove)
        with _named(", ".join(map(path_of, unseen))):
            host._root(*args, **kwargs)
        for name, call in calls.items():
            _observe(regions[name], call)
    unseen.clear()


def _keeping(calls: dict[str, _Call], name: str) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(name, (args, kwargs, devices.autocasts()))

    return keep


def _observe(region: Region, call: _Call) -> None:
    if region.is_boundary:
        return
    if broken := region.form.broken(region.module):  # the graph has numbers that are another block's
        for node in region.base.nodes:
            if metadata(node).pop("slot", None) is not None:
                metadata(node)["no_slot"] = (
                    f"is in a block that grew wider alone, without a graph: {broken[0]}"
                )
        return
    args, kwargs, autocasts = call
    values = region.form.values(args, kwargs)
    if values is None:
        raise SlotError(
            f"{region.name} is called in another way than the block of which it is a copy. Choose a block "
            f"that is called alike, by like=[...], or another place, by at=[...]"
        )
    inputs = [values[str(node.target)] for node in region.base.find_nodes(op="placeholder")]
    with devices.under_autocasts(autocasts), _named(region.name):
        _Sizes(region.module, graph=region.base).run(*inputs)
    FindSlots(region=region.name).rewrite(region.base)


@contextmanager
def _named(blocks: str) -> Iterator[None]:
    """Raise `SlotError` for what the code of a model raises where new blocks run."""
    try:
        yield
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise SlotError(
            f"{blocks}: the example call does not run with what is inserted: {type(error).__name__}: {said}. "
            f"Expected blocks that need nothing but their arguments, as the model sets no attributes of new "
            f"ones. Give them what they need as arguments"
        ) from error


class _Sizes(fx.Interpreter):
    """Writes the sizes of the values of a run into what is known of them."""

    def run_node(self, n: fx.Node) -> Any:
        value, known = super().run_node(n), metadata(n).get("observation")
        if isinstance(value, Tensor) and known is not None and known.shape != value.shape:
            metadata(n)["observation"] = replace(known, shape=value.shape, strides=value.stride())
        return value
