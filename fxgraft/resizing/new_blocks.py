"""A new block for a stack: copied, initialised, tried. Touches neither host nor optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture.region import Region
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.insertions import path_of, seed_of
from fxgraft.host.numbering import Numbers, next_number, numbers_in, set_number
from fxgraft.host.stacks import Stack, input_of, is_inserted, output_of
from fxgraft.resizing._set_from_outside import attributes_set_from_outside
from fxgraft.resizing._zeroing_by_graph import output_layers
from fxgraft.resizing._zeroing_by_run import ObservedBranchEnds
from fxgraft.resizing.block_copies import copy_of, initialise, refuse_sharded, refuse_shared
from fxgraft.seeds import streams
from fxgraft.seeds.dropout import privatize
from fxgraft.telemetry.events import logger
from fxgraft_passes import Call, Slot
from fxgraft_passes.metadata import metadata
from fxgraft_passes.untouched import state_untouched

INITS = ("zero", "copy", "random")
_MORE_SAMPLES = 8


@dataclass(frozen=True)
class Origin:
    """Where the blocks of a stack are from.

    Attributes:
        stack: the stack.
        root: the block of the model at which a new one stands.
        front: the block that it stands next to: the root, or one that was inserted there.
        call: how it is called.
        slot: the value that it stands behind.
    """

    stack: Stack
    root: str
    front: str
    call: Call
    slot: Slot


def stack_named(host: Host, name: Any) -> Stack:
    """The stack of that name. Raises `SlotError` where there is none, with the reason."""
    if isinstance(name, Stack):
        name = name.path
    if isinstance(name, str) and name in host.stacks:
        return host.stacks[name]
    known = ", ".join(map(repr, host.stacks)) or "none"
    why = host.stacks.rejected.get(name) if isinstance(name, str) else None
    given = f"{name!r}: it {why}" if why else repr(name)
    raise SlotError(
        f"stack: expected the name of a container of alike blocks, one of host.stacks ({known}); got {given}"
    )


def origin(host: Host, stack: Stack, front: str, before: bool) -> Origin:
    """Where a block next to ``front`` is wired.

    Raises:
        SlotError: what ``front`` returns is no slot; with the reason.
    """
    call, root = replace(stack.call, before=before), front
    if is_inserted(front):
        placement = next(p for p in host.structure.placements if path_of(p.seed) == front)
        assert placement.spec.call is not None
        root, call = placement.slot.region, placement.spec.call
    region = host.regions[root]
    if call.before:
        return Origin(stack, root, front, call, host.slot(f"{root}@{call.input}"))
    node = output_of(region, call)
    slot = next((slot for slot in host.slots.values() if slot.node is node), None)
    if slot is None and region.is_boundary and node is not None and "slot" in node.meta:
        slot = host.slot(f"{root}@")
    if slot is None:
        why = {} if node is None else node.meta
        raise SlotError(
            f"stack {stack.path!r}: no block can stand behind {front!r}: what it returns "
            f"{why.get('no_slot') or 'is no slot'}. Choose other places with at=[...], or at='start'"
        )
    return Origin(stack, root, front, call, slot)


def module_of(host: Host, block: str) -> nn.Module:
    """A block of a stack, by its name."""
    return host.regions[block].module


def numbers_of(host: Host, stack: Stack) -> Numbers:
    """Where the blocks of a stack have their numbers."""
    own = [module_of(host, block) for block in stack.blocks if not is_inserted(block)]
    return numbers_in(own) if own else ()


def build(
    host: Host, origin: Origin, like: str, original: str, init: str, key: int, number: int | None
) -> nn.Module:
    """The new block, in the train/eval modes of the one that it is a copy of.

    Args:
        host: the host.
        origin: where it will be.
        like: the name of the block that it is a copy of.
        original: see `original_of`.
        init: one of `INITS`.
        key: of its random streams.
        number: its number; None where blocks have none.

    Raises:
        SlotError, BlueprintError: there cannot be such a block; with the reason.
    """
    stack = origin.stack
    source = module_of(host, like)
    model, *_ = engine.trees(host)
    refuse_sharded(stack.path, like, source)
    refuse_shared(stack.path, like, source, host.named_modules(remove_duplicate=False))
    called = replace(stack, call=origin.call)
    zeroed = output_layers(called, original, host.regions, ObservedBranchEnds(host)) if init == "zero" else []
    made = copy_of(source)
    if init == "random":
        with streams.private_stream(key):
            initialise(made, model, stack.path)
    parameters = dict(made.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in zeroed:
            parameters[name].zero_()
    if number is not None:
        set_number(made, numbers_of(host, stack), number)
    _refuse_other_code(host, origin, original, made)
    training = {path: part.training for path, part in made.named_modules()}
    made = privatize(made, key)
    for path, part in made.named_modules():
        part.training = training[path]
    return made


def again(host: Host, slot: Slot, key: int, config: Mapping[str, Any]) -> nn.Module:
    """A block of a checkpoint, for whose weights and buffers there are saved ones.

    Args:
        host: without that block.
        slot: where it is wired.
        key: of its random streams.
        config: of the seed.

    Raises:
        SlotError: the host has no such stack.
    """
    stack = stack_named(host, config.get("stack"))
    made = copy_of(module_of(host, _saved_original(stack, slot, config)))
    if config.get("number") is not None:
        set_number(made, numbers_of(host, stack), integer_of(config["number"]))
    return privatize(made, key)


def original_of(like: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The model's block of which a block is a copy in the end.

    Args:
        like: the block itself, or an inserted one.
        configs: of the seeds, by their names.
    """
    if not is_inserted(like):
        return like
    config = configs[seed_of(like)]
    return str(config.get("original") or original_of(config["like"], configs))


