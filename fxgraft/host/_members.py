"""Members of a model whose names a host has for something else: a child ``slots``, a parameter ``graft``."""

from __future__ import annotations

from torch import Tensor, nn


class Members(nn.Module):
    """A module whose children, parameters and buffers are found by their names, whatever its class defines.

    ``nn.Module`` looks them up as attributes, where a property or a method of the class comes first.
    """

    def get_submodule(self, target: str) -> nn.Module:
        """The module of that name, as `torch.nn.Module.get_submodule` finds it in a model."""
        first, _, rest = target.partition(".")
        child = self._modules.get(first)
        return super().get_submodule(target) if child is None else child.get_submodule(rest)

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of that name, as `torch.nn.Module.get_parameter` finds it in a model."""
        own = self._parameters.get(target)
        return super().get_parameter(target) if own is None else own

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of that name, as `torch.nn.Module.get_buffer` finds it in a model."""
        own = self._buffers.get(target)
        return super().get_buffer(target) if own is None else own
