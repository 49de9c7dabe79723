"""What the compiler process is given: modules without their weights, with all that their code can read.

A tensor is sent as its shape, strides, dtype and device, and is empty where it arrives; those that share
memory here share it there. Modules, and whatever they hold, are sent as they are; code that cannot be
imported is sent by value (`fxgraft.compiling._by_value`).
"""

from __future__ import annotations

import io
import logging
import pickle
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.compiling._by_value import ByValue
from fxgraft.errors import FxGraftError
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes import devices

logger = logging.getLogger("fxgraft")

MOST_BYTES = 64 * 2**20
"""What is larger than this, without weights, is not pickled: a training step would wait for it."""

_ZEROED = 4096
"""Storages up to so many bytes are zero where they arrive, and not what was in the memory before."""

_REGISTERS = frozenset(nn.Module().__dict__)
_said: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()


class NotSendableError(FxGraftError):
    """What was to be compiled cannot be given to another process."""


class LeftOut:
    """Replaces an attribute that could not be sent: code that reads it cannot be compiled there."""

    def __init__(self, what: str):
        self.__dict__["what"] = what

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError(self.__dict__["what"])

    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __enter__ = __exit__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self.__dict__["what"])


def pack(content: Any, modules: Iterable[nn.Module]) -> bytes:
    """``content`` as bytes for `unpack` in the compiler process.

    Args:
        content: anything; tensors in it lose their data.
        modules: those in it, whose attributes may be left out where they cannot be sent: that is said once.

    Raises:
        NotSendableError: with what cannot, and why.
    """
    try:
        return _pickled(content, {})
    except Exception as error:
        left_out = _offenders(modules)
        if not left_out:
            raise NotSendableError(_describe_error(error)) from error
    try:
        return _pickled(content, left_out)
    except Exception as error:
        raise NotSendableError(_describe_error(error)) from error


def unpack(data: bytes) -> Any:
    """What `pack` was given, its tensors empty."""
    return pickle.loads(data)


LeftOuts = Mapping[tuple[int, str], LeftOut]
"""(The number of a module, the name of an attribute) -> the `LeftOut` in its place."""


class _Packer(ByValue):
    def __init__(self, file: Any, left_out: LeftOuts, known: frozenset[int]):
        super().__init__(file, protocol=5)
        self._left_out = left_out
        self._known = known  # modules that are checked elsewhere
        self._storages: dict[int, tuple[_Storage, Any]] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        if isinstance(obj, nn.Module):
            if id(obj) in self._known:
                return LeftOut, ("a module",)
            if _is_plain(type(obj)):
                return _blank, (type(obj),), self._state(obj), None, None, _fill
        return super().reducer_override(obj)

    def _tensor(self, tensor: Tensor) -> Any:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            raise NotSendableError(f"a tensor of the type {type(tensor).__name__}, layout {tensor.layout}")
        memory = tensor.untyped_storage()
        # With the storage itself: while it is kept, no other one has its address.
        storage, _ = self._storages.setdefault(
            _torch_of_passes.memory(tensor), (_Storage(memory.nbytes(), tensor.device), memory)
        )
        form = (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return _tensor, (storage, form, tensor.requires_grad, type(tensor) is nn.Parameter)

    def _state(self, module: nn.Module) -> dict[str, Any]:
        state = {name: value for name, value in module.__dict__.items() if name != _torch.COMPILED_CALL}
        for name in state:
            if (stand_in := self._left_out.get((id(module), name))) is not None:
                state[name] = stand_in
        return state


@dataclass(eq=False)
class _Storage:
    size: int
    device: torch.device

    def __reduce__(self) -> tuple[Any, ...]:
        return _memory, (self.size, self.device)


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > MOST_BYTES:
            raise NotSendableError(f"more than {MOST_BYTES >> 20} MiB without the weights")
        return super().write(data)


def _pickled(content: Any, left_out: LeftOuts, known: frozenset[int] = frozenset()) -> bytes:
    file = _Bounded()
    _Packer(file, left_out, known).dump(content)
    return file.getvalue()


def _is_plain(kind: type) -> bool:
    """Whether instances are their ``__dict__``, and nothing else: not so a GraphModule, which has a graph."""
    own = ("__reduce__", "__reduce_ex__", "__slots__")
    return not any(base.__dict__.get(name) for base in kind.__mro__[:-1] for name in own)


def _offenders(modules: Iterable[nn.Module]) -> dict[tuple[int, str], LeftOut]:
    """The attributes of modules that cannot be sent, and are not known to decide what is computed."""
    every = {id(part): (name, part) for module in modules for name, part in module.named_modules()}
    known = frozenset(every)
    found: dict[tuple[int, str], LeftOut] = {}
    for path, module in every.values():
        for name, value in module.__dict__.items():
            if name in _REGISTERS or name == "forward" or isinstance(value, (nn.Module, Tensor)):
                continue
            try:
                _pickled(value, {}, known)
            except Exception as error:
                place = f"attribute {name!r} of {path or 'the model'!r} ({type(module).__name__})"
                what = f"{place}: {_describe_error(error)}"
                found[id(module), name] = LeftOut(f"{what}; the compiler process does not have it")
                if name not in (said := _said.setdefault(type(module), set())):
                    said.add(name)
                    logger.warning(
                        "the compiler process is not given %s. Code that reads it compiles when it goes live",
                        what,
                    )
    return found


def _describe_error(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0]
        if isinstance(error, NotSendableError)
        else f"{type(error).__name__}: {text[0] if text else ''}"
    )


# In the compiler process


def _blank(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(kind)


def _fill(module: nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state)


def _memory(size: int, device: torch.device) -> torch.UntypedStorage:
    devices.make_current(device)
    storage: Any = torch.UntypedStorage(size, device=device)  # type: ignore[no-untyped-call]
    if size <= _ZEROED and not devices.is_meta(device):
        storage.fill_(0)
    return storage  # type: ignore[no-any-return]


def _tensor(
    storage: torch.UntypedStorage,
    form: tuple[torch.dtype, int, tuple[int, ...], tuple[int, ...]],
    requires_grad: bool,
    is_parameter: bool,
) -> Tensor:
    dtype, offset, shape, stride = form
    made = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)
    return nn.Parameter(made, requires_grad) if is_parameter else made.requires_grad_(requires_grad)
