"""How the seeds of a host are wired, as one tensor of bytes beside their weights in a ``state_dict``.

A framework that writes a ``state_dict`` and knows nothing of structures carries them so: see
``fxgraft.host.receiving`` for what reads it. Data only, as in a checkpoint: no code, no pickle.
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
from fxgraft.host.receiving import Kept, StateReader, read_with
from fxgraft.host.wrapped import is_wrapped
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.resizing.replay import WideningReplay, records
from fxgraft.seeds.seed import Seed, amend
from fxgraft.slots.structure import Structure
from fxgraft.util.bits import same_bits

VERSION = 1
VERSION_WIDER = 2
"""Of an entry that says how channels have grown: who cannot read that must not leave it out."""
_TEXT = "structure"
"""The tensor with the JSON text; no other name is without a dot."""
_REMEDY = ". Expected a host of the model that was traced there; host.seed_blueprints, for seeds from code"


@dataclasses.dataclass(frozen=True)
class _Said:
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
    said: dict[str, Any] = {"version": VERSION, "run_seed": run_seed, "seeds": packed}
    if host.widenings:
        state = host.model_state()
        shapes = {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        said |= {"version": VERSION_WIDER, "widenings": records(host), "shapes": shapes}
    if values := engine.first_call_values(host):
        said["first_call"] = values
    text = json.dumps(said)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return _bytes(to_bytes({**plain, _TEXT: _bytes(text.encode())})), [seed.name for seed in there]


def elsewhere(text: str) -> Tensor:
    """The entry of a state whose seeds are in another file: a host that loads it raises ``text``."""
    said = json.dumps({"version": VERSION, "elsewhere": text})
    return _bytes(to_bytes({_TEXT: _bytes(said.encode())}))


def revive(entry: Tensor, lifecycle: Lifecycle) -> int:
    """Let a lifecycle, which has no seeds, have those of a state's entry, without weights yet.

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
            said = _read(entry)
            _grow(undo, said, lifecycle)
        except FxGraftError as error:
            raise CheckpointError(f"the seeds of the state cannot be grown: {error}{_REMEDY}") from error
        except Exception as error:  # what is in a state is anyone's: it may fail in any way
            raise CheckpointError(
                f"the seeds of the state cannot be grown: {type(error).__name__}: {error}{_REMEDY}"
            ) from error
        undo.pop_all()
    lifecycle.cold = False
    engine.warm_up(host, Structure())
    return said.run_seed


def _grow(undo: ExitStack, said: _Said, lifecycle: Lifecycle) -> None:
    """Let the lifecycle's host have what an entry says; each growth of channels with the seeds of then."""
    host = lifecycle.host
    if host.widenings and not said.widenings:
        raise CheckpointError(
            f"expected a host with the channels of its trace; {host.widenings[0].group} of this one has "
            f"grown wider, and in the state it has not. Trace the model anew"
        )
    engine.had_first_call(undo, host, said.first_call)
    waiting = said.records
    replay = None
    if said.widenings:
        optimizers = lifecycle.registry.optimizers
        replay = WideningReplay(host, said.widenings, said.shapes, optimizers, alone=not is_wrapped(host))
    for growth in replay.growths if replay is not None else ():
        for record in (record for record in waiting if record.name in growth.seeds):
            _revive(undo, record, said.run_seed, lifecycle)
        waiting = [record for record in waiting if record.name not in growth.seeds]
        assert replay is not None
        replay.do(undo, growth)
    for record in waiting:
        _revive(undo, record, said.run_seed, lifecycle)
    names = [record.name for record in said.records]
    if list(lifecycle.seeds) != names:
        lifecycle.reorder({name: lifecycle.seeds[name] for name in names})
    if replay is not None:
        replay.end(undo)


def _revive(undo: ExitStack, record: SeedRecord, run_seed: int, lifecycle: Lifecycle) -> None:
    # Without optimizers there is nothing to set; the record keeps what is asked for.
    own = record.hyper if lifecycle.registry.trains else None
    seed = dataclasses.replace(record, hyper=own).revive(lifecycle, run_seed, lifecycle.host.seed_blueprints)
    amend(seed, hyper=record.hyper)
    undo.callback(lifecycle.forget, seed)


def regrow(host: Host, entry: Tensor) -> None:
    """Let ``host`` have the seeds of a state's entry, without weights yet, and without a manager.

    Seeds that it had are taken out. Whole or not at all.

    Raises:
        CheckpointError: as `revive`.
    """
    with ExitStack() as undo:
        engine.clear(undo, host)
        lifecycle = Lifecycle(host, (), lambda seed: None, lambda name: None, lambda seed: None)
        revive(entry, lifecycle)
        undo.pop_all()
    for seed in lifecycle.seeds:
        lifecycle.gradients.unwatch(seed)
    host.structure_entry, host._links.led_by, host._links.on_replaced = Kept.of(entry, host), None, None


def _names(entry: Tensor) -> list[str]:
    return [record.name for record in _checked(entry).records]


def _alike(a: Tensor, b: Tensor) -> bool:
    fields = ("name", "slot", "source", "blueprint", "config", "spec", "stage", "alphas", "hyper")
    one, other = _checked(a), _checked(b)
    ours, theirs = ([[getattr(r, f) for f in fields] for r in said.records] for said in (one, other))
    return one.widenings == other.widenings and same_bits(ours, theirs)


def _checked(entry: Tensor) -> _Said:
    try:
        return _read(entry)
    except CheckpointError:
        raise
    except Exception as error:  # what is in a state is anyone's: it may fail in any way
        raise CheckpointError(
            f"the state's entry is damaged: {type(error).__name__}: {error}. {DAMAGED}"
        ) from error


def _read(entry: Any) -> _Said:
    if not isinstance(entry, Tensor) or entry.dtype is not torch.uint8 or entry.dim() != 1:
        raise CheckpointError("expected their structure as a tensor of bytes")
    tensors = from_bytes(entry.cpu().numpy().tobytes())
    said = json.loads(tensors.pop(_TEXT).numpy().tobytes())
    if said["version"] not in (VERSION, VERSION_WIDER):
        raise CheckpointError(f"expected version {VERSION_WIDER} of the structure; got {said['version']!r}")
    if "elsewhere" in said:
        raise CheckpointError(str(said["elsewhere"]))
    found = [SeedRecord.read(unpack(packed, tensors)) for packed in said["seeds"]]
    shapes = {str(name): list(map(int, shape)) for name, shape in said.get("shapes", {}).items()}
    first_call = dict(said.get("first_call", {}))
    return _Said(found, stream_seed(said["run_seed"]), list(said.get("widenings", [])), shapes, first_call)


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


read_with(StateReader(_names, _alike, regrow))
