"""A branch with the structure of the layers that it is parallel to: more channels, tried beside them.

    source ──► up ──► relu ──► down ──► slot        the model's own
       └─────► up'──► relu ──► down'──► + ──►       the branch: the same operations, new weights

The layers are copied, the channels between them grow as `fxgraft_passes.Widen` lets them, and only what is
new is kept. So the branch is what `SeedManager.widen` would add, and `SeedManager.fuse` makes it a part of
the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxgraft.blueprints._shapes import positive
from fxgraft.capture import trace_operators
from fxgraft.errors import BlueprintError
from fxgraft.slots.walk import between, the_value
from fxgraft.util.hooks import has_hooks
from fxgraft_passes import Slot, devices
from fxgraft_passes.channels.comparing import is_other, outputs
from fxgraft_passes.channels.groups import ChannelGroup, find
from fxgraft_passes.channels.growth import GroupGrowth, grow
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried_one
from fxgraft_passes.errors import ChannelError


def parallel(slot: Slot, *, channels: int | None = None) -> nn.Module:
    """The layers between the source and the slot once more, with new weights and ``channels`` between them.

    Needs a source (``germinate(slot, "parallel", source=...)``) in the same graph, of which alone the slot's
    value is made, with one group of channels in between: two linear layers or convolutions, and what treats
    each channel by itself (an activation, a batch norm, a gate). It adds what ``manager.widen`` would add
    (Net2Net; Chen et al., 2016, arXiv:1511.05641), and ``manager.fuse`` makes it a part of these layers.

    Args:
        slot: where it goes, with its source.
        channels: how many; by default as many as the layers have.
    """
    device = torch.empty(()).device
    without_data = devices.is_meta(device)
    module = _copy(slot, without_data)
    seed = int(torch.randint(2**62, (), device="cpu"))
    with devices.default(devices.CPU), _errors_naming(slot):
        subject = Subject.of(module, (_sample(slot, module),))
        group = _only_group(subject)
        by = group.size if channels is None else positive("channels", channels)
        # Without data all new channels are equal: a few are made, and repeated at no cost.
        times = by // group.grain if without_data and by % group.grain == 0 else 1
        with subject.session():
            growth = grow(subject, group, by // times, "zero", seed, outputs(subject))
            _refuse_no_sum(subject, group, the_value(slot.node))
        with torch.no_grad():
            _keep_what_is_new(module, subject, growth, times)
    return _as_chain(module).to(device)


@contextmanager
def _errors_naming(slot: Slot) -> Iterator[None]:
    try:
        yield
    except ChannelError as error:
        raise _slot_error(slot, str(error)) from error


def _slot_error(slot: Slot, why: str) -> BlueprintError:
    source = None if slot.source is None else slot.source.name
    return BlueprintError(f"parallel at slot {slot.name!r}, source {source!r}: {why}")


def _copy(slot: Slot, without_data: bool) -> fx.GraphModule:
    """The graph from the source's value to the slot's, with copies of the layers on the CPU or on meta."""
    root, source = slot.root, slot.source
    if root is None or source is None:
        raise _slot_error(slot, "expected a source: the value that the first of the parallel layers reads")
    start, end = the_value(source.node), the_value(slot.node)
    if start.graph is not end.graph:
        raise _slot_error(slot, "expected both in the graph of one module; the source is in another")
    nodes = between(start, end)
    if isinstance(nodes, str):
        raise _slot_error(slot, f"expected a value that is made of the source alone; there are {nodes}")
    graph, layers = fx.Graph(), dict[str, nn.Module]()
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    copies = {start: graph.placeholder("x")}
    for node in nodes:
        if node.target is trace_operators.run:
            raise _slot_error(slot, f"{node.name!r} in between runs a module with a graph of its own")
        if node.op == "call_module":
            name = _free(str(node.target), called)
            layers[name] = _copied(slot, str(node.target), root, without_data)
        copies[node] = graph.node_copy(node, lambda other: copies[the_value(other)])
        copies[node].meta.clear()
        if node.op == "call_module":
            copies[node].target = name
    graph.output(copies[end])
    return fx.GraphModule(layers, graph)


def _free(target: str, called: set[str]) -> str:
    """The name of a layer, or another one where graph modules have something else of that name."""
    first, dot, rest = target.partition(".")
    if not hasattr(fx.GraphModule, first):
        return target
    first += "_layer"
    while any(other.partition(".")[0] == first for other in called):
        first += "_"
    return f"{first}{dot}{rest}"


def _copied(slot: Slot, name: str, root: nn.Module, without_data: bool) -> nn.Module:
    layer = root.get_submodule(name)
    for module in layer.modules():
        if parametrize.is_parametrized(module) or has_hooks(module):
            raise _slot_error(slot, f"expected layers without parametrizations and hooks; {name!r} has some")
    memo: dict[int, Any] = {}
    if without_data:
        memo |= {id(p): nn.Parameter(p.detach().to("meta")) for p in layer.parameters()}
        memo |= {id(buffer): buffer.detach().to("meta") for buffer in layer.buffers()}
    copied = copy.deepcopy(layer, memo).requires_grad_(True)
    return copied if any(parameter.is_meta for parameter in copied.parameters()) else copied.to("cpu")


def _sample(slot: Slot, module: nn.Module) -> Tensor:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(()))
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(slot.input.shape, generator=generator)
    return value.to(like.device, like.dtype)


def _only_group(subject: Subject) -> ChannelGroup:
    """The channels between the layers. Raises `ChannelError`."""
    groups = find(subject)
    found = [tried_one(subject, groups, name) for name, group in groups.items() if group.fixed is None]
    growing = [group for group in found if group.fixed is None]
    if len(growing) != 1 or growing[0].normalised:
        said = ", ".join(
            f"{group.name} ({'a norm is computed over it' if group.normalised else 'can grow'})"
            for group in growing
        )
        raise ChannelError(f"expected one group of channels between the layers; got {said or 'none'}")
    return growing[0]


def _refuse_no_sum(subject: Subject, group: ChannelGroup, end: fx.Node) -> None:
    """Raise `ChannelError` where new channels do not just add to the value: behind a residual sum or a tanh.

    The value as a function of the last layers' parameters is tried at two points and at their sum.
    """
    last = _readers(group)
    has_data = all(devices.has_data(tensor) for tensor in subject.tensors.values())
    if not has_data or (end.op == "call_module" and end.target in last):
        return
    generator = torch.Generator().manual_seed(0)
    own = {path: tensor for path, tensor in subject.tensors.items() if path.rpartition(".")[0] in last}

    def drawn() -> dict[str, Tensor]:
        return {path: torch.randn(p.shape, generator=generator).to(p) for path, p in own.items()}

    def value(tensors: dict[str, Tensor]) -> Tensor:
        with subject.with_tensors(tensors):
            return outputs(subject)[0]

    one, other = drawn(), drawn()
    apart, together = value(one) + value(other), value({path: one[path] + other[path] for path in own})
    if bool(apart.isfinite().all()) and is_other(apart, together):
        raise ChannelError(
            f"expected a value to which more channels only add something, as that of {sorted(last)[0]!r}; "
            f"what is computed behind that makes no sum of a sum"
        )


def _readers(group: ChannelGroup) -> set[str]:
    return {member.path for member in group.members if member.role == "consumer"}


def _keep_what_is_new(module: nn.Module, subject: Subject, growth: GroupGrowth, times: int) -> None:
    """Keep the new channels of tensors and settings only, ``times`` times; what all share is zero."""
    for path, tensor in growth.tensors.items():
        for dim, spread in growth.spreads[path]:
            new = [i for i, fresh in enumerate(spread.fresh) if fresh]
            tensor = tensor.index_select(dim, torch.tensor(new, device=tensor.device).repeat(times))
        for owner, name in subject.places[path]:
            if subject.is_parameter(path):
                owner.register_parameter(name, nn.Parameter(tensor))
            else:
                owner.register_buffer(name, tensor)
    for setting in growth.settings:
        if type(setting.old) is not int or type(setting.new) is not int:
            raise ChannelError(f"expected a number that grows with the channels; got {setting}")
        replace(setting, new=(setting.new - setting.old) * times).apply(subject)
    last = _readers(growth.group)
    for path, parameter in module.named_parameters():
        if path in growth.tensors:
            continue
        if path.rpartition(".")[0] not in last:
            raise ChannelError(f"expected parameters of channels; {path!r} belongs to all of them")
        parameter.zero_()


def _as_chain(module: fx.GraphModule) -> nn.Module:
    """As a ``Sequential``, where each layer reads what the one in front of it makes."""
    nodes = list(module.graph.nodes)
    called = nodes[1:-1]
    targets = [str(node.target) for node in called]
    is_chain = all(
        node.op == "call_module" and node.args == (before,) and not node.kwargs
        for before, node in zip(nodes, called, strict=False)
    )
    nested = any(isinstance(layer, nn.Sequential) for layer in module.children())  # parts of the same class
    chain = nn.Sequential()
    names = [target.replace(".", "_") for target in targets]
    taken = len(set(names)) < len(names) or any(hasattr(chain, name) for name in names)
    if not is_chain or nested or taken:
        return module
    for name, target in zip(names, targets, strict=True):
        chain.add_module(name, module.get_submodule(target))
    return chain
