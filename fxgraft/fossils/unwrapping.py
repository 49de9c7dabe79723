"""From a host with fossils to a plain module, that runs without fxgraft: `_plain_module` makes it."""

from __future__ import annotations

from torch import nn

from fxgraft.errors import FxGraftError, StageError
from fxgraft.fossils._containers import CannotContainError
from fxgraft.fossils._example_runs import (
    OutputDifference,
    computes_the_same,
    returned_by,
    run_plain,
)
from fxgraft.fossils._plain_module import Unwrapping
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger
from fxgraft.util.tensors import local_tensor


def unwrap(host: Host) -> nn.Module:
    """The host as a plain module, with its fossils. It runs and loads without fxgraft.

    It shares parameters and buffers with the host, which is not changed; ``copy.deepcopy`` makes it
    independent. It can be pickled, saved, exported and compiled (it is not compiled, even if the host is).
    Its ``state_dict`` has the keys of the model, and those of the seeds under ``<region>.seed_<name>.``.

    Inserted blocks are in their container in running order, under the keys that a model of that depth has,
    and the class's own forward runs them, if that computes the same bits (checked with the example call).
    Otherwise they are seeds of the block in front, and a warning says so.

    Differences from the host: dropout in seeds draws from the global random stream, as ``nn.Dropout`` does;
    calls of another form than the example's run without the fossils, with a warning; hooks on the host
    itself (not those on modules in it) are missing. A seed of your own class keeps that class.
    ``save_pretrained`` of a model with such a seed raises, because ``from_pretrained`` would build it without
    the fossils.

    Args:
        host: a host whose seeds are all fossils.

    Raises:
        StageError: the host has seeds that are no fossils.
        FxGraftError: the plain module would compute something else than the host in the example call, in
            eval mode (not checked if the host is sharded, or on the meta device).
    """
    found = plain_form(host)
    if host.structure.placements and not found.in_containers:  # which was compared already
        _compare(host, found.root)
    if not found.in_containers and _has_inserted(host):
        logger.warning(
            "unwrap: the code of %s does not compute the same with the inserted blocks in their containers: "
            "they run as parts of the blocks in front of them, and have keys of their own%s",
            type(found.root).__name__,
            _because_of_fossils(host),
        )
    return found.root


def _compare(host: Host, plain: nn.Module) -> None:
    """Raise `FxGraftError` where the plain module does not return what the host does."""
    if any(tensor.is_meta or local_tensor(tensor) is not tensor for tensor in plain.parameters()):
        return
    try:
        wanted = returned_by(host)
    except Exception as error:
        logger.warning(
            "unwrap: the host fails in its example call in eval mode, so that %s is not compared with it: %s",
            type(plain).__name__,
            f"{type(error).__name__}: {error}",
        )
        return
    run, is_grown = run_plain(host, plain)
    if not is_grown:
        return  # which it says in each such call
    found = OutputDifference.of(wanted, run)
    if found.is_rounding:
        return
    shapes = None if found.shapes is None else f"shapes {found.shapes[0]} in place of {found.shapes[1]}"
    seeds = ", ".join(placement.seed for placement in host.structure.placements)
    raise FxGraftError(
        f"cannot unwrap {type(plain).__name__}: as a plain module it computes something else than "
        f"the host (in the example call by {shapes or format(found.largest, '.2g')}). Code that goes through "
        f"the parameters or modules of a part of the model (block.named_parameters()) meets those of "
        f"the seeds there as well: {seeds}. Keep the host (manager.save() and fxgraft.load_model()), "
        f"or let that code name what it reads"
    )


def _because_of_fossils(host: Host) -> str:
    """The fossils in code around the blocks: as a graph it calls those that it was traced with."""
    regions = host.structure.by_region
    inserted = [name for name, found in regions.items() if any(p.spec.call is not None for p in found)]
    around = [
        placement.seed
        for name, found in regions.items()
        for placement in found
        if placement.spec.call is None and any(not name or f"{r}.".startswith(f"{name}.") for r in inserted)
    ]
    return f". There are fossils in the code around the blocks: {', '.join(around)}" if around else ""


def _has_inserted(host: Host) -> bool:
    return any(p.spec.call is not None for p in host.structure.placements)


def plain_form(host: Host) -> Unwrapping:
    """The plain form of a host, with what became of its blocks; see `unwrap`."""
    refuse_live(host, "unwrap")
    if _has_inserted(host):
        for depths in (True, False):
            try:
                found = Unwrapping(host, in_containers=True, depths=depths)
            except CannotContainError:
                break
            blocks = [found.root.get_submodule(name) for name in found.inserted]
            if computes_the_same(host, found.root, blocks):
                return found
    return Unwrapping(host)


def refuse_live(host: nn.Module, action: str) -> None:
    """Raise `StageError` for a host with seeds that are no fossils; `TypeError` for what is none."""
    if not isinstance(host, Host):
        inside = " around one: give its .module" if isinstance(getattr(host, "module", None), Host) else ""
        raise TypeError(
            f"host: expected a fxgraft.Host, from fxgraft.trace; got {type(host).__name__}{inside}"
        )
    live = [p.seed for p in host.structure.placements if p.spec.fossil is None]
    if live:
        raise StageError(
            f"cannot {action} a host with live seeds: expected fossils only; fossilize or cull "
            f"{', '.join(live)}"
        )
