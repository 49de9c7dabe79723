"""How the seeds of a host are wired, as one tensor of bytes beside their weights in a ``state_dict``.

A framework that writes a ``state_dict`` and knows nothing of structures carries them so: see
``fxgraft.host.state_loading`` for what reads it. Data only, as in a checkpoint: no code, no pickle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from fxgraft.checkpoint._seeds import SeedRecord, stream_seed
from fxgraft.checkpoint.file import DAMAGED
from fxgraft.checkpoint.packing import pack, unpack
from fxgraft.errors import CheckpointError, FxGraftError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.state_loading import LoadedEntry, StateReader, read_with
from fxgraft.host.wrapped import is_wrapped
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.resizing.replay import WideningReplay, records
from fxgraft.seeds.seed import Seed, amend
from fxgraft.slots.structure import Structure
from fxgraft.util.bits import same_bits

VERSION = 1
VERSION_WIDER = 2
"""Version of an entry with widenings: an older reader must refuse it, not ignore them."""
_TEXT = "structure"
"""The tensor with the JSON text; no other name is without a dot."""
_REMEDY = ". Expected a host of the model that was traced there; host.seed_blueprints, for seeds from code"


@dataclasses.dataclass(frozen=True)
class _Description:
    """What an entry says.

    Attributes:
        records: of the seeds.
        run_seed: of the run's random streams.
        widenings: how the channels of the host have grown, as `records` gives it.
        shapes: name -> shape, of the model's tensors then; empty where none have grown.
        first_call: what the model had set once and for all; empty before its first call.
    """

    records: list[SeedRecord]
    run_seed: int
    widenings: list[Any]
    shapes: dict[str, list[int]]
    first_call: dict[str, Any]


def describe(host: Host, seeds: Iterable[Seed], run_seed: int) -> tuple[Tensor, list[str]]:
    """The entry of a ``state_dict`` for what has grown, 1-D of uint8, and the names of the seeds in it.

    A seed in preparation has no module yet, and is left out.
    """
    there = [seed for seed in seeds if seed.module is not None]
    tensors: dict[str, Tensor] = {}
    packed = [pack(dataclasses.asdict(SeedRecord.of(seed)), f"seed.{seed.name}", tensors) for seed in there]
    description: dict[str, Any] = {"version": VERSION, "run_seed": run_seed, "seeds": packed}
    if host.widenings:
        state = host.model_state()
        shapes = {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        description |= {"version": VERSION_WIDER, "widenings": records(host), "shapes": shapes}
    if values := engine.first_call_values(host):
        description["first_call"] = values
    text = json.dumps(description)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return _bytes(to_bytes({**plain, _TEXT: _bytes(text.encode())})), [seed.name for seed in there]


def elsewhere(text: str) -> Tensor:
    """The entry of a state whose seeds are in another file: a host that loads it raises ``text``."""
    description = json.dumps({"version": VERSION, "elsewhere": text})
    return _bytes(to_bytes({_TEXT: _bytes(description.encode())}))


def restore_seeds(entry: Tensor, lifecycle: Lifecycle) -> int:
    """Insert the seeds of a state's entry, without weights yet, into a lifecycle without seeds.

    Returns:
        The seed of the run's random streams.

    Raises:
        CheckpointError: the entry is damaged, or does not fit the host; or a seed was germinated from code,
            and is not in ``host.seed_blueprints``. The host is as before.
    """
    host = lifecycle.host
    with ExitStack() as undo:
        undo.callback(setattr, lifecycle, "cold", lifecycle.cold)
        lifecycle.cold = True  # the structures on the way are not worth compiling
        try:
            description = _read(entry)
            _grow(undo, description, lifecycle)
        except FxGraftError as error:
            raise CheckpointError(f"the seeds of the state cannot be grown: {error}{_REMEDY}") from error
        except Exception as error:  # what is in a state is anyone's: it may fail in any way
            raise CheckpointError(
                f"the seeds of the state cannot be grown: {type(error).__name__}: {error}{_REMEDY}"
            ) from error
        undo.pop_all()
    lifecycle.cold = False
    engine.warm_up(host, Structure())
    return description.run_seed


def _grow(undo: ExitStack, description: _Description, lifecycle: Lifecycle) -> None:
    """Apply an entry to the lifecycle's host: each growth of channels at its place among the seeds."""
    host = lifecycle.host
    if host.widenings and not description.widenings:
        raise CheckpointError(
            f"expected a host with the channels of its trace; {host.widenings[0].group} of this one has "
            f"grown wider, and in the state it has not. Trace the model anew"
        )
    engine.had_first_call(undo, host, description.first_call)
    waiting = description.records
    replay = None
    if description.widenings:
        optimizers = lifecycle.registry.optimizers
        replay = WideningReplay(
            host, description.widenings, description.shapes, optimizers, alone=not is_wrapped(host)
        )
    for growth in replay.growths if replay is not None else ():
        for record in (record for record in waiting if record.name in growth.seeds):
            _restore_seed(undo, record, description.run_seed, lifecycle)
        waiting = [record for record in waiting if record.name not in growth.seeds]
        assert replay is not None
        replay.do(undo, growth)
    for record in waiting:
        _restore_seed(undo, record, description.run_seed, lifecycle)
    names = [record.name for record in description.records]
    if list(lifecycle.seeds) != names:
        lifecycle.reorder({name: lifecycle.seeds[name] for name in names})
    if replay is not None:
        replay.end(undo)


