"""From a blueprint to a module that was checked to fit its slot. Touches neither host nor optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxgraft import blueprints
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.host.host import Host
from fxgraft.host.values import ValueForm
from fxgraft.lifecycle._fatal_operations import FatalOperationError, no_fatal_operations
from fxgraft.lifecycle.mode_wrappers import AddedBranch, Difference, Gated
from fxgraft.seeds import streams
from fxgraft.seeds.dropout import privatize
from fxgraft_passes import Slot, devices
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes.graft import complex_kept
from fxgraft_passes.untouched import restored_on_failure, state_untouched

BlueprintLike = str | nn.Module | Callable[..., nn.Module]
"""A registered name, a module, or a factory ``Slot -> nn.Module``."""


@dataclass(frozen=True)
class Surroundings:
    """What a seed has to follow: the values at its slot as they are now, and the slot's train/eval mode.

    Attributes:
        reads: dtype, device and layout of the value that the seed reads (its source's, if it has one): its
            own weights have them too.
        value: those of the value that it is blended into.
        training: whether the slot's module is in train mode.
    """

    reads: ValueForm
    value: ValueForm
    training: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the value at the slot."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Of the value at the slot."""
        return self.value.device

    def without_data(self) -> Surroundings:
        """The same on the ``meta`` device."""
        meta = torch.device("meta")
        return Surroundings(replace(self.reads, device=meta), replace(self.value, device=meta), self.training)


def surroundings(host: Host, slot: Slot, *, without_data: bool = False) -> Surroundings:
    """What surrounds a slot now.

    Raises:
        SlotError: the host is on the ``meta`` device, and not ``without_data``.
    """
    value = host.value_at(slot)
    if devices.is_meta(value.device) and not without_data:
        raise SlotError(
            f"slot {slot.name!r}: expected a host with data to grow on; it is on the meta device. Plan there "
            f"(manager.plan), and germinate after host.to_empty(device=...) and host.load_state_dict(...)"
        )
    reads = value if slot.source is None else host.value_at(slot.source)
    return Surroundings(reads, value, host.regions[slot.region].module.training)


def slot_now(host: Host, slot: Slot) -> Slot:
    """A slot that was found earlier, in the graph that the host has now: it is traced anew as it grows wider.

    Raises:
        SlotError: it is not there any more, or has values of another shape.
    """
    region = host.regions.get(slot.region)
    if region is not None and slot.node.graph is region.base:
        return slot
    now = host.site(*slot.names)
    if (now.shape, now.input.shape) != (slot.shape, slot.input.shape):
        raise SlotError(
            f"slot {slot.name!r}: expected values of shape {tuple(slot.shape)}, as when the seed was made "
            f"for it; the host has grown wider since, and has {tuple(now.shape)} there. Germinate again"
        )
    return now


def convert(module: nn.Module, around: Surroundings) -> nn.Module:
    """Convert a seed's module, in place, to the dtype, device and layout of the value that it reads.

    Complex tensors stay complex: in complex128 where that value is of float64, else in complex64.
    """
    reads = around.reads

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(device=reads.device, dtype=reads.dtype if tensor.is_floating_point() else None)

    module._apply(complex_kept(converted))  # type: ignore[no-untyped-call]
    if around.reads.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def build(
    blueprint: BlueprintLike,
    slot: Slot,
    mode: str,
    around: Surroundings,
    key: int,
    config: Mapping[str, Any],
    admit: Callable[[nn.Module], None] = lambda module: None,
    device: torch.device = devices.CPU,
) -> nn.Module:
    """Build a seed for ``slot`` and check that it fits. Draws from the stream ``key`` only.

    May run in any thread. A module that is refused comes back as it was.

    Args:
        blueprint: a registered name, a module, or a factory.
        slot: where the seed goes.
        mode: how it will be blended: some modes wrap it.
        around: what it has to follow.
        key: of its random streams.
        config: for the factory.
        admit: raises for a module that must not be touched, before it is.
        device: where factories build, whatever the default device of torch is. The seed is then moved to
            that of ``around``.

    Raises:
        BlueprintError: naming the slot, what was expected and what was given.
    """
    given = label(blueprint)
    try:
        with devices.default(device), streams.private_stream(key):
            module = call_blueprint(blueprint, slot, mode, config)
    except BlueprintError:
        raise
    except Exception as error:
        raise BlueprintError(
            f"blueprint {given} at slot {slot.name!r} could not be built: {type(error).__name__}: {error}. "
            f"The slot is free; correct the blueprint or its options"
        ) from error
    if not isinstance(module, nn.Module):
        raise BlueprintError(
            f"blueprint {given} at slot {slot.name!r}: expected an nn.Module; got {type(module).__name__}"
        )
    _refuse_lazy(module, slot, given)
    admit(module)
    _refuse_no_data(module, slot, given, around)
    with devices.default(device), restored_on_failure(module):
        fitted = _fit(module, mode, around, key)
        _check(fitted, slot, given, around, key)
    return fitted


def _refuse_lazy(module: nn.Module, slot: Slot, given: str) -> None:
    """Raise `BlueprintError` for a lazy module that was not called yet: it has no weights to train."""
    lazy = _first(module, lambda tensor: isinstance(tensor, UninitializedParameter | UninitializedBuffer))
    if lazy is not None:
        raise BlueprintError(
            f"blueprint {given} at slot {slot.name!r}: expected weights that have a shape; {lazy} gets it in "
            f"the first call. Call the module once with a value {tuple(slot.input.shape)} before"
        )


def _refuse_no_data(module: nn.Module, slot: Slot, given: str, around: Surroundings) -> None:
    """Raise `BlueprintError` where a module on ``meta`` is to be on another device: it has no numbers."""
    empty = _first(module, lambda tensor: not devices.has_data(tensor))
    if empty is not None and not devices.is_meta(around.reads.device):
        raise BlueprintError(
            f"blueprint {given} at slot {slot.name!r}: expected weights with data, as the host is on "
            f"{around.reads.device}; {empty} is on the meta device. Build it on another device, or call "
            f"to_empty(device=...) and initialise it"
        )


def _first(module: nn.Module, is_wanted: Callable[[Tensor], bool]) -> str | None:
    """The name of its first parameter or buffer of that kind."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, tensor in tensors if is_wanted(tensor)), None)


def size_on_meta(blueprint: BlueprintLike, slot: Slot, mode: str, config: Mapping[str, Any]) -> int | None:
    """How many parameters a seed would have, without memory for it; None where it is unknown."""
    try:
        with torch.device("meta"), streams.private_stream(0):
            module: Any = call_blueprint(blueprint, slot, mode, config)
        return sum(int(parameter.numel()) for parameter in module.parameters())
    except Exception:
        return None  # what is wrong with it is said when it is built


def _fit(module: nn.Module, mode: str, around: Surroundings, key: int) -> nn.Module:
    """Give the module what it has to follow."""
    module = privatize(module, key)
    if mode == "gated":
        module = Gated(module)
    return convert(module, around).train(around.training)


def refuse_unknown(blueprint: object, slot: Slot) -> None:
    """Raise `BlueprintError` for what no seed can ever be made from."""
    if isinstance(blueprint, str):
        blueprints.get(blueprint)
    elif not callable(blueprint):  # a module is
        raise BlueprintError(
            f"slot {slot.name!r}: expected a blueprint's name, an nn.Module or a factory; "
            f"got {type(blueprint).__name__}"
        )


def call_blueprint(blueprint: Any, slot: Slot, mode: str, config: Mapping[str, Any]) -> nn.Module:
    """What a blueprint makes for ``slot``, wrapped as ``mode`` asks for it, and not checked."""
    if isinstance(blueprint, nn.Module):
        if config:
            raise BlueprintError(
                f"slot {slot.name!r}: a module takes no configuration; got {', '.join(config)}"
            )
        return blueprint
    if isinstance(blueprint, str):
        known = blueprints.get(blueprint)
        known.check_mode(mode, slot)
        module = known.build(slot, **config)
        if known.branch and mode == "convex" and slot.input.shape == slot.shape:
            return AddedBranch(module)
        return Difference(module) if known.replaces and mode != "convex" else module
    refuse_unknown(blueprint, slot)
    return blueprint(slot, **config)  # type: ignore[no-any-return]


def _check(module: nn.Module, slot: Slot, given: str, around: Surroundings, key: int) -> None:
    """Run the seed on random input of the shape that it reads, in both modes; leaves it as it was."""
    where = f"blueprint {given} at slot {slot.name!r}"
    if slot.source is not None:
        where += f", source {slot.source.name!r}"
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        has_data = devices.has_data(tensor)
        if (
            has_data
            and (tensor.is_floating_point() or tensor.is_complex())
            and not bool(torch.isfinite(tensor).all())
        ):
            raise BlueprintError(f"{where}: expected finite weights; {name} has NaN or inf")
    dtype, device = around.reads.dtype, around.reads.device
    if devices.is_meta(device):
        sample = torch.empty(slot.input.shape, dtype=dtype, device=device)
    else:
        generator = torch.Generator(device).manual_seed(key)
        sample = torch.randn(slot.input.shape, dtype=dtype, device=device, generator=generator)
    if around.reads.channels_last:
        sample = sample.contiguous(memory_format=torch.channels_last)
    try:
        with state_untouched(module), streams.no_global_draws(), no_fatal_operations(sample):
            module.train(not around.training)
            module(sample)
            module.train(around.training)
            out = module(sample)
    except streams.GlobalDrawError as draw:
        raise BlueprintError(
            f"{where}: it draws from the global random stream ({draw}), which would move the host's "
            f"training; use nn.Dropout modules in a seed, which are given a stream of their own"
        ) from draw
    except FatalOperationError as fatal:
        raise BlueprintError(f"{where}: expected a module that can be trained; it runs {fatal}") from fatal
    except Exception as error:
        makes = "" if slot.source is None else f" and makes one of shape {tuple(slot.shape)} of it"
        raise BlueprintError(
            f"{where}: expected a module that takes {_form(sample)}{makes}; it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    expected = sample.new_empty(slot.shape)
    if not isinstance(out, Tensor):
        raise BlueprintError(f"{where}: expected {_form(expected)}; it returned a {type(out).__name__}")
    if out.shape != expected.shape or not out.is_floating_point() or out.device != expected.device:
        raise BlueprintError(f"{where}: expected {_form(expected)}; it returned {_form(out)}")
    if _torch_of_passes.version(sample):
        raise BlueprintError(
            f"{where}: it writes into its input, which is the host's value; expected a module "
            f"without in-place operations on its input (inplace=True in its first layer?)"
        )


def _form(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor {tuple(tensor.shape)}"


def has_option(blueprint: Any, name: str) -> bool:
    """Whether a blueprint's factory has an option of that name (``**options`` are none)."""
    if isinstance(blueprint, str):
        blueprint = blueprints.get(blueprint).factory
    if isinstance(blueprint, nn.Module) or not callable(blueprint):
        return False
    try:
        parameter = inspect.signature(blueprint).parameters.get(name)
    except (TypeError, ValueError):  # written in C
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter is not None and parameter.kind in named


def label(blueprint: Any) -> str:
    """What to call a blueprint in messages and names."""
    if isinstance(blueprint, str):
        return blueprint
    if isinstance(blueprint, nn.Module):
        return type(blueprint).__name__
    return getattr(blueprint, "__qualname__", None) or type(blueprint).__name__
