"""Fossils that are linear, merged into the weights of the layers in front of them.

before::

    fc = self.fc(x)                             # W x + b
    seed = self.seed_a(fc)                      # B A fc
    fossil = fc + alpha * seed
    relu = fossil.relu()

after, exactly (but for rounding)::

    fc = self.fc(x)                             # (1 + alpha B A) W x + (1 + alpha B A) b
    relu = fc.relu()
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture import trace_operators
from fxgraft.errors import SlotError, StageError
from fxgraft.fossils._producers import axis_of, merge_into
from fxgraft.fossils.linear_maps import Features, NotAffineError, affine_map
from fxgraft.fossils.unwrapping import unwrap
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.slots.structure import Placement
from fxgraft_passes import Slot
from fxgraft_passes.example_calls import why_no_arguments
from fxgraft_passes.untouched import untouched


@dataclass(frozen=True)
class Folded:
    """What `fold` made of a host.

    Attributes:
        module: the plain module, with weights of its own.
        into: seed -> the name of the layer that it was merged into.
        refused: seed -> why it was not, and is in ``module`` as `unwrap` has it.
        max_abs: the largest difference to the host's outputs on the example, in magnitude; only values
            in floating point are compared.
        max_rel: the same, divided by the largest magnitude of the host's output.
    """

    module: nn.Module
    into: Mapping[str, str]
    refused: Mapping[str, str]
    max_abs: float
    max_rel: float


def fold(
    host: Host,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    seeds: Sequence[str] | None = None,
) -> Folded:
    """The host as a plain module, as from `unwrap`, with linear fossils merged into its weights.

    A fossil can be merged if it is an affine map of the features, in either mode (``low_rank``,
    ``scale_shift``, ``net2net`` without ReLU and no wider than 1x1; your own of Linear and 1x1
    convolutions), and is directly behind a layer into which it can be merged, which has no other caller
    and no other reader. The host is not changed: the result has copies of its weights.

    Args:
        host: a host all of whose seeds are fossils.
        example_args: the positional arguments of a call, to measure the difference on, in the mode that
            the host is in.
        example_kwargs: its keyword arguments.
        seeds: the names of the seeds to merge; by default all that can be.

    Raises:
        StageError: the host has seeds that are no fossils, or no seed of a name in ``seeds``.
        SlotError: a seed in ``seeds`` cannot be merged; with the reason.
        TypeError: ``example_args`` is no tuple.
    """
    if why := why_no_arguments(example_args, "fold"):
        raise TypeError(why)
    reference = unwrap(host)  # refuses what is no host, and one with live seeds
    placements = {p.seed: p for p in host.structure.placements}
    for name in seeds or ():
        if name not in placements:
            raise StageError(
                f"the host has no fossil {name!r}; it has {', '.join(placements) or 'none'}. Name one of "
                f"these, or fossilize it first"
            )
    copied = copy.deepcopy(host)
    into, refused = Folding(copied).run(placements if seeds is None else seeds)
    if seeds is not None and refused:
        name, why = next(iter(refused.items()))
        raise SlotError(
            f"seed {name!r} at slot {placements[name].slot.name!r} cannot be folded: it {why}. "
            f"fxgraft.unwrap(host) keeps it as a module"
        )
    module = unwrap(copied)
    expected = _floats(reference, example_args, dict(example_kwargs or {}))
    actual = _floats(module, example_args, dict(example_kwargs or {}))
    pairs = list(zip(actual, expected, strict=True))
    max_abs = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    largest = max((float(b.abs().max()) for b in expected), default=0.0)
    return Folded(module, into, refused, max_abs, max_abs / largest if largest else max_abs)


class Folding:
    """Merges seeds of a host that may be changed."""

    def __init__(self, host: Host):
        self.host = host
        self._calls: dict[nn.Module, int] = {}
        self._read: set[nn.Module] = set()
        for region in host.regions.values():
            for node in region.base.nodes:
                if node.op == "call_module":
                    called = region.module.get_submodule(str(node.target))
                    self._calls[called] = self._calls.get(called, 0) + 1
                elif node.op == "get_attr":
                    owner, _, _ = str(node.target).rpartition(".")
                    if owner:
                        self._read.add(region.module.get_submodule(owner))

    def run(self, seeds: Sequence[str] | Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """Merge those of ``seeds`` that can be; returns the layer for each, or the reason."""
        into: dict[str, str] = {}
        refused: dict[str, str] = {}
        left: dict[Any, str] = {}
        for placement in self._in_order():
            node, name = placement.slot.node, placement.seed
            try:
                if name in seeds:
                    if node in left:
                        raise NotAffineError(f"stands behind {left[node]!r}, which is not merged")
                    into[name] = self.merge(placement)
                    continue
            except NotAffineError as why:
                refused[name] = str(why)
            if placement.slot.reader is None:  # on an edge it stands behind all that are at the slot
                left[node] = name
        structure = self.host.structure
        for name in into:
            structure = structure.without(name)
        grafts = {n: graft for n, graft in self.host.grafts().items() if n not in into}
        engine.set_structure(self.host, structure, self.host.phase, grafts)
        return into, refused

    def _in_order(self) -> Iterator[Placement]:
        """The placements, at one slot in the order in which they run."""
        for placements in self.host.structure.by_region.values():
            yield from placements

    def merge(self, placement: Placement) -> str:
        """Merge one seed, or raise `NotAffineError`; returns the name of the layer."""
        slot, spec = placement.slot, placement.spec
        if spec.call is not None:
            raise NotAffineError("is a block")
        if slot.source is not None:
            raise NotAffineError(f"reads {slot.source.name!r}, and not the value that it is added to")
        if slot.reader is not None:
            raise NotAffineError(f"stands on one edge, and {slot.node.name!r} may have other readers")
        if slot.others:
            raise NotAffineError("stands behind several calls")
        name, layer = self.layer(slot)
        where = Features(axis_of(layer, len(slot.shape)), len(slot.shape), slot.device)
        one = where.unit(slot.shape[where.axis])
        found = affine_map(self.host.graft(placement.seed).module, len(one.bias), where)
        branch = found.plus(one, -1.0) if spec.mode == "convex" else found
        merge_into(layer, one.plus(branch, float(spec.fossil or 0.0)))
        return name

    def layer(self, slot: Slot) -> tuple[str, nn.Module]:
        """The layer whose result is the slot's value and has no other reader, with its name."""
        region, node = self.host.regions[slot.region], slot.node
        if node.op == "call_module":
            layer = region.module.get_submodule(str(node.target))
        elif node.target is trace_operators.run:
            layer = region.module
        else:
            raise NotAffineError(f"stands behind {node.name!r}, which is no layer's result")
        axis_of(layer, len(slot.shape))  # raises for one that nothing can be merged into
        root, *_ = engine.trees(self.host)
        names = {m: name for tree in (self.host, root) for name, m in tree.named_modules()}
        if self._calls.get(layer, 1) != 1:
            raise NotAffineError(f"stands behind {names[layer]!r}, which is called in several places")
        if (why := _why_weights_are_not_its_own(layer)) is not None:
            raise NotAffineError(f"stands behind {names[layer]!r}, {why}")
        if node.op == "call_module" and "forward" in layer.__dict__ and not self._is_traced(layer):
            raise NotAffineError(f"stands behind {names[layer]!r}, whose forward was replaced")
        if _torch.has_result_hooks(layer):
            raise NotAffineError(f"stands behind {names[layer]!r}, whose hooks see its result")
        if layer in self._read:
            raise NotAffineError(f"stands behind {names[layer]!r}, whose weights are read elsewhere as well")
        own = {id(parameter) for parameter in layer.parameters()}
        for module, name in names.items():
            if module is not layer and any(id(p) in own for p in module._parameters.values()):
                raise NotAffineError(f"stands behind {names[layer]!r}, which shares a weight with {name!r}")
        return names[layer], layer

    def _is_traced(self, layer: nn.Module) -> bool:
        """Whether its ``forward`` is the host's own, which computes what the class does."""
        return any(region.module is layer for region in self.host.regions.values())


def _why_weights_are_not_its_own(layer: nn.Module) -> str | None:
    """Why what is written to the layer's weights would not stay there; None if it does."""
    for name in ("weight", "bias"):
        if getattr(layer, name, None) is not None and layer._parameters.get(name) is None:
            return (
                f"whose {name} is no parameter, but computed anew in each call (pruning, weight_norm, "
                f"spectral_norm): make it one first, with prune.remove or remove_weight_norm"
            )
    if _torch.pre_hooks(layer):
        return "whose hooks run before it and may set its weights: remove them first"
    return None


def _floats(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The floating point outputs of one call, in float64; leaves the module and the streams as they were."""
    with untouched(module), torch.no_grad():
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))  # it may write into them
        out = module(*args, **kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves if leaf.is_floating_point() and leaf.numel()]
