"""Metrics of seeds, and temporary runs of the host in another form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from fxgraft.errors import DistributedError
from fxgraft.lifecycle import probing
from fxgraft.lifecycle.probing import shadow_pass
from fxgraft.manager._core import ManagerCore
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry import logger
from fxgraft.util.interrupts import uninterruptible
from fxgraft.util.text import pluralize


def metrics(self: ManagerCore) -> dict[str, dict[str, float]]:
    """Metric -> seed name -> present value (float); see ``fxgraft.telemetry.METRICS`` for units.

    The seed name is ``""`` for a metric of the run. Norms are those of the present gradients.
    """
    return self._metrics()


def shadow(self: ManagerCore) -> AbstractContextManager[None]:
    """A context in which TRAINING seeds run at alpha 1 and only they get gradients.

    Run forward *and* backward inside. The host's gradients, buffers and random streams do not change.

    Raises:
        DistributedError: the host is sharded.
        StageError: in another thread than the one that trains.
    """
    self._inbox.require_here("run the seeds otherwise")
    if self.peers.folder is not None:
        raise DistributedError("shadow() is not supported on a sharded host: use objective 'trust'")
    learning = [s.name for s in self._seeds.values() if s.stage is Stage.TRAINING]
    parameters = [p for name in learning for p in self._lifecycle.registry.parameters(name)]
    return shadow_pass(self.host, parameters)


def at_alpha(self: ManagerCore, seed: Seed | str, alpha: float) -> AbstractContextManager[None]:
    """A context in which one seed runs at another alpha. Nothing recompiles.

    Args:
        seed: a live seed, or its name.
        alpha: the share of the seed, 0 to 1; of a seed with an alpha for each channel, that of all.

    Raises:
        StageError: the seed is not live, or in another thread than the one that trains.
    """
    action = "run a seed at another alpha"
    self._inbox.require_here(action)
    return probing.at_alpha(self.host, self._find(seed, action), alpha)


@uninterruptible
def measure(
    self: ManagerCore, seed: Seed | str, evaluate: Callable[[], float | Tensor], at: float = 1.0
) -> float:
    """The contribution of a seed: the loss at alpha 0 minus the loss at ``at``, by two evaluations.

    Both begin with the same random streams (for dropout, or a loader that shuffles) and the same buffers,
    which are restored afterwards. The runs are not counted. With several ranks the result is the mean over
    them; each has to call it.

    Args:
        seed: a live one.
        evaluate: computes a loss of the host, which it calls as the example of the trace did; best on
            held-out data and in eval mode, which is put back. Gradients are off inside; lower is better.
        at: the alpha to measure at; a seed that is blended is best measured at its own.

    Returns:
        The contribution, positive where the seed helps. Gates read it from the seed.

    Raises:
        TypeError: ``evaluate`` does not return one number.
        StageError: the seed is not live, or no call in ``evaluate`` ran it; or an optimizer of the host steps
            in it.
    """
    self._inbox.require_here("measure a seed")
    seed = self._find(seed, "measure a seed")
    contribution = probing.measure(self.host, seed, evaluate, at, self.peers.mean, self._lifecycle.inactivity)
    if contribution == 0.0 and at > 0:
        logger.warning(
            "seed %r: the loss is the same with it and without, to the bit, though it ran: it gives "
            "nothing yet (it was trained in %s)",
            seed.name,
            pluralize(seed.trained_steps, "step"),
        )
    losses = {"loss_without": seed.loss_without, "loss_with": seed.loss_with}
    self._reporter.emit("contribution", seed.name, contribution=contribution, alpha=at, **losses)
    return contribution
