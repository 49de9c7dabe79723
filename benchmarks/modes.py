"""How a model runs: eager, or compiled in one of several ways; the same way for a host and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn

import fxgraft


@dataclass(frozen=True)
class Mode:
    """One way to run.

    Attributes:
        name: in tables and on the command line.
        options: of ``torch.compile``; None runs eager.
        granularity: what is compiled as a whole, as for `fxgraft.Host.compile`.
        note: what is to be known of it.
    """

    name: str
    options: Mapping[str, Any] | None = field(default_factory=dict)
    granularity: str = "host"
    note: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether anything is compiled."""
        return self.options is not None

    @property
    def whole(self) -> Mode:
        """The same, with the model compiled as a whole: by hand users do that, whatever a host does."""
        return Mode("whole", self.options)

    def apply(self, host: fxgraft.Host) -> Callable[..., Any]:
        """Let a host run in this mode."""
        if self.options is not None:
            host.compile(granularity=self.granularity, **self.options)
        return host

    def apply_by_hand(self, model: nn.Module, blocks: Iterable[str]) -> Callable[..., Any]:
        """The same for any model, as somebody would do it who has no fxgraft.

        Args:
            model: what to run.
            blocks: the modules that are compiled one by one by ``"region"``.
        """
        if self.options is None:
            return model
        if self.granularity == "region":
            for name in blocks:
                model.get_submodule(name).compile(fullgraph=True, **self.options)
            return model
        return compiled(model, **self.options)


NO_CUDA_GRAPHS = "no CUDA graphs on a CPU: the code is that of the default mode"
NO_TEMPLATES = "on a CPU the weights of a training step are no constants: no template is tuned"
MODES = {
    mode.name: mode
    for mode in (
        Mode("eager", None),
        Mode("aot_eager", {"backend": "aot_eager"}),
        Mode("inductor"),
        Mode("inductor, by region", granularity="region"),
        Mode("reduce-overhead", {"mode": "reduce-overhead"}, note=NO_CUDA_GRAPHS),
        Mode("max-autotune", {"mode": "max-autotune"}, note=NO_TEMPLATES),
    )
}


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """``model`` through ``torch.compile``, over a code object of its own.

    Dynamo keeps what it compiles by code object and looks through all of it in every call: models that
    share one would pay for each other.
    """
    code = FunctionType(_enter.__code__.replace(), _enter.__globals__)
    entry = torch.compile(code, fullgraph=True, **options)
    return lambda *args, **kwargs: entry(model, args, kwargs)


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)