def _restore_seed(undo: ExitStack, record: SeedRecord, run_seed: int, lifecycle: Lifecycle) -> None:
    # Without optimizers there is nothing to set; the record keeps what is asked for.
    own = record.hyper if lifecycle.registry.trains else None
    seed = dataclasses.replace(record, hyper=own).restore_seed(
        lifecycle, run_seed, lifecycle.host.seed_blueprints
    )
    amend(seed, hyper=record.hyper)
    undo.callback(lifecycle.forget, seed)


def insert_seeds(host: Host, entry: Tensor) -> None:
    """Insert the seeds of a state's entry into ``host``, without weights yet, and without a manager.

    Seeds that it had are taken out. Whole or not at all.

    Raises:
        CheckpointError: as `restore_seeds`.
    """
    with ExitStack() as undo:
        engine.clear(undo, host)
        lifecycle = Lifecycle(host, (), lambda seed: None, lambda name: None, lambda seed: None)
        restore_seeds(entry, lifecycle)
        undo.pop_all()
    for seed in lifecycle.seeds:
        lifecycle.gradients.unwatch(seed)
    host.structure_entry = LoadedEntry.of(entry, host)
    host._links.led_by = host._links.on_replaced = None


def _names(entry: Tensor) -> list[str]:
    return [record.name for record in _checked(entry).records]


def _alike(a: Tensor, b: Tensor) -> bool:
    fields = ("name", "slot", "source", "blueprint", "config", "spec", "stage", "alphas", "hyper")
    one, other = _checked(a), _checked(b)
    ours, theirs = (
        [[getattr(r, f) for f in fields] for r in description.records] for description in (one, other)
    )
    return one.widenings == other.widenings and same_bits(ours, theirs)


def _checked(entry: Tensor) -> _Description:
    try:
        return _read(entry)
    except CheckpointError:
        raise
    except Exception as error:  # what is in a state is anyone's: it may fail in any way
        raise CheckpointError(
            f"the state's entry is damaged: {type(error).__name__}: {error}. {DAMAGED}"
        ) from error


def _read(entry: Any) -> _Description:
    if not isinstance(entry, Tensor) or entry.dtype is not torch.uint8 or entry.dim() != 1:
        raise CheckpointError("expected their structure as a tensor of bytes")
    tensors = from_bytes(entry.cpu().numpy().tobytes())
    description = json.loads(tensors.pop(_TEXT).numpy().tobytes())
    if description["version"] not in (VERSION, VERSION_WIDER):
        raise CheckpointError(
            f"expected version {VERSION_WIDER} of the structure; got {description['version']!r}"
        )
    if "elsewhere" in description:
        raise CheckpointError(str(description["elsewhere"]))
    found = [SeedRecord.read(unpack(packed, tensors)) for packed in description["seeds"]]
    shapes = {str(name): list(map(int, shape)) for name, shape in description.get("shapes", {}).items()}
    first_call = dict(description.get("first_call", {}))
    return _Description(
        found,
        stream_seed(description["run_seed"]),
        list(description.get("widenings", [])),
        shapes,
        first_call,
    )


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


read_with(StateReader(_names, _alike, insert_seeds))
