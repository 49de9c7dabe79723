"""A network, its data and its optimizer, together: everything that an arm has in common with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.worth import data
from benchmarks.worth.data import Batch
from benchmarks.worth.models import CNN, GPT, MLP, ThinCNN
from benchmarks.worth.protocols import LARGE, Scale
from fxgraft.util.flops import flop_counter

EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class Workload:
    """One task at one scale.

    Attributes:
        make: depth -> a network with a container ``blocks``; "mlp": with that width.
        batch: (random seed, step) -> a training batch.
        evaluation: (part, how many, from which on) -> batches.
        decay: weight decay of matrices.
    """

    name: str
    scale: Scale
    make: Callable[..., nn.Module]
    batch: Callable[[int, int], Batch]
    evaluation: Callable[..., Iterable[Batch]]
    decay: float

    def optimizers(self, model: nn.Module, rate: float, kind: str = "adamw") -> list[torch.optim.Optimizer]:
        """AdamW, with weight decay on matrices and kernels; "muon": Muon for the blocks' matrices."""
        by_muon = [p for p in model.blocks.parameters() if p.dim() == 2] if kind == "muon" else []
        rest = [p for p in model.parameters() if not any(p is other for other in by_muon)]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": self.decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        found: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
        ]
        if by_muon:
            scaled = {"adjust_lr_fn": "match_rms_adamw"}  # the learning rate means what it means for AdamW
            found.append(torch.optim.Muon(by_muon, lr=rate, weight_decay=self.decay, **scaled))
        return found

    def measure(
        self, model: nn.Module, part: str, count: int | None = None, first: int = 0, training: bool = False
    ) -> dict[str, float]:
        """Mean loss and share of right answers on the validation or test data; leaves the model training.

        On ``count`` pieces or images from the ``first`` on; on as many as the scale says where it is None.
        ``training``: whether the model is in train mode for it, where BatchNorm takes the batch's statistics.
        """
        if count is None:
            count = self.scale.test if part == "test" else self.scale.validation
        loss, right, total = 0.0, 0, 0
        model.train(training)
        with torch.no_grad():
            for x, y in self.evaluation(part, count, first=first):
                out, y = model(x).flatten(0, -2), y.flatten()
                loss += float(functional.cross_entropy(out, y, reduction="sum"))
                right += int((out.argmax(1) == y).sum())
                total += len(y)
        model.train()
        return {"loss": loss / total, "accuracy": right / total}

    def step_flops(self, depth: int) -> int:
        """What one training step of that depth costs."""
        model = self.make(depth)
        with flop_counter() as counting:
            loss_of(model, self.batch(0, 0)).backward()
        return counting.get_total_flops()

    def steps_for(self, depth: int, share: float) -> int:
        """How many steps of that depth cost ``share`` of the large network's N steps."""
        large = self.scale.steps * self.step_flops(LARGE)
        return max(2, round(share * large / self.step_flops(depth)))

    def forward_flops(self, depth: int) -> float:
        """What evaluating one piece or image costs at that depth."""
        with flop_counter() as counting, torch.no_grad():
            self.make(depth)(self.batch(0, 0)[0])
        return counting.get_total_flops() / self.scale.batch

    def steps_within(self, depth: int, share: float, points: int) -> int:
        """How many steps of that depth fit into ``share`` of the FLOPs of the large network's N steps.

        Evaluations included: those are ``points`` on the validation data and the last one on the test data.
        """
        evaluations = self.forward_flops(depth) * (points * self.scale.validation + self.scale.test)
        budget = share * self.scale.steps * self.step_flops(LARGE) - evaluations
        return max(2, int(budget // self.step_flops(depth)))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy, in nats."""
    x, y = batch
    return functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _gpt(name: str, read: Callable[[], data.Text], scale: Scale) -> Workload:
    text = read()
    piece = {"size": scale.batch, "context": scale.context}
    return Workload(
        name,
        scale,
        partial(GPT, vocabulary=data.VOCABULARY, context=scale.context),
        partial(text.batch, **piece),
        partial(text.evaluation, size=EVALUATED_AT_ONCE, context=scale.context),
        decay=0.1,
    )


def _images(name: str, network: type[nn.Module], scale: Scale) -> Workload:
    images = data.fashion()
    return Workload(
        name,
        scale,
        network,
        partial(images.batch, size=scale.batch),
        partial(images.evaluation, size=EVALUATED_AT_ONCE * 4),
        decay=0.05,
    )


MAKE: dict[str, Callable[[Scale], Workload]] = {
    "gpt": partial(_gpt, "gpt", data.sympy_text),
    "brown": partial(_gpt, "brown", data.brown_text),
    "long": partial(_gpt, "long", data.sympy_text),
    "cnn": partial(_images, "cnn", CNN),
    "thin": partial(_images, "thin", ThinCNN),
    "mlp": partial(_images, "mlp", MLP),
}


def workload(name: str, scale: Scale, **changes: Any) -> Workload:
    """The workload of that name; reads its data. Raises `prepare.DataError` where there is none."""
    return replace(MAKE[name](scale), **changes)
