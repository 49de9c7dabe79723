"""Growth in width by fxgraft, of the workload "mlp", whose "depth" stands for its width."""

from __future__ import annotations

from typing import Any

from benchmarks.worth.by_fxgraft import Anything, ByShares
from benchmarks.worth.models import MLP


class Wider(ByShares):
    """`fxgraft.SeedManager.widen`: all hidden layers, to given widths at given shares of the budget of FLOPs.

    The arm's options: those of `ByShares`, and ``init`` and ``optimizer_state`` of `widen`.
    """

    forwards = 2  # the first layer, which is most of the network, has no gradient of its input

    def grow(self, depth: int) -> None:
        options = {key: self.setting.arm.options[key] for key in ("init", "optimizer_state")}
        if depth > self.depth:
            with self.manager.together():
                for layer in MLP.hidden:
                    self.manager.widen(layer, MLP.unit * (depth - self.depth), **options)
            self.depth = depth
        self.factor *= self.setting.arm.options["factor"]


class AnyWidth(Anything):
    """`Anything` with room for width 8. No option of it tries wider layers alone; it tries them first."""

    forwards = 2
    budget = 8.6  # times the parameters of width 8: those of width 64

    @property
    def blocks(self) -> int:
        return self.widths()[0] // MLP.unit

    def widths(self) -> list[int]:
        """Of the hidden layers."""
        return [self.host.get_submodule(layer).out_features for layer in MLP.hidden]

    def told(self) -> dict[str, Any]:
        return {**super().told(), "widths": self.widths()}
