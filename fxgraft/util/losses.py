"""The loss of a training step as one number, whatever form it is given in."""

from __future__ import annotations

from numbers import Real

from torch import Tensor


def check_loss(loss: object) -> None:
    """Raise `TypeError` for what is no real number, no tensor of such and not None."""
    if loss is None or isinstance(loss, Real) or (isinstance(loss, Tensor) and not loss.is_complex()):
        return
    got = f"a tensor of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"loss: expected a number, as in manager.step(loss); got {got}")


def mean_loss(loss: float | Tensor) -> float | Tensor:
    """A number, or the mean of a tensor, on its device: does not wait for that. Of whole numbers, too."""
    if not isinstance(loss, Tensor):
        return float(loss)
    loss = loss.detach()
    return (loss if loss.is_floating_point() else loss.float()).mean()
