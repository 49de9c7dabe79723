"""The table of blueprints."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fxgraft.blueprints._shapes import LAYOUTS
from fxgraft.errors import BlueprintError
from fxgraft.seeds import streams
from fxgraft.util.flops import count_flops
from fxgraft_passes import Slot
from fxgraft_passes.graft import MODES

Factory = Callable[..., nn.Module]
"""``factory(slot, **config) -> nn.Module``."""


@dataclass(frozen=True)
class Cost:
    """The cost of a seed.

    Attributes:
        parameters: the number of parameters.
        flops: FLOPs of one forward pass at the shape of the slot's example, two for each multiply-add;
            matrix products, convolutions and attention only, as torch's ``FlopCounterMode`` counts.
    """

    parameters: int
    flops: int


@dataclass(frozen=True)
class Blueprint:
    """A named factory of seed modules, with its properties. See `register`.

    Attributes:
        name: the name by which `germinate` takes it.
        factory: ``factory(slot, **config) -> nn.Module``.
        branch: whether the output of its modules is added to the value, and is zero at initialisation. Under
            mode ``"convex"`` such a module is wrapped as ``x + branch(x)``.
        replaces: whether the output of its modules replaces the value, and equals it at initialisation. Under
            the other modes such a module is wrapped as ``module(x) - x``.
        source: the publication that it comes from.
        accepts: the layouts of values that it takes, keys of ``shapes.LAYOUTS``.
        modes: the modes that it allows.
    """

    name: str
    factory: Factory
    branch: bool = False
    replaces: bool = False
    source: str = ""
    accepts: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES

    def build(self, slot: Slot, **config: object) -> nn.Module:
        """Build a new module for ``slot``.

        Args:
            slot: where it will run; it has shape and dtype of the value there.
            **config: options of the blueprint.

        Raises:
            BlueprintError: an option is unknown, or a required one is missing, or the factory fails.
        """
        signature = inspect.signature(self.factory)
        try:
            signature.bind(slot, **config)
        except TypeError as error:
            options = [_shown(parameter) for parameter in signature.parameters.values()][1:]
            raise BlueprintError(
                f"blueprint {self.name} at slot {slot.name!r}: {error}; its options: "
                f"{', '.join(options) or 'none'}"
            ) from error
        return self.factory(slot, **config)

    def check_mode(self, mode: str, slot: Slot) -> None:
        """Raise `BlueprintError` if ``mode`` is not in ``modes``.

        Args:
            mode: the mode of a seed.
            slot: where, for the error.
        """
        if mode not in self.modes:
            raise BlueprintError(
                f"{self.name} at slot {slot.name!r}: expected a mode of {', '.join(self.modes)}; got {mode!r}"
            )

    def cost(self, slot: Slot, **config: object) -> Cost:
        """The cost of a module at ``slot``, without its wrapping. Allocates nothing, draws no random number.

        Args:
            slot: where it would run.
            **config: options of the blueprint.

        Raises:
            BlueprintError: as `build` does.
        """
        with torch.device("meta"), streams.private_stream(0):
            module = self.build(slot, **config)
            value = torch.empty(slot.input.shape, dtype=torch.get_default_dtype())
        with torch.no_grad():
            flops = count_flops(lambda: module(value))
        return Cost(sum(p.numel() for p in module.parameters()), flops)


def _shown(option: inspect.Parameter) -> str:
    """An option with its default: ``hidden=None``."""
    return str(option.replace(annotation=inspect.Parameter.empty))


_blueprints: dict[str, Blueprint] = {}


def register(
    name: str,
    factory: Factory,
    *,
    branch: bool = False,
    replaces: bool = False,
    source: str = "",
    accepts: tuple[str, ...] = (),
    modes: tuple[str, ...] = MODES,
) -> None:
    """Register a blueprint under ``name``. The arguments are the attributes of `Blueprint`.

    Args:
        name: the name; it must be new.
        factory: ``factory(slot, **config) -> nn.Module``.
        branch: whether its modules are zero at initialisation, and are added. Default False.
        replaces: whether its modules are the identity at initialisation, and replace the value. Default
            False.
        source: the publication that it comes from. Default none.
        accepts: the layouts of values that it takes, keys of ``shapes.LAYOUTS``. Default: not said.
        modes: the modes that it allows. Default all.

    Raises:
        BlueprintError: the name is taken, the factory not callable, a layout or mode unknown, or
            ``branch`` and ``replaces`` are both set.
    """
    if name in _blueprints:
        raise BlueprintError(f"there is a blueprint {name!r} already; choose another name")
    if not callable(factory):
        raise BlueprintError(
            f"blueprint {name!r}: expected a callable Slot -> nn.Module; got {type(factory).__name__}"
        )
    if branch and replaces:
        raise BlueprintError(f"blueprint {name!r}: expected branch or replaces, or neither; got both")
    for option, given, known in (("accepts", accepts, LAYOUTS), ("modes", modes, MODES)):
        if unknown := [item for item in given if item not in known]:
            raise BlueprintError(f"blueprint {name!r}: {option}: expected {', '.join(known)}; got {unknown}")
    _blueprints[name] = Blueprint(name, factory, branch, replaces, source, accepts, modes)


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_blueprints)


def get(name: str) -> Blueprint:
    """The blueprint of that name. Raises `BlueprintError`, with the most similar names, if there is none.

    Args:
        name: a registered name.
    """
    if name not in _blueprints:
        near = difflib.get_close_matches(name, _blueprints, n=3) or names()
        raise BlueprintError(f"no blueprint is named {name!r}; did you mean {', '.join(near)}?")
    return _blueprints[name]
