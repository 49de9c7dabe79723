"""From a model to a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fxgraft.capture.capture import Capture
from fxgraft.capture.clone import is_compiled
from fxgraft.capture.fallback import logger
from fxgraft.errors import TraceError
from fxgraft.host._appearance import host_class
from fxgraft.host.example import form_of
from fxgraft.host.host import Host

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule, AveragedModel)


def trace(
    model: nn.Module,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
) -> Host:
    """Capture ``model`` as a `Host`, by running the example call three times without side effects.

    Args:
        model: any module. The host shares its parameters and buffers; the model itself, its classes and its
            attributes, is not changed.
        example_args: the positional arguments of one call, as a tuple. A batch of at least 2 is best: the
            call is made in train and in eval mode.
        example_kwargs: the keyword arguments of that call. If the model is on the
            ``meta`` device nothing is computed, and the tensors of the call may be on any device.

    Raises:
        TraceError: ``model`` is not a module that can be captured, or the example call fails.
    """
    if isinstance(model, Host):
        raise TraceError(
            "model: it is a host already. To trace anew: fxgraft.trace(fxgraft.unwrap(host), ...)"
        )
    if not isinstance(model, nn.Module):
        raise TraceError(f"model: expected an nn.Module; got {type(model).__name__}")
    if not isinstance(example_args, tuple):
        raise TraceError(
            f"example_args: expected a tuple, as in trace(model, (x,)); got {type(example_args).__name__}"
        )
    if not isinstance(example_kwargs, Mapping | None):
        raise TraceError(f"example_kwargs: expected names with values; got {type(example_kwargs).__name__}")
    if isinstance(model, _WRAPPERS) or hasattr(model, "_torchdynamo_orig_callable"):
        raise TraceError(f"trace the plain module, then wrap the host; got a {type(model).__name__}")
    if any(hasattr(type(module), "set_reshard_after_forward") for module in model.modules()):
        raise TraceError(
            "model: it is sharded already. Trace it first; then fully_shard the host's blocks, and the host"
        )
    if compiled := [name for name, module in model.named_modules() if is_compiled(module)]:
        logger.warning(
            "compiled before it was traced: %s. In the host it runs uncompiled; host.compile() compiles the "
            "host, with its seeds",
            ", ".join(name or "the model itself" for name in compiled),
        )
    if made := [name for name, parameter in model.named_parameters() if parameter.is_inference()]:
        raise TraceError(
            f"model: {made[0]!r} was made inside torch.inference_mode(), so that no gradient can be computed "
            f"with it, and no seed can be trained. Make the model outside of it"
        )
    form = form_of(example_args, example_kwargs or {})
    with torch.inference_mode(False):
        host = host_class(type(model))(Capture(model, example_args, dict(example_kwargs or {})))
    host.__dict__["_example"] = form  # not by setattr: the model may have an attribute of that name
    return host
