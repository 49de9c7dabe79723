"""What a run is made of: the host, the seeds, the optimizers, the schedulers, the random streams."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxgraft.checkpoint import file
from fxgraft.checkpoint.packing import pack, unpack
from fxgraft.checkpoint.seeds import SeedRecord
from fxgraft.errors import CheckpointError, FxGraftError
from fxgraft.lifecycle import Lifecycle
from fxgraft.nursery import BlueprintLike


@dataclass
class RunState:
    """The parts of a manager that a checkpoint holds beside the seeds."""

    run_seed: int
    step: int
    names: dict[str, int]
    refuses_until: dict[str, int]


def save(
    path: str | os.PathLike[str],
    lifecycle: Lifecycle,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    state: RunState,
) -> None:
    """Write everything that the run needs to go on. Raises `CheckpointError`; nothing is half-written."""
    host = lifecycle.host
    tensors: dict[str, Tensor] = {f"host.{name}": t for name, t in host.state_dict().items()}
    manifest = {
        "model": [[name, list(t.shape), str(t.dtype)] for name, t in host.model_state().items()],
        "seeds": [
            pack(dataclasses.asdict(SeedRecord.of(seed)), f"seed.{seed.name}", tensors)
            for seed in lifecycle.seeds.values()
            if seed.module is not None
        ],
        "optimizers": [
            {"type": type(o).__name__, "state": pack(o.state_dict(), f"optimizer.{i}", tensors)}
            for i, o in enumerate(optimizers)
        ],
        "schedulers": [
            {"type": type(s).__name__, "state": pack(s.state_dict(), f"scheduler.{i}", tensors)}
            for i, s in enumerate(schedulers)
        ],
        "run": pack(dataclasses.asdict(state), "run", tensors),
        "random": pack(_random_state(), "random", tensors),
    }
    file.write(path, manifest, tensors)


def restore(
    path: str | os.PathLike[str],
    lifecycle: Lifecycle,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    blueprints: Mapping[str, BlueprintLike],
) -> RunState:
    """Bring a fresh host, optimizers and schedulers to the saved state.

    Everything that can be checked is checked first; what fails later takes the seeds out again.

    Raises:
        CheckpointError: the file is damaged, of another host, or needs something that is not there.
    """
    manifest, tensors = file.read(path)
    try:
        _check_model(lifecycle, manifest["model"])
        _check_types("optimizers", manifest["optimizers"], optimizers)
        _check_types("schedulers", manifest["schedulers"], schedulers)
        state = RunState(**unpack(manifest["run"], tensors))
        records = [SeedRecord(**unpack(packed, tensors)) for packed in manifest["seeds"]]
        weights = {n.removeprefix("host."): t for n, t in tensors.items() if n.startswith("host.")}
        loads = [
            (target, unpack(saved["state"], tensors))
            for targets, key in ((optimizers, "optimizers"), (schedulers, "schedulers"))
            for target, saved in zip(targets, manifest[key], strict=True)
        ]
        streams = unpack(manifest["random"], tensors)
        with ExitStack() as undo:
            for record in records:
                seed = record.revive(lifecycle, state.run_seed, blueprints)
                undo.callback(lifecycle.forget, seed)
            _check_weights(lifecycle, weights)
            for target, saved in loads:
                undo.callback(target.load_state_dict, target.state_dict())
                target.load_state_dict(saved)
            lifecycle.host.load_state_dict(weights)
            _set_random_state(streams)
            undo.pop_all()
    except CheckpointError:
        raise
    except (FxGraftError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be restored: {type(error).__name__}: {error}") from error
    return state


def _check_model(lifecycle: Lifecycle, saved: Iterable[Sequence[Any]]) -> None:
    if lifecycle.host.structure.placements:
        raise CheckpointError("expected a freshly traced host; this one has seeds already")
    ours = {n: (list(t.shape), str(t.dtype)) for n, t in lifecycle.host.model_state().items()}
    theirs = {name: (shape, dtype) for name, shape, dtype in saved}
    if different := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
        name = different[0]
        raise CheckpointError(
            f"the checkpoint is of another host: {len(different)} tensors differ; the first is {name}: "
            f"expected {ours.get(name, 'nothing')}, got {theirs.get(name, 'nothing')}"
        )


def _check_types(what: str, saved: Sequence[Mapping[str, Any]], given: Sequence[Any]) -> None:
    ours, theirs = [type(x).__name__ for x in given], [x["type"] for x in saved]
    if ours != theirs:
        raise CheckpointError(f"{what}: the checkpoint holds {theirs or 'none'}; got {ours or 'none'}")


def _check_weights(lifecycle: Lifecycle, weights: Mapping[str, Tensor]) -> None:
    ours = {name: tensor.shape for name, tensor in lifecycle.host.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in weights.items()}
    if different := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
        raise CheckpointError(f"the checkpoint's weights do not fit its seeds: {', '.join(different[:3])}")


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices, "python": [version, list(words), gauss]}


def _set_random_state(state: Mapping[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
