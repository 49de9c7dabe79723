"""A grown model from a checkpoint, for inference: no optimizer, no manager, no pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxgraft.checkpoint import file
from fxgraft.checkpoint._run import restore_model
from fxgraft.errors import CheckpointError
from fxgraft.host.example import call_of
from fxgraft.host.host import Host
from fxgraft.host.tracing import trace
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.lifecycle import Lifecycle


def load_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    blueprints: Mapping[str, BlueprintLike] | None = None,
) -> Host:
    """The model of a checkpoint that `SeedManager.save` wrote, with what has grown, in eval mode.

    It computes what the saved host computed, to the bit: blending seeds have the alpha that was saved, and
    isolated seeds still change nothing. ``fxgraft.unwrap(found)`` makes a plain model of
    one in which all seeds are fossils.

    Args:
        path: the file. The checkpoint of a sharded host is a folder, which only `SeedManager.load` reads.
        model: a new model of the class that was traced, or a host of one, without seeds. Its weights are
            overwritten by those of the checkpoint.
        example_args: the positional arguments of one call, to trace the model with. By default a call of the
            form that is in the checkpoint: that of the run's example call.
        example_kwargs: the keyword arguments of that call.
        blueprints: for seeds that were germinated from code: seed name -> module or factory.

    Returns:
        A host, whose parameters are those of ``model`` and of the seeds.

    Raises:
        CheckpointError: the file is damaged, of another model, a folder, or does not say the form of the
            example call; or a seed is of code that is not in ``blueprints``.
        TraceError: the model cannot be traced with that call.
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a new nn.Module of the class that was saved; got {type(model).__name__}"
        )
    if Path(path).is_dir():
        raise CheckpointError(
            f"{path}: expected a file; this is a folder, of a sharded run: SeedManager.load reads it"
        )
    with torch.inference_mode(False):  # what is made inside of it could not be trained
        manifest, tensors = file.read(path)
        host = (
            model if isinstance(model, Host) else _traced(path, manifest, model, example_args, example_kwargs)
        )
        lifecycle = Lifecycle(host, (), lambda seed: None, lambda name: None, lambda seeds: None)
        lifecycle.cold = True  # the structures on the way are not worth compiling
        known = {**host.seed_blueprints, **(blueprints or {})}
        restore_model(path, manifest, tensors, lifecycle, known)
        for seed in lifecycle.seeds:
            lifecycle.gradients.unwatch(seed)
        host._links.on_replaced = host._links.led_by = None
        host.seed_blueprints.update(blueprints or {})
    host.eval()
    return host


def _traced(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    model: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
) -> Host:
    if args is not None or kwargs is not None:
        return trace(model, args or (), kwargs)
    form = manifest.get("example")
    if form is None:
        raise CheckpointError(
            f"{path}: does not say how the model is called: expected load_model(path, model, example_args), "
            f"or a traced host in the place of the model"
        )
    try:
        args, kwargs = call_of(form)
    except Exception as error:  # what is in a file is anyone's: it may fail in any way
        raise CheckpointError(f"{path}: its example call is damaged: {error}. {file.DAMAGED}") from error
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    move = torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
    return trace(model, *move)
