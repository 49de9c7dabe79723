"""Sizes that follow the input: the example call runs again, with one of its sizes changed by one each time.

    ids (1, 16) -> (1, 15)    a block's output (1, 16, 32) -> (1, 15, 32): a seed for 32 features fits both
                              attention scores (1, 4, 16, 16) -> (1, 4, 15, 15): one for 16 features does not

A size that the model needs (an image in front of a `Linear`) makes such a run fail. What was seen until then
counts; values behind that are taken as in the example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.region import Region
from fxgraft.explore._example_run import Call
from fxgraft.host.channels import example_of
from fxgraft.host.host import Host
from fxgraft_passes import Slot, devices
from fxgraft_passes.channels.subject import on_meta

Shapes = dict[str, set[torch.Size]]
"""Name of a slot -> the shapes that its value has, beside that of the example call."""

_MOST = 8
"""Runs at most: an example call with many inputs may have as many different sizes."""


def other_shapes(host: Host, slots: Sequence[Slot]) -> Shapes:
    """The shapes of values where an input has another size; of those that are known.

    Args:
        host: it is left as it was. Where its example call is not known, nothing is found.
        slots: where.
    """
    found: Shapes = {slot.name: set() for slot in slots}
    subject = example_of(host)
    if subject is None:
        return found
    by_region: dict[str, dict[fx.Node, Slot]] = {}
    for slot in slots:
        by_region.setdefault(slot.region, {})[slot.node] = slot
    with ExitStack() as stack:
        stack.enter_context(subject.session())
        stack.enter_context(subject.in_mode(False))
        stack.enter_context(torch.no_grad())
        call: Call = subject.args, subject.kwargs
        # An index that is out of range ends the process on an accelerator; without numbers there is none.
        if subject.without_data or not all(devices.is_cpu(t.device) for t in subject.tensors.values()):
            stack.enter_context(subject.without_numbers())
            call = pytree.tree_map_only(Tensor, on_meta, call)
        for args, kwargs in _calls_of_other_sizes(call):
            for name, (call, autocasts) in _calls_of_regions(host, list(by_region), args, kwargs).items():
                with devices.under_autocasts(autocasts):
                    _observe(host.regions[name], call, by_region[name], found)
    return found


def _calls_of_other_sizes(call: Call) -> Iterator[Call]:
    """The call with one size changed: along one axis of all tensors, or wherever a tensor has that size."""
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor) and _is_plain(leaf)]
    sizes = [(axis, size) for tensor in tensors for axis, size in enumerate(tensor.shape) if size]
    of_one_axis = [partial(_is_at, axis, size) for axis, size in dict.fromkeys(sizes)]
    everywhere = [partial(_is_size, size) for _, size in dict.fromkeys((0, size) for _, size in sizes)]
    shapes: set[tuple[torch.Size, ...]] = set()
    for changes in (*of_one_axis, *everywhere):
        other: Call = pytree.tree_map_only(Tensor, partial(_changed, changes), call)
        seen = tuple(leaf.shape for leaf in pytree.tree_leaves(other) if isinstance(leaf, Tensor))
        if seen not in shapes and len(shapes) < _MOST:
            shapes.add(seen)
            yield other


def _is_plain(tensor: Tensor) -> bool:
    """Whether it can be cut: one that is sparse or nested stays as it is."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _is_at(axis: int, size: int, at: int, now: int) -> bool:
    return (at, now) == (axis, size)


def _is_size(size: int, at: int, now: int) -> bool:
    return now == size


def _changed(changes: Callable[[int, int], bool], tensor: Tensor) -> Tensor:
    """One shorter along these axes; twice where there is a single element."""
    if not _is_plain(tensor):
        return tensor
    for axis, size in enumerate(tensor.shape):
        if size and changes(axis, size):
            tensor = tensor.narrow(axis, 0, size - 1) if size > 1 else torch.cat([tensor, tensor], axis)
    return tensor.clone()


def _calls_of_regions(
    host: Host, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[Call, devices.Autocasts]]:
    """How these regions are called in a call of the host, as far as it comes."""
    calls: dict[str, tuple[Call, devices.Autocasts]] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(name, ((args, kwargs), devices.autocasts()))

    with ExitStack() as stack:
        for name in names:
            module = host.regions[name].module
            stack.callback(module.register_forward_pre_hook(partial(keep, name), with_kwargs=True).remove)
        with suppress(Exception):  # a model that needs the size that was changed
            host._root(*args, **kwargs)
    return calls


def _observe(region: Region, call: Call, slots: dict[fx.Node, Slot], found: Shapes) -> None:
    """Run the graph of a region as far as it runs, and take down the shapes of the values at its slots."""
    if region.is_boundary:
        return
    with suppress(Exception):  # likewise
        if (values := region.form.values(*call)) is None:
            return
        inputs = [values[str(node.target)] for node in region.base.find_nodes(op="placeholder")]
        _Shapes(region, slots, found).run(*inputs)


class _Shapes(fx.Interpreter):
    def __init__(self, region: Region, slots: dict[fx.Node, Slot], found: Shapes):
        super().__init__(region.module, graph=region.base)
        self._slots, self._found = slots, found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        slot = self._slots.get(n)
        if slot is not None and isinstance(value, Tensor) and value.shape != slot.shape:
            self._found[slot.name].add(value.shape)
        return value
