"""The parts of a run: the host, the seeds, the optimizers, the schedulers, the random streams.

A seed in preparation (GERMINATED) is not part of a checkpoint: it has no weights yet, and the host is
not affected. After a load it is simply not there, and can be germinated again under its name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.checkpoint import file, optimizers, randomness
from fxgraft.checkpoint._buffers import check_buffers, load_buffers
from fxgraft.checkpoint._checks import (
    check_model,
    check_types,
    check_weights,
    frozen,
    other_modes,
    scheduler_state,
    warn_of_frozen,
    warn_of_modes,
)
from fxgraft.checkpoint._code import ModelCode, warn_of_other_code
from fxgraft.checkpoint._seeds import SeedRecord, stream_seed
from fxgraft.checkpoint._weights import load_weights, read_weights, saved_weights
from fxgraft.checkpoint.packing import pack, unpack
from fxgraft.errors import CheckpointError, SlotError
from fxgraft.host import engine
from fxgraft.host.channels import Widened
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.resizing.narrowing import later_growths, shapes_before
from fxgraft.resizing.replay import WideningReplay, checked_growth, records
from fxgraft.slots.structure import Structure
from fxgraft.util import validate
from fxgraft.util.reading import read as read_data
from fxgraft_passes.metadata import metadata


@dataclass
class RunState:
    """The parts of a manager that a checkpoint holds beside the seeds."""

    run_seed: int
    step: int = field(metadata={"minimum": 0})
    names: dict[str, int]
    refuses_until: dict[str, int]
    growth: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        stream_seed(self.run_seed)
        for name in ("names", "refuses_until"):
            for key, number in getattr(self, name).items():
                validate.integer(f"{name}[{key!r}]", number)


def save(
    path: str | os.PathLike[str],
    lifecycle: Lifecycle,
    trainers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    state: RunState,
    write: Callable[..., None] = file.write,
) -> None:
    """Write everything that the run needs to go on. Raises `CheckpointError`; nothing is half-written.

    ``write`` is given the path, the manifest and the tensors.
    """
    host = lifecycle.host
    tensors: dict[str, Tensor] = {}
    for graft in host.grafts().values():
        graft.settle()
    manifest = {
        "model": [
            [name, list(t.shape), str(t.dtype)]
            for name, t in host.model_state().items()
            if isinstance(t, Tensor)
        ],
        **saved_weights(host, lifecycle.departing, tensors),
        "seeds": [
            pack(dataclasses.asdict(SeedRecord.of(seed)), f"seed.{seed.name}", tensors)
            for seed in lifecycle.seeds.values()
            if seed.module is not None
        ],
        "seeds_in_order": True,
        "frozen": frozen(host),
        "modes": other_modes(host),
        "code": ModelCode.of(host).to_json(),
        "first_call": engine.first_call_values(host),
        "example": host.example,
        "widenings": records(host),
        "optimizers": optimizers.record(trainers, host, tensors),
        "schedulers": [
            {"type": type(s).__name__, "state": pack(s.state_dict(), f"scheduler.{i}", tensors)}
            for i, s in enumerate(schedulers)
        ],
        "run": pack(dataclasses.asdict(state), "run", tensors),
        "random": pack(randomness.state(), "random", tensors),
    }
    write(path, manifest, tensors)


def restore(
    path: str | os.PathLike[str],
    lifecycle: Lifecycle,
    trainers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    blueprints: Mapping[str, BlueprintLike],
    rank: int = 0,
    alone: bool = True,
    read: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]] = file.read,
    compile_it: Callable[[], None] = lambda: None,
) -> RunState:
    """Bring a fresh host, optimizers and schedulers to the saved state.

    Everything that can be checked is checked first; what fails later takes the seeds out again.

    Args:
        path: of the file.
        lifecycle: of the fresh host.
        trainers: the optimizers.
        schedulers: of learning rates.
        blueprints: of seeds that were germinated from code.
        rank: whose random streams to go on with.
        alone: whether no other rank trains the host.
        read: gives the manifest and the tensors of ``path``.
        compile_it: compiles what has grown, before anything that could not be taken back.

    Raises:
        CheckpointError: the file is damaged, of another host, or needs something that is not there.
    """
    manifest, tensors = read(path)
    with _named(path):
        streams = unpack(manifest["random"], tensors)
        if rank:
            streams = randomness.streams_of(path, rank, unpack(manifest["run"], tensors)["step"])
        restoration = _Restoration(
            path, manifest, tensors, lifecycle, trainers, schedulers, streams, alone=alone
        )
        state = restoration.run(blueprints, compile_it)
        warn_of_frozen(path, lifecycle.host, manifest.get("frozen"))
        warn_of_modes(path, lifecycle.host, manifest.get("modes"))
        return state


def check(
    path: str | os.PathLike[str],
    lifecycle: Lifecycle,
    trainers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    blueprints: Mapping[str, BlueprintLike],
    alone: bool = True,
    read: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]] = file.read,
) -> tuple[Widened, ...]:
    """Whether `restore` would bring the host back to a state of its own run. Changes nothing.

    The arguments are those of `restore`; the host still has its seeds.

    Returns:
        The growths of channels that the host has beside those of that state.

    Raises:
        CheckpointError: it would not.
    """
    manifest, tensors = read(path)
    with _named(path):
        restoration = _Restoration(
            path, manifest, tensors, lifecycle, trainers, schedulers, None, alone=alone, fresh=False
        )
        restoration.check_sources(blueprints)
        return restoration.later


def restore_model(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    lifecycle: Lifecycle,
    blueprints: Mapping[str, BlueprintLike],
) -> None:
    """Load host and seeds from a checkpoint into a fresh host, without optimizers and random streams.

    Raises:
        CheckpointError: as `restore`. The host is as before.
    """
    with _named(path):
        model = {**manifest, "optimizers": [], "schedulers": []}
        _Restoration(path, model, tensors, lifecycle, (), (), None, trains=False).run(blueprints)


class _Restoration:
    """One load: reads and checks in ``__init__`` and touches nothing; changes in `run`, with undo."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        lifecycle: Lifecycle,
        trainers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        streams: Mapping[str, Any] | None,
        trains: bool = True,
        alone: bool = True,
        fresh: bool = True,
    ):
        self._path, self._lifecycle, self._host = path, lifecycle, lifecycle.host
        self._trainers, self._schedulers = trainers, schedulers
        self._model = manifest["model"]
        self.later: tuple[Widened, ...] = ()
        self._grows = bool(manifest.get("widenings"))
        if fresh:
            self._replay = self._for_a_fresh_host(manifest, alone)
        else:
            self.later = self._later_growths(manifest)
        check_types("optimizers", manifest["optimizers"], trainers)
        check_types("schedulers", manifest["schedulers"], schedulers)
        self._state = read_data(unpack(manifest["run"], tensors), RunState, "run")
        self._records = [SeedRecord.read(unpack(packed, tensors)) for packed in manifest["seeds"]]
        if not trains:  # settings of an optimizer are for one
            self._records = [dataclasses.replace(record, hyper=None) for record in self._records]
        if not manifest.get("seeds_in_order"):
            self._records.sort(key=self._order_by_names)
        self._code = ModelCode.read(manifest.get("code"))
        self._first_call = dict(manifest.get("first_call") or {})
        self._weights = read_weights(manifest, tensors)
        self._buffers: dict[str, Tensor | None] = unpack(manifest["buffers"], tensors)
        self._names = [saved["names"] for saved in manifest["optimizers"]]
        self._of_trainers = [unpack(saved["state"], tensors) for saved in manifest["optimizers"]]
        self._of_schedulers = [
            scheduler_state(s, unpack(saved["state"], tensors))
            for s, saved in zip(schedulers, manifest["schedulers"], strict=True)
        ]
        self._set_streams = randomness.setter(streams) if streams is not None else lambda: None

    def _for_a_fresh_host(self, manifest: Mapping[str, Any], alone: bool) -> WideningReplay:
        if self._host.structure.placements:
            raise CheckpointError("expected a freshly traced host; this one has seeds already")
        shapes = {name: list(shape) for name, shape, _ in self._model}
        found = WideningReplay(self._host, manifest.get("widenings", ()), shapes, self._trainers, alone)
        if not found.growths:  # else once it has grown
            check_model(self._host, self._model)
        return found

    def _later_growths(self, manifest: Mapping[str, Any]) -> tuple[Widened, ...]:
        """Of a host that is to go back to this state."""
        shapes = {name: list(shape) for name, shape, _ in self._model}
        saved = [checked_growth(record, shapes) for record in manifest.get("widenings", ())]
        later = later_growths(self._host, saved)
        if saved and len(later) == len(self._host.widenings):
            return later  # it will grow again from its beginning, which is checked then
        if not later:
            check_model(self._host, self._model)
        elif shapes_before(self._host, later) != shapes:
            raise CheckpointError("its model has other sizes than this one had. Expected a file of this run")
        return later

    def check_sources(self, blueprints: Mapping[str, BlueprintLike]) -> None:
        """Raise `CheckpointError` for a seed that was germinated from code which is not there."""
        for record in self._records:
            record.check_source(self._lifecycle, blueprints)
            if not self.later:  # else a slot has another size now
                with suppress(SlotError):  # in what is not there yet
                    record.check_size(self._lifecycle, blueprints, self._weights, grows=self._grows)

    def run(
        self, blueprints: Mapping[str, BlueprintLike], compile_it: Callable[[], None] = lambda: None
    ) -> RunState:
        host, lifecycle = self._host, self._lifecycle
        with ExitStack() as undo:
            undo.callback(setattr, host._links, "on_call", host._links.on_call)
            engine.had_first_call(undo, host, self._first_call)
            waiting = list(self._records)
            for growth in self._replay.growths:  # each with what had grown by then
                waiting = self._restore_seeds(undo, waiting, blueprints, growth.seeds)
                self._replay.do(undo, growth)
            self._restore_seeds(undo, waiting, blueprints)
            self._in_order()
            self._replay.end(undo)
            check_model(self._host, self._model)
            check_weights(self._weights, host.state_dict())
            check_buffers(host, self._buffers)
            self._load_optimizers(undo)
            for scheduler, saved in zip(self._schedulers, self._of_schedulers, strict=True):
                undo.callback(scheduler.load_state_dict, scheduler.state_dict())
                scheduler.load_state_dict(saved)
            compile_it()
            # From here on only code of the model's can fail: all was checked against what it replaces.
            load_weights(undo, host, self._weights)
            load_buffers(self._path, host, self._buffers)
            self._set_streams()
            undo.pop_all()
        warn_of_other_code(self._path, host, self._code)
        for seed in lifecycle.seeds.values():
            if seed.is_live:
                lifecycle.begin(seed)
        return self._state

    def _restore_seeds(
        self,
        undo: ExitStack,
        records: Sequence[SeedRecord],
        blueprints: Mapping[str, BlueprintLike],
        names: Collection[str] | None = None,
    ) -> list[SeedRecord]:
        """Grow those seeds, or all; returns the records of the others. One by one: seeds may be in seeds."""
        for record in records:
            if names is None or record.name in names:
                record.check_size(self._lifecycle, blueprints, self._weights, grows=names is not None)
                seed = record.restore_seed(self._lifecycle, self._state.run_seed, blueprints)
                undo.callback(self._lifecycle.forget, seed)
        return [record for record in records if names is not None and record.name not in names]

    def _in_order(self) -> None:
        """The seeds stand as they stood, in whatever order they have come."""
        host, lifecycle = self._host, self._lifecycle
        names = [record.name for record in self._records]
        if list(lifecycle.seeds) != names:
            lifecycle.reorder({name: lifecycle.seeds[name] for name in names})
            placements = sorted(host.structure.placements, key=lambda p: names.index(p.seed))
            structure = Structure(tuple(placements))
            engine.prepare(host, structure, structure.phases)
            engine.set_structure(host, structure, host.phase, host.grafts())

    def _order_by_names(self, record: SeedRecord) -> tuple[int, str]:
        """How the seeds at one slot stood in files of version 1."""
        slot = self._host.site(record.slot, record.source)
        return metadata(slot.node)["observation"].order, record.name

    def _load_optimizers(self, undo: ExitStack) -> None:
        optimizers.arrange(self._trainers, self._names, self._host)
        for trainer, saved, names in zip(self._trainers, self._of_trainers, self._names, strict=True):
            checked = optimizers.check(trainer, saved, names)
            undo.callback(optimizers.load, trainer, trainer.state_dict())
            optimizers.load(trainer, checked)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let every error be a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # what is in a file is anyone's: it may fail in any way
        raise _not_restored(path, error) from error


def _not_restored(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be restored: {type(error).__name__}: {error}. Expected a file that manager.save "
        f"wrote for a host of this model; host and optimizers are as before"
    )
