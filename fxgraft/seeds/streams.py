"""Random streams of a seed's own: nothing that a seed draws moves the host's stream.

A seed's initialisation draws from a private ``torch.Generator``. Its dropout, which has to work in
compiled graphs as well (those know no generators), is `fxgraft.seeds.dropout`. Both are keyed by the run's
seed and the seed's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxgraft_passes import devices


def key_of(run_seed: int, name: str) -> int:
    """A 62 bit key for the streams of the seed ``name`` in the run ``run_seed``."""
    digest = hashlib.sha256(f"{run_seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


class GlobalDrawError(Exception):
    """Something drew from the global random stream that cannot be redirected."""


class _Private(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends every random operation of this thread to private generators, one for each device."""

    def __init__(self, key: int, redirect: bool):
        super().__init__()  # type: ignore[no-untyped-call]
        self._key = key
        self._redirect = redirect
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not _draws(func, args, kwargs) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if not self._redirect:
            raise GlobalDrawError(str(func.overloadpacket))
        names = [argument.name for argument in func._schema.arguments]
        if "generator" not in names:
            if "generator" not in func.overloadpacket.overloads():
                raise GlobalDrawError(str(func.overloadpacket))
            func = func.overloadpacket.generator
        return func(*args, **kwargs, generator=self._generator(args, kwargs))

    def _generator(self, args: Any, kwargs: Any) -> torch.Generator:
        tensor = next((a for a in args if isinstance(a, Tensor)), None)
        device = tensor.device if tensor is not None else kwargs.get("device") or torch.get_default_device()
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = devices.generator(device).manual_seed(self._key)
        return self._generators[device]


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call draws random numbers: fused attention is tagged so, and does only with dropout."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return "dropout_p" not in names or bool(given.get("dropout_p"))


@contextmanager
def private_stream(key: int) -> Iterator[None]:
    """A context in which everything in this thread draws from generators keyed by ``key``.

    Raises:
        GlobalDrawError: from an operation that cannot be given a generator.
    """
    with _Private(key, redirect=True):
        yield


@contextmanager
def no_global_draws() -> Iterator[None]:
    """Raise `GlobalDrawError` where something in this thread would draw from the global stream."""
    with _Private(0, redirect=False):
        yield