def _saved_original(stack: Stack, slot: Slot, config: Mapping[str, Any]) -> str:
    """The model's block that has the class and the settings of a saved one. Raises `SlotError`."""
    found: Any = config.get("original")
    if found is None:  # saved before this was known
        like = config.get("like")
        found = like if isinstance(like, str) and not is_inserted(like) else slot.region
    if found not in stack.blocks or is_inserted(found):
        raise SlotError(f"what a saved block is a copy of: expected a block of {stack.path!r}; got {found!r}")
    return str(found)


def integer_of(number: Any) -> int:
    """A block's number, from a file. Raises `SlotError`."""
    if type(number) is not int:
        raise SlotError(f"the number of a block: expected a whole number; got {number!r}")
    return number


def fresh_number(host: Host, stack: Stack) -> int | None:
    """A number for a further block of a stack; None where its blocks have none."""
    return next_number([module_of(host, block) for block in stack.blocks], numbers_of(host, stack))


def _refuse_other_code(host: Host, origin: Origin, original: str, made: nn.Module) -> None:
    """Raise `SlotError` for a block whose code would be another with its number."""
    for name in [n for n in host.regions if n == original or n.startswith(f"{original}.")]:
        region: Region = host.regions[name]
        own = region.module
        path = name[len(original) :].lstrip(".")
        if region.is_boundary:
            continue
        broken = set(region.form.broken(made.get_submodule(path))) - set(region.form.broken(own))
        if broken:
            raise SlotError(
                f"stack {origin.stack.path!r}: the code of {name!r} depends on what is different in each "
                f"block ({min(broken)}), so that a further block of it has no graph. Give the blocks what "
                f"differs as an argument or a buffer, or choose another block to copy: like=[...]"
            )


def refuse_not_finite(origin: Origin, made: nn.Module) -> None:
    """Raise `BlueprintError` for a new block whose weights are not finite."""
    for name, parameter in made.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise BlueprintError(f"{_where(origin)}: expected finite weights; {name} has NaN or inf")


def refuse_set_from_outside(host: Host, origin: Origin, like: str) -> None:
    """Raise `BlueprintError` where the model sets attributes of its blocks in each call, but of no copy."""
    if names := attributes_set_from_outside(host, module_of(host, like)):
        raise BlueprintError(
            f"{_where(origin)}: the model sets {', '.join(names)} of {like!r} in each call, and would not do "
            f"so in an inserted block, which would keep what that is now. Expected blocks that are given "
            f"what they need as arguments"
        )


