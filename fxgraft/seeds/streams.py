"""Random streams of a seed's own: nothing that a seed draws moves the host's stream.

A seed's initialisation draws from a private ``torch.Generator``. Its dropout, which has to work in
compiled graphs as well (those know no generators), hashes a counter instead: a counter-based random
number generator (Salmon et al., 2011), here with an integer finaliser of the murmur family on 32 bit
words, written in tensor operations. Both are keyed by the run's seed and the seed's name.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxgraft import _torch
from fxgraft_passes import devices

_OTHER_MASK = (
    "the dropout of a seed runs inside of a backward pass, for activation checkpointing as it seems: it "
    "draws another mask than in the forward, and the gradients belong to neither. Leave layers with such "
    "seeds out of checkpointing, or give the seed no dropout"
)
_WORD = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B  # odd and below 2**31, so that products of 32 bit words fit an int64


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
    """Let everything in this thread draw from generators keyed by ``key``.

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


class SeedDropout(nn.Module):
    """Dropout from a counter-based stream: the same masks in eager and compiled, and after a resume.

    Stands in for ``nn.Dropout`` (an element at a time), ``nn.Dropout1d``, ``2d`` and ``3d`` (a whole
    channel at a time) in a seed.

    Attributes:
        p: the probability of an element (or channel) to be zeroed; the rest is scaled by 1/(1-p).
        channels: whether whole channels are dropped: the mask has the first two dimensions only.
        key: int64, which stream; a tensor, so that compiled graphs do not specialise on it.
        draws: int64, how many masks were drawn.
    """

    key: Tensor
    draws: Tensor

    def __init__(self, p: float, channels: bool, key: int):
        super().__init__()
        self.p = p
        self.channels = channels
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """``input`` with its elements (or channels) zeroed or scaled; unchanged in eval mode."""
        if not self.training or self.p == 0:
            return input
        shape = input.shape
        if self.channels:
            shape = torch.Size([*shape[:2], *(1 for _ in shape[2:])])
        if not torch.compiler.is_compiling() and _torch.is_in_backward():
            warnings.warn(_OTHER_MASK, stacklevel=2)
        kept = uniform(shape, self.key, self.draws, input.device) >= self.p
        # Not in place: the partitioner of torch.compile recomputes the mask in the backward pass from
        # what `draws` is then, and would get another one.
        self.draws = self.draws + 1
        return input * kept.to(input.dtype) * (1 / (1 - self.p) if self.p < 1 else 0.0)

    def in_one_operation(self, input: Tensor) -> Tensor:
        """What it is for dimensions: dropout. For who reads what operations do, and not what they compute."""
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"


def uniform(shape: torch.Size, key: Tensor, draw: Tensor, device: torch.device) -> Tensor:
    """Numbers in [0, 1) with 24 random bits, float32, a function of ``key``, ``draw`` and position."""
    count = 1
    for size in shape:
        count *= size
    word = _hash(torch.arange(count, device=device) & _WORD)
    word = _hash(word ^ _hash((draw + key) & _WORD))
    word = _hash(word ^ (key >> 31))
    return (word >> 8).to(torch.float32).reshape(shape) * 2.0**-24


def _hash(word: Tensor) -> Tensor:
    for _ in range(2):
        word = ((word ^ (word >> 16)) * _MULTIPLIER) & _WORD
    return word ^ (word >> 16)


def privatize(module: nn.Module, key: int) -> nn.Module:
    """Replace the dropout modules in ``module`` by `SeedDropout`; return it (or its replacement)."""
    replacement = _replacement(module, key)
    if replacement is not None:
        return replacement
    replaced: dict[nn.Module, SeedDropout | None] = {}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if child not in replaced:
            replaced[child] = _replacement(child, key_of(key, path))
        if path and (new := replaced[child]) is not None:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new)
    return module


def _replacement(module: nn.Module, key: int) -> SeedDropout | None:
    kind = type(module)  # subclasses may do something else
    if kind not in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        return None
    return SeedDropout(cast(float, module.p), kind is not nn.Dropout, key).train(module.training)
