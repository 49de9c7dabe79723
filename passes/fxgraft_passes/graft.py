"""A graft: the seed's module with the 0-d tensors that steer it, and the description of its wiring."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes import _torch
from fxgraft_passes.objectives import DEFAULT_RADIUS, Objective

MODES = ("residual", "convex", "gated", "channelwise")
SEEDS = "_seeds"
"""Where a host keeps its grafts: the ``state_dict`` keys of seed ``a`` begin with ``_seeds.a.``."""


class Phase(Enum):
    """Which forward of a structure runs."""

    ISOLATED = "isolated"
    """Every seed is in TRAINING: the host's value passes by alias."""
    BLENDED = "blended"
    """Seeds in any mixture of stages, distinguished by tensors: the one that is compiled."""
    SETTLED = "settled"
    """No seed is in TRAINING: as BLENDED, without the objectives."""
    DETACHED = "detached"
    """As BLENDED, with the output of isolated seeds cut off from gradients: what the host's gradients
    must be (the reference of the isolation check)."""
    SHADOW = "shadow"
    """Seeds in TRAINING at alpha 1, plain gradients (`SeedManager.shadow`)."""


@dataclass(frozen=True)
class Call:
    """How a seed is called that gets all arguments of the module behind or in front of it.

    Attributes:
        input: the name of its parameter for the value; it gets all other arguments as that module does.
        element: the index of the value in its result; None: the result is the value.
        before: whether it is in front of the module: the value is that input.
    """

    input: str
    element: int | None = None
    before: bool = False


@dataclass(frozen=True)
class GraftSpec:
    """How a seed is wired to its slot. It is static: another spec gives another graph.

    Attributes:
        mode: ``"residual"`` (``h + alpha f``), ``"convex"`` (``h + alpha (s - h)``), ``"gated"``
            (residual, of a module that scales its output by a gate it learns) or ``"channelwise"``
            (residual, with an alpha for each channel).
        objective: what the seed learns from in isolation; one of ``OBJECTIVES``.
        radius: the radius rho of the trust objectives.
        isolated: whether the seed's input is detached from the host's gradients.
        copy: whether a later operation writes into the value, so that it has to be copied.
        fossil: the constant alpha of a permanent seed; None: the seed is not permanent.
        copy_source: as ``copy``, for the value that a branch reads from an earlier node.
        call: how an inserted block is called; None: the seed reads one value.

    Raises:
        ValueError: a mode, an objective or a radius is invalid.
    """

    mode: str = "residual"
    objective: str = "trust"
    radius: float = DEFAULT_RADIUS
    isolated: bool = True
    copy: bool = False
    fossil: float | None = None
    copy_source: bool = False
    call: Call | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}; got {self.mode!r}")
        if not isinstance(self.isolated, bool):
            raise ValueError(f"isolated: expected True or False; got {self.isolated!r}")
        Objective(self.objective, self.radius)  # raises for an invalid one