def try_out(host: Host, origin: Origin, like: str, made: nn.Module, init: str, isolated: bool) -> None:
    """Run a new block, where there are sample arguments for it, and leave it as it was.

    Raises:
        BlueprintError: it is isolated, and draws from the global random stream; or it was zeroed, and changes
            what it reads.
    """
    where = _where(origin)
    region = host.regions[origin.root]
    like_it = next(made.parameters(), torch.empty(0, device="cpu"))
    given = _sample_inputs(region, origin.call, like_it)
    if given is None:
        return
    with torch.no_grad(), state_untouched(made):
        try:
            with streams.no_global_draws():
                made.train()
                _value(made, region, origin.call, given)
        except streams.GlobalDrawError as draw:
            if isolated:
                raise BlueprintError(
                    f"{where}: it draws from the global random stream ({draw}), which would move the host's "
                    f"training while it is isolated; use nn.Dropout modules, or isolated=False"
                ) from draw
            logger.info("%s draws from the global random stream (%s), as its equals do", where, draw)
        except Exception as error:
            _refuse_if_its_equal_runs(
                where, copy_of(module_of(host, like)), region, origin.call, given, error
            )
            return  # neither takes the generated values: nothing is known of it
        made.eval()
        if init == "zero":
            source = copy_of(module_of(host, like))
            _check_kept(where, made, source, region, origin.call, given)
            for seed in range(1, _MORE_SAMPLES if region.is_boundary else 1):  # its code may choose by values
                more = _sample_inputs(region, origin.call, like_it, seed)
                _check_kept(where, made, source, region, origin.call, more or given)


def _refuse_if_its_equal_runs(
    where: str, source: nn.Module, region: Region, call: Call, given: dict[str, Tensor], error: Exception
) -> None:
    """Raise `BlueprintError` for a new block that fails where the block that it is a copy of does not."""
    source.train()
    try:
        _value(source, region, call, given)
    except Exception:
        return
    raise BlueprintError(
        f"{where}: expected one that runs as the block does that it is a copy of; it fails: "
        f"{type(error).__name__}: {error}"
    ) from error


def _where(origin: Origin) -> str:
    return f"a block of {origin.stack.cls.__name__} behind {origin.front!r}"


def _check_kept(
    where: str, made: nn.Module, source: nn.Module, region: Region, call: Call, given: dict[str, Tensor]
) -> None:
    node = input_of(region, call)
    assert node is not None
    try:
        first = made if call.before else source  # what it reads is what a block returns, or of that kind
        first.eval()
        given = {**given, str(node.target): _value(first, region, call, given)}
        out = _value(made, region, call, given)
    except Exception:
        return
    value = given[str(node.target)]
    if not torch.equal(out, value) and bool(torch.isfinite(value).all()):
        raise BlueprintError(
            f"{where}: expected one that changes nothing with its output layers zeroed; it does"
        )


def _value(module: nn.Module, region: Region, call: Call, given: dict[str, Tensor]) -> Tensor:
    args, kwargs = region.form.bind(dict(given))
    out: Any = module(*args, **kwargs)
    return out if call.element is None else out[call.element]  # type: ignore[no-any-return]


def _sample_inputs(region: Region, call: Call, like: Tensor, seed: int = 0) -> dict[str, Tensor] | None:
    """Values for the inputs of a region as they were in the example run; None where one is no tensor."""
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for node in region.base.nodes:
        if node.op != "placeholder":
            continue
        seen = metadata(node).get("observation")
        if like.is_meta or seen is None or seen.kind != "Tensor":
            return None
        if seen.dtype.is_floating_point:
            value = torch.randn(seen.shape, generator=generator, device=generator.device).to(
                like.device, like.dtype
            )
        else:
            value = torch.zeros(seen.shape, dtype=seen.dtype, device=like.device)
        found[str(node.target)] = value
    return found
