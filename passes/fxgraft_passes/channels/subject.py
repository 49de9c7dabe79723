"""A model that is looked at: its parts by name, its example call, and runs of it with other tensors in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes.channels.recording import Recording, record
from fxgraft_passes.untouched import untouched

SINGLE = "in_one_operation"
"""The method of a module whose code computes in a roundabout way what is one operation for dimensions."""

_SMALL = 1_000_000
"""Numbers in all parameters and buffers."""


@dataclass
class Subject:
    """A model with its example call.

    Attributes:
        run: what is called.
        modules: qualified name -> module, of all that it may call; those of one object under their first
            name.
        args, kwargs: of the call.
        leave_untouched: a context in which runs leave no trace.
        places: path of a tensor -> the modules that have it, and under which names.
        tensors: path -> parameter or buffer; what is tied is there once.
        without_data: whether runs are on the ``meta`` device.
    """

    run: Callable[..., Any]
    modules: dict[str, nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leave_untouched: Callable[[], AbstractContextManager[Any]]
    places: dict[str, list[tuple[nn.Module, str]]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    without_data: bool = True

    def __post_init__(self) -> None:
        self._list_tensors()
        # For a small model, computing takes less time than running on ``meta``.
        small = sum(tensor.numel() for tensor in self.tensors.values()) < _SMALL
        self.without_data = not small or any(tensor.is_meta for tensor in self.tensors.values())

    def _list_tensors(self) -> None:
        first: dict[int, str] = {}
        for path, module in self.modules.items():
            for register in (module._parameters, module._buffers):
                for name, tensor in register.items():
                    if tensor is None:
                        continue
                    known = first.setdefault(id(tensor), f"{path}.{name}" if path else name)
                    self.tensors[known] = tensor
                    self.places.setdefault(known, []).append((module, name))

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Subject:
        """A plain model."""
        return cls(model, dict(model.named_modules()), args, dict(kwargs or {}), lambda: untouched(model))

    def is_parameter(self, path: str) -> bool:
        """Whether it is a parameter, and no buffer."""
        return isinstance(self.tensors[path], nn.Parameter)

    @contextmanager
    def with_tensors(self, others: Mapping[str, Tensor]) -> Iterator[None]:
        """Replace parameters and buffers by other tensors inside; what is tied stays tied."""
        before = [(self._register(path, *place), place[1]) for path in others for place in self.places[path]]
        kept = [(register, name, register[name]) for register, name in before]
        try:
            for path, tensor in others.items():
                stand_in = nn.Parameter(tensor, requires_grad=False) if self.is_parameter(path) else tensor
                for module, name in self.places[path]:
                    self._register(path, module, name)[name] = stand_in
            yield
        finally:
            for register, name, tensor in kept:
                register[name] = tensor

    @contextmanager
    def without_numbers(self) -> Iterator[None]:
        """Its tensors are on ``meta`` inside, for runs of which only shapes count."""
        with self.with_tensors({path: on_meta(tensor) for path, tensor in self.tensors.items()}):
            yield

    def _register(self, path: str, module: nn.Module, name: str) -> dict[str, Any]:
        return module._parameters if self.is_parameter(path) else module._buffers  # type: ignore[return-value]

    def now(self, path: str) -> Tensor:
        """The tensor that the model has there now."""
        module, name = self.places[path][0]
        tensor: Tensor = self._register(path, module, name)[name]
        return tensor

    @contextmanager
    def session(self) -> Iterator[None]:
        """Runs inside leave no trace."""
        with self.leave_untouched():
            yield

    def record(self, others: Mapping[str, Tensor], training: bool, into: Recording) -> dict[str, Tensor]:
        """Run it, inside of a session, and take down what it does.

        Args:
            others: tensors in the place of its own.
            training: in which mode.
            into: the recording; also as far as a run that fails came.

        Returns:
            The tensors that stood in the model, by their paths.
        """
        stand_ins = {path: others.get(path, tensor) for path, tensor in self.tensors.items()}
        args, kwargs = self.args, self.kwargs
        if self.without_data:
            stand_ins = {path: on_meta(tensor) for path, tensor in stand_ins.items()}
            args, kwargs = pytree.tree_map_only(Tensor, on_meta, (args, kwargs))
        else:
            stand_ins = {path: tensor.detach().clone() for path, tensor in stand_ins.items()}
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        with self.with_tensors(stand_ins), self.in_mode(training), self._in_one_operation():
            used = {path: self.now(path) for path in self.places}
            record(self.run, {module: path for path, module in self.modules.items()}, args, kwargs, into)
        return used

    @contextmanager
    def _in_one_operation(self) -> Iterator[None]:
        """Modules that say what they are as one operation of torch run as that inside."""
        replaced = [
            m for m in self.modules.values() if hasattr(type(m), SINGLE) and "forward" not in m.__dict__
        ]
        try:
            for module in replaced:
                module.__dict__["forward"] = getattr(module, SINGLE)
            yield
        finally:
            for module in replaced:
                del module.__dict__["forward"]

    @contextmanager
    def in_mode(self, training: bool) -> Iterator[None]:
        """All modules in train or in eval mode inside."""
        before = [(module, module.training) for module in self.modules.values()]
        try:
            for module in self.modules.values():
                module.training = training
            yield
        finally:
            for module, was in before:
                module.training = was


def on_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same form, without numbers."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
