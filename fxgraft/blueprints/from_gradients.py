"""GradMax: a branch that begins where the loss gradient of its weights is largest (Evci et al., 2022).

A branch ``f(h) = B phi(A h)`` with ``A = 0`` and ``phi(0) = 0`` adds nothing, whatever ``B`` is, and
the gradient of its first layer is ``phi'(0) B^T M`` with ``M`` the sum of ``g h^T`` over all positions
of a batch: ``h`` the value at the slot, ``g`` the gradient of the loss there. Of all ``B`` with
orthogonal columns of one length, the leading left singular vectors of ``M`` make the norm of that
gradient largest (Ky Fan, 1949); they are the paper's choice (arXiv:2201.05125, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxgraft.blueprints._shapes import positive
from fxgraft.blueprints.initial import zero_bias
from fxgraft.blueprints.registry import Factory, get
from fxgraft.errors import BlueprintError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.slots.structure import Placement
from fxgraft_passes import Graft, GraftSpec, Slot

_LAST = "\U0010ffff"
"""A name behind all names: the probe stands where a new seed of any name would at the latest."""


def gradmax(
    host: Host,
    slot_name: str,
    loss: Callable[[nn.Module], Tensor],
    *,
    blueprint: str = "low_rank",
    rank: int = 4,
    norm: float = 1.0,
) -> Factory:
    """A factory of branches for one slot, initialised by GradMax. The host is not changed.

    It runs one forward and one backward pass of the host. The factory itself runs none, and can be called
    at any later time::

        factory = gradmax(host, "fc1", lambda model: criterion(model(x), y), rank=8)
        manager.germinate("fc1", factory)

    Args:
        host: the host; its seeds run in their present stages.
        slot_name: the slot at which the branch will be germinated.
        loss: a function of the model that returns its loss (0-d tensor) on a typical batch.
        blueprint: ``"low_rank"`` (``phi`` is the identity) or ``"mlp"`` (GELU).
        rank: the number of neurons of the branch; at most the number of features.
        norm: the Frobenius norm of ``B``.

    Raises:
        SlotError: there is no such slot.
        BlueprintError: the blueprint, the rank or the slot's shape does not fit, or the gradient at the
            slot is zero or not finite.
    """
    slot = host.slot(slot_name)
    moment = _moment(host, slot, loss, _axis(blueprint, slot))
    if positive("rank", rank) > len(moment):
        raise BlueprintError(
            f"rank: expected at most the {len(moment)} features of {slot_name!r}; got {rank}"
        )
    if not bool(torch.isfinite(moment).all()) or not bool(moment.any()):
        raise BlueprintError(
            f"gradmax at slot {slot_name!r}: expected a loss with a finite gradient there that is not zero "
            f"throughout; got {'zero' if bool(torch.isfinite(moment).all()) else 'NaN or inf'}"
        )
    outgoing = torch.linalg.svd(moment).U[:, :rank] * (norm / rank**0.5)
    width = {"rank": rank} if blueprint == "low_rank" else {"hidden": rank}

    def factory(slot: Slot) -> nn.Module:
        branch = get(blueprint).build(slot, **width)
        first, last = branch.get_submodule("down"), branch.get_submodule("up")
        if blueprint == "mlp":
            first, last = last, first
        assert isinstance(first, (nn.Linear, nn.Conv2d))
        assert isinstance(last, (nn.Linear, nn.Conv2d))
        if last.weight.numel() != outgoing.numel():
            raise BlueprintError(
                f"gradmax for slot {slot_name!r} at slot {slot.name!r}: expected {len(outgoing)} features; "
                f"got {tuple(slot.shape)}"
            )
        nn.init.zeros_(first.weight)
        zero_bias(first)
        with torch.no_grad():
            last.weight.copy_(outgoing.view_as(last.weight))
        zero_bias(last)
        return branch

    factory.__qualname__ = f"gradmax_{blueprint}"
    return factory


def _axis(blueprint: str, slot: Slot) -> int:
    """Where the features of the slot's value are; raises `BlueprintError` if it does not fit."""
    if blueprint not in ("low_rank", "mlp"):
        raise BlueprintError(f"blueprint: expected 'low_rank' or 'mlp'; got {blueprint!r}")
    get(blueprint).cost(slot)  # raises for a shape that it does not take
    return 1 if blueprint == "low_rank" and len(slot.shape) == 4 else -1


class _Probe(nn.Module):
    """Adds zeros to a value, whose gradient then is that of the value; remembers both."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.zeros: list[Tensor] = []

    def forward(self, value: Tensor) -> Tensor:
        zero = torch.zeros_like(value, requires_grad=True)
        self.values.append(value.detach())
        self.zeros.append(zero)
        return zero


def _moment(host: Host, slot: Slot, loss: Callable[[nn.Module], Tensor], axis: int) -> Tensor:
    """The sum of ``g h^T`` over positions and calls: ``(features, features)``, float64."""
    probe = _Probe()
    with _probed(host, slot, probe) as model, engine.untouched(host), torch.enable_grad():
        found = torch.autograd.grad(loss(model), probe.zeros, allow_unused=True)
        values = list(probe.values)  # the host is put back, and the probe with it
    features = slot.shape[axis]
    moment = torch.zeros(features, features, dtype=torch.float64, device=slot.device)
    for h, g in zip(values, found, strict=True):
        if g is not None:
            moment += _flat(g, axis).T @ _flat(h, axis)
    return moment


def _flat(value: Tensor, axis: int) -> Tensor:
    return value.double().movedim(axis, -1).reshape(-1, value.shape[axis])


@contextmanager
def _probed(host: Host, slot: Slot, probe: _Probe) -> Iterator[nn.Module]:
    """The model in eager mode with ``probe`` behind the slot's seeds, and put back."""
    spec = GraftSpec(isolated=False, copy=slot.copy, fossil=1.0)
    structure = host.structure.with_placement(Placement(_LAST, slot, spec))
    graft = Graft(probe, dtype=slot.dtype, device=slot.device)
    with (
        engine.borrowing(host, "gradmax()"),
        engine.probing(host, structure, host.phase, {_LAST: graft}) as model,
    ):
        yield model
