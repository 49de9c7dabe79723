"""Dtype, device and layout of the value at a slot now: a host may have been converted since it was traced.

The example run saw each value as it was then. Where a conversion (``host.to(...)``, one module's ``float()``)
has changed tensors since, the value follows those that it had its dtype from: the nearest ones before it in
the graph that were of that dtype then. What a cast in the code makes does not follow any.

    embedding, float32 -> to(bfloat16) -> fc, bfloat16 -> tanh    the value of tanh follows fc.weight
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from fxgraft.slots.walk import Place, Regions, before, called, joined, levels
from fxgraft_passes import Slot, devices
from fxgraft_passes.observe import Observation, observation_of

_DTYPE_CASTS = {"float", "double", "half", "bfloat16"}
_KEEP_THE_DTYPE_OF_THEIR_INPUT = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)

_LOOKED_AT, _WALKED = 512, 1024
"""How many tensors, and nodes, are looked at: an edit must not cost more in a larger host."""


@dataclass(frozen=True)
class ValueForm:
    """What a tensor is like, beside its shape.

    Attributes:
        dtype, device: of the tensor.
        channels_last: whether it is laid out so; None where it is unknown (not 4-D, 1x1 kernels).
    """

    dtype: torch.dtype
    device: torch.device
    channels_last: bool | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> ValueForm:
        """The form of a tensor."""
        return cls(tensor.dtype, tensor.device, is_channels_last(tensor))


_Fits = Callable[[ValueForm], bool]


class Values:
    """Remembers the forms that a model's tensors had at tracing, and tells that of a value now.

    Args:
        root: the model, right after it was traced.
    """

    def __init__(self, root: nn.Module):
        self._then = {name: ValueForm.of(tensor) for name, tensor in _named_tensors(root)}
        self._dtypes = {form.dtype for form in self._then.values()}
        self._devices = {form.device for form in self._then.values()}

    def at(self, slot: Slot, regions: Regions) -> ValueForm:
        """The form of the value at ``slot`` (not of its source) as the host is now."""
        search = _ValueSearch(self._then, regions)
        seen = observation_of(slot.node)
        dtype, device, channels_last = slot.dtype, slot.device, slot.channels_last
        if seen is not None and seen.autocast:
            # Autocast chooses the dtype of values call by call. The weights are as those around the slot.
            pair = search.nearest(slot, lambda form: form.dtype.is_floating_point, lambda node: False)
            dtype = torch.float32 if pair is None else pair[1].dtype
        elif dtype in self._dtypes:
            pair = search.nearest(slot, lambda form: form.dtype == slot.dtype, _makes_its_dtype)
            dtype = dtype if pair is None else pair[1].dtype
        if device in self._devices:
            pair = search.nearest(slot, lambda form: form.device == slot.device, _makes_its_device)
            device = device if pair is None else pair[1].device
        if len(slot.shape) == 4:
            pair = search.nearest(slot, lambda form: form.channels_last is not None, lambda node: False)
            if pair is not None and pair[0].channels_last != pair[1].channels_last:
                channels_last = bool(pair[1].channels_last)
        return ValueForm(dtype, device, channels_last)


@dataclass(frozen=True)
class _ValueSearch:
    then: Mapping[str, ValueForm]
    regions: Regions

    def nearest(
        self, slot: Slot, fits: _Fits, makes_its_own: Callable[[fx.Node], bool]
    ) -> tuple[ValueForm, ValueForm] | None:
        """The nearest tensor on the way to ``slot`` that fitted at tracing: its form then and now.

        None where the value does not come from a tensor: its code makes it so, or there is none.
        """
        start = Place(self.regions[slot.region], slot.node)
        for level in levels([start], lambda place: self._before(place, fits), _WALKED):
            for place in level:
                if makes_its_own(place.node):
                    return None
                if (found := self._own(place, fits)) is not None:
                    return found
        return self._around(slot.region, fits)

    def _own(self, place: Place, fits: _Fits) -> tuple[ValueForm, ValueForm] | None:
        """Of the tensors that a node brings in: its own, those of its module (unless that has a graph)."""
        if not place.path or called(place, self.regions) is not None:
            return None
        owner, _, name = str(place.node.target).rpartition(".")
        found = getattr(place.region.module.get_submodule(owner), name, None)
        if isinstance(found, nn.Module) and not isinstance(found, _KEEP_THE_DTYPE_OF_THEIR_INPUT):
            return self._first(found, place.path, fits)
        return self._pair(place.path, found, fits)

    def _before(self, place: Place, fits: _Fits) -> Iterator[Place]:
        """The places whose values a place is computed from, as far as they fitted at tracing."""
        found = list(before(place, self.regions))
        if place.node.target in ("to", "type_as") and len(found) == 2:
            found = found[1:]  # the tensor that it is to be like
        for other in found:
            seen = observation_of(other.node)
            if seen is None or seen.kind != "Tensor" or _may_bring(seen, fits):
                yield other

    def _around(self, region: str, fits: _Fits) -> tuple[ValueForm, ValueForm] | None:
        """The first that fits of the region's module, of the modules around it, of the whole host."""
        while True:
            if region in self.regions:
                found = self._first(self.regions[region].module, region, fits)
                if found is not None or not region:
                    return found
            elif not region:
                return None
            region = region.rpartition(".")[0]

    def _first(self, module: nn.Module, path: str, fits: _Fits) -> tuple[ValueForm, ValueForm] | None:
        tensors = islice(_telling_tensors(module), _LOOKED_AT)
        pairs = (self._pair(joined(path, name), tensor, fits) for name, tensor in tensors)
        return next((pair for pair in pairs if pair is not None), None)

    def _pair(self, name: str, tensor: Any, fits: _Fits) -> tuple[ValueForm, ValueForm] | None:
        then = self.then.get(name)
        if then is None or not isinstance(tensor, Tensor) or not fits(then):
            return None
        return then, ValueForm.of(tensor)


def _may_bring(seen: Observation, fits: _Fits) -> bool:
    return fits(ValueForm(seen.dtype, seen.device, seen.channels_last))


def _makes_its_dtype(node: fx.Node) -> bool:
    given = (*node.args, *node.kwargs.values())
    is_cast = node.op == "call_method" and node.target in _DTYPE_CASTS
    return is_cast or any(isinstance(value, torch.dtype) for value in given)


def _makes_its_device(node: fx.Node) -> bool:
    given = (*node.args, *node.kwargs.values())
    is_cast = node.op == "call_method" and node.target in devices.CASTS
    return is_cast or any(isinstance(value, torch.device) for value in given)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )


def _telling_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and those in it; those of norms, which tell little of the values, come last."""
    for norms in (False, True):
        for path, part in module.named_modules():
            if isinstance(part, _KEEP_THE_DTYPE_OF_THEIR_INPUT) is norms:
                for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                    if tensor is not None:
                        yield joined(path, name), tensor


def is_channels_last(tensor: Tensor) -> bool | None:
    """Whether it is; None where there is nothing to tell, as no other order or both at once."""
    if tensor.dim() != 4:
        return None
    ours, plain = tensor.is_contiguous(memory_format=torch.channels_last), tensor.is_contiguous()
    return None if ours and plain else ours
