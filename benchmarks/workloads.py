"""What is trained: an MLP, a CNN and a transformer, all small enough for a CPU, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import fxgraft


class MlpBlock(nn.Module):
    """``x + down(relu(up(x)))``."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.relu, self.down = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.relu(self.up(x)))  # type: ignore[no-any-return]


class ConvBlock(nn.Module):
    """The basic block of a ResNet (He et al., 2016), without a change of shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(x + self.bn2(self.conv2(h)))  # type: ignore[no-any-return]


def mlp_12() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 192), *(MlpBlock(192) for _ in range(12)), nn.Linear(192, 10))


def resnet() -> nn.Module:
    stages: list[nn.Module] = []
    for channels, narrower in ((16, 3), (32, 16)):
        stages += [nn.Conv2d(narrower, channels, 3, 2, padding=1), *(ConvBlock(channels) for _ in range(2))]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=3,
            n_embd=96,
            n_head=4,
            n_positions=64,
            vocab_size=256,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


@dataclass(frozen=True)
class Workload:
    """A model with one batch of training data, and where its seeds stand.

    Attributes:
        name: in tables and on the command line.
        make: a new model.
        example: the arguments of one call, positional and by name.
        classes: targets are drawn from so many.
        blocks: the modules that are compiled one by one, by region.
        places: modules behind whose outputs seeds may stand; the names of the slots.
        blueprint: of those seeds.
        config: of the blueprint.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    classes: int
    blocks: tuple[str, ...]
    places: tuple[str, ...]
    blueprint: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """A new model; all have equal weights."""
        torch.manual_seed(0)
        return self.make()

    def host(self) -> fxgraft.Host:
        """A new model, traced."""
        args, kwargs = self.example()
        return fxgraft.trace(self.model(), args, kwargs)

    def place(self, i: int) -> str:
        """Where the seed number ``i`` stands: once through all places, then from the first again."""
        return self.places[i % len(self.places)]


class Trainer:
    """The training loop: one call of `step` is one training step, always on the same batch.

    Args:
        workload: whose data it trains on.
        model: whose parameters are trained.
        call: the model, or its compiled form.

    Attributes:
        after: called at the end of each step.
        loss: of the last step.
    """

    def __init__(self, workload: Workload, model: nn.Module, call: Callable[..., Any]):
        self._call = call
        torch.manual_seed(1)
        self._args, self._kwargs = workload.example()
        self._classes = workload.classes
        self._targets: Tensor | None = None
        # So small a rate that the numbers, and with them the time for a step, stay what they are.
        self.optimizer = AdamW(model.parameters(), 1e-6)
        self.after: Callable[[], object] = lambda: None
        self.loss = torch.empty(())

    def step(self) -> None:
        """Forward, backward, optimizer, and what comes after."""
        self.optimizer.zero_grad()
        out = self._call(*self._args, **self._kwargs)
        logits = (out if isinstance(out, Tensor) else out.logits).flatten(0, -2)
        if self._targets is None:
            generator = torch.Generator().manual_seed(2)
            targets = torch.randint(self._classes, logits.shape[:1], generator=generator)
            self._targets = targets.to(logits.device)
        self.loss = nn.functional.cross_entropy(logits, self._targets)
        self.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.after()


def _random(*shape: int) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda: ((torch.randn(shape),), {})


def _tokens(batch: int, length: int) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda: ((), {"input_ids": torch.randint(256, (batch, length))})


def _each(pattern: str, numbers: Any) -> tuple[str, ...]:
    return tuple(pattern.format(i) for i in numbers)


_LAYERS = _each("transformer.h.{}", range(3))
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "MLP-12",
            mlp_12,
            _random(64, 64),
            10,
            _each("{}", range(1, 13)),
            _each("{}.relu", range(1, 13)),
            "mlp",
            {"hidden": 48},
        ),
        Workload(
            "ResNet",
            resnet,
            _random(16, 3, 32, 32),
            10,
            _each("{}", (1, 2, 4, 5)),
            _each("{}.relu1", (1, 2, 4, 5)),
            "conv_bottleneck",
        ),
        Workload(
            "GPT-2",
            gpt2,
            _tokens(8, 32),
            256,
            _LAYERS,
            tuple(f"{layer}.mlp.{part}" for layer in _LAYERS for part in ("act", "c_proj")),
            "mlp",
            {"hidden": 24},
        ),
    )
}