class Graft(nn.Module):
    """A seed's module with the tensors that control it (filled in place, saved with the seed).

    Args:
        module: the module of the seed.
        dtype: that of the host's parameters; alpha is float64 in a float64 host, else float32.
        device: the device of the tensors.
        alpha_shape: the shape of alpha. Default ``()``: one number.

    Attributes:
        module: the module of the seed.
        alpha: the share of the seed in the slot's output, 0-d, or of a shape that broadcasts over
            the channels.
        learning: bool, set while the seed learns by its objective (TRAINING).
        released: bool, set when a convex seed's isolation has ended (HOLDING).
        runs_with_grad, runs_without_grad: int64, 0-d; how often it ran in compiled code, with gradients on
            and with them off.
        eager_runs: how often in eager mode: without gradients, with them.
        regions: of an inserted block, what is known of the code in it; for the host that runs it.
    """

    alpha: Tensor
    learning: Tensor
    released: Tensor
    runs_with_grad: Tensor
    runs_without_grad: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        dtype: torch.dtype,
        device: torch.device,
        alpha_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.module = module
        alpha = torch.zeros(alpha_shape, dtype=_alpha_dtype(dtype), device=device)
        self.register_buffer("alpha", alpha)
        self.register_buffer("learning", torch.ones((), dtype=torch.bool, device=device))
        self.register_buffer("released", torch.zeros((), dtype=torch.bool, device=device))
        for name in ("runs_with_grad", "runs_without_grad"):  # no weights: a state_dict has none of them
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device), persistent=False)

        self.eager_runs = [0, 0]
        self.regions: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "regions": None}  # made again when the graft runs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the seed, and count the run.

        Args:
            *args: the value that the seed reads; of an inserted block, all its arguments.
            **kwargs: further arguments of an inserted block.
        """
        grad = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            _count(self.runs_with_grad if grad else self.runs_without_grad)
        elif not _torch.is_in_backward():  # else torch.utils.checkpoint repeats a run
            self.eager_runs[grad] += 1  # a twentieth of the cost of a tensor, and nothing on the device
        return self.module(*args, **kwargs)

    @property
    def runs(self) -> tuple[int, int]:
        """The numbers of runs with gradients on, and with them off. Waits for the device."""
        without, within = self.eager_runs
        counters = self.runs_with_grad, self.runs_without_grad
        compiled = (0, 0) if counters[0].is_meta else (int(counters[0]), int(counters[1]))
        return within + compiled[0], without + compiled[1]

    def settle(self) -> None:
        """Move all counts into the buffers, which are saved."""
        without, within = self.eager_runs
        self.runs_with_grad.add_(within)
        self.runs_without_grad.add_(without)
        self.eager_runs[:] = [0, 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Graft:
        alpha = self.alpha
        super()._apply(complex_kept(fn), recurse)  # type: ignore[no-untyped-call]
        # alpha must not lose precision with the host: bfloat16 has three digits of it.
        kept = alpha.to(device=self.alpha.device, dtype=_alpha_dtype(self.alpha.dtype))
        self._buffers["alpha"] = kept
        return self


def _count(runs: Tensor) -> None:
    """Add one inside of compiled code, of which a Python number would be a constant."""
    if not torch.compiler.is_exporting() and not _is_transformed():
        runs.add_(1)


def _is_transformed() -> bool:
    """Whether torch.func.grad, vmap and the like are around this call: they refuse to write to a buffer."""
    return _torch.is_inside_transform()


_torch.constant_when_compiled(_is_transformed)  # asked once, while the call is compiled


def complex_kept(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``convert`` for complex tensors as well: one that it would make real becomes complex of that width.

    ``Module.to(dtype)`` makes complex weights real, and drops half of what they hold.
    """

    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_complex():
            return convert(tensor)
        like = convert(tensor.real)
        kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64  # of half precision: none
        if tensor.is_meta and not like.is_meta:  # to_empty
            return torch.empty_like(tensor, dtype=kind, device=like.device)
        return tensor.to(device=like.device, dtype=kind)

    return converted


def alpha_shape(mode: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape of alpha for a value of ``shape``: channels are axis 1 of 4-D values, else the last."""
    if mode != "channelwise" or not shape:
        return ()
    return (shape[1], 1, 1) if len(shape) == 4 else (shape[-1],)


def _alpha_dtype(dtype: torch.dtype) -> torch.dtype:
    # Not float64 throughout: torch.compile takes 0-d float64 tensors for Python scalars and
    # compiles the graph a second time to turn them back into tensors.
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_name(name: str) -> None:
    """Raise `ValueError` for a name that is invalid for an attribute of the module that holds the grafts."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in dir(nn.Module()):
        raise ValueError(
            f"name: expected letters, digits, '_' and '-', and no attribute of nn.Module; got {name!r}"
        )


def is_graft_holder(module: nn.Module) -> bool:
    """Whether it holds grafts and nothing else, and no class's code needs it."""
    own = (*module._parameters, *module._buffers)
    parts = module._modules.values()
    # A graft by what it has: a module that was traced anew may hold a plain copy of it.
    are_grafts = all(part is not None and "module" in part._modules for part in parts)
    return type(module) is nn.Module and not own and are_grafts


def take_out(root: nn.Module, path: str) -> None:
    """Remove the graft at ``path``, and its home if that holds no other. One kept elsewhere stays there."""
    home, _, name = path.rpartition(".")
    holder = root._modules.get(home)
    if not home.startswith(SEEDS) or holder is None or not is_graft_holder(holder):
        return
    holder._modules.pop(name, None)
    if not holder._modules:
        delattr(root, home)
