"""Adapters on a frozen host, by the library PEFT."""

from __future__ import annotations

from typing import Any

from benchmarks.worth import schedule
from benchmarks.worth.data import Batch
from benchmarks.worth.learner import ByBudget, LibraryError

LAYERS = ("qkv", "out", "up", "down", "head")
"""The names of all linear layers of a `GPT`."""


class Adapted(ByBudget):
    """A host that is frozen at a share of the budget of FLOPs; from then on LoRA on its linear layers learns.

    The arm's options: ``rank``; ``host_rate``, the learning rate of the host, as that of the run is the one
    of the adapters; ``host_decays``, whether it falls to 0 before the host is frozen. The adapters have an
    optimizer of their own, and no weight decay.
    """

    @property
    def forwards(self) -> int:
        """A step without gradients of the host's weights costs less."""
        return 2 if self.changed else 3

    def grow(self, depth: int) -> None:
        try:
            import peft
        except ImportError as error:
            raise LibraryError("It needs PEFT: pip install peft==0.21.2") from error
        rank = self.setting.arm.options["rank"]
        self.model.requires_grad_(False)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LAYERS))
        peft.inject_adapter_in_model(config, self.model)
        self.version = peft.__version__
        (self.optimizers[0],) = self.setting.workload.optimizers(self.model, self.setting.rate)
        for group in self.optimizers[0].param_groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
            group["weight_decay"] = 0.0

    def step(self, batch: Batch, share: float) -> float:
        return super().step(batch, share * (1.0 if self.changed else self.host_factor()))

    def host_factor(self) -> float:
        """What the host's learning rate is over that of the adapters."""
        options, ((end, _),) = self.setting.arm.options, self.setting.arm.changes
        left = (end - self.ledger.total_flops / self.limit) / (schedule.DECAY * end)
        return options["host_rate"] / self.setting.rate * (min(1.0, left) if options["host_decays"] else 1.0)

    def told(self) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {**super().told(), "adapters": trained, "peft": self.version}
