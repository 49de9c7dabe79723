"""Tensors that are one at several places of a model stay one when the model is converted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def keep_tied_weights(*roots: nn.Module) -> Iterator[None]:
    """Let parameters and buffers that are one tensor before be one tensor afterwards.

    ``nn.Module._apply`` makes a new tensor for each place, where it cannot fill the old one (from the
    ``meta`` device, say): tied weights would come apart.
    """
    places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}
    for module in [module for root in roots for module in root.modules()]:
        for register in (module._parameters, module._buffers):
            for name, tensor in register.items():
                if tensor is not None:
                    places.setdefault(tensor, []).append((register, name))
    tied = [found for found in places.values() if len(found) > 1]
    yield
    for (first, its_name), *others in tied:
        for register, name in others:
            register[name] = first[its_name]
